"""Marks of the methods, and charts made of HTML alone: interval tracks and stacked bars.

Colours are CSS variables, so that a chart follows the theme; methods differ in marker and dash
as well, for readers who cannot tell the colours apart and for black-and-white print.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from d2_smallobj.report.html_markup import Markup, count, percent, tag

NUM_COLOURS = 8
_MARKERS = ("circle", "square", "diamond", "triangle", "down", "cross", "plus", "bar")
_NARROWEST_TOLD = 6
"""Parts of a stacked bar below this percentage have no room for their number."""


def colour(position: int) -> str:
    """The CSS colour of a method; repeats after :data:`NUM_COLOURS`."""
    return f"var(--m{position % NUM_COLOURS})"


def swatch(position: int) -> Markup:
    """A method's marker, to stand beside its name."""
    shape = marker(position, 8, 8, 5.5)
    return tag("svg", shape, class_="swatch", viewBox="0 0 16 16", aria_hidden="true")


def marker(position: int, x: float, y: float, radius: float, title: str = "") -> Markup:
    """A method's marker at a point of an SVG."""
    r = radius
    points = {
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "diamond": [(0, -1.15), (1.15, 0), (0, 1.15), (-1.15, 0)],
        "triangle": [(0, -1.1), (1.05, 0.8), (-1.05, 0.8)],
        "down": [(0, 1.1), (1.05, -0.8), (-1.05, -0.8)],
        "bar": [(-0.4, -1.1), (0.4, -1.1), (0.4, 1.1), (-0.4, 1.1)],
        "plus": _plus(0.0),
        "cross": _plus(math.pi / 4),
    }
    name = _MARKERS[position % len(_MARKERS)]
    hover = tag("title", title) if title else None
    if name == "circle":
        return tag("circle", hover, cx=f"{x:.1f}", cy=f"{y:.1f}", r=r, fill=colour(position))
    corners = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in points[name])
    return tag("polygon", hover, points=corners, fill=colour(position))


def interval_track(
    position: int, value: float, interval: tuple[float, float] | None, label: str
) -> Markup:
    """A value on a scale of 0 to 100, with its interval as a bar."""
    parts = []
    if interval is not None:
        low, high = (min(max(bound, 0.0), 100.0) for bound in interval)
        style = f"left:{low:.2f}%;width:{high - low:.2f}%;background:{colour(position)}"
        parts.append(tag("span", class_="interval", style=style))
    if not math.isnan(value):
        parts.append(tag("span", swatch(position), class_="dot", style=f"left:{value:.2f}%"))
    return tag("span", parts, class_="track", role="img", aria_label=label)


def stacked_bar(shares: Mapping[str, float], counts: Mapping[str, int], label: str) -> Markup:
    """A bar of 100 % in parts.

    Args:
        shares: percentage by part, in order.
        counts: number of instances by part.
        label: what the bar is about, for those who cannot see it.
    """
    if any(math.isnan(share) for share in shares.values()):
        return tag("span", "no instances", class_="stack empty")
    parts = [
        tag(
            "span",
            f"{share:.0f}" if share >= _NARROWEST_TOLD else None,
            class_=f"part o-{name}",
            style=f"width:{share:.3f}%",
            title=f"{name}: {percent(share)} % ({count(counts[name])} instances)",
        )
        for name, share in shares.items()
        if share > 0
    ]
    told = ", ".join(f"{name} {percent(share)} %" for name, share in shares.items())
    return tag("span", parts, class_="stack", role="img", aria_label=f"{label}: {told}")


def _plus(angle: float) -> list[tuple[float, float]]:
    """Corners of a plus sign, turned."""
    a, b = 0.35, 1.15
    corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
    corners += [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    sine, cosine = math.sin(angle), math.cos(angle)
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in corners]
