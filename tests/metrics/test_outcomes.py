"""What happened to each instance: drawn cases, thresholds and sums."""

from __future__ import annotations

import numpy as np
import pytest

from d2_smallobj.metrics import (
    OUTCOMES,
    BlobTable,
    InstanceTable,
    blob_summary,
    classify,
    match_image,
    outcome_summary,
)

NAMES = ["background", "cat", "dog"]


def make(rows):
    """Records from (category, area, hit, charged, components, shared)."""
    category, area, hit, charged, components, shared = zip(*rows)
    columns = {"image_id": ["a"] * len(rows), "instance_id": range(len(rows))}
    columns |= {"category_id": category, "area": area, "pixels": area, "intersection": hit}
    columns |= {"charged": charged, "components": components, "shared": shared}
    return InstanceTable.from_columns({**columns, "image_area": [20000] * len(rows)})


TABLE = make([
    (0, 5000, 5000, 5000, 1, 0),  # background
    (1, 100, 50, 50, 3, 2),       # IoU 0.5: good, in however many pieces
    (1, 100, 49, 49, 1, 0),       # partial 0.49
    (1, 2000, 800, 800, 2, 0),    # fragmented 0.4
    (2, 100, 25, 25, 2, 1),       # merged before fragmented 0.25
    (2, 9216, 0, 0, 0, 0),        # missed
])  # fmt: skip


def named(table, **thresholds):
    return [OUTCOMES[code] for code in classify(table, **thresholds).tolist()]


def test_the_first_rule_that_holds_decides():
    assert named(TABLE) == ["good", "good", "partial", "fragmented", "merged", "missed"]
    assert classify(TABLE).dtype == np.int64
    assert classify(InstanceTable.concatenate([])).shape == (0,)


def test_thresholds_move():
    assert named(TABLE, good=0.49)[2] == "good"
    assert named(TABLE, good=0.9)[1] == "merged"
    assert named(TABLE, missed=0.25)[4] == "missed"


@pytest.mark.parametrize(
    "wrong", [{"good": 0.0}, {"good": 1.1}, {"missed": -0.1}, {"good": 0.2, "missed": 0.2}]
)
def test_thresholds_are_checked(wrong):
    with pytest.raises(ValueError, match=r"0 <= missed < good <= 1 must hold, got missed"):
        classify(TABLE, **wrong)


def test_drawn_cases():
    instances, guess = np.zeros((2, 12, 30), np.uint8)
    instances[2:8, 1:5], instances[2:8, 6:10] = 1, 2  # one blob over both: merged
    guess[0:11, 0:13] = 1
    instances[2:8, 16:21] = 3  # two slivers: fragmented
    guess[2:8, 16], guess[2:8, 20] = 1, 1
    instances[2:8, 24:29] = 4  # one sliver: partial
    guess[2:8, 24] = 1
    semantic = (instances > 0).astype(np.uint8)
    match = match_image(guess, semantic, instances, num_classes=2)
    assert named(match.table.select(match.table.category_id > 0)) == [
        "merged", "merged", "fragmented", "partial"
    ]  # fmt: skip
    assert match.table.shared.tolist() == [0, 1, 1, 0, 0]


def test_outcomes_by_class_and_size():
    summary = outcome_summary(TABLE, NAMES)
    count = {name: cell["instances"] for name, cell in summary["all"].items()}
    assert count == dict.fromkeys(OUTCOMES, 1)
    assert list(summary["all"]) == list(OUTCOMES)
    assert summary["all"]["fragmented"]["lost"] == 1 - 0.4
    assert summary["sizes"]["L"]["missed"] == {"instances": 1, "lost": 1.0}
    assert list(summary["classes"]) == ["cat", "dog"]
    dog = summary["classes"]["dog"]
    assert dog["all"]["merged"] == {"instances": 1, "lost": 0.75}
    assert dog["sizes"]["S"]["merged"] == {"instances": 1, "lost": 0.75}
    assert dog["sizes"]["M"]["merged"] == {"instances": 0, "lost": 0.0}
    assert summary["classes"]["cat"]["all"]["good"] == {"instances": 1, "lost": 0.5}


def test_instances_beyond_the_last_bin_count_in_all():
    summary = outcome_summary(TABLE, NAMES, {"S": 1024})
    assert summary["all"]["missed"]["instances"] == 1
    assert summary["sizes"] == {"S": summary["sizes"]["S"]}
    assert summary["sizes"]["S"]["missed"]["instances"] == 0


def test_blobs_by_class_and_size():
    columns = {"image_id": list("aab"), "category_id": [2, 1, 2], "area": [3, 5000, 40]}
    blobs = BlobTable.from_columns({**columns, "image_area": [20000] * 3})
    summary = blob_summary(blobs, NAMES)
    assert summary["all"] == {"blobs": 3, "pixels": 5043}
    assert summary["sizes"]["M"] == {"blobs": 1, "pixels": 5000}
    assert summary["classes"]["dog"]["sizes"]["S"] == {"blobs": 2, "pixels": 43}
    assert blob_summary(BlobTable.concatenate([]), NAMES)["all"] == {"blobs": 0, "pixels": 0}


def test_categories_need_names():
    with pytest.raises(ValueError, match=r"category_id must be in 0..1 for 2 classes, got 2"):
        outcome_summary(TABLE, NAMES[:2])
