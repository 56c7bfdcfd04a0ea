"""Drawing images again and again, as weights for :class:`.image_sums.JointSums`.

Shapes: N images; S resamples of one block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Weights held at once: 32 MB as float64.
_BLOCK_CELLS = 1 << 22


def bootstrap_weights(images: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw images with replacement: multinomial counts, block by block.

    Args:
        images: N >= 1.
        samples: number of resamples.
        seed: of the generator; the same images, samples and seed give the same weights.

    Yields:
        float64 (S, N), whole numbers, every row summing to N.
    """
    generator = np.random.default_rng([seed, 0])
    for size in _block_sizes(images, samples):
        drawn = generator.integers(0, images, size=(size, images))
        # Counted into an array by image, then resample; see JointSums.totals.
        drawn *= size
        drawn += np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * images)
        yield counts.reshape(images, size).astype(np.float64).T


def swap_weights(images: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw which images two methods keep (1) or swap (0), block by block.

    Args:
        images: N >= 1.
        samples: number of draws; with ``2**N <= samples`` every pattern comes exactly once
            instead, and :func:`is_complete` says so.
        seed: of the generator.

    Yields:
        float64 (S, N) of 0 and 1.
    """
    if is_complete(images, samples):
        patterns = np.arange(1 << images)[:, None] >> np.arange(images)
        yield (patterns & 1).astype(np.float64)
        return
    generator = np.random.default_rng([seed, 1])
    for size in _block_sizes(images, samples):
        kept = generator.random((size, images)) < 0.5
        yield kept.astype(np.float64, order="F")


def is_complete(images: int, samples: int) -> bool:
    """Whether ``samples`` suffice for all patterns of swaps of that many images."""
    return images < 60 and 1 << images <= samples


def number_of_swaps(images: int, samples: int) -> int:
    """Number of draws that :func:`swap_weights` gives."""
    return 1 << images if is_complete(images, samples) else samples


def check_settings(samples: int, seed: int, level: float) -> None:
    """Check the options that all resampling shares.

    Raises:
        ValueError: if ``samples`` is not a whole number >= 1, ``seed`` not one >= 0, or
            ``level`` not between 0 and 1.
    """
    for name, value, least in (("samples", samples, 1), ("seed", seed, 0)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, e.g. 0.95, got {level!r}")


def _block_sizes(images: int, samples: int) -> Iterator[int]:
    """Sizes of blocks of rows that add up to ``samples``."""
    size = max(1, _BLOCK_CELLS // images)
    for start in range(0, samples, size):
        yield min(size, samples - start)
