"""The tables of the paper "Small Objects Matters": its published figures, and our own results."""

from __future__ import annotations

import csv
import dataclasses
import importlib.resources
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from d2_smallobj.statistics.ranking import format_rank_table, rank_table, spearman
from d2_smallobj.utils.files import atomic_write_text, write_csv
from d2_smallobj.utils.messages import look_up_option
from d2_smallobj.utils.tables import markdown_table

PUBLISHED_FIGURES = ("mIoU", "IA-mIoU", "IA-mIoU_S")
TITLES: Mapping[str, str] = {
    "voc": "Table 1: PASCAL VOC 2012 val, cross-entropy",
    "pascal_b": "Table 3: PASCAL-B, cross-entropy",
    "coco": "Table 2: MS COCO, cross-entropy",
    "ablation": "Table 4: ablation on PASCAL VOC 2012 val, full supervision",
}
# Spearman's rho between mIoU and IA-mIoU as the paper prints it (section 5.2).
_PRINTED_RHO: Mapping[str, float] = {"voc": 0.79, "pascal_b": 0.38}

TABLES: Mapping[str, tuple[str, str]] = {
    "voc_2012_seg_val": ("table1", "Table 1: PASCAL VOC 2012 val"),
    "coco_2014_val_81": ("table2", "Table 2: MS COCO 2014 val"),
    "pascal_b_val": ("table3", "Table 3: PASCAL-B"),
}
"""File and title of the methods' table, by data set; others have the data set's name."""
FULL_SUPERVISION = ("DeepLabV2", "full")
"""The paper's method and supervision of training on ground truth."""
BASELINE = "CE"
"""The variant of Tables 1 to 3, with which the others are compared."""


@dataclasses.dataclass(frozen=True)
class PublishedResult:
    """One row of a published table; figures in percent, :data:`PUBLISHED_FIGURES`."""

    table: str  # one of TITLES
    data_set: str  # of the evaluation
    method: str  # name as docs/method.md#published-figures gives it
    supervision: str  # image, image + language, image + saliency, box or full
    loss: str  # CE, L_SW or L_SB
    figures: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The figures of one run on one data set: percent by figure, NaN where undefined."""

    method: str  # what made its training labels, e.g. "irn", or "gt"
    variant: str  # the loss, e.g. "CE"
    seed: int
    data_set: str  # of the evaluation, by its registered name
    figures: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Gain:
    """The change of a figure by a variant against the baseline; one bar of Fig. 8."""

    data_set: str
    method: str
    variant: str
    figure: str
    baseline: float  # mean of the baseline over the common seeds, percent
    value: float  # mean of the variant over them
    gains: tuple[float, ...]  # the difference of every common seed


def load_published(table: str | None = None) -> list[PublishedResult]:
    """Read the rows of a table of :data:`TITLES`, or of all, in the paper's order.

    Raises ValueError if there is no such table.
    """
    if table is not None:
        look_up_option("table", table, TITLES)
    source = importlib.resources.files("d2_smallobj.experiments") / "published_tables.csv"
    rows = csv.DictReader(source.read_text(encoding="utf-8").splitlines())
    return [
        PublishedResult(
            **{key: row[key] for key in ("table", "data_set", "method", "supervision", "loss")},
            figures={name: float(row[name]) for name in PUBLISHED_FIGURES},
        )
        for row in rows
        if table in (None, row["table"])
    ]


def format_published(table: str) -> str:
    """Lay out a published table with ranks and rank correlations as Markdown.

    Raises ValueError if there is no such table.
    """
    rows = load_published(table)
    ranks = rank_table({row.method: row.figures for row in rows})
    methods = {row.method: row.supervision for row in rows}
    shown = format_rank_table(ranks, extra=("supervision", methods), form=".1f")
    rho = ranks.spearman[0, 1]
    sentence = f"Spearman's rho between {ranks.figures[0]} and {ranks.figures[1]}: {rho:.3f}"
    if table in _PRINTED_RHO:
        sentence += f" (the paper prints {_PRINTED_RHO[table]})"
    return f"## {TITLES[table]}\n\n{shown}\n\n{sentence}.\n"


def write_paper_tables(folder: Path, results: Sequence[RunResult]) -> str:
    """Write ``paper_tables.md`` (returned), every table of it as CSV, and ``fig8.csv``.

    Tables 1 to 3 have a row per method, trained with the baseline; Table 4 has a row per variant.
    Cells are means ± sample standard deviations over seeds. Methods and variants stand in the
    order of the results.
    """
    sections = []
    data_sets = _in_order(result.data_set for result in results)
    for data_set in data_sets:
        plain = [x for x in results if (x.data_set, x.variant) == (data_set, BASELINE)]
        if plain:
            name, title = TABLES.get(data_set, (f"table_{data_set}", data_set))
            groups = _grouped(plain, lambda x: method_name(x.method))
            _write_figures(folder / f"{name}.csv", ("method", "supervision"), groups)
            table = _markdown(("Method", "Sup."), groups)
            sections.append(f"## {title}, {BASELINE}\n\n{table}\n{_agreement(groups)}")
    for data_set in data_sets:
        here = [result for result in results if result.data_set == data_set]
        groups = _grouped(here, lambda x: (f"{method_name(x.method)[0]}, {x.variant}",))
        table = _markdown(("Method",), groups)
        sections.append(f"## Table 4: ablation on {set_title(data_set)}\n\n{table}\n")
    columns = ("data_set", "method", "variant")
    groups = _grouped(results, lambda x: (x.data_set, method_name(x.method)[0], x.variant))
    _write_figures(folder / "table4.csv", columns, groups)
    _write_gains(folder / "fig8.csv", measure_gains(results))
    text = "\n".join(sections)
    atomic_write_text(folder / "paper_tables.md", text)
    return text


def measure_gains(results: Sequence[RunResult]) -> list[Gain]:
    """Compare every other variant with the baseline, seed by seed.

    Returns one gain for each data set, method, variant and figure that have a seed in common with
    the baseline, in the order of the results.
    """
    found = {(x.data_set, x.method, x.variant, x.seed): x.figures for x in results}
    gains = []
    for data_set, method, variant in _in_order((x.data_set, x.method, x.variant) for x in results):
        pairs = [
            (found[data_set, method, BASELINE, x.seed], x.figures)
            for x in results
            if (x.data_set, x.method, x.variant) == (data_set, method, variant)
            and (data_set, method, BASELINE, x.seed) in found
        ]
        if variant == BASELINE or not pairs:
            continue
        for figure in PUBLISHED_FIGURES:
            before = [a.get(figure, math.nan) for a, _ in pairs]
            after = [b.get(figure, math.nan) for _, b in pairs]
            gains.append(
                Gain(
                    *(data_set, method_name(method)[0], variant, figure),
                    statistics.fmean(before),
                    statistics.fmean(after),
                    tuple(b - a for a, b in zip(before, after)),
                )
            )
    return gains


def set_title(data_set: str) -> str:
    """Return the paper's name of a data set, or else its registered name."""
    return TABLES[data_set][1].partition(": ")[2] if data_set in TABLES else data_set


