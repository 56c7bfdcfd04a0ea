"""Seeded synthetic scenes: a cluttered background with objects of six classes.

A scene is drawn from its own random stream, so that scene 7 is the same picture whether 10 or
300 are made. Object sizes (root of the area) are spread log-uniformly: many objects are small,
few of the pixels are theirs. Every class has its own outline and its own surface pattern, and a
range of hues that it shares with its neighbours, so that no single cue decides.

Legend: ``u, v`` are an object's own coordinates, rotated and scaled so that its outline lies within
the unit disc, ``r`` in pixels the radius of that disc.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from d2_smallobj.utils.opencv import cv2

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class ObjectClass:
    """One kind of object."""

    name: str
    inside: Callable[[Array, Array], Array]  # (u, v) -> bool, the outline
    # (u, v, r, period) -> float in [-1, 1], the surface; period in pixels.
    pattern: Callable[[Array, Array, float, float], Array]
    area: float  # of the outline in units of r**2
    hue: float  # centre of its hues in degrees


HUE_SPREAD = 20.0  # half the width of a class's hues in degrees: those of neighbours overlap


def _star_inside(u: Array, v: Array) -> Array:
    # Straight edges between five tips at radius 1 and five notches at radius 0.5.
    angle = np.mod(np.arctan2(v, u), 2 * np.pi / 5)
    angle = np.minimum(angle, 2 * np.pi / 5 - angle)
    along, across = np.cos(np.pi / 5) * 0.5 - 1.0, np.sin(np.pi / 5) * 0.5
    radius = np.hypot(u, v)
    return radius * (np.sin(angle) * -along + np.cos(angle) * across) < across


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
    ObjectClass(
        "ring",
        lambda u, v: (u * u + v * v < 1.0) & (u * u + v * v > 0.45**2),
        _ring_pattern,
        float(np.pi * (1 - 0.45**2)),
        205.0,
    ),
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
    """One drawn object, not yet in a scene: bool (h, w) outline and float32 (h, w, 3) RGB in it."""

    class_id: int
    mask: Array
    colour: Array


Placed = tuple[Stamp, int, int]  # with the top and left of a stamp


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


SMALLEST_SIDE, LARGEST_SIDE = 7.0, 140.0  # root of the area, before anything hides a part
_LARGEST_SHARE_OF_SCENE = 0.73
# An object is put elsewhere that would show less than this share of itself, or that would share
# more than this with another of its class.
_LEAST_VISIBLE, _MOST_SHARED = 0.55, 0.35


@dataclasses.dataclass(frozen=True)
class Scene:
    """One drawn scene: RGB image, instances 1..N from back to front, 0 none, without border."""

    image: Array  # uint8 (H, W, 3)
    instances: Array  # uint8 (H, W)
    classes: Array  # uint8 (N + 1,), class of every instance id; entry 0 is 0

    @property
    def semantic(self) -> Array:
        """Class of every pixel, uint8 (H, W), 0 = background, without border."""
        return self.classes[self.instances]

    @property
    def border(self) -> Array:
        """One pixel around every instance, on what lies behind it: bool (H, W)."""
        # Ids grow to the front: the largest one around a border pixel is above its own.
        return cv2.dilate(self.instances, np.ones((3, 3), np.uint8)) > self.instances


def draw_scene(rng: np.random.Generator, size: int) -> Scene:
    """Draw one scene of ``size`` x ``size`` pixels."""
    stamps = _place(rng, _choose_objects(rng, size), size)
    canvas = _background(rng, size)
    instances = np.zeros((size, size), np.uint8)
    classes = np.zeros(len(stamps) + 1, np.uint8)
    for identity, (stamp, top, left) in enumerate(stamps, start=1):
        window, mask, colour = _clip(stamp, top, left, size)
        canvas[window][mask] = colour[mask]
        instances[window][mask] = identity
        classes[identity] = stamp.class_id
    return Scene(_photograph(rng, canvas), instances, classes)


def _choose_objects(rng: np.random.Generator, size: int) -> list[Stamp]:
    """Draw objects of two to four classes, largest first; some come with a few like them."""
    kinds = rng.choice(len(OBJECT_CLASSES), size=int(rng.integers(2, 5)), replace=False) + 1
    largest = min(LARGEST_SIDE, _LARGEST_SHARE_OF_SCENE * size)
    sides: list[tuple[float, int]] = []
    for _ in range(int(rng.integers(3, 8))):
        side = float(np.exp(rng.uniform(np.log(SMALLEST_SIDE), np.log(largest))))
        kind = int(rng.choice(kinds))
        sides.append((side, kind))
        if side < 48 and rng.random() < 0.3:
            sides += [(side * rng.uniform(0.8, 1.2), kind) for _ in range(rng.integers(1, 3))]
    sides.sort(reverse=True)
    return [draw_object(rng, kind, max(side, SMALLEST_SIDE)) for side, kind in sides]


def _place(rng: np.random.Generator, stamps: list[Stamp], size: int) -> list[Placed]:
    """Find places where all stay visible, from back to front; objects without one are left out."""
    placed: list[Placed] = []
    depth = np.zeros((size, size), np.int16)
    for stamp in stamps:
        partner = next((p for p in reversed(placed) if p[0].class_id == stamp.class_id), None)
        for _ in range(12):
            top, left = _propose(rng, stamp, partner, size)
            # A third of the objects goes behind the ones placed before.
            behind = rng.random() < 0.33
            trial = [(stamp, top, left), *placed] if behind else [*placed, (stamp, top, left)]
            if not _on_its_own_kind(stamp, top, left, placed) and _all_visible(trial, depth):
                placed = trial
                break
    return placed


def _propose(
    rng: np.random.Generator, stamp: Stamp, partner: Placed | None, size: int
) -> tuple[int, int]:
    """Propose (top, left): anywhere with the centre in the scene, or close beside a partner."""
    height, width = stamp.mask.shape
    if partner is not None and rng.random() < 0.4:
        other, top, left = partner
        turn = rng.uniform(0.0, 2 * np.pi)
        reach = 0.5 * (max(height, width) + max(other.mask.shape)) * rng.uniform(0.85, 1.15)
        centre_y = top + other.mask.shape[0] / 2 + reach * np.sin(turn)
        centre_x = left + other.mask.shape[1] / 2 + reach * np.cos(turn)
    else:
        # Rather within the scene: a fifth may stick out over its edge.
        slack = 0.3 if rng.random() < 0.2 else 0.5
        centre_y, centre_x = (
            rng.uniform(min(slack * s, size / 2), max(size - slack * s, size / 2))
            for s in (height, width)
        )
    return round(centre_y - height / 2), round(centre_x - width / 2)


def _on_its_own_kind(stamp: Stamp, top: int, left: int, placed: list[Placed]) -> bool:
    """Tell if the object would lie mostly upon (or under) one of its own class."""
    height, width = stamp.mask.shape
    area = np.count_nonzero(stamp.mask)
    for other, other_top, other_left in placed:
        if other.class_id != stamp.class_id:
            continue
        y0, x0 = max(top, other_top), max(left, other_left)
        y1 = max(min(top + height, other_top + other.mask.shape[0]), y0)
        x1 = max(min(left + width, other_left + other.mask.shape[1]), x0)
        ours = stamp.mask[y0 - top : y1 - top, x0 - left : x1 - left]
        theirs = other.mask[y0 - other_top : y1 - other_top, x0 - other_left : x1 - other_left]
        if np.count_nonzero(ours & theirs) > _MOST_SHARED * min(area, np.count_nonzero(other.mask)):
            return True
    return False


def _all_visible(placed: list[Placed], depth: Array) -> bool:
    """Tell if all objects show enough of themselves; ``depth`` (size, size) is scratch space."""
    depth[:] = 0
    for order, (stamp, top, left) in enumerate(placed, start=1):
        window, mask, _ = _clip(stamp, top, left, depth.shape[0])
        depth[window][mask] = order
    # The border takes a pixel from an object behind another one: count what is left of it.
    shown = depth.astype(np.uint8)
    shown[cv2.dilate(shown, np.ones((3, 3), np.uint8)) > shown] = 0
    counts = np.bincount(shown.ravel(), minlength=len(placed) + 1)[1:]
    wholes = np.array([np.count_nonzero(stamp.mask) for stamp, _, _ in placed])
    return bool((counts >= _LEAST_VISIBLE * wholes).all())


def _clip(stamp: Stamp, top: int, left: int, size: int) -> tuple[tuple[slice, slice], Array, Array]:
    """Cut a stamp at the scene's edges: its window in the scene, its mask and colour there."""
    height, width = stamp.mask.shape
    y0, x0 = min(max(top, 0), size), min(max(left, 0), size)
    y1, x1 = max(min(top + height, size), y0), max(min(left + width, size), x0)
    part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    return np.s_[y0:y1, x0:x1], stamp.mask[part], stamp.colour[part]


