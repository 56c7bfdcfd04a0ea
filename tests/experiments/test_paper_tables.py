"""Our results in the paper's layout."""

from __future__ import annotations

import csv
import math
import re

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.experiments.paper_tables import (
    RunResult,
    load_published,
    mean_and_deviation,
    measure_gains,
    method_name,
    set_title,
    write_paper_tables,
)
from d2_smallobj.experiments.sweep import draw_gains
from d2_smallobj.statistics.ranking import spearman

SETS = {"voc": "voc_2012_seg_val", "pascal_b": "pascal_b_val", "coco": "coco_2014_val_81"}


def result(method, variant, seed, data_set, *values):
    return RunResult(
        method, variant, seed, data_set, dict(zip(("mIoU", "IA-mIoU", "IA-mIoU_S"), values))
    )


def published_as_ours():
    """The paper's own figures, as if we had measured them with one seed."""
    for row in load_published():
        if row.table in SETS:
            name = "gt" if row.supervision == "full" else row.method.lower().replace("-", "")
            yield result(name, "CE", 0, SETS[row.table], *row.figures.values())


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_papers_tables_come_out_of_the_papers_figures(tmp_path):
    text = write_paper_tables(tmp_path, list(published_as_ours()))
    assert text == (tmp_path / "paper_tables.md").read_text(encoding="utf-8")
    for table, name in (("voc", "table1"), ("coco", "table2"), ("pascal_b", "table3")):
        rows = read_csv(tmp_path / f"{name}.csv")
        published = load_published(table)
        assert [(x["method"], x["supervision"]) for x in rows] == [
            (x.method, x.supervision) for x in published
        ]
        for row, expected in zip(rows, published):
            assert {key: float(row[key]) for key in expected.figures} == expected.figures
            assert (row["mIoU_sd"], row["seeds"]) == ("", "1")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[:3] == [
        "## Table 1: PASCAL VOC 2012 val, CE",
        "## Table 3: PASCAL-B, CE",
        "## Table 2: MS COCO 2014 val, CE",
    ]
    # Section 5.2 of the paper: 0.79 on VOC, 0.38 on PASCAL-B.
    assert "## Table 1" in text.split("IA-mIoU: 0.79")[0]
    assert "IA-mIoU: 0.38" in text.split("## Table 3")[1]
    line = next(x for x in text.splitlines() if x.startswith("| NS-ROM"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        *("NS-ROM", "image + saliency", "70.4", "60.2", "19.3", "1")
    ]


def ours():
    """Two methods, three variants, two seeds; one run is missing."""
    return [
        result("irn", "CE", 0, SETS["voc"], 60.0, 50.0, 10.0),
        result("irn", "CE", 1, SETS["voc"], 62.0, 50.0, 14.0),
        result("irn", "L_SW", 0, SETS["voc"], 59.0, 53.0, 15.0),
        result("irn", "L_SW", 1, SETS["voc"], 62.0, 54.0, 16.0),
        result("irn", "L_SB", 1, SETS["voc"], 63.0, 55.0, math.nan),
        result("my_labels", "CE", 0, SETS["voc"], 40.0, 30.0, 5.0),
        result("my_labels", "CE", 0, "other_val", 41.0, 31.0, 6.0),
    ]


def test_means_and_deviations_over_seeds(tmp_path):
    text = write_paper_tables(tmp_path, ours())
    text = re.sub(" +", " ", text)
    table1, other, table4, table4_other = text.split("## ")[1:]
    assert "| IRN | image | 61.0 ± 1.4 | 50.0 ± 0.0 | 12.0 ± 2.8 | 2 |" in table1
    assert "| my_labels | - |" in table1
    assert other.startswith("other_val, CE\n")
    assert table4.startswith("Table 4: ablation on PASCAL VOC 2012 val\n")
    assert "| IRN, L_SB | 63.0 | 55.0 | – | 1 |" in table4
    assert table4_other.startswith("Table 4: ablation on other_val\n")
    rows = read_csv(tmp_path / "table4.csv")
    assert [(x["data_set"], x["method"], x["variant"], x["seeds"]) for x in rows] == [
        (SETS["voc"], "IRN", "CE", "2"),
        (SETS["voc"], "IRN", "L_SW", "2"),
        (SETS["voc"], "IRN", "L_SB", "1"),
        (SETS["voc"], "my_labels", "CE", "1"),
        ("other_val", "my_labels", "CE", "1"),
    ]
    assert (rows[1]["mIoU"], rows[1]["mIoU_sd"]) == ("60.5000", "2.1213")
    assert rows[2]["IA-mIoU_S"] == ""


def test_gains_are_paired_by_seed(tmp_path):
    gains = measure_gains(ours())
    assert {(g.method, g.variant) for g in gains} == {("IRN", "L_SW"), ("IRN", "L_SB")}
    by_figure = {(g.variant, g.figure): g for g in gains}
    assert by_figure["L_SW", "mIoU"].gains == (-1.0, 0.0)
    assert by_figure["L_SW", "IA-mIoU_S"].gains == (5.0, 2.0)
    # Only seed 1 has both runs.
    assert by_figure["L_SB", "mIoU"].baseline == 62.0
    assert by_figure["L_SB", "mIoU"].gains == (1.0,)
    write_paper_tables(tmp_path, ours())
    row = read_csv(tmp_path / "fig8.csv")[2]
    assert (row["figure"], row["gain"], row["gain_sd"]) == ("IA-mIoU_S", "3.5000", "2.1213")


def test_nothing_complete_yet(tmp_path):
    assert write_paper_tables(tmp_path, []) == ""
    assert (tmp_path / "table4.csv").read_text().count("\n") == 1


def test_names():
    assert method_name("nsrom") == method_name("NS-ROM") == ("NS-ROM", "image + saliency")
    assert method_name("voc_2012_trainaug_bana") == ("BANA", "box")
    assert method_name("voc_2012_trainaug_gt") == ("DeepLabV2", "full")
    assert method_name("mine") == ("mine", "-")
    assert set_title("pascal_b_val") == "PASCAL-B"
    assert set_title("mine") == "mine"


def test_cells():
    assert mean_and_deviation([2.0]) == "2.0"
    assert mean_and_deviation([1.0, 2.0, 6.0]) == "3.0 ± 2.6"
    assert mean_and_deviation([1.0, math.nan]) == "–"


def test_spearman_needs_three_methods(tmp_path):
    text = write_paper_tables(tmp_path, [x for x in ours() if x.data_set == SETS["voc"]])
    assert "Spearman" not in text
    assert spearman([1, 2, 3], [1, 2, 3]) == 1.0


def test_figure_8(tmp_path):
    pytest.importorskip("matplotlib")
    draw_gains(tmp_path / "fig8.png", measure_gains(ours()))
    picture = np.array(Image.open(tmp_path / "fig8.png").convert("RGB")).astype(int)
    for colour in ((0xAD, 0xB5, 0xBD), (0xD9, 0x48, 0x0F), (0x19, 0x71, 0xC2)):
        assert (np.abs(picture - colour).sum(axis=2) < 12).sum() > 500
    with pytest.raises(ValueError, match="no gain to draw: no variant shares a seed with 'CE'"):
        draw_gains(tmp_path / "none.png", [])
    assert not (tmp_path / "none.png").exists()
