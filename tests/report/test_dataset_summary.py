"""Figures and tables of data sets by class and size."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.report import dataset_summary
from d2_smallobj.report.dataset_summary import draw_class_bars, draw_size_boxes, format_counts
from d2_smallobj.statistics.balance import SizeStatistics


def make(name, counts, **more):
    counts = np.asarray(counts)
    names = tuple(f"class{number}" for number in range(len(counts)))
    sizes = ("S", "M", "L")[: counts.shape[1]]
    return SizeStatistics(name, more.pop("names", names), sizes, counts, 10, **more)


SKEWED = make("skewed", [[50, 3, 1], [2, 2, 2], [0, 1, 4], [1, 0, 3], [3, 5, 90]])
EVEN = make("even", [[5, 5, 5]] * 5)


@pytest.fixture
def figure_of(monkeypatch):
    """Draw, and return the figure instead of writing it."""

    def draw(function, sets, **options):
        kept = []
        monkeypatch.setattr(dataset_summary, "save_figure", lambda figure, _: kept.append(figure))
        function("unused.png", sets, **options)
        return kept[0]

    return draw


def test_bars_are_sorted_and_named(figure_of):
    axes = figure_of(draw_class_bars, [SKEWED, EVEN]).axes
    assert len(axes) == 6
    heights = [[patch.get_height() for patch in axis.patches] for axis in axes]
    assert heights[:3:2] == [[50, 3, 2, 1, 0], [90, 4, 3, 2, 1]]
    names = [label.get_text() for label in axes[0].get_xticklabels()]
    assert names == ["class0", "class4", "class1", "class3", "class2"]
    assert [axes[n].get_title() for n in (2, 5)] == ["skewed, L: 100", "even, L: 25"]
    # A class without instances of a size is told by its colour.
    *colors, empty = [label.get_color() for label in axes[0].get_xticklabels()]
    assert empty not in {*colors}
    assert len({*colors}) == 1


@pytest.mark.parametrize("log", [False, True])
def test_no_bar_and_no_point_is_cut_off(figure_of, log):
    # The highest value lies neither in the first panel nor in the first set.
    sets = [EVEN, SKEWED]
    axes = figure_of(draw_class_bars, sets, log=log).axes[3:]
    for axis in (*axes, *figure_of(draw_size_boxes, sets, log=log).axes):
        assert axis.get_ylim()[0] == 0
        assert axis.get_ylim()[1] > 90
        assert axis.get_yscale() == ("symlog" if log else "linear")


def test_boxes_span_the_quartiles_and_outliers_are_named(figure_of):
    axis, other = figure_of(draw_size_boxes, [SKEWED, EVEN]).axes
    for column, box in enumerate(axis.patches):
        edges = box.get_path().vertices[:, 1]
        expected = np.percentile(SKEWED.counts[:, column], [25, 75])
        assert [edges.min(), edges.max()] == pytest.approx(expected)
    outliers = {text.get_text(): text.xy for text in axis.texts}
    assert outliers == {"class0": (1, 50), "class4": (3, 90)}
    assert not other.texts
    assert axis.get_title().startswith("skewed\nentropy 0.")
    assert other.get_title() == "even\nentropy 1.000, variation 0.00"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["S", "M", "L"]


def test_equal_and_many_outliers_do_not_hide_each_other(figure_of):
    def names(*outliers):
        counts = np.array([[*outliers, *[1] * 45]]).T
        (axis,) = figure_of(draw_size_boxes, [make("x", counts)]).axes
        return [text.get_text() for text in axis.texts]

    assert names(30, 30, 40, 40, 40) == ["3 classes", "class0, class1"]
    assert names(*range(50, 58)) == ["class7", "class6", "class5", "class4", "class3"]


def test_of_many_classes_the_most_frequent_are_drawn(figure_of):
    counts = np.zeros((41, 1), int)
    counts[:7] = 2
    figure = figure_of(draw_class_bars, [make("many", counts)])
    assert figure.axes[0].get_xlabel() == "1 more classes with 0 instances (all: counts.csv)"
    assert len(figure.axes[0].patches) == len(figure.axes[0].get_xticklabels()) == 40
    assert figure.get_figwidth() < 30


@pytest.mark.parametrize(("draw", "log"), [(draw_class_bars, False), (draw_size_boxes, True)])
def test_files_are_pngs_and_the_same_every_time(tmp_path, draw, log):
    hostile = make("a $x_1$ <b>", SKEWED.counts, names=("$\\frac{", "^_^", "ä", "\\", "$"))
    empty = make("empty", np.zeros((2, 3), int))
    for path in (tmp_path / "a.png", tmp_path / "b.png"):
        draw(path, [hostile, empty], log=log)
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 5
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_csv(tmp_path):
    odd = make("odd, one", [[1, 2, 3]], names=('a "name", with everything',))
    dataset_summary.write_counts(tmp_path / "counts.csv", [SKEWED, odd])
    found = rows(tmp_path / "counts.csv")
    assert list(found[0]) == ["data set", "class", "S", "M", "L", "all"]
    assert list(found[0].values()) == ["skewed", "class0", "50", "3", "1", "54"]
    assert list(found[-1].values()) == ["odd, one", 'a "name", with everything', *"1236"]
    assert sum(int(row["all"]) for row in found[:-1]) == SKEWED.counts.sum()
    dataset_summary.write_balance(
        tmp_path / "balance.csv", [EVEN, make("none", [[0, 0, 0]], num_beyond=4)]
    )
    even, none = (",".join(row.values()) for row in rows(tmp_path / "balance.csv"))
    assert even == "even,10,75,25,25,25,0,5,15,0,1.000000,0.000000"
    assert none == "none,10,0,0,0,0,4,1,3,3,,"


def cells(text):
    """The cells of a Markdown table by row, without its rule."""
    lines = [line for line in text.splitlines() if line.startswith("|") and ":--" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_text():
    table = cells(format_counts(SKEWED))
    names = ["skewed", "class4", "class0", "class1", "class2", "class3", "all classes"]
    assert [row[0] for row in table] == names
    assert table[-1][1:] == ["56", "11", "100", "167"]
    # Several classes without instances are one row.
    assert "class1" in format_counts(make("x", [[1, 2, 3], [0, 0, 0]]))
    table = cells(format_counts(make("x", [[0, 0, 0], [1, 2, 3], [0, 0, 0]])))
    assert [row[0] for row in table[1:]] == ["class1", "2 more classes", "all classes"]
    text = dataset_summary.format_balance([SKEWED, make("none", [[0, 0, 0]], num_beyond=1234)])
    _, skewed, none = cells(text)
    assert skewed[:4] == ["skewed", "10", "167", "2 of 15"]
    assert none == ["none", "10", "0", "3 of 3", "-", "-"]
    assert "none: 1,234 instances lie beyond the last size" in text
    assert "skewed:" not in text