def smooth_noise(rng: np.random.Generator, size: int, waves: int) -> Array:
    """Noise with about ``waves`` waves along a side: float32 (size, size), mean 0, sd about 1."""
    grid = rng.normal(0.0, 1.0, (waves, waves)).astype(np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC) * np.float32(1.25)


def _background(rng: np.random.Generator, size: int) -> Array:
    """A patchwork of two textured grounds with distractors on it: float32 (size, size, 3)."""
    grounds = []
    for _ in range(2):
        base = hsv_to_rgb(rng.uniform(0, 360), rng.uniform(0.05, 0.35), rng.uniform(0.25, 0.8))
        relief = 0.12 * smooth_noise(rng, size, int(rng.integers(4, 10)))
        relief += 0.10 * smooth_noise(rng, size, int(rng.integers(16, 48)))
        grounds.append(base * (1.0 + relief[..., None]))
    seam = smooth_noise(rng, size, int(rng.integers(3, 7)))[..., None] > rng.uniform(-0.5, 0.5)
    canvas = np.where(seam, grounds[0], grounds[1]).astype(np.float32)
    for _ in range(int(rng.integers(6, 15))):
        _draw_distractor(rng, canvas)
    return canvas


def _draw_distractor(rng: np.random.Generator, canvas: Array) -> None:
    """Draw an object of no class: a scribble or a patch of any colour."""
    size = canvas.shape[0]
    colour = hsv_to_rgb(rng.uniform(0, 360), rng.uniform(0.1, 0.55), rng.uniform(0.3, 0.9))
    mask = np.zeros((size, size), np.uint8)
    centre = rng.uniform(0, size, 2)
    if rng.random() < 0.5:
        steps = rng.normal(0.0, size * 0.12, (int(rng.integers(2, 6)), 2))
        points = np.round(centre + np.cumsum(steps, 0)).astype(np.int32)
        cv2.polylines(mask, [points], False, 1, thickness=int(rng.integers(1, 6)))
    else:
        corners = int(rng.integers(5, 11))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        reach = np.exp(rng.uniform(np.log(4.0), np.log(30.0))) * rng.uniform(0.5, 1.4, corners)
        offsets = np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
        cv2.fillPoly(mask, [np.round(centre + offsets).astype(np.int32)], 1)
    where = mask > 0
    texture = rng.uniform(0.05, 0.2) * smooth_noise(rng, size, int(rng.integers(10, 60)))[where]
    canvas[where] = colour * (1.0 + texture[:, None])


def _photograph(rng: np.random.Generator, canvas: Array) -> Array:
    """Light, blur and sensor noise: uint8 (size, size, 3)."""
    size = canvas.shape[0]
    light = rng.uniform(0.8, 1.15) * (1.0 + 0.1 * smooth_noise(rng, size, 3))
    picture: Array = cv2.GaussianBlur(canvas * light[..., None].astype(np.float32), (5, 5), 0.7)
    picture += rng.normal(0.0, rng.uniform(3.0, 7.0), picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
