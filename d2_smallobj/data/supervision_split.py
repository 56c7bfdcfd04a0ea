"""Choose the images that keep their masks: a seeded split, stratified by class (docs/mixed.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np


def stratified_split(classes: Sequence[Collection[int]], fraction: float, seed: int) -> np.ndarray:
    """Choose a fraction of the images so that every class keeps about that fraction of its own.

    Iterative stratification (Sechidis et al., ECML 2011) for two parts: the class with the fewest
    images left is dealt out first, each image to the part that still wants more of that class.

    Args:
        classes: the foreground classes of every image.
        fraction: share of the chosen images, in (0, 1].
        seed: the same seed gives the same choice.

    Returns:
        bool (number of images,), true for the chosen ones: exactly ``round(fraction * number)``.

    Raises:
        ValueError: if the fraction is out of range, chooses no image, or leaves a class without
            any chosen image; names the classes.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction!r}")
    number = round(fraction * len(classes))
    if number == 0:
        raise ValueError(f"fraction {fraction:g} of {len(classes)} image(s) is no image at all")
    chosen = _deal(classes, number, np.random.default_rng(seed))
    lacking = _lacking(classes, chosen)
    if lacking:
        total = Counter(c for image in classes for c in set(image))
        shown = ", ".join(f"{c} (in {total[c]} image(s))" for c in lacking[:10])
        more = f" and {len(lacking) - 10} more" if len(lacking) > 10 else ""
        raise ValueError(
            f"fraction {fraction:g} of {len(classes)} image(s) leaves {len(lacking)} class(es) "
            f"without any: {shown}{more}; give a larger fraction, or other images"
        )
    return chosen


def _deal(classes: Sequence[Collection[int]], number: int, rng: np.random.Generator) -> np.ndarray:
    """Deal all images out to the chosen (True) and the other part."""
    share = number / len(classes)
    # The background is a class of every image: what is left at the end is dealt out by it.
    members = [{*image, 0} for image in classes]
    left = Counter(c for image in members for c in image)
    wanted = {True: {c: share * n for c, n in left.items()},
              False: {c: (1 - share) * n for c, n in left.items()}}  # fmt: skip
    room = {True: number, False: len(classes) - number}
    order = rng.permutation(len(classes))
    open_images = dict.fromkeys(order.tolist())
    chosen = np.zeros(len(classes), bool)
    while open_images:
        # The background last, for it has every image that is left.
        rarest = min((c for c, n in left.items() if n), key=lambda c: (c == 0, left[c], c))
        for image in [i for i in open_images if rarest in members[i]]:
            part = max(
                (part for part in (True, False) if room[part]),
                key=lambda part: (wanted[part][rarest], wanted[part][0]),
            )
            chosen[image] = part
            room[part] -= 1
            del open_images[image]
            for c in members[image]:
                left[c] -= 1
                wanted[part][c] -= 1
    return chosen


def _lacking(classes: Sequence[Collection[int]], chosen: np.ndarray) -> list[int]:
    """Classes that no chosen image has."""
    present = {c for image in classes for c in image}
    kept = {c for image, keeps in zip(classes, chosen) if keeps for c in image}
    return sorted(present - kept)
