"""Tables as Markdown, without another package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from d2_smallobj.statistics.ranking import RankTable


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1
) -> str:
    """Lay out cells as an aligned Markdown table.

    Args:
        header: names of the columns.
        rows: cells; names may hold anything, what would break the table is escaped.
        text_columns: so many columns are flush left, those after them flush right.
    """
    lines = [[_escaped(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]

    def laid_out(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * width if column < text_columns else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join([laid_out(lines[0]), laid_out(rule), *map(laid_out, lines[1:])])


def number(value: float, form: str = ".2f") -> str:
    """A number as text, ``-`` where it is undefined."""
    return "-" if math.isnan(value) else format(value, form)


def format_rank_table(
    ranks: RankTable,
    *,
    extra: tuple[str, Mapping[str, str]] | None = None,
    form: str = ".2f",
) -> str:
    """Lay out values with ranks, and under them the correlations between figures.

    Args:
        ranks: the table.
        extra: title and cells, by method, of one more column.
        form: how values are written.

    Returns:
        A table ``value (rank)`` and, with three methods or more, one ``rho / tau``.
    """
    title, cells = extra or ("", {})
    header = ["method", *([title] if extra else []), *ranks.figures]
    rows = [
        [method, *([cells[method]] if extra else [])]
        + [
            f"{number(value, form)} ({number(rank, 'g')})"
            for value, rank in zip(ranks.values[row], ranks.ranks[row])
        ]
        for row, method in enumerate(ranks.methods)
    ]
    text = "Value (rank, 1 = best, ties share their mean rank):\n\n"
    text += markdown_table(header, rows, text_columns=len(header) - len(ranks.figures))
    if len(ranks.methods) < 3:
        return text
    rows = [
        [name]
        + [
            f"{number(rho, '.3f')} / {number(tau, '.3f')}"
            for rho, tau in zip(ranks.spearman[row], ranks.kendall[row])
        ]
        for row, name in enumerate(ranks.figures)
    ]
    return (
        f"{text}\n\nSpearman's rho / Kendall's tau-b between figures, over"
        f" {len(ranks.methods)} methods:\n\n{markdown_table(['', *ranks.figures], rows)}"
    )


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split())
