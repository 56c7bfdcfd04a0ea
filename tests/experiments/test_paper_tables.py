"""The paper's tables as data."""

from __future__ import annotations

import csv
import math
import re

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from d2_smallobj.experiments import paper_tables as tables
from d2_smallobj.experiments.sweep import draw_gains
from d2_smallobj.statistics.ranking import rank_table


def ranked(table):
    return rank_table({row.method: row.figures for row in tables.load_published(table)})


@pytest.mark.parametrize(
    ("table", "rho", "printed", "places"),
    [
        # RCA and EDAM share the first place on VOC, AMN and BANA one on PASCAL-B.
        ("voc", 0.794, "0.79", [9, 8, 6, 7, 1.5, 1.5, 4, 5, 3]),
        ("pascal_b", 0.385, "0.38", [7, 4, 5.5, 9, 1, 2, 3, 5.5, 8]),
    ],
)
def test_the_papers_rank_correlation_comes_out(table, rho, printed, places):
    ranks = ranked(table)
    measured = ranks.spearman[0, 1]
    assert round(float(measured), 3) == rho
    assert f"{measured:.2f}" == printed
    expected = scipy.stats.spearmanr(ranks.values[:, 0], ranks.values[:, 1]).statistic
    assert measured == pytest.approx(expected, abs=1e-12)
    assert ranks.ranks[:, 1].tolist() == places
    text = tables.format_published(table)
    assert f"mIoU and IA-mIoU: {rho} (the paper prints {printed})." in text


def test_the_rows_are_the_papers():
    rows = tables.load_published()
    assert [sum(row.table == table for row in rows) for table in tables.TITLES] == [9, 9, 3, 3]
    figures = {(row.table, row.method): tuple(row.figures.values()) for row in rows}
    assert figures["voc", "RCA"] == (70.4, 60.7, 23.2)
    assert figures["pascal_b", "EDAM"] == (60.4, 45.2, 19.4)
    assert figures["coco", "DeepLabV2"] == (55.4, 33.5, 12.9)
    assert figures["ablation", "DeepLabV2 with L_SB"] == (78.4, 69.5, 24.4)
    # Column sums of the paper's Tables 1 to 4, so that no digit slips.
    totals = {
        "voc": [626.5, 530.7, 156.4],
        "pascal_b": [532.9, 380.0, 137.6],
        "coco": [139.7, 88.5, 33.7],
        "ablation": [233.7, 204.0, 66.2],
    }
    for table, expected in totals.items():
        columns = zip(*(values for (name, _), values in figures.items() if name == table))
        assert [round(sum(column), 1) for column in columns] == expected
    assert {row.loss for row in rows if row.table != "ablation"} == {"CE"}
    kinds = {"image", "image + language", "image + saliency", "box", "full"}
    assert {row.supervision for row in rows} == kinds
    with pytest.raises(ValueError, match=r"table: unknown value 'pascal'; .*mean 'pascal_b'"):
        tables.load_published("pascal")


def test_the_page_on_the_method_has_every_figure(repository):
    text = (repository / "docs" / "method.md").read_text(encoding="utf-8")
    block = text.split("<!-- table: published -->\n")[1].split("<!-- end -->")[0]
    shown = {}
    for line in block.splitlines()[2:]:
        method, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for column, cell in enumerate(cells):
            if cell:
                shown[method, column] = tuple(map(float, cell.split(" / ")))
    columns = {"voc": 0, "ablation": 0, "pascal_b": 1, "coco": 2}
    published = {}
    for row in tables.load_published():
        full = " (full supervision)" if (row.table, row.supervision) == ("coco", "full") else ""
        published[row.method + full, columns[row.table]] = tuple(row.figures.values())
    assert shown == published


SETS = {"voc": "voc_2012_seg_val", "pascal_b": "pascal_b_val", "coco": "coco_2014_val_81"}


def result(method, variant, seed, data_set, *values):
    figures = dict(zip(tables.PUBLISHED_FIGURES, values))
    return tables.RunResult(method, variant, seed, data_set, figures)


def published_as_ours():
    """The paper's own figures, as if we had measured them with one seed."""
    for row in tables.load_published():
        if row.table in SETS:
            name = "gt" if row.supervision == "full" else row.method.lower().replace("-", "")
            yield result(name, "CE", 0, SETS[row.table], *row.figures.values())


