"""Our own results in the layout of the paper's Tables 1 to 4 and as the data of its Fig. 8."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from d2_smallobj.experiments.published import PUBLISHED_FIGURES, load_published
from d2_smallobj.statistics.ranking import spearman
from d2_smallobj.utils.files import atomic_write_text
from d2_smallobj.utils.tables import markdown_table

TABLES: Mapping[str, tuple[str, str]] = {
    "voc_2012_seg_val": ("table1", "Table 1: PASCAL VOC 2012 val"),
    "coco_2014_val_81": ("table2", "Table 2: MS COCO 2014 val"),
    "pascal_b_val": ("table3", "Table 3: PASCAL-B"),
}
"""File and title of the methods' table, by data set; others are called by their names."""
FULL_SUPERVISION = ("DeepLabV2", "full")
"""What the paper calls training on ground truth, and its supervision."""


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The figures of one run on one data set.

    Attributes:
        method: what made the labels it was trained on, e.g. ``"irn"``, or ``"gt"``.
        variant: the loss, e.g. ``"CE"``.
        seed: of the run.
        data_set: what it was evaluated on, by its registered name.
        figures: percent by figure; NaN where undefined.
    """

    method: str
    variant: str
    seed: int
    data_set: str
    figures: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Gain:
    """What a variant changes against the baseline; one bar of Fig. 8.

    Attributes:
        data_set: what was evaluated on.
        method: what made the labels.
        variant: the loss.
        figure: one of the paper's figures.
        baseline: mean of the baseline over the common seeds, percent.
        value: mean of the variant over them.
        gains: the difference of every common seed.
    """

    data_set: str
    method: str
    variant: str
    figure: str
    baseline: float
    value: float
    gains: tuple[float, ...]


def write_paper_tables(folder: Path, results: Sequence[RunResult], *, baseline: str = "CE") -> str:
    """Write ``paper_tables.md``, and as CSV every table of it and ``fig8.csv``.

    Tables 1 to 3 have a row a method, trained with the baseline; Table 4 has a row a variant.
    Cells are means ± sample standard deviations over seeds.

    Args:
        folder: where to write.
        results: in the order in which methods and variants shall stand.
        baseline: the variant of Tables 1 to 3 and of the gains.

    Returns:
        The Markdown.
    """
    sections = []
    for data_set in _in_order(result.data_set for result in results):
        plain = [x for x in results if (x.data_set, x.variant) == (data_set, baseline)]
        if plain:
            name, title = TABLES.get(data_set, (f"table_{data_set}", data_set))
            groups = _grouped(plain, lambda x: method_name(x.method))
            _write_csv(folder / f"{name}.csv", ("method", "supervision"), groups)
            table = _markdown(("Method", "Sup."), groups)
            sections.append(f"## {title}, {baseline}\n\n{table}\n{_agreement(groups)}")
    for data_set in _in_order(result.data_set for result in results):
        here = [result for result in results if result.data_set == data_set]
        groups = _grouped(here, lambda x: (f"{method_name(x.method)[0]}, {x.variant}",))
        table = _markdown(("Method",), groups)
        sections.append(f"## Table 4: ablation on {set_title(data_set)}\n\n{table}\n")
    columns = ("data_set", "method", "variant")
    groups = _grouped(results, lambda x: (x.data_set, method_name(x.method)[0], x.variant))
    _write_csv(folder / "table4.csv", columns, groups)
    _write_gains(folder / "fig8.csv", measure_gains(results, baseline=baseline))
    text = "\n".join(sections)
    atomic_write_text(folder / "paper_tables.md", text)
    return text


def measure_gains(results: Sequence[RunResult], *, baseline: str = "CE") -> list[Gain]:
    """Compare every other variant with the baseline, seed by seed.

    Args:
        results: of any methods, variants, seeds and data sets.
        baseline: the variant to compare with.

    Returns:
        One gain a data set, method, variant and figure that have a seed in common with the
        baseline, in the order of the results.
    """
    found = {(x.data_set, x.method, x.variant, x.seed): x.figures for x in results}
    gains = []
    for data_set, method, variant in _in_order((x.data_set, x.method, x.variant) for x in results):
        pairs = [
            (found[data_set, method, baseline, x.seed], x.figures)
            for x in results
            if (x.data_set, x.method, x.variant) == (data_set, method, variant)
            and (data_set, method, baseline, x.seed) in found
        ]
        if variant == baseline or not pairs:
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
    """What the paper calls a data set; its registered name for one that it has not."""
    return TABLES[data_set][1].partition(": ")[2] if data_set in TABLES else data_set


def method_name(name: str) -> tuple[str, str]:
    """What the paper calls a method, and its supervision; ``(name, "-")`` for one it has not.

    Args:
        name: of a method (``"nsrom"``), or of a training set that ends with one.
    """
    last = name.rsplit("_", 1)[-1]
    if last == "gt":
        return FULL_SUPERVISION
    for row in load_published():
        if row.loss == "CE" and _plain(row.method) == _plain(last):
            return row.method, row.supervision
    return name, "-"


def mean_and_deviation(values: Sequence[float]) -> str:
    """``mean ± sample standard deviation``; a dash where a value is undefined.

    A figure is undefined where there is no instance of its size.
    """
    if any(math.isnan(value) for value in values):
        return "–"
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {statistics.stdev(values):.1f}"


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
        [*key, *(mean_and_deviation(values[figure]) for figure in PUBLISHED_FIGURES),
         str(len(values[PUBLISHED_FIGURES[0]]))]
        for key, values in groups.items()
    ]  # fmt: skip
    header = [*names, *PUBLISHED_FIGURES, "seeds"]
    return markdown_table(header, rows, text_columns=len(names))


def _agreement(groups: _Groups) -> str:
    """Whether mIoU and IA-mIoU rank the methods alike, as section 5.2 of the paper asks."""
    if len(groups) < 3:
        return ""
    means = [
        [statistics.fmean(v[figure]) for v in groups.values()] for figure in ("mIoU", "IA-mIoU")
    ]
    return f"\nSpearman's rho between mIoU and IA-mIoU: {spearman(*means):.2f}\n"


def _write_csv(path: Path, names: Sequence[str], groups: _Groups) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [part for figure in PUBLISHED_FIGURES for part in (figure, f"{figure}_sd")]
    writer.writerow([*names, "seeds", *columns])
    for key, values in groups.items():
        row: list[object] = [*key, len(values[PUBLISHED_FIGURES[0]])]
        for figure in PUBLISHED_FIGURES:
            row += [_cell(statistics.fmean(values[figure])), _cell(_deviation(values[figure]))]
        writer.writerow(row)
    atomic_write_text(path, text.getvalue())


def _write_gains(path: Path, gains: Sequence[Gain]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("data_set", "method", "variant", "figure", "baseline", "value")
    writer.writerow([*names, "gain", "gain_sd", "seeds"])
    for gain in gains:
        row = [gain.data_set, gain.method, gain.variant, gain.figure]
        numbers = [gain.baseline, gain.value, statistics.fmean(gain.gains), _deviation(gain.gains)]
        writer.writerow([*row, *map(_cell, numbers), len(gain.gains)])
    atomic_write_text(path, text.getvalue())


def _deviation(values: Sequence[float]) -> float:
    undefined = len(values) < 2 or any(map(math.isnan, values))
    return math.nan if undefined else statistics.stdev(values)


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _in_order(items: Iterable[object]) -> list:
    return list(dict.fromkeys(items))


def _plain(name: str) -> str:
    return name.lower().replace("-", "")
