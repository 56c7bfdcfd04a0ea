"""The report's chart of the size curve: where lines, labels and bars lie in an SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from d2_smallobj.report.page import percent

_DASHES = ("", "7 4", "2 3", "10 3 2 3", "12 5", "4 2 1 2", "1 5", "14 3 3 3")
_TEXT_HEIGHT = 13
_MARKERS = 7
"""Number of markers on a curve."""
_FEW_BANDS = 4


class CurveLine(NamedTuple):
    """One method's curve over x (P,), ascending and positive, and its band; NaN breaks either.

    ``position`` of the method decides colour, marker and dash; y, low and high (P,) are percent.
    """

    name: str
    position: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


class SizeCurveChart:
    """Curves on a logarithmic x axis and a y axis of 0 to 100 percent.

    Args:
        name: class of the drawing in the style sheet.
        width: in pixels of the drawing.
        height: likewise.
        lines: the curves; x is the side of a square of the object's area, in pixels.
        bounds: name and lower bound (in x) of the size bins; 0 for the first one.
        sides: (R,) x of all instances, drawn as a histogram along the axis.
    """

    def __init__(
        self,
        name: str,
        width: int,
        height: int,
        lines: Sequence[CurveLine],
        bounds: Sequence[tuple[str, float]] = (),
        sides: Sequence[float] | np.ndarray = (),
    ) -> None:
        self.name, self.width, self.height = name, width, height
        # Many bands over each other would hide the lines.
        self.band_opacity = 0.17 if len(lines) <= _FEW_BANDS else 0.06
        self._lines, self._bounds, self._sides = lines, bounds, np.asarray(sides)
        self._left, self._right, self._top, self._bottom = 44, width - 12, 26, height - 48
        every = np.concatenate([line.x for line in lines])
        self._low, self._high = math.log2(every.min()), math.log2(every.max())
        if self._high - self._low < 1:
            middle = (self._high + self._low) / 2
            self._low, self._high = middle - 0.5, middle + 0.5

    def strokes(self) -> Iterator[tuple[str, float, float, float, float]]:
        """Grid, ticks and bounds of the size bins: class, and both ends."""
        for value in range(0, 101, 20):
            yield "grid", self._left, self._y(value), self._right, self._y(value)
        for power in self._powers():
            yield "tick", self._x(2.0**power), self._bottom, self._x(2.0**power), self._bottom + 5
        for _, start in self._bounds:
            if 2.0**self._low < start < 2.0**self._high:
                yield "bound", self._x(start), self._top, self._x(start), self._bottom

    def labels(self) -> Iterator[tuple[float, float, str, str]]:
        """Numbers and names along the axes: x, y, text and anchor."""
        for value in range(0, 101, 20):
            yield self._left - 8, self._y(value) + 4, str(value), "end"
        for power in self._powers():
            yield self._x(2.0**power), self._bottom + 20, f"{2.0**power:g}", "middle"
        middle = (self._left + self._right) / 2
        yield middle, self.height - 8, "object size: √area in pixels (log scale)", "middle"
        yield 8, 14, "IoU, %", "start"
        starts = [start for _, start in self._bounds]
        for (name, start), end in zip(self._bounds, [*starts[1:], math.inf]):
            left, right = (
                self._x(min(max(side, 2.0**self._low), 2.0**self._high)) for side in (start, end)
            )
            if right - left > 1.5 * _TEXT_HEIGHT:
                yield round((left + right) / 2, 1), self._top - 8, name, "middle"

    def bars(self) -> Iterator[tuple[int, float, float, float, float]]:
        """Histogram with about four bars to a doubling: instances, x, y, width and height."""
        if not len(self._sides):
            return
        count = max(round(4 * (self._high - self._low)), 1)
        edges = np.linspace(self._low, self._high, count + 1)
        numbers = np.histogram(np.clip(np.log2(self._sides), self._low, self._high), edges)[0]
        tallest = max(int(numbers.max()), 1)
        for number, low, high in zip(numbers.tolist(), edges[:-1], edges[1:]):
            left, right = self._x(2.0**low), self._x(2.0**high)
            height = 0.22 * (self._bottom - self._top) * number / tallest
            if number:
                top, width = round(self._bottom - height, 1), round(right - left - 1, 1)
                yield number, left, top, width, round(height, 1)

    def bands(self) -> Iterator[tuple[int, str]]:
        """Position of the method and corners of every band."""
        for line in self._lines:
            good = np.isfinite(line.low) & np.isfinite(line.high)
            if np.count_nonzero(good) > 1:
                x, low, high = line.x[good], line.low[good], line.high[good]
                corners = [*zip(x, high), *zip(x[::-1], low[::-1])]
                yield line.position, " ".join(self._point(*corner) for corner in corners)

    def curves(self) -> Iterator[tuple[int, str, str, list[tuple[float, float, str]]]]:
        """Position of the method, dashes, path and some markers of every curve."""
        for line in self._lines:
            defined = np.isfinite(line.y)
            good = np.flatnonzero(defined)
            if not len(good):
                continue
            follows = np.concatenate([[False], defined[:-1]])
            path = "".join(
                f"{'L' if follows[index] else 'M'}{self._point(line.x[index], line.y[index])}"
                for index in good
            )
            points = []
            for index in good[np.linspace(0, len(good) - 1, min(len(good), _MARKERS)).astype(int)]:
                x, y = line.x[index], line.y[index]
                title = f"{line.name}: {percent(y)} % at {x:.0f} px"
                points.append((self._x(x), self._y(y), title))
            yield line.position, _DASHES[line.position % len(_DASHES)], path, points

    def _powers(self) -> range:
        """Powers of two that the x axis shows."""
        return range(math.ceil(self._low), math.floor(self._high) + 1)

    def _x(self, value: float) -> float:
        share = (math.log2(value) - self._low) / (self._high - self._low)
        return round(self._left + share * (self._right - self._left), 1)

    def _y(self, value: float) -> float:
        return round(self._bottom - value / 100 * (self._bottom - self._top), 1)

    def _point(self, x: float, y: float) -> str:
        return f"{self._x(x)},{self._y(min(max(y, 0.0), 100.0))}"
