"""Why an image of PASCAL-B should be looked at, from what the builder found out about it."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

DISAGREEMENT = 0.25
"""Share of labelled pixels on which LVIS and COCO differ, from which on it is a suspicion."""
VOID_SHARE = 0.2
"""Share of void pixels, likewise."""
_COLUMNS = ("image_id", "disagreement", "void_share", "message")


def read_suspicions(path: str | os.PathLike[str]) -> dict[int, tuple[str, ...]]:
    """Read the builder's list of candidates (``prepare_pascal_b.py --candidates``).

    Args:
        path: the CSV file, with columns ``image_id``, ``disagreement``, ``void_share`` and
            ``message`` at least.

    Returns:
        Reasons by image id; images without any are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or a cell is no number; names the line.
    """
    path = Path(path)
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
        if missing:
            raise ValueError(f"no column {' and '.join(map(repr, missing))}")
        found = dict(_reasons(table.line_num, row) for row in table)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not the builder's list of candidates: {error}") from error
    return {image_id: reasons for image_id, reasons in found.items() if reasons}


def _reasons(line: int, row: dict[str, str]) -> tuple[int, tuple[str, ...]]:
    """Image id and reasons of one line."""
    try:
        image_id = int(row["image_id"])
        disagreement, void = float(row["disagreement"]), float(row["void_share"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"line {line}: {error}") from error
    reasons = []
    if disagreement >= DISAGREEMENT:
        reasons.append(f"LVIS and COCO disagree on {disagreement:.0%} of the labelled pixels")
    if void >= VOID_SHARE:
        reasons.append(f"{void:.0%} of the pixels are void")
    if row["message"]:
        reasons.append(row["message"])
    return image_id, tuple(reasons)
