"""Ranks of methods under several figures, and rank correlations between the figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from d2_smallobj.utils.tables import markdown_table, number


@dataclasses.dataclass(frozen=True)
class RankTable:
    """Methods ranked by every figure; M methods, F figures.

    Attributes:
        methods: M names.
        figures: F names.
        values: float64 (M, F), larger is better, NaN where undefined.
        ranks: float64 (M, F), 1 = best, ties share their average rank; NaN where undefined.
        spearman: float64 (F, F), Spearman's rho between figures.
        kendall: float64 (F, F), Kendall's tau-b between figures.
    """

    methods: tuple[str, ...]
    figures: tuple[str, ...]
    values: np.ndarray
    ranks: np.ndarray
    spearman: np.ndarray
    kendall: np.ndarray

    def only(self, figures: Sequence[str]) -> RankTable:
        """Take some of the figures, in the order given."""
        chosen = [self.figures.index(name) for name in figures]
        square = np.ix_(chosen, chosen)
        return RankTable(
            self.methods,
            tuple(figures),
            self.values[:, chosen],
            self.ranks[:, chosen],
            self.spearman[square],
            self.kendall[square],
        )


def average_ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rank ascending from 1; equal values share the mean of their places.

    Args:
        values: (M,) numbers without NaN.

    Returns:
        float64 (M,).

    Example:
        >>> average_ranks([0.3, 0.1, 0.3]).tolist()
        [2.5, 1.0, 2.5]
    """
    _, place, number = np.unique(
        np.asarray(values, np.float64), return_inverse=True, return_counts=True
    )
    last = np.cumsum(number)
    return (last - (number - 1) / 2)[place.ravel()]


def spearman(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Spearman's rho, in -1..1: Pearson's correlation of the average ranks of numbers (M,).

    A pair with a NaN is left out. NaN if fewer than two are left or one side is constant;
    ValueError if the lengths differ.
    """
    x, y = _pairs(x, y)
    # The mean of average ranks is (M + 1) / 2, whatever the ties.
    a, b = (average_ranks(values) - (len(values) + 1) / 2 for values in (x, y))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(np.clip(float(a @ b) / scale, -1.0, 1.0)) if scale > 0 else math.nan


def kendall(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Kendall's tau-b: concordant less discordant pairs, corrected for ties on either side.

    Arguments, range and errors are those of :func:`spearman`.
    """
    x, y = _pairs(x, y)
    a, b = (np.sign(values[:, None] - values) for values in (x, y))
    scale = math.sqrt(float(np.abs(a).sum()) * float(np.abs(b).sum()))
    return float(np.clip(float((a * b).sum()) / scale, -1.0, 1.0)) if scale > 0 else math.nan


def rank_table(methods: Mapping[str, Mapping[str, float]]) -> RankTable:
    """Rank methods by every figure that they share, best first.

    Args:
        methods: figures by method, e.g. ``{"IRN": {"mIoU": 64.8, "IA-mIoU": 56.0}}``; larger is
            better.

    Returns:
        The table; figures in the order of the first method, methods in the order given.

    Raises:
        ValueError: if there is no method, or two have different figures.
    """
    if not methods:
        raise ValueError("methods must hold at least one method, got none")
    names = tuple(methods)
    keys = tuple(methods[names[0]])
    for name in names:
        if set(methods[name]) != set(keys):
            raise ValueError(
                f"methods must all have the figures of {names[0]!r}, {list(keys)};"
                f" {name!r} has {list(methods[name])}"
            )
    values = np.array([[methods[name][key] for key in keys] for name in names], np.float64)
    values = values.reshape(len(names), len(keys))
    ranks = np.full(values.shape, np.nan)
    for column, column_values in enumerate(values.T):
        known = ~np.isnan(column_values)
        ranks[known, column] = average_ranks(-column_values[known])
    rho, tau = (
        np.array([[measure(x, y) for y in values.T] for x in values.T]).reshape((len(keys),) * 2)
        for measure in (spearman, kendall)
    )
    return RankTable(names, keys, values, ranks, rho, tau)


def _pairs(
    x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs without NaN as two float64 arrays."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"x and y must be of one length, got shapes {a.shape} and {b.shape}")
    known = ~(np.isnan(a) | np.isnan(b))
    return a[known], b[known]


def format_rank_table(
    ranks: RankTable,
    *,
    extra: tuple[str, Mapping[str, str]] | None = None,
    form: str = ".2f",
) -> str:
    """Lay out a table ``value (rank)`` and, with three methods or more, one ``rho / tau``.

    ``extra`` is one more column: its title, and its cells by method.
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