def read_csv(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_the_papers_tables_come_out_of_the_papers_figures(tmp_path):
    text = tables.write_paper_tables(tmp_path, list(published_as_ours()))
    assert text == (tmp_path / "paper_tables.md").read_text(encoding="utf-8")
    for table, name in (("voc", "table1"), ("coco", "table2"), ("pascal_b", "table3")):
        rows = read_csv(tmp_path / f"{name}.csv")
        published = tables.load_published(table)
        assert len(rows) == len(published)
        for row, expected in zip(rows, published):
            assert (row["method"], row["supervision"]) == (expected.method, expected.supervision)
            assert {key: float(row[key]) for key in expected.figures} == expected.figures
            assert (row["mIoU_sd"], row["seeds"]) == ("", "1")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    titles = ("1: PASCAL VOC 2012 val", "3: PASCAL-B", "2: MS COCO 2014 val")
    assert headings[:3] == [f"## Table {title}, CE" for title in titles]
    # Section 5.2 of the paper: 0.79 on VOC, 0.38 on PASCAL-B.
    assert "## Table 1" in text.split("IA-mIoU: 0.79")[0]
    assert "IA-mIoU: 0.38" in text.split("## Table 3")[1]
    line = next(x for x in text.splitlines() if x.startswith("| NS-ROM"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["NS-ROM", "image + saliency", "70.4", "60.2", "19.3", "1"]


# Two methods, three variants, two seeds; one run is missing.
OURS = [
    result("irn", "CE", 0, SETS["voc"], 60.0, 50.0, 10.0),
    result("irn", "CE", 1, SETS["voc"], 62.0, 50.0, 14.0),
    result("irn", "L_SW", 0, SETS["voc"], 59.0, 53.0, 15.0),
    result("irn", "L_SW", 1, SETS["voc"], 62.0, 54.0, 16.0),
    result("irn", "L_SB", 1, SETS["voc"], 63.0, 55.0, math.nan),
    result("my_labels", "CE", 0, SETS["voc"], 40.0, 30.0, 5.0),
    result("my_labels", "CE", 0, "other_val", 41.0, 31.0, 6.0),
]


def test_means_and_deviations_over_seeds(tmp_path):
    text = tables.write_paper_tables(tmp_path, OURS)
    text = re.sub(" +", " ", text)
    table1, other, table4, table4_other = text.split("## ")[1:]
    assert "| IRN | image | 61.0 ± 1.4 | 50.0 ± 0.0 | 12.0 ± 2.8 | 2 |" in table1
    assert "| my_labels | - |" in table1
    assert other.startswith("other_val, CE\n")
    assert table4.startswith("Table 4: ablation on PASCAL VOC 2012 val\n")
    assert "| IRN, L_SB | 63.0 | 55.0 | – | 1 |" in table4
    assert table4_other.startswith("Table 4: ablation on other_val\n")
    rows = read_csv(tmp_path / "table4.csv")
    variants = [f"{x['method']} {x['variant']} {x['seeds']}" for x in rows]
    assert variants == ["IRN CE 2", "IRN L_SW 2", "IRN L_SB 1", *["my_labels CE 1"] * 2]
    assert [x["data_set"] for x in rows] == [SETS["voc"]] * 4 + ["other_val"]
    assert (rows[1]["mIoU"], rows[1]["mIoU_sd"]) == ("60.5000", "2.1213")
    assert rows[2]["IA-mIoU_S"] == ""
    row = read_csv(tmp_path / "fig8.csv")[2]
    assert (row["figure"], row["gain"], row["gain_sd"]) == ("IA-mIoU_S", "3.5000", "2.1213")


def test_gains_are_paired_by_seed():
    gains = tables.measure_gains(OURS)
    assert {(g.method, g.variant) for g in gains} == {("IRN", "L_SW"), ("IRN", "L_SB")}
    by_figure = {(g.variant, g.figure): g for g in gains}
    assert by_figure["L_SW", "mIoU"].gains == (-1.0, 0.0)
    assert by_figure["L_SW", "IA-mIoU_S"].gains == (5.0, 2.0)
    # Only seed 1 has both runs.
    assert by_figure["L_SB", "mIoU"].baseline == 62.0
    assert by_figure["L_SB", "mIoU"].gains == (1.0,)


def test_few_results(tmp_path):
    # Spearman's rho needs three methods.
    few = [x for x in OURS if x.data_set == SETS["voc"]]
    assert "Spearman" not in tables.write_paper_tables(tmp_path, few)
    assert tables.write_paper_tables(tmp_path, []) == ""
    assert (tmp_path / "table4.csv").read_text().count("\n") == 1


def test_names_and_cells():
    names = ("nsrom", "NS-ROM", "voc_2012_trainaug_bana", "voc_2012_trainaug_gt", "mine")
    nsrom = ("NS-ROM", "image + saliency")
    expected = [nsrom, nsrom, ("BANA", "box"), ("DeepLabV2", "full"), ("mine", "-")]
    assert list(map(tables.method_name, names)) == expected
    assert (tables.set_title("pascal_b_val"), tables.set_title("mine")) == ("PASCAL-B", "mine")
    cells = map(tables.mean_and_deviation, ([2.0], [1.0, 2.0, 6.0], [1.0, math.nan]))
    assert list(cells) == ["2.0", "3.0 ± 2.6", "–"]


def test_figure_8(tmp_path):
    pytest.importorskip("matplotlib")
    draw_gains(tmp_path / "fig8.png", tables.measure_gains(OURS))
    picture = np.array(Image.open(tmp_path / "fig8.png").convert("RGB")).astype(int)
    for colour in ((0xAD, 0xB5, 0xBD), (0xD9, 0x48, 0x0F), (0x19, 0x71, 0xC2)):
        assert (np.abs(picture - colour).sum(axis=2) < 12).sum() > 500
