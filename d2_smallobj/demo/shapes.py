"""The six object classes of the demo scenes: outline, surface and colour of one object.

Every class has its own outline and its own surface pattern, and a range of hues that it shares
with its neighbours, so that no single cue decides: a large object is known by its pattern and
outline, a small one, on which the pattern is lost, by its rough shape and an ambiguous colour.

Legend: ``u, v`` are an object's own coordinates, rotated and scaled so that its outline lies
within the unit disc, ``r`` in pixels the radius of that disc.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from d2_smallobj.utils.opencv import cv2

Array = np.ndarray
"""Shorthand in signatures; the docstrings give shapes and dtypes."""


@dataclasses.dataclass(frozen=True)
class ObjectClass:
    """One kind of object.

    Attributes:
        name: class name, as the COCO JSON and the metadata give it.
        inside: ``(u, v) -> bool``, the outline.
        pattern: ``(u, v, r, period) -> float in [-1, 1]``, the surface; ``period`` in pixels.
        area: area of the outline in units of ``r**2``.
        hue: centre of its hues in degrees; they reach `HUE_SPREAD` to both sides.
    """

    name: str
    inside: Callable[[Array, Array], Array]
    pattern: Callable[[Array, Array, float, float], Array]
    area: float
    hue: float


HUE_SPREAD = 20.0
"""Half the width of a class's hues in degrees: those of some neighbours overlap."""


def _star_inside(u: Array, v: Array) -> Array:
    # Straight edges between five tips at radius 1 and five notches at radius 0.5.
    angle = np.mod(np.arctan2(v, u), 2 * np.pi / 5)
    angle = np.minimum(angle, 2 * np.pi / 5 - angle)
    along, across = np.cos(np.pi / 5) * 0.5 - 1.0, np.sin(np.pi / 5) * 0.5
    radius = np.hypot(u, v)
    return radius * (np.sin(angle) * -along + np.cos(angle) * across) < across


def _ring_inside(u: Array, v: Array) -> Array:
    squared = u * u + v * v
    return (squared < 1.0) & (squared > 0.45**2)


def _star_pattern(u: Array, v: Array, r: float, period: float) -> Array:
    across, along = (np.mod(w * r / period + 0.5, 1.0) - 0.5 for w in (u, v))
    return np.where(across**2 + along**2 < 0.3**2, -1.0, 0.5)


def _leaf_pattern(u: Array, v: Array, r: float, period: float) -> Array:
    veins = np.mod((u + np.abs(v)) * r / period, 1.0) < 0.35
    return np.where(veins | (np.abs(v) * r < 1.0), 0.9, -0.5)


def _ring_pattern(u: Array, v: Array, r: float, period: float) -> Array:
    sectors = max(4.0, np.round(4.5 * r / period))
    return np.where(np.mod(np.arctan2(v, u) * sectors / (2 * np.pi), 1.0) < 0.5, 0.8, -0.8)


def _kite_pattern(u: Array, v: Array, r: float, period: float) -> Array:
    rows, columns = (np.mod(w * r / period, 1.0) < 0.5 for w in (u, v))
    return np.where(rows ^ columns, 0.8, -0.8)


OBJECT_CLASSES = (
    ObjectClass(
        "ball",
        lambda u, v: u * u + v * v < 1.0,
        lambda u, v, r, period: 1.0 - 2.0 * np.clip((u + 0.35) ** 2 + (v + 0.35) ** 2, 0.0, 1.0),
        area=float(np.pi),
        hue=5.0,
    ),
    ObjectClass(
        "crate",
        lambda u, v: (np.abs(u) < 0.8) & (np.abs(v) < 0.6),
        lambda u, v, r, period: np.where(np.mod(v * r / period, 1.0) < 0.7, 0.6, -1.0),
        area=1.92,
        hue=35.0,
    ),
    ObjectClass("star", _star_inside, _star_pattern, float(5 * 0.5 * np.sin(np.pi / 5)), 62.0),
    ObjectClass(
        "leaf",
        # A lens: two discs of radius 1.25 whose centres lie 0.75 beside the long axis.
        lambda u, v: np.maximum(u**2 + (v - 0.75) ** 2, u**2 + (v + 0.75) ** 2) < 1.25**2,
        _leaf_pattern,
        area=1.3964,
        hue=115.0,
    ),
    ObjectClass("ring", _ring_inside, _ring_pattern, float(np.pi * (1 - 0.45**2)), 205.0),
    ObjectClass(
        "kite",
        # A quadrilateral of two triangles, the front one short, the rear one long.
        lambda u, v: np.abs(v) / 0.7 < np.where(u > 0, 1.0 - u / 0.55, 1.0 + u),
        _kite_pattern,
        area=1.085,
        hue=240.0,
    ),
)
"""The demo's object classes; class id = position + 1, 0 is the background."""


def hsv_to_rgb(hue: float, saturation: float, value: float) -> Array:
    """Colour of ``hue`` in degrees, ``saturation`` and ``value`` in 0..1: float32 RGB, 0..255."""
    pixel = np.array([[[hue % 360.0, saturation, value]]], dtype=np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * np.float32(255.0)


@dataclasses.dataclass(frozen=True)
class Stamp:
    """One drawn object before it is put into a scene.

    Attributes:
        class_id: 1..6.
        mask: bool (h, w), its outline, uncut and unhidden.
        colour: float32 (h, w, 3), RGB 0..255, valid where ``mask``.
    """

    class_id: int
    mask: Array
    colour: Array


def draw_object(rng: np.random.Generator, class_id: int, side: float) -> Stamp:
    """Draw one object of class ``class_id`` (1..6) with an area of about ``side**2`` pixels."""
    kind = OBJECT_CLASSES[class_id - 1]
    radius = side / np.sqrt(kind.area)
    stretch = rng.uniform(0.85, 1.18)
    turn = rng.uniform(0.0, 2 * np.pi)
    reach = int(np.ceil(radius * 1.2)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    x, y = x + rng.uniform(-0.5, 0.5), y + rng.uniform(-0.5, 0.5)
    u = (np.cos(turn) * x + np.sin(turn) * y) / (radius * stretch)
    v = (np.cos(turn) * y - np.sin(turn) * x) / (radius / stretch)
    mask = kind.inside(u, v)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    crop = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    mask, u, v = mask[crop], u[crop], v[crop]

    period = float(np.clip(side / 4.0, 3.0, 13.0)) * rng.uniform(0.85, 1.2)
    base = hsv_to_rgb(
        kind.hue + rng.uniform(-HUE_SPREAD, HUE_SPREAD),
        rng.uniform(0.5, 0.95),
        rng.uniform(0.5, 0.95),
    )
    contrast = rng.uniform(0.25, 0.5)
    relief = 1.0 + contrast * kind.pattern(u, v, radius, period)
    speckle = rng.normal(0.0, 7.0, mask.shape)
    colour = base * relief[..., None] + speckle[..., None]
    return Stamp(class_id, mask, np.clip(colour, 0, 255).astype(np.float32))
