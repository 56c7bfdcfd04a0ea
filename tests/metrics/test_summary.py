"""From records to figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d2_smallobj.metrics import InstanceTable, PixelTable, summarize

NAMES = ["background", "cat", "dog"]


def make_table(rows):
    """Records from (image, instance, category, area, hit): nothing charged beyond the overlap."""
    image, instance, category, area, hit = zip(*rows) if rows else ([],) * 5
    columns = {"image_id": image, "instance_id": instance, "category_id": category}
    columns |= {"area": area, "pixels": area, "intersection": hit, "charged": hit}
    columns |= {"components": [1] * len(rows), "shared": [0] * len(rows)}
    return InstanceTable.from_columns({**columns, "image_area": [10**6] * len(rows)})


ROWS = [
    ("a", 0, 0, 50000, 50000),  # background 1.0
    ("b", 0, 0, 40000, 20000),  # background 0.5
    ("a", 1, 1, 100, 50),  # cat S 0.5
    ("a", 2, 1, 2000, 2000),  # cat M 1.0
    ("b", 1, 1, 200, 0),  # cat S 0.0
    ("b", 2, 2, 10000, 7500),  # dog L 0.75
]
# Rows ground truth: background 80 of 100, cat 30 of 40, no dog in the truth (predicted 10 px).
CONFUSION = PixelTable.concatenate(
    [
        PixelTable.from_confusion(np.array([[60, 10, 10], [0, 20, 0], [0, 0, 0]]), "a"),
        PixelTable.from_confusion(np.array([[20, 0, 0], [10, 10, 0], [0, 0, 0]]), "b"),
    ]
)
NOTHING = PixelTable.concatenate([])


def test_every_figure_by_hand():
    figures = summarize(make_table(ROWS), CONFUSION, NAMES)
    nan = math.nan
    expected = {
        # IoU 80 / (100 + 90 - 80) and 30 / (40 + 40 - 30); dog is absent from the truth.
        "mIoU": 100 * (80 / 110 + 30 / 50) / 2,
        # background (1 + 0.5) / 2, cat (0.5 + 1 + 0) / 3, dog 0.75
        "IA-mIoU": 100 * (0.75 + 0.5 + 0.75) / 3,
        "IA-mIoU_fg": 100 * (0.5 + 0.75) / 2,
        "IA-mIoU_S": 25.0,
        "IA-mIoU_M": 100.0,
        "IA-mIoU_L": 75.0,
        # Image a: background 60 / 80, cat 20 / 30; image b: 20 / 30 and 10 / 20.
        "mIoU_I": 100 * ((3 / 4 + 2 / 3) / 2 + (2 / 3 + 1 / 2) / 2) / 2,
        "mIoU_C": 100 * ((3 / 4 + 2 / 3) / 2 + (2 / 3 + 1 / 2) / 2) / 2,
        # The worse of two images.
        "mIoU_I@5": 100 * (2 / 3 + 1 / 2) / 2,
        "mIoU_C@5": 100 * (2 / 3 + 1 / 2) / 2,
        # Found: cat 0.5 and 1.0, dog 0.75, of four.
        "recall": 75.0, "recall_S": 50.0, "recall_M": 100.0, "recall_L": 100.0,
        "mRecall": 100 * (2 / 3 + 1) / 2,
        "mRecall_S": 50.0, "mRecall_M": 100.0, "mRecall_L": 100.0,
        "images": 2,
        "instances": 4, "instances_S": 2, "instances_M": 1, "instances_L": 1,
        "IoU-background": 100 * 80 / 110, "IA-IoU-background": 75.0, "instances-background": 2,
        "IoU-cat": 60.0, "IA-IoU-cat": 50.0,
        "IA-IoU_S-cat": 25.0, "IA-IoU_M-cat": 100.0, "IA-IoU_L-cat": nan,
        "instances-cat": 3, "instances_S-cat": 2, "instances_M-cat": 1, "instances_L-cat": 0,
        "IoU-dog": nan, "IA-IoU-dog": 75.0,
        "IA-IoU_S-dog": nan, "IA-IoU_M-dog": nan, "IA-IoU_L-dog": 75.0,
        "instances-dog": 1, "instances_S-dog": 0, "instances_M-dog": 0, "instances_L-dog": 1,
    }  # fmt: skip
    assert list(figures) == list(expected)
    assert figures == pytest.approx(expected, rel=1e-14, nan_ok=True)
    assert {type(value) for value in figures.values()} == {float}


def test_nothing_at_all_is_nan_not_zero():
    figures = summarize(make_table([]), NOTHING, NAMES)
    counts = {key for key in figures if key.startswith(("instances", "images"))}
    assert {figures[key] for key in counts} == {0.0}
    assert all(math.isnan(figures[key]) for key in set(figures) - counts)


def test_a_class_without_instances_is_nan_and_left_out():
    figures = summarize(make_table(ROWS[:4]), CONFUSION, NAMES)
    assert math.isnan(figures["IA-IoU-dog"])
    assert figures["instances-dog"] == 0
    assert figures["IA-mIoU_fg"] == figures["IA-IoU-cat"] == 75.0


def test_size_bins():
    """Own bins name the keys; what lies beyond the last one is in no size."""
    bins = {"tiny": 150, "rest": 3000}
    figures = summarize(make_table(ROWS), CONFUSION, NAMES, size_bins=bins)
    assert figures["IA-mIoU_tiny"] == figures["IA-IoU_rest-cat"] == 50.0
    assert [figures[f"instances{name}"] for name in ("", "_tiny", "_rest")] == [4, 1, 2]
    assert "IA-mIoU_S" not in figures
    # 500 px of background would be S.
    table = make_table([("a", 0, 0, 500, 500)])
    figures = summarize(table, PixelTable.from_confusion(np.diag([500, 0, 0]), "a"), NAMES)
    assert (figures["IA-mIoU"], figures["instances_S"]) == (100.0, 0)
    assert math.isnan(figures["IA-mIoU_S"])


def test_the_sum_does_not_round_along_the_way():
    # 0.1 added ten thousand times drifts; an exactly rounded sum does not.
    rows = [("a", i, 1, 10, 1) for i in range(1, 10001)]
    figures = summarize(make_table(rows), NOTHING, NAMES)
    assert figures["IA-IoU-cat"] == 10.0


@pytest.mark.parametrize(("rows", "names", "options", "message"), [
    (ROWS, NAMES[:2], {}, r"table: category_id must be in 0..1 for 2 .* got 2"),
    ([], NAMES[:1], {}, r"pixels: category_id must be in 0..0 for 1 .* got 2"),
    (ROWS, NAMES, {"stuff": [0, 3]}, r"stuff: class ids must be in 0..2, got \[3\]"),
    (ROWS, NAMES, {"worst": 0.5}, r"worst must be a whole number of percent .* got 0.5"),
    (ROWS, ["background", "cat", "cat"], {}, r"must be distinct, got .*'cat', 'cat'"),
    (ROWS, NAMES, {"size_bins": {"fg": 10}}, r"'fg' stands for .* got \['fg'\]"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(rows, names, options, message):
    with pytest.raises(ValueError, match=message):
        summarize(make_table(rows), CONFUSION, names, **options)
