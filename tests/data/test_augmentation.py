"""Augmentations: equality with OpenCV and PIL, padding, geometry of image and labels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from d2_smallobj.data.mapper import (
    PaddedCropTransform,
    RandomPaddedCrop,
    RandomScale,
    ScaleTransform,
    build_augmentations,
)
from d2_smallobj.losses.size_balanced import resize_labels
from detectron2.data import transforms as T

MEAN = (104.008, 116.669, 122.675)


@pytest.fixture(autouse=True)
def seed():
    state = np.random.get_state()
    np.random.seed(0)
    yield
    np.random.set_state(state)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---- Scale -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 1.5, 0.3, 2.0])
@pytest.mark.parametrize("size", [(40, 64), (37, 51), (3, 2)])
def test_scale_is_opencvs_for_images_and_pils_for_labels(rng, size, scale):
    image = rng.uniform(0, 255, (*size, 3)).astype(np.float32)
    labels = rng.choice(np.array([0, 1, 7, 20, 255], np.uint8), size)
    transform = RandomScale([scale]).get_transform(image)
    height, width = (max(1, int(side * scale)) for side in size)
    scaled = transform.apply_image(image)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(
        scaled, cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    )
    scaled = transform.apply_segmentation(labels)
    assert scaled.dtype == labels.dtype
    # The rule of the loss (losses.size_balanced.resize_labels) too, so that both agree.
    resized = resize_labels(torch.from_numpy(labels)[None], (height, width))[0]
    np.testing.assert_array_equal(scaled, resized.numpy())
    expected = np.asarray(Image.fromarray(labels).resize((width, height), Image.NEAREST))
    if scale not in (0.5, 2.0):
        # PIL adds its steps up: rounding decides where a centre falls on an edge of the source.
        certain = np.ix_(off_edges(height, size[0]), off_edges(width, size[1]))
        scaled, expected = scaled[certain], expected[certain]
    np.testing.assert_array_equal(scaled, expected)


def off_edges(size, source):
    """Whether the centre of each pixel of a resized side is off the edges of the source's."""
    return (2 * np.arange(size) + 1) * source % (2 * size) != 0


def test_scale_keeps_every_value_of_any_type(rng):
    labels = rng.choice(np.array([0, 3, 255, 65535, -1], np.int32), (30, 30))
    for scale in (0.5, 1.5):
        scaled = RandomScale([scale]).get_transform(labels).apply_segmentation(labels)
        assert set(np.unique(scaled)) <= set(np.unique(labels))
        assert scaled.dtype == np.int32


def test_scale_1_changes_nothing(rng):
    image = rng.uniform(0, 255, (9, 7, 3)).astype(np.float32)
    transform = RandomScale([1.0]).get_transform(image)
    assert isinstance(transform, T.NoOpTransform)
    assert transform.apply_image(image) is image


def test_scale_of_coordinates_follows_the_pixels():
    transform = RandomScale([0.5]).get_transform(np.zeros((5, 8, 3), np.float32))
    # 5 rows become 2, so that the true factor is 0.4; 8 columns become 4.
    corners = transform.apply_coords(np.array([[0.0, 0.0], [8.0, 5.0]]))
    np.testing.assert_allclose(corners, [[0, 0], [4, 2]])


def test_every_scale_is_drawn_about_as_often():
    scales = [0.5, 0.75, 1.0, 1.25, 1.5]
    augmentation = RandomScale(scales)
    image = np.zeros((100, 40, 3), np.float32)
    heights = [augmentation.get_transform(image).apply_image(image).shape[0] for _ in range(300)]
    counts = {s: heights.count(int(100 * s)) for s in scales}
    assert sum(counts.values()) == 300
    assert all(30 < count < 90 for count in counts.values())  # 60 expected, sd 7


# ---- Pad and crop ------------------------------------------------------------------------------


def crop(top, left, size):
    value = np.asarray(MEAN, np.float32)
    return PaddedCropTransform(top, left, size, value, 255)


def test_padding_is_the_mean_and_ignore(rng):
    image = rng.uniform(0, 255, (10, 30, 3)).astype(np.float32)
    labels = rng.integers(0, 21, (10, 30), np.uint8)
    transform = crop(0, 4, (16, 20))
    window = transform.apply_image(image)
    assert window.shape == (16, 20, 3)
    np.testing.assert_array_equal(window[:10], image[:, 4:24])
    np.testing.assert_array_equal(window[10:], np.broadcast_to(np.float32(MEAN), (6, 20, 3)))
    window = transform.apply_segmentation(labels)
    np.testing.assert_array_equal(window[:10], labels[:, 4:24])
    assert (window[10:] == 255).all()
    assert window.dtype == labels.dtype
    np.testing.assert_array_equal(transform.apply_coords(np.array([[4.0, 3.0]])), [[0, 3]])


