"""Deterministic transforms (fvcore's) and the random augmentations that make them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import HFlipTransform, NoOpTransform, Transform, TransformList

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "HFlipTransform",
    "NoOpTransform",
    "RandomFlip",
    "Transform",
    "TransformList",
]


class AugInput:
    """The image and label map that augmentations act on.

    Attributes:
        image: HxW or HxWxC, uint8 or floating point.
        sem_seg: HxW integer label map, or None.
    """

    def __init__(self, image: np.ndarray, *, sem_seg: np.ndarray | None = None) -> None:
        self.image = image
        self.sem_seg = sem_seg

    def transform(self, transform: Transform) -> None:
        """Apply a transform to both, in place."""
        self.image = transform.apply_image(self.image)
        if self.sem_seg is not None:
            self.sem_seg = transform.apply_segmentation(self.sem_seg)


class Augmentation:
    """A policy that looks at the image; a subclass implements ``get_transform``."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the transform that the policy chooses for this image."""
        raise NotImplementedError

    def __call__(self, aug_input: AugInput) -> Transform:
        """Choose a transform, apply it to the input in place, and return it."""
        transform = self.get_transform(aug_input.image)
        aug_input.transform(transform)
        return transform


class AugmentationList(Augmentation):
    """Policies applied one after the other."""

    def __init__(self, augs: Sequence[Augmentation]) -> None:
        self.augs = augs

    def __call__(self, aug_input: AugInput) -> TransformList:
        """Apply all in place; return the transforms that were chosen."""
        return TransformList([augmentation(aug_input) for augmentation in self.augs])


class RandomFlip(Augmentation):
    """Flip horizontally with probability ``prob``."""

    horizontal = True  # the only direction of this host

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = prob

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return a flip or nothing."""
        flips = np.random.uniform() < self.prob
        return HFlipTransform(image.shape[1]) if flips else NoOpTransform()
