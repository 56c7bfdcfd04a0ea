"""Tables that sort by a click or a key on a column's heading."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from d2_smallobj.report.html_markup import Child, Markup, count, percent, tag


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        above: a line over it, such as the figure that several columns share.
        text: whether it holds text; numbers otherwise.
        group: columns of one group are shown together where the table has a chooser.
        hint: shown on hovering.
    """

    title: str
    above: str = ""
    text: bool = False
    group: str = ""
    hint: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        shown: its content.
        value: what it is sorted by; NaN and ``""`` come last whichever way.
        note: a small remark before the content, such as the number of instances behind it.
        best: whether it is the best of its row and figure.
        heat: 0..100, shades it; ``None``: not shaded.
    """

    shown: Child
    value: float | str
    note: str = ""
    best: bool = False
    heat: float | None = None


def figure_cell(value: float, *, note: str = "", best: bool = False) -> Cell:
    """A cell with a percentage, shaded by it."""
    heat = None if math.isnan(value) else value
    return Cell(percent(value), value, note=note, best=best, heat=heat)


def count_cell(value: float) -> Cell:
    """A cell with a number of things."""
    return Cell("–", math.nan) if math.isnan(value) else Cell(count(value), float(value))


def text_cell(text: str, shown: Child = None) -> Cell:
    """A cell with text, shown in another form where ``shown`` is given."""
    return Cell(text if shown is None else shown, text)


def sortable_table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    identifier: str,
    choose: Sequence[str] = (),
    chosen: str = "",
) -> Markup:
    """Make a table; the first cell of a row heads it.

    Args:
        caption: what the table shows, also for those who cannot see it.
        columns: the columns.
        rows: the cells by row, one for each column.
        identifier: id of the table's element.
        choose: groups among which the reader chooses one; columns without a group stay.
        chosen: the group shown first; default: all.

    Returns:
        The table with its chooser, in a box that scrolls where the page is narrow.

    Raises:
        ValueError: if a row has another number of cells than there are columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row must have {len(columns)} cells, got {len(row)}: {row}")
    table = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", [_heading(column) for column in columns])),
        tag("tbody", [_row(columns, row) for row in rows]),
        id=identifier,
        class_="sortable",
    )
    box = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)
    return tag("div", [_chooser(identifier, choose, chosen), box], class_="tablebox")


def best_of(values: Sequence[float], *, lowest: bool = False) -> set[int]:
    """Positions of the best values; none where fewer than two are defined or all are equal."""
    defined = [value for value in values if not math.isnan(value)]
    if len(defined) < 2 or min(defined) == max(defined):
        return set()
    best = min(defined) if lowest else max(defined)
    return {position for position, value in enumerate(values) if value == best}


def _heading(column: Column) -> Markup:
    label = [
        tag("small", column.above) if column.above else None,
        tag("span", column.title),
        tag("span", class_="arrow", aria_hidden="true"),
    ]
    return tag(
        "th",
        tag("button", label, type="button", title=column.hint or None),
        scope="col",
        aria_sort="none",
        class_="text" if column.text else "number",
        data_group=column.group or None,
    )


def _row(columns: Sequence[Column], row: Sequence[Cell]) -> Markup:
    pairs = list(zip(columns, row))
    heads = [_cell(column, cell, head=True) for column, cell in pairs[:1]]
    return tag("tr", heads, [_cell(column, cell) for column, cell in pairs[1:]])


def _cell(column: Column, cell: Cell, *, head: bool = False) -> Markup:
    undefined = isinstance(cell.value, float) and math.isnan(cell.value)
    classes = ["text" if column.text else "number"]
    classes += ["best"] if cell.best else []
    classes += ["heat"] if cell.heat is not None else []
    content = tag("strong", cell.shown) if cell.best else cell.shown
    return tag(
        "th" if head else "td",
        [tag("small", cell.note, " ", class_="few") if cell.note else None, content],
        scope="row" if head else None,
        class_=" ".join(classes),
        data_value="" if undefined else cell.value,
        data_group=column.group or None,
        style=None if cell.heat is None else f"--v:{min(max(cell.heat, 0.0), 100.0):.0f}",
    )


def _chooser(identifier: str, groups: Sequence[str], chosen: str) -> Markup | None:
    """A list to choose a group of columns from; of no use, and not seen, without scripts."""
    if len(groups) < 2:
        return None
    options = [tag("option", group, value=group, selected=group == chosen) for group in groups]
    options.append(tag("option", "all figures", value="", selected=not chosen))
    select = tag("select", options, data_table=identifier, class_="chooser")
    return tag("label", "Show ", select, class_="choose js")
