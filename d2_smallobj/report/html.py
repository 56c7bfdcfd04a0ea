"""The report: one HTML file that shows how scored runs treat small objects.

It holds everything it needs, styles, script and pictures, and is forbidden by its own policy to
ask any network for more: it can be mailed, archived and opened anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.report import html_comparison, html_notes, html_objects, html_sections
from d2_smallobj.report.html_markup import Markup, tag
from d2_smallobj.report.html_worst import worst_small
from d2_smallobj.report.methods import Method, make_methods
from d2_smallobj.report.page import content_policy, read_asset
from d2_smallobj.report.size_curve_chart import Line
from d2_smallobj.report.thumbnails import make_thumbnails
from d2_smallobj.statistics.comparison import Comparison
from d2_smallobj.statistics.size_curve import size_curve
from d2_smallobj.utils.files import atomic_write_text

_SECTIONS = (
    ("glance", "At a glance"),
    ("compared", "Comparison"),
    ("sizes", "By size"),
    ("outcomes", "Outcomes"),
    ("worst", "Worst missed"),
    ("blobs", "False positives"),
    ("classes", "By class"),
    ("notes", "Notes"),
)


def write_report(
    path: str | os.PathLike[str],
    runs: Sequence[Any],
    *,
    intervals: Mapping[str, Mapping[str, Any]] | None = None,
    comparison: Comparison | None = None,
    level: float = 0.95,
    max_thumbnails: int = 24,
    title: str = "Small objects in semantic segmentation",
) -> None:
    """Write the report of one scored run, or of several side by side.

    Args:
        path: the HTML file to create or replace, atomically.
        runs: :class:`d2_smallobj.scoring.ScoredRun` objects with distinct names, scored on the
            same classes with the same size bins. Their ``sources`` are read for the thumbnails;
            where files are missing the report says so and has no pictures.
        intervals: by run name: by figure, ``(estimate, low, high)`` or an object with ``low``
            and ``high``, in percent. Default: those of ``comparison``, or of the runs.
        comparison: paired differences of these runs, to be shown.
        level: of the intervals, for the text; that of ``comparison`` where it is given.
        max_thumbnails: how many of the worst missed small objects to show; 0 for none.
        title: heading of the page.

    Raises:
        ValueError: if there is no run, names are not distinct, classes or size bins differ, or
            ``intervals`` or ``comparison`` name an unknown run, or a number is out of range.
        OSError: if the file cannot be written; an older one stays as it was.
    """
    atomic_write_text(
        path,
        render_report(
            runs,
            intervals=intervals,
            comparison=comparison,
            level=level,
            max_thumbnails=max_thumbnails,
            title=title,
        ),
    )


def render_report(
    runs: Sequence[Any],
    *,
    intervals: Mapping[str, Mapping[str, Any]] | None = None,
    comparison: Comparison | None = None,
    level: float = 0.95,
    max_thumbnails: int = 24,
    title: str = "Small objects in semantic segmentation",
) -> str:
    """Make the report's HTML; arguments and errors as for :func:`write_report`."""
    if max_thumbnails < 0:
        raise ValueError(f"max_thumbnails must be >= 0, got {max_thumbnails}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if comparison is not None:
        intervals = comparison.intervals if intervals is None else intervals
        level = comparison.level
    methods = make_methods(runs, intervals)
    candidates = worst_small(methods)
    drawn, reasons = make_thumbnails(methods, candidates, max_thumbnails)
    glance = html_sections.section(
        "glance",
        "At a glance",
        "Percent; higher is better. Every scale runs from 0 to 100"
        + (", bars are intervals." if any(method.intervals for method in methods) else "."),
        html_sections.headline(methods),
    )
    compared = None
    if comparison is not None and comparison.differences:
        compared = html_comparison.compared(comparison)
    body = [
        glance,
        _warnings(methods, comparison),
        compared,
        html_sections.sizes(methods, _curves(methods, level)),
        html_objects.outcomes(methods),
        html_objects.thumbnails(methods, drawn, reasons, len(candidates), max_thumbnails),
        html_objects.false_positives(methods),
        html_sections.classes(methods),
        html_notes.notes(methods, level),
    ]
    return _page(title, html_notes.summary(methods, paired=comparison is not None), body)


def _warnings(methods: Sequence[Method], comparison: Comparison | None) -> Markup | None:
    """The box of warnings."""
    found = html_notes.warnings(methods, comparison)
    if not found:
        return None
    items = [tag("li", text) for text in found]
    heading = tag("h2", "Before you trust these figures")
    return tag("section", heading, tag("ul", items), class_="warnings")


def _curves(methods: Sequence[Method], level: float) -> list[Line]:
    """The size curve of every method that has instances."""
    lines = []
    for method in methods:
        curve = size_curve(method.run.table, images=list(method.run.images), level=level)
        # A single size gives one point, which is no curve.
        if len(curve.area) and curve.area[0] < curve.area[-1]:
            sides = np.sqrt(curve.area)
            lines.append(
                Line(method.name, method.position, sides, curve.iou, curve.low, curve.high)
            )
    return lines


def _page(title: str, summary: Markup, body: Sequence[Markup | None]) -> str:
    """The whole document."""
    style, script = read_asset("report.css"), read_asset("report.js")
    shown = "".join(part for part in body if part)
    links = [
        tag("li", tag("a", words, href=f"#{name}"))
        for name, words in _SECTIONS
        if f'id="{name}"' in shown
    ]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=content_policy(script)),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    top = tag(
        "header",
        tag("h1", title),
        tag("button", "☾ Dark", id="theme", type="button", class_="js"),
        summary,
    )
    return "<!DOCTYPE html>\n" + tag(
        "html",
        head,
        tag(
            "body",
            top,
            tag("nav", tag("ul", links), aria_label="Sections"),
            tag("main", list(body)),
            tag("footer", tag("p", "Made by d2_smallobj. This file asks no network for anything.")),
            tag("script", Markup(script)),
        ),
        lang="en",
    )
