"""Text and Markdown tables, by tabulate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tabulate import tabulate


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1
) -> str:
    """Lay out cells as an aligned Markdown table.

    Args:
        header: names of the columns.
        rows: cells; may hold anything, what would break the table is escaped.
        text_columns: number of columns that are flush left; those after them are flush right.
    """
    header, *rows = ([_escaped(cell) for cell in row] for row in [header, *rows])
    align = ["left" if column < text_columns else "right" for column in range(len(header))]
    return tabulate(rows, header, "pipe", disable_numparse=True, colalign=align if rows else None)


def number(value: float, form: str = ".2f", undefined: str = "-") -> str:
    """Format a number; ``undefined`` where it is NaN."""
    return undefined if math.isnan(value) else format(value, form)


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split())
