"""The variants of mixed supervision and their table."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from d2_smallobj.engine import build_config
from d2_smallobj.experiments.ablation import seed_table, write_tables
from d2_smallobj.experiments.mixed_supervision import (
    COLUMNS,
    KINDS,
    MixedSupervision,
    build_variants,
    foreground_iou,
)

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "demo_mixed.yaml")


@pytest.mark.parametrize(
    ("kind", "architecture", "fraction", "rest", "warmup", "loss"),
    [
        ("full", "SizeBalancedSegmentor", 1.0, "boxes", None, "cross_entropy"),
        ("masks", "SizeBalancedSegmentor", 0.18, "none", None, "cross_entropy"),
        ("boxes", "SizeBalancedSegmentor", 0.18, "boxes", None, "cross_entropy"),
        ("uncertainty", "UncertainSegmentor", 0.18, "boxes", 1.0, "cross_entropy"),
        ("bootstrap", "UncertainSegmentor", 0.18, "boxes", None, "cross_entropy"),
        ("bootstrap_sw", "UncertainSegmentor", 0.18, "boxes", None, "size_weighted"),
    ],
)
def test_what_each_variant_trains(kind, architecture, fraction, rest, warmup, loss):
    (variant,) = build_variants(0.18, 700, [kind])
    base, cfg = build_config(CONFIG), build_config(CONFIG, variant.options)
    assert architecture == cfg.MODEL.META_ARCHITECTURE
    node = cfg.SMALLOBJ
    assert (fraction, rest) == (node.SUPERVISION.MASK_FRACTION, node.SUPERVISION.REST)
    own = base.SMALLOBJ.UNCERTAINTY.BOOTSTRAP.WARMUP
    assert own < 1
    expected = own if warmup is None else warmup
    assert expected == node.UNCERTAINTY.BOOTSTRAP.WARMUP
    # One task from the first iteration on, without a penalty.
    assert (0, loss, 0.0) == (node.TASK_A.ITERS, node.TASK_B.LOSS, node.EWC.LAMBDA)
    assert not variant.shares_task_a


def test_the_size_balanced_variant_has_two_tasks():
    (variant,) = build_variants(0.18, 700, ["bootstrap_sb"])
    base, cfg = build_config(CONFIG), build_config(CONFIG, variant.options)
    assert cfg.MODEL.META_ARCHITECTURE == "UncertainSegmentor"
    node = cfg.SMALLOBJ
    assert (node.TASK_A.ITERS, cfg.SOLVER.MAX_ITER) == (350, 700)
    assert (node.TASK_A.LOSS, node.TASK_B.LOSS) == ("cross_entropy", "size_weighted")
    assert node.EWC == base.SMALLOBJ.EWC
    assert node.EWC.LAMBDA > 0
    assert node.UNCERTAINTY == base.SMALLOBJ.UNCERTAINTY
    assert not variant.shares_task_a


def test_the_share_has_the_classes_that_it_needs():
    assert all(
        build_config(CONFIG, v.options).SMALLOBJ.TEST.PER_CLASS for v in build_variants(0.18, 700)
    )
    assert not build_config(CONFIG).SMALLOBJ.TEST.PER_CLASS


def test_varied_keys_are_variants_of_their_own():
    key = "SMALLOBJ.UNCERTAINTY.BOOTSTRAP.THRESHOLD"
    variants = build_variants(0.18, 700, ["full"], {key: ["1.0", "3.0"]})
    assert [v.name for v in variants] == ["full", "threshold_1.0", "threshold_3.0"]
    assert variants[2].label.endswith("bootstrapped, THRESHOLD = 3.0")
    cfg = build_config(CONFIG, variants[2].options)
    assert cfg.SMALLOBJ.UNCERTAINTY.BOOTSTRAP.THRESHOLD == 3.0
    assert cfg.MODEL.META_ARCHITECTURE == "UncertainSegmentor"


def test_labels_name_the_shares():
    labels = {v.name: v.label for v in build_variants(0.18, 700)}
    assert tuple(labels) == KINDS
    assert labels["masks"] == "18 % masks only"
    assert labels["boxes"] == "18 % masks + 82 % boxes as masks"


def test_foreground_iou():
    figures = {"mIoU": 50.0, "IoU-background": 90.0, "IoU-a": 40.0, "IoU-b": 60.0, "IA-IoU-a": 1.0}
    assert foreground_iou(figures) == 50.0
    assert foreground_iou({**figures, "IoU-c": math.nan}) == 50.0
    assert math.isnan(foreground_iou({"mIoU": 1.0}))


def complete(folder, **figures):
    """A finished run with these IoUs."""
    folder.mkdir(parents=True)
    (folder / "model_final.pth").touch()
    noted = {"mIoU": 1.0, "IoU-background": 99.0, **{f"IoU-{k}": v for k, v in figures.items()}}
    (folder / "results.json").write_text(json.dumps({"B": {"set": noted}}))


@pytest.fixture
def comparison(tmp_path):
    def make(*kinds, seeds=(0, 1)):
        return MixedSupervision(
            train_net=Path("train_net.py"),
            config_file=CONFIG,
            output_dir=tmp_path,
            variants=build_variants(0.18, 700, kinds),
            seeds=seeds,
        )

    return make


def test_shares_are_taken_seed_by_seed(comparison, tmp_path):
    complete(tmp_path / "full_seed0", a=80.0, b=60.0)
    complete(tmp_path / "full_seed1", a=50.0, b=50.0)
    complete(tmp_path / "masks_seed0", a=70.0, b=56.0)
    complete(tmp_path / "masks_seed1", a=40.0, b=50.0)
    table = write_tables([comparison("full", "masks")], tmp_path, "mixed", COLUMNS)
    rows = list(csv.DictReader((tmp_path / "mixed.csv").read_text().splitlines()))
    assert list(rows[0]) == ["variant", "seed", "data set", *COLUMNS]
    assert [float(row["% of full"]) for row in rows] == [100, 100, 90, 90]
    assert [float(row["IoU_fg"]) for row in rows] == [70, 50, 63, 45]
    assert table == (tmp_path / "mixed.md").read_text()
    # 63 and 45: mean 54, sd 12.7; figures that the runs lack are dashes.
    assert "| set | 18 % masks only | 54.0 ± 12.7 | 90.0 ± 0.0 | 1.0 ± 0.0 | – |" in table


def test_without_full_supervision_there_is_no_share(comparison, tmp_path):
    complete(tmp_path / "masks_seed0", a=70.0)
    (row,) = comparison("masks", seeds=[0]).rows()
    assert row["IoU_fg"] == 70.0
    assert math.isnan(row["% of full"])


def test_the_share_needs_full_supervision_done_not_listed(comparison, tmp_path):
    complete(tmp_path / "full_seed0", a=80.0)
    complete(tmp_path / "masks_seed0", a=40.0)
    (row,) = comparison("masks", seeds=[0]).rows()
    assert row["% of full"] == 50.0


def test_incomplete_runs_are_not_in_the_table(comparison):
    assert list(comparison(*KINDS).rows()) == []
    assert len(seed_table([], COLUMNS).splitlines()) == 2
