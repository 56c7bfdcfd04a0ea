"""Pseudo labels for the demo scenes, wrong in the ways of weakly supervised masks.

What such methods get wrong, and what this imitates: boundaries wander by a few pixels and
rather outwards (activation maps have a quarter of the resolution or less); neighbours of one
class grow together; small objects are missed; an object is now and then taken for another class
of the same image; a bit of background is taken for a class of the image. Classes that are not
in the image never appear, since image-level labels are known. No pixel is marked ignored.
"""

from __future__ import annotations

import numpy as np

from d2_smallobj.demo.scenes import Scene, smooth_noise
from d2_smallobj.demo.shapes import Array
from d2_smallobj.utils.opencv import cv2

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
    """How far the boundary moves outwards at every place, pixels: float32 (size, size)."""
    return BLEEDING + WANDERING * smooth_noise(rng, size, max(size // 20, 2))


def _coarse(score: Array) -> Array:
    """Reduce to a quarter of the resolution and interpolate back: details are lost."""
    size = score.shape[0]
    small = cv2.resize(score, (max(size // _STRIDE, 1),) * 2, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)
