"""The size curve, as SVG: percentages against object size, on a logarithmic axis."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from d2_smallobj.report.html_marks import colour, marker
from d2_smallobj.report.html_markup import Markup, count, percent, tag

_DASHES = ("", "7 4", "2 3", "10 3 2 3", "12 5", "4 2 1 2", "1 5", "14 3 3 3")
_CLEAR_BANDS = 4
_TEXT = 13
"""Height of the chart's text in its own pixels; on a telephone the chart is drawn narrower."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One method's curve.

    Attributes:
        name: of the method.
        position: of the method; colour, marker and dash.
        x: (P,) ascending, positive.
        y: (P,) percent; NaN breaks the line.
        low: (P,) lower bound of the band, or ``None``.
        high: (P,) its upper bound, or ``None``.
    """

    name: str
    position: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    bounds: Sequence[tuple[str, float]],
    counts: np.ndarray | None = None,
) -> Markup:
    """Draw percentages against object size, for wide and for narrow pages.

    Args:
        lines: the curves; x is the side of a square of the object's area, in pixels.
        title: what is drawn, for those who cannot see it.
        bounds: name and lower bound (in x) of the size bins; 0 for the first one.
        counts: (R,) x of all instances, drawn as a histogram along the axis.

    Returns:
        Two drawings; CSS shows one of them.
    """
    return tag(
        "div",
        [
            _Chart(width, height, lines, bounds, counts).draw(title, name)
            for name, width, height in (("wide", 860, 400), ("narrow", 400, 340))
        ],
        class_="chart",
    )


class _Chart:
    """A drawing of curves on a logarithmic x axis and a y axis from 0 to 100."""

    def __init__(
        self,
        width: int,
        height: int,
        lines: Sequence[Line],
        bounds: Sequence[tuple[str, float]],
        counts: np.ndarray | None,
    ) -> None:
        self._lines, self._bounds = lines, bounds
        self._counts = np.zeros(0) if counts is None else counts
        self._width, self._height = width, height
        self._left, self._right, self._top, self._bottom = 44, width - 12, 26, height - 48
        every = np.concatenate([line.x for line in lines])
        self._low, self._high = math.log2(every.min()), math.log2(every.max())
        if self._high - self._low < 1:
            middle = (self._high + self._low) / 2
            self._low, self._high = middle - 0.5, middle + 0.5

    def draw(self, title: str, name: str) -> Markup:
        """The SVG."""
        parts = [
            tag("title", title),
            self._histogram(),
            self._grid(),
            self._size_bounds(),
            [self._band(line) for line in self._lines],
            [self._curve(line) for line in self._lines],
        ]
        box = f"0 0 {self._width} {self._height}"
        return tag("svg", parts, class_=name, viewBox=box, role="img", aria_label=title)

    def _x(self, value: float) -> float:
        share = (math.log2(value) - self._low) / (self._high - self._low)
        return self._left + share * (self._right - self._left)

    def _y(self, value: float) -> float:
        return self._bottom - value / 100 * (self._bottom - self._top)

    def _grid(self) -> list[Markup]:
        """Axes, ticks and their labels."""
        parts = []
        for value in range(0, 101, 20):
            y = self._y(value)
            parts.append(_stroke("grid", self._left, y, self._right, y))
            parts.append(_label(self._left - 8, y + 4, str(value), "end"))
        for power in range(math.ceil(self._low), math.floor(self._high) + 1):
            x = self._x(2.0**power)
            parts.append(_stroke("tick", x, self._bottom, x, self._bottom + 5))
            parts.append(_label(x, self._bottom + 20, f"{2.0**power:g}"))
        middle = (self._left + self._right) / 2
        parts.append(_label(middle, self._height - 8, "object size: √area in pixels (log scale)"))
        parts.append(_label(8, 14, "IoU, %", "start"))
        return parts

    def _size_bounds(self) -> list[Markup]:
        """Where the size bins begin, and their names between."""
        parts = []
        starts = [max(2.0**self._low, start) for _, start in self._bounds]
        for (name, start), left, right in zip(self._bounds, starts, [*starts[1:], 2.0**self._high]):
            if start > 2.0**self._low:
                x = self._x(start)
                if x < self._right:
                    parts.append(_stroke("bound", x, self._top, x, self._bottom))
            ends = [self._x(min(max(side, 1e-9), 2.0**self._high)) for side in (left, right)]
            if ends[1] - ends[0] > 1.5 * _TEXT:
                parts.append(_label(sum(ends) / 2, self._top - 8, name))
        return parts

    def _histogram(self) -> list[Markup]:
        """How many instances there are of each size, about four bars to a doubling."""
        if not len(self._counts):
            return []
        bars = max(round(4 * (self._high - self._low)), 1)
        edges = np.linspace(self._low, self._high, bars + 1)
        numbers = np.histogram(np.clip(np.log2(self._counts), self._low, self._high), edges)[0]
        tallest = max(int(numbers.max()), 1)
        parts = []
        for number, low, high in zip(numbers.tolist(), edges[:-1], edges[1:]):
            left, right = self._x(2.0**low), self._x(2.0**high)
            size = 0.22 * (self._bottom - self._top) * number / tallest
            if number:
                parts.append(
                    tag(
                        "rect",
                        tag("title", f"{count(number)} instances of about this size"),
                        x=f"{left:.1f}",
                        y=f"{self._bottom - size:.1f}",
                        width=f"{right - left - 1:.1f}",
                        height=f"{size:.1f}",
                        class_="histogram",
                    )
                )
        return parts

    def _band(self, line: Line) -> Markup | None:
        if line.low is None or line.high is None:
            return None
        good = np.isfinite(line.low) & np.isfinite(line.high)
        x, low, high = line.x[good], line.low[good], line.high[good]
        if len(x) < 2:
            return None
        forth = [self._point(*pair) for pair in zip(x, high)]
        back = [self._point(*pair) for pair in zip(x[::-1], low[::-1])]
        points = " ".join(forth + back)
        # Many bands over each other would hide the lines.
        opacity = 0.17 if len(self._lines) <= _CLEAR_BANDS else 0.06
        return tag(
            "polygon",
            points=points,
            class_="band",
            fill=colour(line.position),
            fill_opacity=opacity,
        )

    def _curve(self, line: Line) -> list[Markup]:
        """The line and some markers on it."""
        pieces = [f"{'L' if joined else 'M'}{self._point(x, y)}" for x, y, joined in _steps(line)]
        if not pieces:
            return []
        dash = _DASHES[line.position % len(_DASHES)]
        drawn = tag(
            "path",
            d="".join(pieces),
            class_="curve",
            stroke=colour(line.position),
            stroke_dasharray=dash or None,
        )
        good = np.flatnonzero(np.isfinite(line.y))
        chosen = good[np.linspace(0, len(good) - 1, min(len(good), 7)).astype(int)]
        return [
            drawn,
            *(
                marker(
                    line.position,
                    self._x(line.x[index]),
                    self._y(line.y[index]),
                    4.5,
                    f"{line.name}: {percent(line.y[index])} % at {line.x[index]:.0f} px",
                )
                for index in chosen
            ),
        ]

    def _point(self, x: float, y: float) -> str:
        return f"{self._x(x):.1f},{self._y(min(max(y, 0.0), 100.0)):.1f}"


def _steps(line: Line) -> list[tuple[float, float, bool]]:
    """Defined points of a line, and whether each follows a defined one."""
    defined = np.isfinite(line.y)
    follows = np.concatenate([[False], defined[:-1]])
    return [
        (x, y, bool(joined))
        for x, y, joined, shown in zip(line.x, line.y, follows, defined)
        if shown
    ]


def _stroke(class_: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return tag("line", class_=class_, **{name: f"{value:.1f}" for name, value in ends.items()})


def _label(x: float, y: float, text: str, anchor: str = "middle") -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, font_size=_TEXT)
