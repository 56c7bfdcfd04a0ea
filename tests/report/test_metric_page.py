"""docs/metric.md says what the library computes, and its pictures can be drawn anew."""

from __future__ import annotations

import re
import shutil
import sys

import draw_metric
import matplotlib
import numpy as np
import pytest
from metric_drawings import draw_matching, draw_outcomes, draw_pooling
from metric_examples import example_tables, matching_example, outcome_example, pooling_examples
from PIL import Image

from d2_smallobj.annotations.classes import VOC_CLASS_NAMES
from d2_smallobj.annotations.truth import folder_truth
from d2_smallobj.metrics import OUTCOMES, classify
from d2_smallobj.report.conventions import PERTURBATIONS, compare_conventions, convention_table
from d2_smallobj.report.labelled_images import truth_images

MATPLOTLIB = matplotlib.__version_info__[:2]


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "docs" / "metric.md").read_text(encoding="utf-8")


def block(page, name):
    found = re.search(rf"<!-- table: {name} -->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert found, f"docs/metric.md has no block {name}"
    return found.group(1)


def test_numbers_on_real_images(page, realdata):
    folder = realdata / "voc" / "VOC2012"
    truth = folder_truth(folder / "SegmentationClass", folder / "SegmentationObject")
    rows = compare_conventions(truth_images(truth, 21), PERTURBATIONS, VOC_CLASS_NAMES)
    assert block(page, "voc") == convention_table(rows)
    assert f"on {len(truth.images)} real VOC images" in page


def test_arithmetic_in_the_text(page):
    claims = re.findall(r"`([\d.*/ ]+) = ([\d.]+)`", page)
    assert len(claims) >= 3
    for expression, value in claims:
        assert round(eval(expression), len(value.partition(".")[2])) == float(value)


def test_what_is_said_about_official_mode(page):
    found = re.search(r"at most ([\d.]+) of IA-mIoU and\n([\d.]+) of IA-mIoU_S", page)
    allowed = [float(value) for value in found.groups()]
    moved = [0.0, 0.0]
    for name in ("voc", "demo"):
        for line in block(page, name).split("\n\n")[0].splitlines()[2:]:
            exact, official = (cell.split("/") for cell in line.split("|")[3:5])
            for k in range(2):
                moved[k] = max(moved[k], abs(float(exact[k]) - float(official[k])))
    # The cells are rounded to 0.01 each.
    assert all(high - 0.02 < value < high + 0.0101 for value, high in zip(moved, allowed))


def test_the_examples_show_what_the_page_says(page):
    for name, table in example_tables().items():
        assert block(page, name) == table
    one, two = pooling_examples().values()
    assert one.figures["IoU-object"] == two.figures["IoU-object"]
    assert one.figures["IA-IoU-object"] == 25.0
    outcome = outcome_example()
    table = outcome.match.table
    table = table.select(table.category_id > 0)
    assert [OUTCOMES[k] for k in classify(table)] == list(outcome.names)
    assert len(outcome.match.blobs) == 1
    matching = matching_example().match
    # The case "merged" of docs/method.md#instance-aware-iou, beside a missed instance and a blob.
    assert matching.table.iou[1:3] == pytest.approx([300 / 616] * 2)
    assert matching.blobs.area.tolist() == [112]


def test_pictures_and_page_can_be_renewed(repository, tmp_path, monkeypatch):
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(repository / "docs" / "metric.md", docs)
    monkeypatch.setattr(sys, "argv", ["draw_metric.py", "--docs", str(docs)])
    draw_metric.main()
    pictures = sorted(file.name for file in docs.glob("*.png"))
    committed = sorted(file.name for file in (repository / "docs").glob("metric_*.png"))
    assert (pictures, len(pictures)) == (committed, 5)
    for name in pictures:
        assert (docs / name).stat().st_size < 100_000
        drawn, committed = (Image.open(folder / name) for folder in (docs, repository / "docs"))
        if MATPLOTLIB < (3, 9):
            continue  # its margins differ
        assert drawn.size == committed.size
        # Another matplotlib sets letters otherwise; the picture stays the same.
        pixels = [np.asarray(picture.convert("L"), float) for picture in (drawn, committed)]
        assert np.abs(pixels[0] - pixels[1]).mean() < 2
    assert (docs / "metric.md").read_bytes() == (repository / "docs" / "metric.md").read_bytes()
    drawings = {"pooling": draw_pooling, "matching": draw_matching, "outcomes": draw_outcomes}
    for name, draw in drawings.items():
        draw(tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == (docs / f"metric_{name}.png").read_bytes()
    (docs / "metric.md").write_text("<!-- table: pooling -->\nx\n<!-- end -->\n")
    message = r"no block <!-- table: NAME --> for \['matching', 'outcomes'\]"
    with pytest.raises(SystemExit, match=message):
        draw_metric.main()
