"""How far the metric's conventions move its figures."""

import csv

import numpy as np
import pytest

from d2_smallobj.report import conventions
from d2_smallobj.report.conventions import CONVENTIONS, compare_conventions, perturbed
from d2_smallobj.report.labelled_images import LabelledImage

NAMES = ("background", "a", "b")


def scene():
    """Two instances of one class, their borders void, a third of another class."""
    instances = np.zeros((30, 60), np.uint8)
    for number, (top, left) in enumerate(((5, 5), (5, 17), (5, 35)), start=1):
        instances[top - 1 : top + 11, left - 1 : left + 11] = 255
        instances[top : top + 10, left : left + 10] = number
    semantic = np.array([0, 1, 1, 2] + [0] * 251 + [255], np.uint8)[instances]
    return semantic, instances


IMAGE = LabelledImage("a", scene)


def score(predict):
    (row,) = compare_conventions([IMAGE], {"p": predict}, NAMES)
    return row


@pytest.mark.parametrize("surplus", [20, 1])
def test_predicted_void_connects_and_official_cuts_shares(surplus):
    def predict(image_id, semantic, instances):
        # All void is class 1, which joins the two instances; surplus below the first one.
        guess = np.where(semantic == 255, 1, semantic)
        guess[16:18, 5:15].flat[:surplus] = 1
        return guess

    row = score(predict)
    exact, cleared = row.figures["exact"], row.figures["void dropped first"]
    # Joined, both pay half of the surplus; apart, and cut off from the first, nobody does.
    share = 100 / (100 + surplus / 2)
    assert exact["IA-mIoU_S"] == pytest.approx(100 * (share + 1) / 2)
    assert cleared["IA-mIoU_S"] == pytest.approx(100.0)
    assert exact["mIoU"] == cleared["mIoU"]
    if surplus == 1:
        # Half a pixel for each is cut to none.
        assert row.figures["official"]["IA-mIoU_S"] == 100.0
        assert (row.instances, row.differing) == (3, 2)
        assert row.largest == pytest.approx(100 * (1 - share))


def test_no_background_and_components():
    shift = perturbed(conventions.shifted, 3)
    row = score(shift)
    semantic, instances = scene()
    moved = shift("a", semantic, instances)
    truth = semantic == 0
    hit = np.count_nonzero(truth & (moved == 0))
    # Void counts nowhere, so what is missed of the background is lost to objects, and back.
    union = truth.sum() + np.count_nonzero((moved == 0) & (semantic != 0) & (semantic != 255))
    foreground = row.figures["no background"]["IA-mIoU"]
    expected = (2 * foreground + 100 * hit / union) / 3
    assert row.figures["exact"]["IA-mIoU"] == pytest.approx(expected)
    # Every instance is one component here.
    assert row.figures["components"] == pytest.approx(row.figures["exact"])


def test_perturbations():
    semantic, instances = scene()
    moved, less, more, closed = (
        perturbed(change, pixels)("a", semantic, instances)
        for change, pixels in (
            (conventions.shifted, 2),
            (conventions.eroded, 1),
            (conventions.dilated, 1),
            (conventions.merged, 3),
        )
    )
    assert (moved[7:17, 7:17] == 1).all()
    assert not moved[:7].any()
    # A 3 x 3 cross takes one pixel off every side of a square, less nothing at its corners.
    assert np.count_nonzero(less[instances == 1]) == 64
    assert np.count_nonzero(more == 2) == 100 + 4 * 10
    # The gap of two columns between the squares of class 1 is filled; class 2 stays alone.
    assert (closed[7:13, 5:27] == 1).all()
    assert not closed[:, 28:34].any()
    for prediction in (moved, less, more, closed):
        assert set(np.unique(prediction)) <= {0, 1, 2}
    # Classes do not grow into one another.
    semantic = np.array([[1, 1, 2, 2]], np.uint8)
    assert conventions.dilated(semantic, semantic, 2).tolist() == [[1, 1, 2, 2]]


def test_table_and_file(tmp_path):
    predictors = {"one": perturbed(conventions.shifted, 1), "two": perturbed(conventions.eroded, 1)}
    rows = compare_conventions([IMAGE], predictors, NAMES)
    table, changes = (
        [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
        for part in conventions.convention_table(rows).split("\n\n")
    )
    assert table[0] == ["IA-mIoU / IA-mIoU_S", "mIoU", *CONVENTIONS]
    assert [row[0] for row in (*table[2:], *changes[2:])] == ["one", "two"] * 2
    assert {len(row) for row in table} == {len(CONVENTIONS) + 2}
    conventions.write_conventions(tmp_path / "a.csv", rows)
    written = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert len(written) == 2 * len(CONVENTIONS) * 3
    assert float(written[0]["percent"]) == pytest.approx(rows[0].figures["exact"]["mIoU"])
