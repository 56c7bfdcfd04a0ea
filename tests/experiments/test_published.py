"""The paper's tables as data."""

from __future__ import annotations

import pytest
import scipy.stats

from d2_smallobj.experiments.paper_tables import (
    PUBLISHED_FIGURES,
    TITLES,
    format_published,
    load_published,
    published_ranks,
)


@pytest.mark.parametrize(
    ("table", "rho", "printed"), [("voc", 0.794, "0.79"), ("pascal_b", 0.385, "0.38")]
)
def test_the_papers_rank_correlation_comes_out(table, rho, printed):
    ranks = published_ranks(table)
    assert round(float(ranks.spearman[0, 1]), 3) == rho
    assert f"{ranks.spearman[0, 1]:.2f}" == printed
    assert ranks.spearman[0, 1] == pytest.approx(
        scipy.stats.spearmanr(ranks.values[:, 0], ranks.values[:, 1]).statistic, abs=1e-12
    )
    text = format_published(table)
    assert f"mIoU and IA-mIoU: {rho} (the paper prints {printed})." in text


def test_the_rows_are_the_papers():
    rows = load_published()
    assert [sum(row.table == table for row in rows) for table in TITLES] == [9, 9, 3, 3]
    assert len(rows) == 24
    figures = {(row.table, row.method): tuple(row.figures.values()) for row in rows}
    assert figures["voc", "RCA"] == (70.4, 60.7, 23.2)
    assert figures["pascal_b", "EDAM"] == (60.4, 45.2, 19.4)
    assert figures["coco", "DeepLabV2"] == (55.4, 33.5, 12.9)
    assert figures["ablation", "DeepLabV2 with L_SB"] == (78.4, 69.5, 24.4)
    # Column sums of the paper's Tables 1 to 4, so that no digit slips.
    totals = {
        table: [
            round(sum(row.figures[name] for row in rows if row.table == table), 1)
            for name in ("mIoU", "IA-mIoU", "IA-mIoU_S")
        ]
        for table in TITLES
    }
    assert totals == {
        "voc": [626.5, 530.7, 156.4],
        "pascal_b": [532.9, 380.0, 137.6],
        "coco": [139.7, 88.5, 33.7],
        "ablation": [233.7, 204.0, 66.2],
    }
    assert {row.loss for row in rows if row.table != "ablation"} == {"CE"}
    assert {row.supervision for row in rows} == {
        *("image", "image + language", "image + saliency", "box", "full")
    }


def test_the_order_of_methods_changes_from_voc_to_pascal_b():
    best = {table: published_ranks(table).ranks[:, 1].tolist() for table in ("voc", "pascal_b")}
    # RCA and EDAM share the first place on VOC, AMN and BANA one on PASCAL-B.
    assert best["voc"] == [9, 8, 6, 7, 1.5, 1.5, 4, 5, 3]
    assert best["pascal_b"] == [7, 4, 5.5, 9, 1, 2, 3, 5.5, 8]


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match=r"table: unknown value 'pascal'; .*mean 'pascal_b'"):
        load_published("pascal")


def test_the_page_on_the_method_has_every_figure(repository):
    text = (repository / "docs" / "method.md").read_text(encoding="utf-8")
    block = text.split("<!-- table: published -->\n")[1].split("<!-- end -->")[0]
    columns = {"voc": 0, "ablation": 0, "pascal_b": 1, "coco": 2}
    shown = {}
    for line in block.splitlines()[2:]:
        method, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for column, cell in enumerate(cells):
            if cell:
                shown[method, column] = tuple(float(figure) for figure in cell.split(" / "))
    published = {}
    for row in load_published():
        full = " (full supervision)" if (row.table, row.supervision) == ("coco", "full") else ""
        figures = tuple(row.figures[name] for name in PUBLISHED_FIGURES)
        published[row.method + full, columns[row.table]] = figures
    assert shown == published