def method_name(name: str) -> tuple[str, str]:
    """Return the paper's name of a method and its supervision, or else ``(name, "-")``.

    The name is that of a method (``"nsrom"``), or of a training set that ends with one.
    """
    last = name.rsplit("_", 1)[-1]
    if last == "gt":
        return FULL_SUPERVISION
    for row in load_published():
        if row.loss == "CE" and _plain(row.method) == _plain(last):
            return row.method, row.supervision
    return name, "-"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Write ``mean ± sample standard deviation``; a dash if no instance has the figure's size."""
    if any(math.isnan(value) for value in values):
        return "–"
    mean = statistics.fmean(values)
    return f"{mean:.1f}" if len(values) < 2 else f"{mean:.1f} ± {statistics.stdev(values):.1f}"


_Groups = Mapping[tuple[str, ...], Mapping[str, Sequence[float]]]
"""Values over seeds by figure, by the first cells of a row."""


def _grouped(
    results: Iterable[RunResult], key_of: Callable[[RunResult], tuple[str, ...]]
) -> _Groups:
    groups: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for result in results:
        group = groups.setdefault(key_of(result), {})
        for figure in PUBLISHED_FIGURES:
            group.setdefault(figure, []).append(result.figures.get(figure, math.nan))
    return groups


def _markdown(names: Sequence[str], groups: _Groups) -> str:
    rows = [
        [*key, *map(mean_and_deviation, values.values()), str(len(next(iter(values.values()))))]
        for key, values in groups.items()
    ]
    header = [*names, *PUBLISHED_FIGURES, "seeds"]
    return markdown_table(header, rows, text_columns=len(names))


def _agreement(groups: _Groups) -> str:
    """Say whether mIoU and IA-mIoU rank the methods alike, as section 5.2 of the paper asks."""
    if len(groups) < 3:
        return ""
    means = [
        [statistics.fmean(v[figure]) for v in groups.values()] for figure in ("mIoU", "IA-mIoU")
    ]
    return f"\nSpearman's rho between mIoU and IA-mIoU: {spearman(*means):.2f}\n"


def _write_figures(path: Path, names: Sequence[str], groups: _Groups) -> None:
    columns = [part for figure in PUBLISHED_FIGURES for part in (figure, f"{figure}_sd")]
    rows = [
        [
            *(*key, len(values[PUBLISHED_FIGURES[0]])),
            *(csv_cell(number) for v in values.values() for number in _mean_with_deviation(v)),
        ]
        for key, values in groups.items()
    ]
    write_csv(path, [*names, "seeds", *columns], rows)


def _write_gains(path: Path, gains: Sequence[Gain]) -> None:
    names = ("data_set", "method", "variant", "figure", "baseline", "value")
    rows = []
    for gain in gains:
        row = [gain.data_set, gain.method, gain.variant, gain.figure]
        numbers = [gain.baseline, gain.value, *_mean_with_deviation(gain.gains)]
        rows.append([*row, *map(csv_cell, numbers), len(gain.gains)])
    write_csv(path, [*names, "gain", "gain_sd", "seeds"], rows)


def sample_deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation; NaN for fewer than two or undefined values."""
    undefined = len(values) < 2 or any(map(math.isnan, values))
    return math.nan if undefined else statistics.stdev(values)


def _mean_with_deviation(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), sample_deviation(values)


def csv_cell(value: float) -> str:
    """Write a figure with four decimals; nothing where it is undefined."""
    return "" if math.isnan(value) else f"{value:.4f}"


def _in_order(items: Iterable[object]) -> list:
    return list(dict.fromkeys(items))


def _plain(name: str) -> str:
    return name.lower().replace("-", "")
