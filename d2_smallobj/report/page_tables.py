"""The report's tables: columns, cells with what they are sorted by, and captions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from d2_smallobj.metrics.summary import OUTCOMES, headline_names, split_headline
from d2_smallobj.report.methods import ScoredMethod, outcome_shares, size_word
from d2_smallobj.report.page import percent, thousands

OUTCOME_TEXTS = {
    "good": "IoU of at least 0.5",
    "partial": "found by one component of its own, IoU below 0.5",
    "fragmented": "found in several pieces, IoU below 0.5",
    "merged": "its component also covers another object of its class, IoU below 0.5",
    "missed": "not one pixel of it found",
}
_FURTHER_TEXTS = {
    "mIoU_I": "mean over images of the IoU of the classes in each",
    "mIoU_C": "mean over classes of the IoU in each image that has the class",
    "recall": "objects with IoU of at least 0.5, of all",
    "mRecall": "the same, as mean over classes",
}


@dataclasses.dataclass(frozen=True)
class TableColumn:
    """A column of a table.

    Attributes:
        title: its heading.
        above: a line over it, such as the figure that several columns share.
        text: whether it holds text; numbers otherwise.
        group: the choice that shows it; empty: always shown.
        hint: shown on hovering.
    """

    title: str
    above: str = ""
    text: bool = False
    group: str = ""
    hint: str = ""


@dataclasses.dataclass(frozen=True)
class TableCell:
    """A cell of a table.

    Attributes:
        text: its content.
        value: what it is sorted by; NaN and ``""`` come last in either direction.
        note: a small remark before the content, such as the number of instances behind it.
        below: a small second line.
        bold: whether the content is bold.
        heat: 0..100, shades the cell; ``None``: not shaded.
        method: shown with its marker instead of ``text``.
    """

    text: str
    value: float | str
    note: str = ""
    below: str = ""
    bold: bool = False
    heat: float | None = None
    method: ScoredMethod | None = None


@dataclasses.dataclass(frozen=True)
class PageTable:
    """A table that a reader can sort; the first cell of a row heads it.

    Attributes:
        identifier: id of the table's element.
        caption: what the table shows.
        columns: the columns.
        rows: the cells by row, one for each column.
        choices: groups of columns of which the reader sees one at a time, if there are several.
        chosen: the group shown first; empty: all.
    """

    identifier: str
    caption: str
    columns: Sequence[TableColumn]
    rows: Sequence[Sequence[TableCell]]
    choices: Sequence[str] = ()
    chosen: str = ""


def best_positions(values: Sequence[float], *, lowest: bool = False) -> set[int]:
    """Positions of the best values; none where fewer than two are defined or all are equal."""
    defined = [value for value in values if not math.isnan(value)]
    if len(defined) < 2 or min(defined) == max(defined):
        return set()
    best = min(defined) if lowest else max(defined)
    return {position for position, value in enumerate(values) if value == best}


def figure_cell(value: float, *, note: str = "", bold: bool = False) -> TableCell:
    """A cell with a percentage, shaded by it."""
    heat = None if math.isnan(value) else min(max(value, 0.0), 100.0)
    return TableCell(percent(value), value, note=note, bold=bold, heat=heat)


def figure_cells(methods: Sequence[ScoredMethod], key: str) -> list[TableCell]:
    """A cell with one figure for each method, the best one bold."""
    values = [method.figure(key) for method in methods]
    best = best_positions(values)
    cells = []
    for method, value in zip(methods, values):
        few = method.few_instances(key)
        note = f"n={thousands(few)}" if few else ""
        cells.append(figure_cell(value, note=note, bold=method.position in best))
    return cells


def count_cell(value: float) -> TableCell:
    """A cell with a number of things."""
    return TableCell("–" if math.isnan(value) else thousands(value), float(value))


def text_cell(text: str) -> TableCell:
    """A cell with text, sorted by it."""
    return TableCell(text, text)


def further_table(methods: Sequence[ScoredMethod]) -> PageTable:
    """The figures by image and by the worst images, and recall by size."""
    with_intervals = any(method.intervals for method in methods)
    columns = [TableColumn("Figure", text=True), TableColumn("what it counts", text=True)]
    for method in methods:
        columns.append(TableColumn(method.name if len(methods) > 1 else "%"))
        columns += [TableColumn("interval", text=True)] if with_intervals else []
    rows = []
    keys = split_headline(headline_names(methods[0].bins, methods[0].worst))[1]
    for place, key in enumerate(keys):
        row = [TableCell(key, place), text_cell(_further_text(key))]
        for method, cell in zip(methods, figure_cells(methods, key)):
            row += [cell, _interval_cell(method, key)] if with_intervals else [cell]
        rows.append(row)
    caption = "By image, by the worst images, and how many objects are found"
    return PageTable("further-table", caption, columns, rows)


def size_table(methods: Sequence[ScoredMethod]) -> PageTable:
    """Figures by object size, a row for each size and method."""
    several = len(methods) > 1
    with_intervals = any(method.intervals for method in methods)
    columns = [
        TableColumn("Objects", text=True),
        *([TableColumn("Method", text=True)] if several else []),
        TableColumn("IA-mIoU", hint="mean over classes of the mean IoU of their instances"),
        *([TableColumn("interval", text=True)] if with_intervals else []),
        TableColumn("instances"),
        TableColumn("good %", hint=OUTCOME_TEXTS["good"]),
        TableColumn("missed %", hint=OUTCOME_TEXTS["missed"]),
        TableColumn("IoU lost", hint="sum of 1 − IoU over the instances"),
        TableColumn("false positives", hint="components of this size that overlap no object"),
    ]
    rows = []
    for place, size in enumerate(["", *methods[0].bins]):
        key = f"IA-mIoU_{size or 'fg'}"
        for method, cell in zip(methods, figure_cells(methods, key)):
            shares = method.outcome_shares(size)
            lost = math.fsum(counts["lost"] for counts in method.outcome_row(size).values())
            blobs = method.blobs["sizes"][size] if size else method.blobs["all"]
            rows.append(
                [
                    _size_cell(size, place),
                    *([_method_cell(method)] if several else []),
                    cell,
                    *([_interval_cell(method, key)] if with_intervals else []),
                    count_cell(method.figure(f"instances_{size}" if size else "instances")),
                    TableCell(percent(shares["good"]), shares["good"]),
                    TableCell(percent(shares["missed"]), shares["missed"]),
                    TableCell(f"{lost:,.0f}", lost),
                    count_cell(blobs["blobs"]),
                ]
            )
    caption = "Figures by object size; “all” is IA-mIoU_fg"
    return PageTable("size-table", caption, columns, rows)


def outcome_table(methods: Sequence[ScoredMethod]) -> PageTable:
    """Instances and IoU lost by outcome, a row for each size and method."""
    columns = [TableColumn("Objects", text=True), TableColumn("Method", text=True)]
    for kind in ("instances", "IoU lost"):
        columns += [TableColumn(name, above=kind) for name in OUTCOMES]
    rows = []
    for place, size in enumerate(["", *methods[0].bins]):
        for method in methods:
            row = method.outcome_row(size)
            lost = [row[outcome]["lost"] for outcome in OUTCOMES]
            rows.append(
                [
                    _size_cell(size, place),
                    _method_cell(method),
                    *(count_cell(row[outcome]["instances"]) for outcome in OUTCOMES),
                    *(TableCell(f"{value:,.1f}", value) for value in lost),
                ]
            )
    caption = "Instances, and IoU lost (the sum of 1 − IoU), by outcome"
    return PageTable("outcome-table", caption, columns, rows)


def blob_table(methods: Sequence[ScoredMethod]) -> PageTable:
    """False-positive components by class, and by their own size."""
    sizes = list(methods[0].bins)
    kinds = ["components", *(f"components {size}" for size in sizes), "pixels"]

    def row(title: str, found: list[dict[str, Any]], *, bold: bool = False) -> list[TableCell]:
        counts = [blobs["all"]["blobs"] for blobs in found]
        for size in sizes:
            counts += [blobs["sizes"][size]["blobs"] for blobs in found]
        counts += [blobs["all"]["pixels"] for blobs in found]
        return [TableCell(title, title, bold=bold), *map(count_cell, counts)]

    rows = [
        row(name, [method.blobs["classes"][name] for method in methods])
        for name in methods[0].thing_names
        if any(method.blobs["classes"][name]["all"]["blobs"] for method in methods)
    ]
    if len(rows) != 1:
        rows.insert(0, row("all classes", [method.blobs for method in methods], bold=True))
    return PageTable(
        "blob-table",
        "False-positive components by class and by their own size",
        [TableColumn("Class", text=True), *_columns_by_method(methods, kinds)],
        rows,
        choices=kinds if len(methods) > 1 else (),
        chosen="components",
    )


def class_table(methods: Sequence[ScoredMethod]) -> PageTable:
    """Figures by class, a column for each figure and method."""
    bins = list(methods[0].bins)
    figures = ["IA-IoU", *(f"IA-IoU_{name}" for name in bins), "IoU"]
    choices = [*figures, "missed %"]
    columns = [
        TableColumn("Class", text=True),
        *_columns_by_method(methods, choices),
        TableColumn("instances"),
        *(TableColumn(name, above="instances") for name in bins),
    ]
    return PageTable(
        "class-table",
        "Figures by class, percent",
        columns,
        [
            _class_row(methods, name, figures)
            for name in methods[0].class_names
            if any(method.has_class(name) for method in methods)
        ],
        choices=choices if len(methods) > 1 else (),
        chosen="IA-IoU",
    )


def _columns_by_method(methods: Sequence[ScoredMethod], names: Iterable[str]) -> list[TableColumn]:
    """A column for every name and method; those of one name are shown together."""
    if len(methods) == 1:
        return [TableColumn(name) for name in names]
    return [
        TableColumn(method.name, above=name, group=name) for name in names for method in methods
    ]


def _class_row(
    methods: Sequence[ScoredMethod], name: str, figures: Sequence[str]
) -> list[TableCell]:
    row = [text_cell(name)]
    for figure in figures:
        row += figure_cells(methods, f"{figure}-{name}")
    found = [method.outcomes["classes"].get(name) for method in methods]
    missed = [outcome_shares(one["all"])["missed"] if one else math.nan for one in found]
    best = best_positions(missed, lowest=True)
    row += [TableCell(percent(x), x, bold=position in best) for position, x in enumerate(missed)]
    for size in ("", *(f"_{size}" for size in methods[0].bins)):
        row.append(count_cell(methods[0].figure(f"instances{size}-{name}")))
    return row


def _further_text(key: str) -> str:
    """Explain what one of the further figures counts."""
    name, at, share = key.partition("@")
    name, _, size = (name, "", "") if at or name in _FURTHER_TEXTS else name.partition("_")
    text = _FURTHER_TEXTS[name]
    if at:
        text += f", worst {share} % of the images"
    return f"{text}; {size_word(size)} objects" if size else text


def _method_cell(method: ScoredMethod) -> TableCell:
    return TableCell(method.name, method.name, method=method)


def _size_cell(size: str, place: int) -> TableCell:
    """The name of a size, sorted by size."""
    return TableCell(f"{size} ({size_word(size)})" if size else "all", place)


def _interval_cell(method: ScoredMethod, key: str) -> TableCell:
    if key not in method.intervals:
        return TableCell("–", "")
    low, high = method.intervals[key]
    return TableCell(f"{percent(low)} to {percent(high)}", low)
