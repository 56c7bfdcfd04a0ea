"""Small scenes and flawed predictions of them, for tests of scoring and of the evaluator."""

from __future__ import annotations

import numpy as np
from PIL import Image

NAMES = ("background", "cat", "dog", "bird")


def scene(index):
    """Two cats, a dog, ids with gaps and 255 borders: (semantic, instances), 40 x (50 + index)."""
    semantic = np.zeros((40, 50 + index), np.uint8)
    instances = np.zeros_like(semantic)
    boxes = [(5, 15, 5, 15, 1, 2), (5, 15, 16, 30, 1, 7), (20, 30 + index, 10, 40, 2, 300)]
    instances = instances.astype(np.uint16)
    for top, bottom, left, right, label, identity in boxes:
        semantic[top:bottom, left:right] = label
        instances[top:bottom, left:right] = identity
    semantic[:, 15] = instances[:, 15] = 255
    return semantic, instances


def guess(index):
    """A prediction with holes, surplus and an odd class: uint8 (40, 50 + index)."""
    semantic, _ = scene(index)
    rng = np.random.default_rng(index)
    labels = np.where(semantic == 255, 1, semantic)
    noise = rng.integers(0, len(NAMES), (8, labels.shape[1] // 5 + 1)).repeat(5, 0).repeat(5, 1)
    mixed = np.where(rng.random(labels.shape) < 0.85, labels, noise[:40, : labels.shape[1]])
    return mixed.astype(np.uint8)


def write_ids(path, ids):
    """Write segment ids as a panoptic PNG: R + 256 G + 65536 B."""
    colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=2).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours).save(path)
    return path
