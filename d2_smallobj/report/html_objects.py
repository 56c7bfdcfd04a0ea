"""The report's sections on objects: outcomes, false positives, the worst missed small ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from d2_smallobj.metrics.outcomes import OUTCOMES
from d2_smallobj.report.html_marks import stacked_bar
from d2_smallobj.report.html_markup import Child, Markup, count, tag
from d2_smallobj.report.html_sections import OUTCOME_TEXTS, named, section
from d2_smallobj.report.html_tables import (
    Cell,
    Column,
    count_cell,
    sortable_table,
    text_cell,
)
from d2_smallobj.report.methods import Method, outcome_shares, size_range, size_word
from d2_smallobj.report.thumbnails import Thumbnail

_SHOWN = 6
"""So many thumbnails are open at once; the others unfold."""


def outcomes(methods: Sequence[Method]) -> Markup:
    """What happened to the instances, as bars by size and method, and as a table."""
    legend = [
        tag("li", tag("span", class_=f"chip o-{name}"), tag("b", name), f" {OUTCOME_TEXTS[name]}")
        for name in OUTCOMES
    ]
    bars = [_bars(methods, "", "all objects")]
    for name in methods[0].bins:
        bars.append(
            _bars(methods, name, f"{size_word(name)} ({size_range(methods[0].bins, name)})")
        )
    return section(
        "outcomes",
        "What happened to each object",
        "Every ground-truth object has one outcome; figures in the bars are percent of them.",
        tag("ul", legend, class_="legend"),
        tag("div", bars, class_="bars"),
        tag("details", tag("summary", "The same in numbers"), _outcome_table(methods)),
    )


def _bars(methods: Sequence[Method], size: str, words: str) -> list[Markup]:
    """A bar per method for the objects of one size (empty: all)."""
    total = count(methods[0].figure(f"instances_{size}" if size else "instances"))
    parts = [tag("h3", words, tag("small", f" {total} instances"))]
    for method in methods:
        row = method.outcome_row(size)
        counts = {outcome: cell["instances"] for outcome, cell in row.items()}
        bar = stacked_bar(outcome_shares(row), counts, f"{method.name}, {words}")
        who = (
            tag("span", method.name, class_="who", title=method.name) if len(methods) > 1 else None
        )
        parts.append(tag("div", who, bar, class_="barrow named" if who else "barrow"))
    return parts


def _outcome_table(methods: Sequence[Method]) -> Markup:
    columns = [Column("Objects", text=True), Column("Method", text=True)]
    columns += [Column(name, above=kind) for kind in ("instances", "IoU lost") for name in OUTCOMES]
    rows = []
    for position, size in enumerate(["", *methods[0].bins]):
        for method in methods:
            row = method.outcome_row(size)
            lost = [row[outcome]["lost"] for outcome in OUTCOMES]
            rows.append(
                [
                    Cell(f"{size} ({size_word(size)})" if size else "all", position),
                    text_cell(method.name, named(method)),
                    *(count_cell(row[outcome]["instances"]) for outcome in OUTCOMES),
                    *(Cell(f"{value:,.1f}", value) for value in lost),
                ]
            )
    caption = "Instances, and IoU lost (the sum of 1 − IoU), by outcome"
    return sortable_table(caption, columns, rows, identifier="outcome-table")


def false_positives(methods: Sequence[Method]) -> Markup:
    """Blobs by size and class."""
    kinds = ["blobs", *(f"blobs {size}" for size in methods[0].bins), "pixels"]
    several = len(methods) > 1
    columns = [Column("Class", text=True)]
    for kind in kinds:
        for method in methods:
            title, above = (method.name, kind) if several else (kind, "")
            columns.append(Column(title, above=above, group=kind if several else ""))
    names = [
        name
        for name in methods[0].thing_names
        if any(method.blobs["classes"][name]["all"]["blobs"] for method in methods)
    ]
    rows = [[text_cell(name), *_blob_cells(methods, name)] for name in names]
    if len(rows) != 1:
        rows.insert(0, [text_cell("all classes", tag("b", "all classes")), *_blob_cells(methods)])
    lead = [
        "Predicted components that overlap no object of their class. IA-mIoU does not count"
        " them (mIoU does), so a method that predicts small blobs everywhere would look good"
        " on small objects: read them together. ",
        _blob_sentence(methods),
    ]
    table = sortable_table(
        "False-positive blobs by class and by their own size",
        columns,
        rows,
        identifier="blob-table",
        choose=kinds if several else (),
        chosen="blobs",
    )
    return section("blobs", "Predicted where nothing is", lead, table)


def _blob_cells(methods: Sequence[Method], name: str = "") -> list[Cell]:
    """Blobs, blobs by size, and pixels of one class (empty: all) by method."""
    rows = [method.blobs["classes"][name] if name else method.blobs for method in methods]
    cells = [count_cell(row["all"]["blobs"]) for row in rows]
    for size in methods[0].bins:
        cells += [count_cell(row["sizes"][size]["blobs"]) for row in rows]
    return cells + [count_cell(row["all"]["pixels"]) for row in rows]


def _blob_sentence(methods: Sequence[Method]) -> str:
    parts = []
    for method in methods:
        blobs = method.blobs["all"]["blobs"]
        rate = blobs / max(method.num_images, 1)
        who = f"{method.name}: " if len(methods) > 1 else ""
        parts.append(f"{who}{count(blobs)} blobs, {rate:.2f} per image")
    return "; ".join(parts) + "."


def thumbnails(
    methods: Sequence[Method],
    drawn: Sequence[Thumbnail],
    reasons: Counter[str],
    total: int,
    limit: int,
) -> Markup:
    """Pictures of the worst missed small objects, or the reason why there are none.

    Args:
        methods: in the order of the panels.
        drawn: the pictures.
        reasons: how often objects were passed over for which reason.
        total: number of badly segmented small objects.
        limit: number of pictures asked for.
    """
    problems = [
        tag("p", f"Not shown ({count(number)} objects): {reason}.", class_="missing")
        for reason, number in reasons.most_common(3)
    ]
    cards = [_thumbnail(methods, one) for one in drawn]
    # The class makes room for one object a row where there are many panels to it.
    class_ = "thumbs many" if len(methods) > 1 else "thumbs"
    content = [tag("div", cards[:_SHOWN], class_=class_)] if cards else []
    if cards[_SHOWN:]:
        more = tag("summary", f"{len(cards) - _SHOWN} more")
        content.append(tag("details", more, tag("div", cards[_SHOWN:], class_=class_)))
    lead = _thumbnail_lead(methods, len(drawn), total, limit)
    return section("worst", "Worst missed small objects", lead, problems, content)


def _thumbnail_lead(methods: Sequence[Method], drawn: int, total: int, limit: int) -> str:
    """What the pictures are, or that there are none."""
    size = next(iter(methods[0].bins))
    words = f"{size_word(size)} objects ({size_range(methods[0].bins, size)})"
    mean = "a mean IoU" if len(methods) > 1 else "an IoU"
    if drawn:
        first = "those that most methods missed first" if len(methods) > 1 else "missed ones first"
        return (
            f"{count(drawn)} of {count(total)} {words} with {mean} below 0.5: {first}, then by"
            " IoU; images and classes take turns. The outline is the object; its class is"
            " orange, ignored pixels are light."
        )
    if not total:
        return f"There are no {words} with {mean} below 0.5."
    if limit < 1:
        return f"{count(total)} {words} have {mean} below 0.5; no pictures were asked for."
    return f"{count(total)} {words} have {mean} below 0.5, but they cannot be shown."


def _thumbnail(methods: Sequence[Method], one: Thumbnail) -> Markup:
    candidate = one.candidate
    name = methods[0].class_names[candidate.category]
    what = f"{name} of {candidate.area} px in {candidate.image_id}"
    panels = []
    if one.image is not None:
        panels.append(_panel(one.image, f"image, {what}", "image"))
    panels.append(_panel(one.truth, f"ground truth, {what}", "ground truth"))
    for position, picture, told in one.predictions:
        who = methods[position].name if len(methods) > 1 else "prediction"
        outcome = candidate.outcomes[position]
        iou = "" if outcome == "missed" else f", IoU {100 * candidate.ious[position]:.0f}"
        title = [f"{who}: ", tag("b", outcome), iou]
        panels.append(_panel(picture, f"{who}: {outcome}, {what}", title, told))
    chips = [tag("span", _chip(rgb), label) for label, rgb in one.colours]
    size = tag("small", f" {count(candidate.area)} px, {candidate.image_id}")
    heading = tag("div", tag("h3", name, size), tag("p", chips, class_="chips"), class_="about")
    return tag("article", heading, tag("div", panels, class_="panels"), class_="thumb")


def _chip(rgb: tuple[int, int, int]) -> Markup:
    return tag("span", class_="chip", style=f"background:#{bytes(rgb).hex()}")


def _panel(source: str, alt: str, title: Child, told: str = "") -> Markup:
    return tag(
        "figure",
        tag("img", src=source, alt=alt, loading="lazy"),
        tag("figcaption", title, tag("small", f"there: {told}") if told else None),
    )
