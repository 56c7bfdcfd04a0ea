"""Lay out the figures of a scored run: ``metrics.json`` for programs, text tables for people.

The keys of ``metrics.json`` are stable: ``mIoU``, ``IA-mIoU``, ``IA-mIoU_fg``, ``IA-mIoU_<size>``
and the other figures of :func:`d2_smallobj.metrics.summary.headline_names` in percent (``null``
where undefined), ``intervals``, ``classes``, ``counts``, ``outcomes``, ``blobs``,
``few_instances``, ``warnings``, ``options``, ``versions``. None depends on the time, the machine's
speed, or the number of processes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import d2_smallobj
from d2_smallobj.annotations.classes import short_name
from d2_smallobj.metrics import OUTCOMES, blob_summary, outcome_summary
from d2_smallobj.metrics.summary import split_headline
from d2_smallobj.scoring.scored_run import ScoredRun
from d2_smallobj.statistics.intervals import Interval, few_instances, few_instances_warnings
from d2_smallobj.utils.messages import listed
from d2_smallobj.utils.opencv import cv2
from d2_smallobj.utils.tables import markdown_table

FORMAT = 3
"""Version of the files of a run, raised when older readers would misread them."""


def describe(run: ScoredRun, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Make the content of ``metrics.json``, ``extra`` keys first; undefined figures are NaN."""
    bins = run.size_bins
    few = few_instances(run.table, run.class_names, bins, stuff=run.stuff)
    return {
        **(extra or {}),
        **run.headline,
        "intervals": {name: dataclasses.asdict(found) for name, found in run.intervals.items()},
        "classes": _classes(run),
        "counts": _counts(run),
        "outcomes": outcome_summary(run.table, run.class_names, bins, stuff=run.stuff),
        "blobs": blob_summary(run.blobs, run.class_names, bins, stuff=run.stuff),
        "few_instances": [dataclasses.asdict(one) for one in few],
        "warnings": warnings(run),
        "remarks": list(run.remarks),
        "options": dict(run.options),
        "versions": versions(),
        "format": FORMAT,
    }


