"""A comparison as Markdown and CSV."""

import dataclasses
import math

import pytest

from d2_smallobj.report.comparison_tables import comparison_csv, format_comparison
from d2_smallobj.statistics.comparison import Comparison, PairedDifference
from d2_smallobj.statistics.intervals import FewInstances, Interval
from d2_smallobj.statistics.pairing import Difference
from d2_smallobj.statistics.ranking import rank_table
from d2_smallobj.utils.tables import markdown_table

NAN = math.nan
VALUES = {
    "a": {"mIoU": 70.125, "IA-mIoU_S": 1 / 3},
    "b|c": {"mIoU": 71.0, "IA-mIoU_S": NAN},
    "d": {"mIoU": 69.0, "IA-mIoU_S": 12.0},
}


@pytest.fixture
def comparison():
    def interval(value):
        return Interval(value, value - 1, value + 1) if value > 1 else Interval(value, NAN, NAN)

    intervals = {
        name: {figure: interval(value) for figure, value in figures.items()}
        for name, figures in VALUES.items()
    }
    return Comparison(
        names=tuple(VALUES),
        images=40,
        intervals=intervals,
        differences=(
            PairedDifference("a", "b|c", "mIoU", Difference(0.875, -0.5, 2.0, 0.0123), 0.0246),
            PairedDifference("a", "b|c", "IA-mIoU_S", Difference(NAN, NAN, NAN, NAN), NAN),
        ),
        ranks=rank_table(VALUES),
        few_instances=(FewInstances("cat", "S", 3), FewInstances("dog", "S", 0)),
        remarks=("Mind the gap.",),
        samples=500,
        seed=3,
        level=0.9,
    )


def test_markdown(comparison):
    text = format_comparison(comparison)
    assert "90 % intervals (percentile bootstrap over 40 images, 500 resamples, seed 3)" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| a | 70.12 [69.12, 71.12] | 0.33 |" in lines
    assert r"| b\|c − a | mIoU | +0.88 | [-0.50, 2.00] | 0.0123 | 0.0246 |" in lines
    assert r"| b\|c − a | IA-mIoU_S | - | - | - | - |" in lines
    assert "adjusted: for 1 tests (Holm)" in text
    assert r"| b\|c | 71.00 (1) | - (-) |" in lines
    # Two methods are left for the second figure, and they are ranked the other way round.
    assert "| mIoU | 1.000 / 1.000 | -1.000 / -1.000 |" in lines
    assert lines[-4:] == [
        "",
        "- IA-mIoU_S rests on fewer than 10 instances of each of 1 class(es): cat (3).",
        "- IA-mIoU_S leaves out 1 class(es) without such an instance.",
        "- Mind the gap.",
    ]


def test_markdown_of_one_method_alone(comparison):
    alone = dataclasses.replace(
        comparison,
        names=("a",),
        intervals={"a": comparison.intervals["a"]},
        differences=(),
        ranks=rank_table({"a": VALUES["a"]}),
        few_instances=(),
        remarks=(),
    )
    text = format_comparison(alone)
    assert not any(word in text for word in ("Paired", "Spearman", "Beware"))


def test_csv_keeps_every_bit(comparison):
    # kind, method, other, figure, other figure, value, low, high, rank, p, p adjusted
    _, *figures, first, second, rho, tau = comparison_csv(comparison).splitlines()
    assert figures == [
        "figure,a,,mIoU,,70.125,69.125,71.125,2.0,,",
        "figure,a,,IA-mIoU_S,,0.3333333333333333,,,2.0,,",
        "figure,b|c,,mIoU,,71.0,70.0,72.0,1.0,,",
        "figure,b|c,,IA-mIoU_S,,,,,,,",
        "figure,d,,mIoU,,69.0,68.0,70.0,3.0,,",
        "figure,d,,IA-mIoU_S,,12.0,11.0,13.0,1.0,,",
    ]
    assert first == "difference,b|c,a,mIoU,,0.875,-0.5,2.0,,0.0123,0.0246"
    assert second == "difference,b|c,a,IA-mIoU_S,,,,,,,"
    assert rho == "spearman,,,mIoU,IA-mIoU_S,-1.0,,,,,"
    assert tau == "kendall,,,mIoU,IA-mIoU_S,-1.0,,,,,"


def test_names_cannot_break_a_table():
    assert markdown_table(["a|b", "n"], [["x\ny\\", "1"]]).splitlines() == [
        r"| a\|b   |   n |",
        r"|:-------|----:|",
        r"| x y\\  |   1 |",
    ]
