"""The report: one HTML file that shows how scored runs treat small objects.

It holds its styles, script and pictures, and its own policy forbids the network: it can be mailed,
archived and opened anywhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from d2_smallobj.metrics.summary import headline_names, split_headline
from d2_smallobj.report import comparison_tables, page_tables
from d2_smallobj.report.methods import ScoredMethod, make_methods, size_range, size_word
from d2_smallobj.report.page import content_policy, percent, read_asset, render_page, thousands
from d2_smallobj.report.size_curve_chart import CurveLine, SizeCurveChart
from d2_smallobj.report.thumbnails import make_thumbnails, worst_small
from d2_smallobj.statistics.comparison import Comparison
from d2_smallobj.statistics.intervals import few_instances, few_instances_warnings
from d2_smallobj.statistics.size_curve import size_curve
from d2_smallobj.utils.files import atomic_write_text

_HEADLINE_TEXTS = {
    "mIoU": "pixels: every object weighs as much as it is large",
    "IA-mIoU": "instances: every object weighs the same, stuff (background) is one more class",
    "IA-mIoU_fg": "instances, classes of objects only",
}
_CHARTS = (("wide", 860, 400), ("narrow", 400, 340))
_LONGEST_OPTION = 300


def write_report(path: str | os.PathLike[str], runs: Sequence[Any], **options: Any) -> None:
    """Write the report of one scored run, or of several side by side, as one HTML file.

    Args:
        path: the file to create or replace, atomically.
        runs: see :func:`render_report`.
        options: keyword arguments of :func:`render_report`.

    Raises:
        ValueError: see :func:`render_report`.
        OSError: if the file cannot be written; an older one stays as it was.
    """
    atomic_write_text(path, render_report(runs, **options))


def render_report(
    runs: Sequence[Any],
    *,
    intervals: Mapping[str, Mapping[str, Any]] | None = None,
    comparison: Comparison | None = None,
    level: float = 0.95,
    max_thumbnails: int = 24,
    title: str = "Small objects in semantic segmentation",
) -> str:
    """Make the report's HTML.

    Args:
        runs: :class:`d2_smallobj.scoring.ScoredRun` objects with distinct names, scored on the
            same classes with the same size bins. Their ``sources`` are read for the thumbnails;
            where files are missing the report says so and has no pictures.
        intervals: by run name: by figure, ``(estimate, low, high)`` or an object with ``low``
            and ``high``, in percent. Default: those of ``comparison``, or of the runs.
        comparison: paired differences of these runs, to be shown.
        level: confidence of the intervals, in 0..1; that of ``comparison`` where it is given.
        max_thumbnails: how many of the worst missed small objects to show; 0 for none.
        title: heading of the page.

    Raises:
        ValueError: if there is no run, names are not distinct, classes or size bins differ,
            ``intervals`` names an unknown run, or a number is out of range.
    """
    if max_thumbnails < 0:
        raise ValueError(f"max_thumbnails must be >= 0, got {max_thumbnails}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if comparison is not None:
        intervals = comparison.intervals if intervals is None else intervals
        level = comparison.level
    methods = make_methods(runs, intervals)
    first = methods[0]
    worst = worst_small(methods)
    thumbnails, reasons = make_thumbnails(methods, worst, max_thumbnails)
    paired = comparison if comparison is not None and comparison.differences else None
    script = read_asset("report.js")
    return render_page(
        "report.html.j2",
        title=title,
        policy=content_policy(script),
        style=Markup(read_asset("report.css")),
        script=Markup(script),
        methods=methods,
        bins=list(first.bins),
        size_words={name: size_word(name) for name in first.bins},
        size_ranges={name: size_range(first.bins, name) for name in first.bins},
        summary=_summary(methods, paired=comparison is not None),
        warnings=_warnings(methods, comparison),
        has_intervals=any(method.intervals for method in methods),
        cards=_cards(methods),
        further_table=page_tables.further_table(methods),
        comparison=comparison,
        differences=comparison_tables.difference_table(paired) if paired else None,
        p_values=comparison_tables.p_value_table(paired) if paired else None,
        charts=_charts(methods, level),
        size_table=page_tables.size_table(methods),
        outcome_texts=page_tables.OUTCOME_TEXTS,
        outcome_table=page_tables.outcome_table(methods),
        thumbnails=thumbnails,
        missing_pictures=reasons.most_common(3),
        num_worst=len(worst),
        max_thumbnails=max_thumbnails,
        blob_table=page_tables.blob_table(methods),
        class_table=page_tables.class_table(methods),
        ignore_label=first.ignore_label,
        official=first.run.options.get("mode") == "official",
        level=level,
        options=_options(methods),
    )


def _cards(methods: Sequence[ScoredMethod]) -> list[dict[str, Any]]:
    """A card for mIoU, IA-mIoU, and IA-mIoU by size."""
    cards = []
    for key in split_headline(headline_names(methods[0].bins))[0]:
        values = [method.figure(key) for method in methods]
        best = page_tables.best_positions([round(value, 1) for value in values])
        rows = [
            {"method": method, "value": value, "is_best": len(methods) == 1 or position in best}
            for position, (method, value) in enumerate(zip(methods, values))
        ]
        is_size = key not in _HEADLINE_TEXTS
        if is_size:
            size = key.removeprefix("IA-mIoU_")
            number = thousands(methods[0].figure(f"instances_{size}"))
            where = size_range(methods[0].bins, size)
            text = f"{size_word(size)} objects ({where}): {number} instances"
        else:
            text = _HEADLINE_TEXTS[key]
        cards.append({"key": key, "text": text, "is_size": is_size, "rows": rows})
    return cards


def _charts(methods: Sequence[ScoredMethod], level: float) -> list[SizeCurveChart]:
    """The size curves of the methods; empty where no method has objects of several sizes."""
    lines = []
    for method in methods:
        curve = size_curve(method.run.table, images=list(method.run.images), level=level)
        if len(curve.area) and curve.area[0] < curve.area[-1]:
            sides = np.sqrt(curve.area)
            lines.append(
                CurveLine(method.name, method.position, sides, curve.iou, curve.low, curve.high)
            )
    if not lines:
        return []
    bins = methods[0].bins
    # Shares of the image have no place on an axis of pixels.
    starts = [] if bins.relative else [0.0, *list(bins.values())[:-1]]
    bounds = [(name, math.sqrt(start)) for name, start in zip(bins, starts)]
    table = methods[0].run.table
    sides = table.area[table.things] ** 0.5
    return [SizeCurveChart(*chart, lines, bounds, sides) for chart in _CHARTS]


def _summary(methods: Sequence[ScoredMethod], *, paired: bool) -> list[str]:
    """The report in a few sentences; ``paired``: it holds paired differences as well."""
    first = methods[0]
    size = next(iter(first.bins))
    key = f"IA-mIoU_{size}"
    present = sum(first.figure(f"instances-{name}") > 0 for name in first.thing_names)
    objects = int(np.count_nonzero(first.run.table.things))
    sentences = [
        f"{thousands(len(first.run.images))} images, {thousands(objects)} objects of"
        f" {present} classes, {thousands(first.figure(f'instances_{size}'))} of them"
        f" {size_word(size)}."
    ]
    if len(methods) > 1:
        return sentences + _best_methods(methods, key, paired=paired)
    sentence = f"mIoU is {percent(first.figure('mIoU'))}"
    if not math.isnan(first.figure(key)):
        missed = percent(first.outcome_shares(size)["missed"], 0)
        sentence += f"; on {size_word(size)} objects, IA-mIoU is {percent(first.figure(key))}"
        sentence += f" and {missed} % of them are missed altogether"
    return [*sentences, f"{sentence}."]


def _best_methods(methods: Sequence[ScoredMethod], key: str, *, paired: bool) -> list[str]:
    """Name the methods with the highest mIoU and the highest figure of small objects."""
    by_pixels, by_small = (
        max(
            (method for method in methods if not math.isnan(method.figure(name))),
            key=lambda method: method.figure(name),
            default=None,
        )
        for name in ("mIoU", key)
    )
    if by_pixels is None or by_small is None:
        return []
    highest = f"{by_pixels.name} ({percent(by_pixels.figure('mIoU'))})"
    small = percent(by_small.figure(key))
    if by_pixels is by_small:
        sentences = [f"{highest} has the highest mIoU and also the highest {key} ({small})."]
    else:
        sentences = [f"Highest mIoU: {highest}. Highest {key}: {by_small.name} ({small})."]
    lowest = by_small.intervals.get(key, (math.inf, math.inf))[0]
    others = [method.intervals.get(key) for method in methods if method is not by_small]
    if not paired and any(other is not None and other[1] >= lowest for other in others):
        sentences.append(
            f"But intervals of {key} overlap: compare the methods in pairs"
            " (tools/evaluate.py --compare) before calling one better."
        )
    return sentences


def _warnings(methods: Sequence[ScoredMethod], comparison: Comparison | None) -> list[str]:
    """List what a reader should know before trusting the figures."""
    found = []
    for method in methods:
        who = f"{method.name}: " if len(methods) > 1 else ""
        found += [f"{who}{remark}" for remark in getattr(method.run, "remarks", ())]
    for method in methods[1:]:
        found += _mismatches(methods[0], method)
    first = methods[0]
    few = few_instances(first.run.table, first.class_names, first.bins, stuff=first.stuff)
    # A class that the data set lacks altogether needs no sentence about every size.
    few = [one for one in few if first.figure(f"instances-{one.category}") > 0]
    found += few_instances_warnings(few)
    if not any(method.intervals for method in methods):
        found.append(
            "No intervals were computed: differences of a point or two may be chance"
            " (tools/evaluate.py --bootstrap 1000 computes them)."
        )
    if comparison is not None:
        found += [remark for remark in comparison.remarks if remark not in found]
    return found


def _mismatches(first: ScoredMethod, other: ScoredMethod) -> list[str]:
    """Reasons why the figures of two methods cannot be compared."""
    found = []
    images, others = (frozenset(map(str, method.run.images)) for method in (first, other))
    if images != others:
        found.append(
            f"{first.name} and {other.name} were not scored on the same images"
            f" ({thousands(len(images))} and {thousands(len(others))},"
            f" {thousands(len(images & others))} in common): their figures cannot be compared."
        )
    for key in ("mode", "ignore_label"):
        mine, theirs = first.run.options.get(key), other.run.options.get(key)
        if mine != theirs:
            found.append(
                f"{first.name} and {other.name} were scored with different settings of {key}:"
                f" {mine!r} and {theirs!r}."
            )
    return found


def _options(methods: Sequence[ScoredMethod]) -> dict[str, list[str]]:
    """The values of every option, by method."""
    keys = dict.fromkeys(key for method in methods for key in method.run.options)
    return {key: [_plain(method.run.options.get(key)) for method in methods] for key in keys}


def _plain(value: Any) -> str:
    """An option's value as text, shortened."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        text = ", ".join(f"{key}: {_plain(part)}" for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        text = ", ".join(_plain(part) for part in value)
    else:
        text = str(value)
    return text if len(text) <= _LONGEST_OPTION else f"{text[:_LONGEST_OPTION]}…"