def dumps(document: Mapping[str, Any]) -> str:
    """Write the content as JSON text; NaN becomes ``null``."""
    return json.dumps(_plain(document), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def warnings(run: ScoredRun) -> list[str]:
    """List the limits of the figures, one sentence each."""
    found = list(run.remarks)
    if "shard" in run.options:
        found.append(
            f"These are the figures of shard {run.options['shard']} alone; merge all shards."
        )
    if not run.images:
        found.append("No image was scored; all figures are undefined.")
    things = [name for place, name in enumerate(run.class_names) if place not in run.stuff]
    absent = [name for name in things if not run.figures[f"instances-{name}"]]
    if absent and run.images:
        found.append(
            f"IA-mIoU leaves out {len(absent)} class(es) without an instance: {listed(absent)}."
        )
    few = few_instances(run.table, run.class_names, run.size_bins, stuff=run.stuff)
    return found + few_instances_warnings(few)


def versions() -> dict[str, str]:
    """Return the versions that figures could depend on."""
    return {
        "d2_smallobj": d2_smallobj.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def intervals_of(document: Mapping[str, Any]) -> dict[str, Interval]:
    """Return the intervals of a ``metrics.json`` that was read."""
    return {
        name: Interval(*(_number(ends[key]) for key in ("estimate", "low", "high")))
        for name, ends in document["intervals"].items()
    }


def differing(run: ScoredRun, document: Mapping[str, Any]) -> list[str]:
    """List the headline figures of a ``metrics.json`` that differ from the run's records."""
    return [
        name
        for name, value in run.headline.items()
        if repr(_number(document.get(name))) != repr(value)
    ]


def _classes(run: ScoredRun) -> dict[str, dict[str, float]]:
    """Return all figures by class; stuff has no sizes."""
    groups = ["", *(f"_{size}" for size in run.size_bins)]
    found = {}
    for category, name in enumerate(run.class_names):
        shown = groups if category not in run.stuff else groups[:1]
        row = {"IoU": run.figures[f"IoU-{name}"]}
        row |= {f"IA-IoU{group}": run.figures[f"IA-IoU{group}-{name}"] for group in shown}
        row |= {f"instances{g}": int(run.figures[f"instances{g}-{name}"]) for g in shown}
        found[name] = row
    return found


def _counts(run: ScoredRun) -> dict[str, int]:
    """Count images, instances, pixels and blobs."""
    groups = ["", *(f"_{size}" for size in run.size_bins)]
    pixels = run.pixels.select(run.pixels.ground_truth > 0)
    with_instances = np.unique(run.table.image_id[run.table.things])
    return {
        "images": len(run.images),
        **{f"instances{group}": int(run.figures[f"instances{group}"]) for group in groups},
        "images_without_instances": len(run.images) - len(with_instances),
        "images_all_ignored": len(run.images) - len(np.unique(pixels.image_id)),
        "classes_in_ground_truth": len(np.unique(pixels.category_id)),
        "pixels": int(pixels.ground_truth.sum()),
        "blobs": len(run.blobs),
    }


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _plain(value: Any) -> Any:
    """Convert to plain JSON values; undefined numbers become ``None``."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_figures(figures: Mapping[str, float], class_names: Sequence[str]) -> str:
    """Lay out figures as text tables: the headline, those by image, a row for every class present.

    ``-`` stands for an undefined figure; long names are cut.
    """
    names = list(figures)
    first = names.index("images")
    headline, further = split_headline(names[:first])
    counts = [name for name in names[first:] if name == "images" or name.startswith("instances")]
    counts = [name for name in counts if "-" not in name]
    tops = [
        _table(shown, [[_cell(name, figures[name]) for name in shown]])
        for shown in ([*headline, *counts], further)
    ]
    sizes = [name[len("IA-mIoU") :] for name in headline if name.startswith("IA-mIoU_")]
    groups = ["", *(size for size in sizes if f"instances{size}" in figures)]
    header = ["class", "IoU", *(f"IA-IoU{group}" for group in groups)]
    header += [f"instances{group}" for group in groups]

    def row(name: str) -> list[str]:
        values = (figures.get(f"{column}-{name}", math.nan) for column in header[1:])
        return [short_name(name), *map(_cell, header[1:], values)]

    rows = [
        row(name)
        for name in class_names
        if figures[f"instances-{name}"] > 0 or not math.isnan(figures[f"IoU-{name}"])
    ]
    return "\n\n".join([*tops, _table(header, rows)])


def format_run(run: ScoredRun) -> str:
    """Lay out a run: its figures, intervals, and what happened to the instances by size.

    The last rows count false-positive blobs, predicted where no instance of their class is, by
    their own size.
    """
    parts = [format_figures(run.figures, run.class_names)]
    if run.intervals:
        level = 100 * float(run.options.get("level", 0.95))
        for names in split_headline(list(run.intervals)):
            ends = [_ends(run.intervals[name]) for name in names]
            parts.append(_table([f"{level:g} %", *names], [["interval", *ends]]))
    bins = run.size_bins
    outcomes = outcome_summary(run.table, run.class_names, bins, stuff=run.stuff)
    blobs = blob_summary(run.blobs, run.class_names, bins, stuff=run.stuff)
    header = ["instances", "all", *bins, "IoU lost"]
    rows = [
        [
            outcome,
            str(outcomes["all"][outcome]["instances"]),
            *(str(outcomes["sizes"][size][outcome]["instances"]) for size in bins),
            f"{outcomes['all'][outcome]['lost']:.1f}",
        ]
        for outcome in OUTCOMES
    ]
    sizes = [str(blobs["sizes"][size]["blobs"]) for size in bins]
    rows.append(["false-positive blobs", str(blobs["all"]["blobs"]), *sizes, "-"])
    parts.append(_table(header, rows))
    return "\n\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(header, rows, text_columns=len(header))


def _ends(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "-"
    return f"{interval.low:.2f} .. {interval.high:.2f}"


def _cell(name: str, value: float) -> str:
    """A figure as text: two decimals for percentages, none for counts."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if name.startswith(("images", "instances")) else f"{value:.2f}"
