"""Seeded synthetic scenes: a cluttered background with objects of six classes.

A scene is drawn from its own random stream, so that scene 7 is the same picture whether 10 or
300 are made. Object sizes (root of the area) are spread log-uniformly: many objects are small,
few of the pixels are theirs.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from d2_smallobj.demo.shapes import OBJECT_CLASSES, Array, Stamp, draw_object, hsv_to_rgb
from d2_smallobj.utils.opencv import cv2

SMALLEST_SIDE, LARGEST_SIDE = 7.0, 140.0
"""Range of object sizes in pixels: the root of the area before anything hides a part."""
_LARGEST_SHARE_OF_SCENE = 0.73
_LEAST_VISIBLE = 0.55
"""An object that would show less than this share of itself is put elsewhere."""
_MOST_SHARED = 0.35
"""As is one that would cover more than this share of another of its class, or be covered."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """One drawn scene.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        instances: uint8 (H, W), visible instances numbered 1..N from back to front, 0 where
            there is none; there is no border in it.
        classes: uint8 (N + 1,), class of every instance id; entry 0 is 0.
    """

    image: Array
    instances: Array
    classes: Array

    @property
    def semantic(self) -> Array:
        """Class of every pixel, uint8 (H, W), 0 = background, without border."""
        return self.classes[self.instances]

    @property
    def border(self) -> Array:
        """One pixel around every instance, on what lies behind it: bool (H, W).

        Ids grow to the front, so a pixel belongs to the border of a neighbour exactly when the
        largest id around it is larger than its own.
        """
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
    """Choose two to four classes, and sizes, and draw the objects, largest first.

    An object may come with a few of its class and size, where pseudo labels merge neighbours.
    """
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


def _place(
    rng: np.random.Generator, stamps: list[Stamp], size: int
) -> list[tuple[Stamp, int, int]]:
    """Find places where every object stays visible enough; returns them from back to front.

    An object for which no place is found in a few tries is left out.
    """
    placed: list[tuple[Stamp, int, int]] = []
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
    rng: np.random.Generator, stamp: Stamp, partner: tuple[Stamp, int, int] | None, size: int
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


def _on_its_own_kind(
    stamp: Stamp, top: int, left: int, placed: list[tuple[Stamp, int, int]]
) -> bool:
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


def _all_visible(placed: list[tuple[Stamp, int, int]], depth: Array) -> bool:
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
    """Draw an object of no class: a scribble or a shapeless patch of any colour."""
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
    picture = cv2.GaussianBlur(canvas * light[..., None].astype(np.float32), (5, 5), 0.7)
    picture += rng.normal(0.0, rng.uniform(3.0, 7.0), picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


MISSED_AT_SMALLEST, MISSED_SIDES = 0.5, (6.0, 40.0)
"""Chance that an object is missed: falls linearly in the log of its size between these sides."""
CONFUSED = 0.04
"""Chance that an object is given another class of the image."""
FALSE_ALARMS = 0.25
"""Chance that a scene gets one false blob."""
BLEEDING, WANDERING = 1.5, 2.0
"""Mean outward shift of boundaries and its standard deviation along them, pixels."""
_STRIDE = 4
"""The masks are made at a quarter of the resolution, then upsampled."""


def draw_pseudo_label(rng: np.random.Generator, scene: Scene) -> Array:
    """Make the pseudo label of a scene: uint8 (H, W), values 0..6."""
    size = scene.instances.shape[0]
    present = np.unique(scene.classes[1:])
    believed = _believed_classes(rng, scene, present)
    labels = believed[scene.instances]
    if rng.random() < FALSE_ALARMS and len(present):
        _add_false_alarm(rng, labels, int(rng.choice(present)))

    best = np.zeros((size, size), np.float32)
    result = np.zeros((size, size), np.uint8)
    for class_id in present:
        mask = (labels == class_id).astype(np.uint8)
        if not mask.any():
            continue
        score = _coarse(_signed_distance(mask) + _boundary_shift(rng, size))
        wins = score > best
        best[wins], result[wins] = score[wins], class_id
    return result


def _believed_classes(rng: np.random.Generator, scene: Scene, present: Array) -> Array:
    """The class that each instance gets, 0 if it is missed: uint8 (N + 1,)."""
    believed = scene.classes.copy()
    areas = np.bincount(scene.instances.ravel(), minlength=len(believed))
    low, high = np.log(MISSED_SIDES)
    for identity in range(1, len(believed)):
        smallness = (high - 0.5 * np.log(max(int(areas[identity]), 1))) / (high - low)
        missed, confused = rng.random(), rng.random()
        if missed < MISSED_AT_SMALLEST * np.clip(smallness, 0.0, 1.0):
            believed[identity] = 0
        elif confused < CONFUSED:
            believed[identity] = rng.choice(present)
    return believed


def _add_false_alarm(rng: np.random.Generator, labels: Array, class_id: int) -> None:
    """Give an ellipse of background to ``class_id``, in place."""
    size = labels.shape[0]
    blob = np.zeros_like(labels)
    centre = tuple(int(c) for c in rng.integers(0, size, 2))
    axes = tuple(int(a) for a in rng.integers(3, 12, 2))
    cv2.ellipse(blob, centre, axes, float(rng.integers(0, 180)), 0, 360, 1, -1)
    labels[(blob > 0) & (labels == 0)] = class_id


def _signed_distance(mask: Array) -> Array:
    """Distance to the outline in pixels, positive inside: float32, same shape as ``mask``."""
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return inside - outside


def _boundary_shift(rng: np.random.Generator, size: int) -> Array:
    """Outward shift of the boundary in pixels: float32 (size, size)."""
    return BLEEDING + WANDERING * smooth_noise(rng, size, max(size // 20, 2))


def _coarse(score: Array) -> Array:
    """Reduce to a quarter of the resolution and interpolate back: details are lost."""
    size = score.shape[0]
    small = cv2.resize(score, (max(size // _STRIDE, 1),) * 2, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)
