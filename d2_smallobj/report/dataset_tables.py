"""Instances by class and size as CSV and as text."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence

from d2_smallobj.statistics.counts import SizeStatistics
from d2_smallobj.utils.files import atomic_write_text
from d2_smallobj.utils.tables import markdown_table, number


def write_counts(path: str | os.PathLike[str], sets: Sequence[SizeStatistics]) -> None:
    """Write the instances of every data set and class, a column for each size, as CSV.

    Args:
        path: the file to write, atomically.
        sets: with the same size bins.
    """
    rows = [
        [one.name, name, *counts, sum(counts)]
        for one in sets
        for name, counts in zip(one.class_names, one.counts.tolist())
    ]
    _write(path, ["data set", "class", *sets[0].size_names, "all"], rows)


def write_balance(path: str | os.PathLike[str], sets: Sequence[SizeStatistics]) -> None:
    """Write size and balance of every data set as CSV; undefined figures are empty.

    Args:
        path: the file to write, atomically.
        sets: with the same size bins.
    """
    header = ["data set", "images", "instances", *sets[0].size_names, "beyond", "classes"]
    header += ["cells", "empty_cells", "normalized_entropy", "coefficient_of_variation"]
    rows = [
        [
            *(one.name, one.num_images, int(one.counts.sum()), *one.counts.sum(axis=0).tolist()),
            *(one.num_beyond, len(one.class_names), one.counts.size, one.num_empty),
            *("" if math.isnan(x) else f"{x:.6f}" for x in (one.entropy, one.variation)),
        ]
        for one in sets
    ]
    _write(path, header, rows)


def format_counts(statistics: SizeStatistics) -> str:
    """The instances of one data set as a table of text, most frequent classes first.

    Classes without any instance are one row together if there are several: LVIS has hundreds.
    """
    counts = statistics.counts
    order = sorted(range(len(counts)), key=lambda row: (-int(counts[row].sum()), row))
    empty = [row for row in order if not counts[row].any()]
    shown = order if len(empty) < 2 else order[: -len(empty)]
    rows = [[statistics.class_names[row], *_cells(counts[row].tolist())] for row in shown]
    if len(shown) < len(order):
        rows.append([f"{len(empty)} more classes", *_cells(counts[empty].sum(axis=0).tolist())])
    rows.append(["all classes", *_cells(counts.sum(axis=0).tolist())])
    return markdown_table([statistics.name, *statistics.size_names, "all"], rows)


def format_balance(sets: Sequence[SizeStatistics]) -> str:
    """Size and balance of the data sets as a table of text, with a line on how to read it."""
    header = ["data set", "images", "instances", "empty cells", "entropy", "variation"]
    rows = [
        [
            *(one.name, f"{one.num_images:,}", f"{int(one.counts.sum()):,}"),
            *(f"{one.num_empty} of {one.counts.size}", number(one.entropy, ".4f")),
            number(one.variation, ".3f"),
        ]
        for one in sets
    ]
    lines = [markdown_table(header, rows), ""]
    lines.append(
        "Balance over class × size: normalised entropy (1 = all cells equal), coefficient of"
        " variation (0 = all cells equal)."
    )
    lines += [
        f"{one.name}: {one.num_beyond:,} instances lie beyond the last size and are not counted."
        for one in sets
        if one.num_beyond
    ]
    return "\n".join(lines)


def _cells(counts: Sequence[int]) -> list[str]:
    return [f"{count:,}" for count in (*counts, sum(counts))]


def _write(path: str | os.PathLike[str], header: list[str], rows: Iterable[list]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    atomic_write_text(path, text.getvalue())
