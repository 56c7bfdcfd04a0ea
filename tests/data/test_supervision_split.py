"""The stratified split: exact size, every class's share, seeds, errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_smallobj.data.supervision import stratified_split


def random_classes(seed=0, images=200, classes=6):
    rng = np.random.default_rng(seed)
    weights = rng.random(classes) * 0.5 + 0.05
    return [
        set((np.flatnonzero(rng.random(classes) < weights) + 1).tolist()) for _ in range(images)
    ]


@pytest.mark.parametrize("fraction", [0.18, 0.5, 0.9])
def test_every_class_keeps_about_its_share(fraction):
    classes = random_classes()
    chosen = stratified_split(classes, fraction, seed=0)
    assert chosen.dtype == bool
    assert chosen.sum() == round(fraction * len(classes))
    for c in range(1, 7):
        total = sum(c in image for image in classes)
        kept = sum(c in image for image, keep in zip(classes, chosen) if keep)
        assert abs(kept - fraction * total) <= 2, c


def test_a_rare_class_is_not_left_to_chance():
    """3 of 300 images have class 9; a draw of 100 without regard to it misses it in 3 of 10."""
    classes = [{9, 1} if i in (7, 150, 299) else {1} for i in range(300)]
    for seed in range(20):
        assert stratified_split(classes, 1 / 3, seed)[[7, 150, 299]].sum() == 1


def test_images_without_classes_are_split_too():
    chosen = stratified_split([set()] * 80 + [{1}] * 20, 0.5, seed=0)
    assert (chosen[:80].sum(), chosen[80:].sum()) == (40, 10)


def test_the_seed_decides():
    classes = random_classes()
    first, again, other = (stratified_split(classes, 0.18, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_all_images():
    assert stratified_split([{1}, set(), {2}], 1.0, seed=0).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0.1, 1.0))
def test_the_size_is_exact(seed, images, fraction):
    # One class that all images have, so that none can be left out.
    classes = [{1}] * images
    number = round(fraction * images)
    if number == 0:
        with pytest.raises(ValueError, match=r"of \d+ image\(s\) is no image at all"):
            stratified_split(classes, fraction, seed)
    else:
        assert stratified_split(classes, fraction, seed).sum() == number


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got"):
        stratified_split([{1}], fraction, seed=0)


def test_a_class_without_a_mask_is_an_error():
    classes = [{1}] * 20 + [{2}] + [{3, 1}]
    with pytest.raises(
        ValueError,
        match=r"fraction 0\.1 of 22 image\(s\) leaves 2 class\(es\) without any: "
        r"2 \(in 1 image\(s\)\), 3 \(in 1 image\(s\)\); give a larger fraction",
    ):
        stratified_split(classes, 0.1, seed=0)


def test_ten_classes_are_named_at_most():
    with pytest.raises(ValueError, match=r"leaves 11 class\(es\).* and 1 more; give"):
        stratified_split([{c} for c in range(1, 13)], 1 / 12, seed=0)
