"""The report's sections on figures: headline, sizes, classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from d2_smallobj.report.html_marks import interval_track, swatch
from d2_smallobj.report.html_markup import Child, Markup, count, percent, tag
from d2_smallobj.report.html_tables import (
    Cell,
    Column,
    best_of,
    count_cell,
    figure_cell,
    sortable_table,
    text_cell,
)
from d2_smallobj.report.methods import (
    Method,
    further_keys,
    headline_keys,
    outcome_shares,
    size_range,
    size_word,
)
from d2_smallobj.report.size_curve_chart import Line, line_chart

_HEADLINE_TEXTS = {
    "mIoU": "pixels: every object weighs as much as it is large",
    "IA-mIoU": "instances: every object weighs the same, stuff (background) is one more class",
    "IA-mIoU_fg": "instances, classes of objects only",
}
_FURTHER_TEXTS = {
    "mIoU_I": "mean over images of the IoU of the classes in each",
    "mIoU_C": "mean over classes of the IoU in each image that has the class",
    "recall": "objects with IoU of at least 0.5, of all",
    "mRecall": "the same, as mean over classes",
}
OUTCOME_TEXTS = {
    "good": "IoU of at least 0.5",
    "partial": "found by one component of its own, IoU below 0.5",
    "fragmented": "found in several pieces, IoU below 0.5",
    "merged": "its component also covers another object of its class, IoU below 0.5",
    "missed": "not one pixel of it found",
}


def section(identifier: str, title: str, lead: Child, *content: Child) -> Markup:
    """A section of the page with its heading and an introducing sentence."""
    heading = tag("h2", title, id=f"{identifier}-title")
    intro = tag("p", lead, class_="lead") if lead else None
    return tag(
        "section", heading, intro, *content, id=identifier, aria_labelledby=f"{identifier}-title"
    )


def named(method: Method) -> Markup:
    """A method's marker and name."""
    return tag("span", swatch(method.position), tag("span", method.name), class_="method")


def headline(methods: Sequence[Method]) -> Markup:
    """A card for every instance-aware figure, and a table of the others."""
    cards = [_card(methods, key) for key in headline_keys(methods[0])]
    return tag("div", tag("div", cards, class_="cards"), _further_table(methods))


def _further_table(methods: Sequence[Method]) -> Markup:
    """The figures that go by image, and recall by size, with intervals where there are any."""
    with_intervals = any(method.intervals for method in methods)
    columns = [Column("Figure", text=True), Column("what it counts", text=True)]
    for method in methods:
        columns.append(Column(method.name if len(methods) > 1 else "%"))
        columns += [Column("interval", text=True)] if with_intervals else []
    rows = []
    for place, key in enumerate(further_keys(methods[0])):
        values = [method.figure(key) for method in methods]
        best = best_of(values)
        row = [Cell(key, place), text_cell(_further_text(methods[0], key))]
        for position, (method, value) in enumerate(zip(methods, values)):
            row.append(figure_cell(value, best=position in best))
            row += [_interval_cell(method, key)] if with_intervals else []
        rows.append(row)
    caption = "By image, by the worst images, and how many objects are found"
    return sortable_table(caption, columns, rows, identifier="further-table")


def _further_text(method: Method, key: str) -> str:
    """What one of these figures counts, in a few words."""
    name, at, share = key.partition("@")
    name, _, size = (name, "", "") if at or name in _FURTHER_TEXTS else name.partition("_")
    text = _FURTHER_TEXTS[name]
    if at:
        text += f", worst {share} % of the images"
    return f"{text}; {size_word(size)} objects" if size else text


def _card(methods: Sequence[Method], key: str) -> Markup:
    values = [method.figure(key) for method in methods]
    best = best_of([round(value, 1) for value in values])
    rows = []
    for position, (method, value) in enumerate(zip(methods, values)):
        interval = method.intervals.get(key)
        label = f"{method.name}: {key} {percent(value)}"
        span = None
        if interval is not None:
            span = f"[{percent(interval[0])}, {percent(interval[1])}]"
            label += f", interval {span}"
        number = tag("strong" if position in best or len(methods) == 1 else "span", percent(value))
        rows.append(
            tag(
                "li",
                tag("span", method.name, class_="who", title=method.name)
                if len(methods) > 1
                else None,
                tag("span", number, tag("small", span) if span else None, class_="value"),
                interval_track(method.position, value, interval, label),
            )
        )
    return tag(
        "article",
        tag("h3", key),
        tag("p", headline_text(methods[0], key)),
        tag("ul", rows, class_="single" if len(methods) == 1 else None),
        class_="card" if key in _HEADLINE_TEXTS else "card size",
    )


def headline_text(method: Method, key: str) -> str:
    """What a headline figure counts, in a few words."""
    if key in _HEADLINE_TEXTS:
        return _HEADLINE_TEXTS[key]
    name = key.removeprefix("IA-mIoU_")
    number = count(method.figure(f"instances_{name}"))
    return f"{size_word(name)} objects ({size_range(method.bins, name)}): {number} instances"


