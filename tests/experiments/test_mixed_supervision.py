"""The variants of mixed supervision and their table."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from d2_smallobj.engine import build_config
from d2_smallobj.experiments import mixed_supervision as mixed
from d2_smallobj.experiments.ablation import write_tables

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "demo_mixed.yaml")


def configured(kind):
    """The config and that of a variant."""
    (variant,) = mixed.build_variants(0.18, 700, [kind])
    assert not variant.shares_task_a
    return build_config(CONFIG), build_config(CONFIG, variant.options)


CERTAIN, DOUBTED = "SizeBalancedSegmentor", "UncertainSegmentor"


@pytest.mark.parametrize(
    ("kind", "architecture", "fraction", "rest", "warmup", "loss"),
    [
        ("full", CERTAIN, 1.0, "boxes", None, "cross_entropy"),
        ("masks", CERTAIN, 0.18, "none", None, "cross_entropy"),
        ("boxes", CERTAIN, 0.18, "boxes", None, "cross_entropy"),
        ("uncertainty", DOUBTED, 0.18, "boxes", 1.0, "cross_entropy"),
        ("bootstrap", DOUBTED, 0.18, "boxes", None, "cross_entropy"),
        ("bootstrap_sw", DOUBTED, 0.18, "boxes", None, "size_weighted"),
    ],
)
def test_what_each_variant_trains(kind, architecture, fraction, rest, warmup, loss):
    base, cfg = configured(kind)
    assert architecture == cfg.MODEL.META_ARCHITECTURE
    node, own = cfg.SMALLOBJ, base.SMALLOBJ.UNCERTAINTY.BOOTSTRAP.WARMUP
    assert (fraction, rest) == (node.SUPERVISION.MASK_FRACTION, node.SUPERVISION.REST)
    assert own < 1
    # The share is a mean over classes.
    assert (base.SMALLOBJ.TEST.PER_CLASS, node.TEST.PER_CLASS) == (False, True)
    assert (warmup or own) == node.UNCERTAINTY.BOOTSTRAP.WARMUP
    # One task from the first iteration on, without a penalty.
    assert (0, loss, 0.0) == (node.TASK_A.ITERS, node.TASK_B.LOSS, node.EWC.LAMBDA)


def test_the_size_balanced_variant_has_two_tasks():
    base, cfg = configured("bootstrap_sb")
    assert cfg.MODEL.META_ARCHITECTURE == DOUBTED
    node = cfg.SMALLOBJ
    assert (node.TASK_A.ITERS, cfg.SOLVER.MAX_ITER) == (350, 700)
    assert (node.TASK_A.LOSS, node.TASK_B.LOSS) == ("cross_entropy", "size_weighted")
    assert (node.EWC, node.UNCERTAINTY) == (base.SMALLOBJ.EWC, base.SMALLOBJ.UNCERTAINTY)
    assert node.EWC.LAMBDA > 0


def test_names_and_labels():
    labels = {v.name: v.label for v in mixed.build_variants(0.18, 700)}
    assert tuple(labels) == mixed.KINDS
    assert labels["masks"] == "18 % masks only"
    assert labels["boxes"] == "18 % masks + 82 % boxes as masks"
    # Every value of a varied key is a variant.
    key = "SMALLOBJ.UNCERTAINTY.BOOTSTRAP.THRESHOLD"
    variants = mixed.build_variants(0.18, 700, ["full"], {key: ["1.0", "3.0"]})
    assert [v.name for v in variants] == ["full", "threshold_1.0", "threshold_3.0"]
    assert variants[2].label.endswith("bootstrapped, THRESHOLD = 3.0")
    cfg = build_config(CONFIG, variants[2].options)
    assert cfg.SMALLOBJ.UNCERTAINTY.BOOTSTRAP.THRESHOLD == 3.0
    assert cfg.MODEL.META_ARCHITECTURE == DOUBTED


def test_foreground_iou():
    figures = {"mIoU": 50.0, "IoU-background": 90.0, "IoU-a": 40.0, "IoU-b": 60.0, "IA-IoU-a": 1.0}
    assert mixed.foreground_iou(figures) == 50.0
    assert mixed.foreground_iou({**figures, "IoU-c": math.nan}) == 50.0
    assert math.isnan(mixed.foreground_iou({"mIoU": 1.0}))


def complete(folder, **figures):
    """A finished run with these IoUs."""
    folder.mkdir(parents=True)
    (folder / "model_final.pth").touch()
    noted = {"mIoU": 1.0, "IoU-background": 99.0, **{f"IoU-{k}": v for k, v in figures.items()}}
    (folder / "results.json").write_text(json.dumps({"B": {"set": noted}}))


def comparison(folder, *kinds, seeds=(0, 1)):
    variants = mixed.build_variants(0.18, 700, kinds)
    return mixed.MixedSupervision(CONFIG, folder, variants, seeds)


def test_shares_are_taken_seed_by_seed(tmp_path):
    figures = {"full_seed0": (80, 60), "full_seed1": (50, 50), "masks_seed0": (70, 56)}
    for name, (a, b) in {**figures, "masks_seed1": (40, 50)}.items():
        complete(tmp_path / name, a=a, b=b)
    table = write_tables([comparison(tmp_path, "full", "masks")], tmp_path, "mixed", mixed.COLUMNS)
    rows = list(csv.DictReader((tmp_path / "mixed.csv").read_text().splitlines()))
    assert list(rows[0]) == ["variant", "seed", "data set", *mixed.COLUMNS]
    assert [float(row["% of full"]) for row in rows] == [100, 100, 90, 90]
    assert [float(row["IoU_fg"]) for row in rows] == [70, 50, 63, 45]
    assert table == (tmp_path / "mixed.md").read_text()
    # 63 and 45: mean 54, sd 12.7; figures that the runs lack are dashes.
    assert "| set | 18 % masks only | 54.0 ± 12.7 | 90.0 ± 0.0 | 1.0 ± 0.0 | – |" in table


def test_the_share_needs_full_supervision_done_not_listed(tmp_path):
    complete(tmp_path / "masks_seed0", a=40.0)
    assert list(comparison(tmp_path, "full").rows()) == []
    (row,) = comparison(tmp_path, "masks", seeds=[0]).rows()
    assert row["IoU_fg"] == 40.0
    assert math.isnan(row["% of full"])
    complete(tmp_path / "full_seed0", a=80.0)
    (row,) = comparison(tmp_path, "masks", seeds=[0]).rows()
    assert row["% of full"] == 50.0
