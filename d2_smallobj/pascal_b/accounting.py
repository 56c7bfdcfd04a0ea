"""What became of every annotation of the inputs, category by category."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.annotations.class_names import VOC_CLASS_NAMES
from d2_smallobj.pascal_b.candidates import Candidate, Sources
from d2_smallobj.pascal_b.outcomes import Outcome

STATUSES = ("used", "void", "crowd", "background", "dropped")
_OUTCOMES = tuple(Outcome)
_CODES = {outcome: code for code, outcome in enumerate(_OUTCOMES)}

Row = dict[str, Any]
"""``source`` (lvis or coco), ``category``, ``class`` ("" for background), ``annotations`` (their
number) and ``outcomes`` (number by :class:`Outcome` value, zeros left out)."""


def account(
    sources: Sources,
    dropped: Mapping[int, Outcome],
    chosen: Sequence[tuple[Candidate, Sequence[Outcome]]],
) -> list[Row]:
    """Count the outcomes of all annotations.

    Args:
        sources: the inputs.
        dropped: why an image is not in the set, for every image that is not.
        chosen: the other images, with the outcomes of their annotations.

    Returns:
        One row for each category that has annotations, LVIS's first, by name. Their sum is the
        number of annotations of the inputs.
    """
    totals: dict[tuple[str, str], np.ndarray] = {}
    classes: dict[tuple[str, str], str] = {}
    by_source: dict[int, list[tuple[int, int]]] = {}
    for candidate, outcomes in chosen:
        for piece, outcome in zip((*candidate.lvis, *candidate.coco), outcomes):
            by_source.setdefault(piece.source, []).append((piece.row, _CODES[outcome]))
    ids = np.array(sorted(dropped), np.int64)
    reasons = np.array([_CODES[dropped[image_id]] for image_id in ids.tolist()], np.int64)
    for number, file in enumerate(sources.files):
        position = np.minimum(np.searchsorted(ids, file.image_ids), max(0, len(ids) - 1))
        codes = reasons[position] if len(ids) else np.zeros(len(file.image_ids), np.int64)
        for row, code in by_source.get(number, ()):
            codes[row] = code
        used, inverse = np.unique(file.category_ids, return_inverse=True)
        rules = [sources.rule(number, category) for category in used.tolist()]
        is_object = np.array([rule is not None for rule in rules], bool)
        codes = np.where(is_object[inverse], codes, _CODES[Outcome.BACKGROUND])
        cells = np.bincount(
            inverse * len(_OUTCOMES) + codes, minlength=len(used) * len(_OUTCOMES)
        ).reshape(len(used), len(_OUTCOMES))
        for category, rule, counts in zip(used.tolist(), rules, cells):
            key = (file.kind, file.categories[category])
            classes[key] = VOC_CLASS_NAMES[rule.class_id] if rule else ""
            totals[key] = totals.get(key, 0) + counts
    order = sorted(totals, key=lambda key: (key[0] != "lvis", key[1]))
    return [_row(key, classes[key], totals[key]) for key in order]


def _row(key: tuple[str, str], class_name: str, counts: np.ndarray) -> Row:
    """A row of the account."""
    return {
        "source": key[0],
        "category": key[1],
        "class": class_name,
        "annotations": int(counts.sum()),
        "outcomes": {
            outcome.value: int(count) for outcome, count in zip(_OUTCOMES, counts) if count
        },
    }


def by_status(row: Row) -> dict[str, int]:
    """Number of annotations of a row that are used, void, crowd, background and dropped."""
    counts = dict.fromkeys(STATUSES, 0)
    for outcome, count in row["outcomes"].items():
        counts[outcome.partition(":")[0]] += count
    return counts


def total_outcomes(rows: Sequence[Row]) -> dict[str, int]:
    """Sum of the rows, by outcome, in the order of :class:`Outcome`."""
    sums = {
        outcome.value: sum(row["outcomes"].get(outcome.value, 0) for row in rows)
        for outcome in _OUTCOMES
    }
    return {outcome: count for outcome, count in sums.items() if count}


def format_csv(rows: Sequence[Row]) -> str:
    """The account as CSV, with a column for each outcome that occurs."""
    outcomes = list(total_outcomes(rows))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["source", "category", "class", "annotations", *outcomes])
    for row in rows:
        counts = (row["outcomes"].get(outcome, 0) for outcome in outcomes)
        writer.writerow([row["source"], row["category"], row["class"], row["annotations"], *counts])
    return text.getvalue()