def sizes(methods: Sequence[Method], lines: Sequence[Line]) -> Markup:
    """The size curves (there may be none) and the table by size."""
    if lines:
        bins = methods[0].bins
        # Shares of the image have no place on an axis of pixels.
        starts = [] if bins.relative else [0.0, *list(bins.values())[:-1]]
        bounds = [(name, math.sqrt(start)) for name, start in zip(bins, starts)]
        table = methods[0].run.table
        sides = table.area[table.things] ** 0.5
        chart = line_chart(
            lines, title="IoU of instances by object size", bounds=bounds, counts=sides
        )
        drawn = [tag("figure", _key(methods), chart, tag("figcaption", _CURVE_TEXT))]
    else:
        text = "No curve: there are no objects, or all are of one size."
        drawn = [tag("p", text, class_="missing")]
    return section(
        "sizes",
        "By object size",
        "How well are objects segmented, depending on how large they are?",
        drawn,
        _size_table(methods),
    )


_CURVE_TEXT = (
    "Mean IoU of the instances of about each size (local average), all classes of objects"
    " together; bands are bootstrap intervals over images. Grey bars: how many instances there"
    " are of that size. A wide band or low bar: little is known there."
)


def _key(methods: Sequence[Method]) -> Markup | None:
    """Which marker is whose."""
    if len(methods) < 2:
        return None
    return tag("p", [named(method) for method in methods], class_="key")


def _size_table(methods: Sequence[Method]) -> Markup:
    several = len(methods) > 1
    with_intervals = any(method.intervals for method in methods)
    columns = [
        Column("Objects", text=True),
        *([Column("Method", text=True)] if several else []),
        Column("IA-mIoU", hint="mean over classes of the mean IoU of their instances"),
        *([Column("interval", text=True)] if with_intervals else []),
        Column("instances"),
        Column("good %", hint=OUTCOME_TEXTS["good"]),
        Column("missed %", hint=OUTCOME_TEXTS["missed"]),
        Column("IoU lost", hint="sum of 1 − IoU over the instances"),
        Column("blobs", hint="predicted components of this size that overlap no object"),
    ]
    rows = []
    for place, size in enumerate(["", *methods[0].bins]):
        key = f"IA-mIoU_{size or 'fg'}"
        values = [method.figure(key) for method in methods]
        best = best_of(values)
        for position, method in enumerate(methods):
            rows.append(
                [
                    Cell(f"{size} ({size_word(size)})" if size else "all", place),
                    *([text_cell(method.name, named(method))] if several else []),
                    figure_cell(values[position], best=position in best),
                    *([_interval_cell(method, key)] if with_intervals else []),
                    *_size_cells(method, size),
                ]
            )
    caption = "Figures by object size; “all” is IA-mIoU_fg"
    return sortable_table(caption, columns, rows, identifier="size-table")


def _interval_cell(method: Method, key: str) -> Cell:
    interval = method.intervals.get(key)
    if interval is None:
        return Cell("–", "")
    low, high = interval
    return Cell(f"{percent(low)} to {percent(high)}", low)


def _size_cells(method: Method, size: str) -> list[Cell]:
    """Instances, good, missed, IoU lost and blobs of one size (empty: all)."""
    row = method.outcome_row(size)
    blobs = method.blobs["sizes"][size] if size else method.blobs["all"]
    shares = outcome_shares(row)
    lost = math.fsum(cell["lost"] for cell in row.values())
    return [
        count_cell(method.figure(f"instances_{size}" if size else "instances")),
        Cell(percent(shares["good"]), shares["good"]),
        Cell(percent(shares["missed"]), shares["missed"]),
        Cell(f"{lost:,.0f}", lost),
        count_cell(blobs["blobs"]),
    ]


def classes(methods: Sequence[Method]) -> Markup:
    """The table by class."""
    bins = list(methods[0].bins)
    figures = ["IA-IoU", *(f"IA-IoU_{name}" for name in bins), "IoU"]
    several = len(methods) > 1
    columns = [Column("Class", text=True)]
    for figure in [*figures, "missed %"]:
        for method in methods:
            title, above = (method.name, figure) if several else (figure, "")
            columns.append(Column(title, above=above, group=figure if several else ""))
    columns.append(Column("instances"))
    columns += [Column(name, above="instances") for name in bins]
    shown = {name for method in methods for name in method.classes_shown}
    rows = [_class_row(methods, name, figures) for name in methods[0].class_names if name in shown]
    lead = [
        "Click a heading to sort. IoU is over all pixels of the data set, IA-IoU the mean over"
        " the instances of the class. ",
        tag("span", "n=3", class_="few"),
        " beside a figure: so few instances lie behind it that it means little.",
    ]
    table = sortable_table(
        "Figures by class, percent",
        columns,
        rows,
        identifier="class-table",
        choose=[*figures, "missed %"] if several else (),
        chosen="IA-IoU",
    )
    return section("classes", "By class", lead, table)


def _class_row(methods: Sequence[Method], name: str, figures: Sequence[str]) -> list[Cell]:
    row = [text_cell(name)]
    for figure in figures:
        key = f"{figure}-{name}"
        values = [method.figure(key) for method in methods]
        best = best_of(values)
        for position, (method, value) in enumerate(zip(methods, values)):
            cell = key.removeprefix("IA-IoU")
            few = method.has_few(key)
            note = f"n={count(method.figure(f'instances{cell}'))}" if few else ""
            row.append(figure_cell(value, note=note, best=position in best))
    missed = []
    for method in methods:
        known = method.outcomes["classes"].get(name)
        missed.append(outcome_shares(known["all"])["missed"] if known else math.nan)
    best = best_of(missed, lowest=True)
    row += [
        Cell(percent(value), value, best=position in best) for position, value in enumerate(missed)
    ]
    for size in ["", *methods[0].bins]:
        group = f"_{size}" if size else ""
        row.append(count_cell(methods[0].figure(f"instances{group}-{name}")))
    return row
