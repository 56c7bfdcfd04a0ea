"""``tools/mixed_supervision.py`` and ``tools/predict.py --uncertainty`` from end to end."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from d2_smallobj.experiments import mixed_supervision as mixed
from d2_smallobj.experiments.ablation import run_all
from d2_smallobj.experiments.mixed_supervision import KINDS, write_all_tables

MIXED = {
    "SMALLOBJ.SUPERVISION.NUM_IMAGES": 0,
    "SMALLOBJ.SUPERVISION.MASK_FRACTION": 0.5,
    "SMALLOBJ.SUPERVISION.SPLIT_SEED": 0,
    "SMALLOBJ.UNCERTAINTY.BOOTSTRAP.THRESHOLD": 0.4,
    "SMALLOBJ.PICTURES.PERIOD": 0,
}
# What the tiny net's options say about tasks and EWC is the comparison's own matter.
LEFT_OUT = ("SMALLOBJ.TASK_A.ITERS", "SMALLOBJ.EWC.STEP", "SMALLOBJ.EWC.LAMBDA")
BINARY = {
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
    "DATASETS.TRAIN": "('smallobj_demo_train_gt:any',)",
    "DATASETS.TEST": "('smallobj_demo_val:any',)",
}


@pytest.fixture
def options(tiny):
    """The tiny net's options for this comparison."""
    kept = {key: value for key, value in tiny.options.items() if key not in LEFT_OUT}
    return {**kept, **MIXED}


@pytest.fixture
def compare(tiny, options, tmp_path):
    def make(*kinds, varied=None, more=None):
        return mixed.MixedSupervision(
            config_file=str(tiny.repository / "configs" / "demo_mixed.yaml"),
            output_dir=tmp_path / "mixed",
            variants=mixed.build_variants(0.5, 4, kinds, varied),
            seeds=[3],
            options=tuple(tiny.as_options(options, more or {})),
        )

    return make


@pytest.mark.slow
def test_the_comparison(compare, runner, tmp_path):
    varied = {"SMALLOBJ.UNCERTAINTY.FORM": ["per_class", "object"]}
    comparison = compare(*KINDS, varied=varied)
    run_all([comparison])
    table = write_all_tables([comparison], tmp_path / "mixed")
    expected = [f"{name}_seed3" for name in (*KINDS, "form_per_class", "form_object")]
    assert runner.started == expected
    rows = list(csv.DictReader((tmp_path / "mixed/mixed.csv").read_text().splitlines()))
    assert [row["variant"] for row in rows] == [v.label for v in comparison.variants]
    assert float(rows[0]["% of full"]) == 100
    assert len(table.splitlines()) == 2 + len(expected)
    gains = list(csv.DictReader((tmp_path / "mixed/gains.csv").read_text().splitlines()))
    gained = {row["variant"]: row["gain"] for row in gains if row["figure"] == "mIoU"}
    assert [name for name, gain in gained.items() if not gain] == [comparison.variants[4].label]
    # Every variant is a training of its own.
    assert len({row["mIoU"] for row in rows}) >= 6

    runner.started.clear()
    again = compare(*KINDS, varied=varied)
    run_all([again])
    assert runner.started == []
    assert write_all_tables([again], tmp_path / "mixed") == table


def test_a_binary_task(compare, runner):
    comparison = compare("bootstrap", more=BINARY)
    run_all([comparison])
    (row,) = comparison.rows()
    assert row["data set"] == "smallobj_demo_val:any"
    assert 0 <= row["IoU_fg"] <= 100


@pytest.fixture
def ask(train_server, tiny):
    config = tiny.repository / "configs" / "demo_mixed.yaml"

    def run(tool, *arguments):
        script = tiny.repository / "tools" / f"{tool}.py"
        return train_server.ask(script, "--config-file", config, *arguments)

    return run


NO_MASKS = "MASK_FRACTION must be below 1 to compare masks with boxes, got 1"
NO_TAU = "SMALLOBJ.TAU must be a finite number >= 1 (1 is the plain cross-entropy), got 0.5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("SMALLOBJ.SUPERVISION.MASK_FRACTION 1.0", NO_MASKS),
        ("--vary SMALLOBJ.UNCERTAINTY.FORM=none", "unknown value 'none'"),
        ("--vary SMALLOBJ.UNCERTAINTY.FROM=object", "Non-existent key"),
        ("--vary SMALLOBJ.TAU=2.0 --vary SMALLOBJ.TAU=0.5", NO_TAU),
        ("--vary SMALLOBJ.TAU=0.5 --vary SMALLOBJ.TAU=2.0", NO_TAU),
    ],
)
def test_mistakes_are_one_line(ask, tmp_path, arguments, message):
    answer = ask("mixed_supervision", "--output", tmp_path, *arguments.split())
    assert answer.code == 1
    assert answer.stderr.startswith("error: ")
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_sigma_maps_of_predictions(ask, runner, compare, options, tiny, tmp_path):
    run_all([compare("uncertainty")])
    options["MODEL.WEIGHTS"] = tmp_path / "mixed/uncertainty_seed3/model_final.pth"
    command = ("predict", "--output", tmp_path / "out", "--uncertainty")
    answer = ask(*command, *tiny.as_options(options))
    assert answer.code == 0, answer.stderr
    sigma = np.load(tmp_path / "out/uncertainty/val_00000.npy", allow_pickle=False)
    assert (sigma.shape, sigma.dtype) == ((64, 64), np.float16)
    assert (sigma > 0).all()
    assert (tmp_path / "out/uncertainty/val_00003.png").exists()

    options["MODEL.META_ARCHITECTURE"] = "SizeBalancedSegmentor"
    answer = ask(*command, *tiny.as_options(options))
    assert answer.code == 1
    assert "error: " in answer.stderr
    assert "Traceback" not in answer.stderr