def test_crop_reaches_every_place_and_no_other():
    augmentation = RandomPaddedCrop((4, 6), image_value=MEAN, label_value=255)
    image = np.zeros((6, 7, 3), np.float32)
    places = {(t.top, t.left) for t in (augmentation.get_transform(image) for _ in range(200))}
    assert places == {(top, left) for top in range(3) for left in range(2)}


@pytest.mark.parametrize("size", [(4, 6), (3, 6), (4, 2), (1, 1)])
def test_a_small_image_is_padded_at_the_right_and_bottom_only(size):
    augmentation = RandomPaddedCrop((4, 6), image_value=MEAN, label_value=255)
    for _ in range(5):
        transform = augmentation.get_transform(np.zeros((*size, 3), np.float32))
        assert (transform.top, transform.left) == (0, 0)
        labels = transform.apply_segmentation(np.zeros(size, np.uint8))
        assert labels.shape == (4, 6)
        assert (labels == 0).sum() == size[0] * size[1]
        assert not labels[: size[0], : size[1]].any()


# ---- The pipeline ------------------------------------------------------------------------------


def test_order_and_options(tiny_cfg):
    cfg = tiny_cfg("SMALLOBJ.FLIP_PROB", 0.25, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 200)
    scale, crop, flip = build_augmentations(cfg)
    assert isinstance(scale, RandomScale)
    assert scale.scales == (0.5, 1.0, 1.5)
    assert isinstance(crop, RandomPaddedCrop)
    assert crop.crop_size == (24, 32)
    np.testing.assert_array_equal(crop.image_value, np.float32(MEAN))
    assert crop.label_value == 200
    assert isinstance(flip, T.RandomFlip)
    assert (flip.prob, flip.horizontal) == (0.25, True)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_flip(tiny_cfg, rng, probability):
    cfg = tiny_cfg("SMALLOBJ.FLIP_PROB", probability, "SMALLOBJ.SCALES", "[1.0]")
    image = rng.uniform(0, 255, (24, 32, 3)).astype(np.float32)
    labels = rng.integers(0, 7, (24, 32), np.uint8)
    step = -1 if probability else 1
    for _ in range(4):
        both = T.AugInput(image.copy(), sem_seg=labels.copy())
        T.AugmentationList(build_augmentations(cfg))(both)
        np.testing.assert_array_equal(both.image, image[:, ::step])
        np.testing.assert_array_equal(both.sem_seg, labels[:, ::step])


def test_image_and_labels_stay_together(tiny_cfg):
    """Two half-planes drawn in the image and the labels agree after every draw, to the pixel."""
    # Edges at multiples of 4 and scales in quarters: no pixel centre falls on an edge.
    image = np.zeros((48, 40, 3), np.float32)
    image[:, 24:, 0] = 200
    image[16:, :, 1] = 200
    labels = np.where(image[..., 0] > 100, 1, 0) + np.where(image[..., 1] > 100, 2, 0)
    cfg = tiny_cfg("SMALLOBJ.SCALES", "[0.5, 0.75, 1.0, 1.25, 1.5]")
    augmentations = T.AugmentationList(build_augmentations(cfg))
    padded = 0
    for _ in range(60):
        both = T.AugInput(image, sem_seg=labels.astype(np.uint8))
        augmentations(both)
        assert both.image.shape == (24, 32, 3)
        assert both.sem_seg.shape == (24, 32)
        outside = both.sem_seg == 255
        np.testing.assert_array_equal(outside, (both.image == np.float32(MEAN)).all(axis=2))
        drawn = (both.image[..., 0] > 100) + 2 * (both.image[..., 1] > 100)
        np.testing.assert_array_equal(drawn[~outside], both.sem_seg[~outside])
        padded += outside.any()
    assert 0 < padded < 60


def test_scale_transform_takes_its_size_literally(rng):
    image = rng.uniform(0, 255, (8, 8, 3)).astype(np.float32)
    assert ScaleTransform(5, 11, 5 / 8, 11 / 8).apply_image(image).shape == (5, 11, 3)
