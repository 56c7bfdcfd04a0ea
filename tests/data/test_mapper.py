"""The mapper: tensors, size weights, determinism, bad files; augmentations."""

from __future__ import annotations

import os
import pickle
import random
import re

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
    SemSegMapper,
    build_augmentations,
    images_per_step,
    read_image,
)
from d2_smallobj.losses.size_balanced import resize_labels
from d2_smallobj.losses.size_weights import size_weights
from detectron2.data import transforms as T

WEIGHTED = ("SMALLOBJ.TASK_A.LOSS", "size_weighted")


@pytest.fixture
def image_and_labels(tmp_path):
    """A lossless picture and its labels, to compare pixels with."""
    image = np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8)
    labels = np.zeros((24, 32), np.uint8)
    labels[2:12, 3:17], labels[15:18, 20:24], labels[20:] = 1, 6, 255
    paths = [str(tmp_path / name) for name in ("image.png", "labels.png")]
    for path, array in zip(paths, (image, labels)):
        Image.fromarray(array).save(path)
    return dict(zip(("file_name", "sem_seg_file_name"), paths)), image, labels


def same(a, b):
    """Whether two samples are the same, key by key."""
    assert a.keys() == b.keys()
    return all(torch.equal(v, b[k]) if torch.is_tensor(v) else v == b[k] for k, v in a.items())


# ---- Tensors -----------------------------------------------------------------------------------


def test_training_sample(tiny_cfg, image_and_labels):
    record, image, labels = image_and_labels
    cfg = tiny_cfg("SMALLOBJ.SCALES", "[1.0]", "SMALLOBJ.FLIP_PROB", 1.0, *WEIGHTED)
    x = SemSegMapper(cfg, True)({**record, "image_id": 9, "stream_position": 0})
    assert (x["image_id"], x["height"], x["width"]) == (9, 24, 32)
    assert (x["image"].dtype, x["sem_seg"].dtype) == (torch.float32, torch.int64)
    assert x["size_weights"].dtype == torch.float32
    # BGR, flipped; tensors that own their memory, as workers have to send them.
    expected = image[:, ::-1, ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(x["image"].numpy(), expected)
    np.testing.assert_array_equal(x["sem_seg"].numpy(), labels[:, ::-1])
    assert all(x[key].is_contiguous() for key in ("image", "sem_seg", "size_weights"))


def test_test_sample(tiny_cfg, image_and_labels, tmp_path):
    record, image, _ = image_and_labels
    given = {"file_name": record["file_name"]}
    x = SemSegMapper(tiny_cfg(*WEIGHTED), False)(given)
    assert x.keys() == {"file_name", "height", "width", "image"}
    np.testing.assert_array_equal(x["image"].numpy(), image[:, :, ::-1].transpose(2, 0, 1))
    assert x["image"].dtype == torch.float32
    assert given.keys() == {"file_name"}
    x = SemSegMapper(tiny_cfg("INPUT.FORMAT", "RGB"), False)(record)
    np.testing.assert_array_equal(x["image"].numpy(), image.transpose(2, 0, 1))
    Image.fromarray(image[..., 0]).save(tmp_path / "grey.png")
    grey = read_image(str(tmp_path / "grey.png"), "BGR")
    np.testing.assert_array_equal(grey, np.repeat(image[..., :1], 3, axis=2))


@pytest.mark.parametrize("ignore", [-1, 200, 65535])
def test_any_ignore_label(tiny_cfg, image_and_labels, ignore):
    record, _, labels = image_and_labels
    Image.fromarray(np.where(labels == 255, 0, labels)).save(record["sem_seg_file_name"])
    key = "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"
    cfg = tiny_cfg(key, ignore, "SMALLOBJ.SCALES", "[0.5]", *WEIGHTED)
    x = SemSegMapper(cfg, True)({**record, "stream_position": 1})
    outside = x["sem_seg"] == ignore
    assert outside.sum() == 24 * 32 - 12 * 16
    assert torch.equal(outside, x["size_weights"] == 0)


# ---- Size weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 5.0])
def test_size_weights_are_those_of_the_augmented_labels(tiny_cfg, tiny_dicts, tau):
    cfg = tiny_cfg(*WEIGHTED, "SMALLOBJ.TAU", tau, "SMALLOBJ.TOTAL", "class")
    mapper = SemSegMapper(cfg, True)
    changed = 0
    for position in range(14):
        x = mapper({**tiny_dicts[position % 7], "stream_position": position})
        expected = size_weights(x["sem_seg"].numpy(), tau=tau, total="class")
        np.testing.assert_array_equal(x["size_weights"].numpy(), expected)
        changed += (expected > 1).any()
    assert changed == 0 if tau == 1 else changed > 0


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ((), None),
        (WEIGHTED, 0),
        (("SMALLOBJ.TASK_A.ITERS", 5), 5 * 3),
        (("SMALLOBJ.TASK_A.ITERS", 5, "SMALLOBJ.ACCUMULATE", 2), 5 * 3 * 2),
        (("SMALLOBJ.TASK_A.ITERS", 0), 0),
        (("SMALLOBJ.TASK_A.ITERS", 20), None),
        (("SMALLOBJ.TASK_A.ITERS", 5, "SMALLOBJ.TASK_B.LOSS", "cross_entropy"), None),
        (("SMALLOBJ.TASK_A.ITERS", 5, "SMALLOBJ.LOSS_RESOLUTION", "logits"), None),
        ((*WEIGHTED, "SMALLOBJ.TASK_A.ITERS", 5), 0),
    ],
)
def test_size_weights_from_the_first_position_that_needs_them(tiny_cfg, tiny_dicts, options, first):
    cfg = tiny_cfg(*options)
    assert images_per_step(cfg) == 3 * cfg.SMALLOBJ.ACCUMULATE
    mapper = SemSegMapper(cfg, True)

    def weighted(position):
        return "size_weights" in mapper({**tiny_dicts[0], "stream_position": position})

    if first is None:
        assert not any(map(weighted, (0, 14, 15, 10**6)))
    else:
        assert weighted(first)
        assert weighted(10**6)
        assert first == 0 or not weighted(first - 1)


# ---- Determinism -------------------------------------------------------------------------------


def test_position_and_seed_decide_the_sample(tiny_cfg, tiny_dicts):
    mappers = {seed: SemSegMapper(tiny_cfg("SEED", seed), True) for seed in (4, 5)}

    def sample(position, seed=4):
        # Whatever has been drawn before.
        np.random.seed(random.randrange(2**32))
        return mappers[seed]({**tiny_dicts[5], "stream_position": position})["image"]

    first = [sample(position) for position in range(6)]
    assert all(torch.equal(a, sample(p)) for p, a in enumerate(first))
    assert len({x.numpy().tobytes() for x in first}) > 3
    assert any(not torch.equal(a, sample(p, seed=5)) for p, a in enumerate(first))
    # A random seed is taken as 0.
    x = {**tiny_dicts[5], "stream_position": 3}
    assert same(*(SemSegMapper(tiny_cfg("SEED", seed), True)(x) for seed in (-1, 0)))
    # Loaders send it to workers.
    mapper = SemSegMapper(tiny_cfg(*WEIGHTED), True)
    assert same(pickle.loads(pickle.dumps(mapper))(x), mapper(x))


def test_global_random_states_are_left_alone(tiny_cfg, tiny_dicts):
    mapper = SemSegMapper(tiny_cfg(), True)

    def states():
        name, keys, *rest = np.random.get_state()
        return name, keys.tobytes(), rest, random.getstate(), torch.get_rng_state().tolist()

    before = states()
    mapper({**tiny_dicts[0], "stream_position": 2})
    assert states() == before

    def fail(labels):
        raise RuntimeError("in the augmentation")

    mapper.augmentations.augs.append(fail)
    with pytest.raises(RuntimeError, match="in the augmentation"):
        mapper({**tiny_dicts[0], "stream_position": 2})
    assert states() == before


def test_without_a_position_the_global_state_decides(tiny_cfg, tiny_dicts):
    mapper = SemSegMapper(tiny_cfg(), True)
    images = []
    for seed in (1, 1, 2, 3, 4):
        np.random.seed(seed)
        images.append(mapper(tiny_dicts[6])["image"])
    assert torch.equal(images[0], images[1])
    assert any(not torch.equal(images[0], image) for image in images[2:])


# ---- Bad files ---------------------------------------------------------------------------------


def truncate(path, keep):
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[: int(len(content) * keep)])


def save(labels, path):
    Image.fromarray(labels).save(path)


def with_value(value):
    return lambda image, path, labels: save(np.where(labels == 1, value, labels), path)


VALUES = r"{labels}: label values must be 0\.\.6 or 255 \(ignored\); found "
CORRUPT = "{labels}: corrupt or truncated"
BAD_FILES = {
    "another size": (lambda image, path, labels: save(labels[:20], path),
                     "{labels}: the label map is 32x20, its image {image} is 32x24"),
    "label 7": (with_value(np.uint8(7)), VALUES + "7 in 140"),
    "label 254": (with_value(np.uint8(254)), VALUES + "254 in 140"),
    "colours": (lambda image, path, labels: save(np.repeat(labels[..., None], 3, 2), path),
                r"{labels}: .*colour picture \(mode RGB\)"),
    "nothing": (lambda image, path, labels: truncate(path, 0), CORRUPT),
    "a header": (lambda image, path, labels: truncate(path, 0.02), CORRUPT),
    "one half": (lambda image, path, labels: truncate(path, 0.5), CORRUPT),
    "no labels": (lambda image, path, labels: os.remove(path), "no such label map: '{labels}"),
    "no image": (lambda image, path, labels: os.remove(image),
                 "^{image}: the image cannot be read: .*No "),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD_FILES.values(), ids=list(BAD_FILES))
def test_bad_files(tiny_cfg, image_and_labels, spoil, message):
    record, _, labels = image_and_labels
    image, path = record["file_name"], record["sem_seg_file_name"]
    spoil(image, path, labels)
    message = message.replace("{labels}", re.escape(path)).replace("{image}", re.escape(image))
    with pytest.raises((ValueError, OSError), match=message):
        SemSegMapper(tiny_cfg(), True)({**record, "stream_position": 0})


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 1])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_corrupt_image(tmp_path, monkeypatch, suffix, keep):
    path = tmp_path / f"broken.{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    truncate(path, keep)
    if keep == 1:  # Too large to be true.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    told = "exceeds limit" if keep == 1 else ""
    with pytest.raises(
        OSError, match=rf"^{re.escape(str(path))}: the image cannot be read: .*{told}"
    ):
        read_image(str(path), "BGR")


# ---- Augmentations -----------------------------------------------------------------------------

MEAN = (104.008, 116.669, 122.675)


@pytest.fixture
def rng():
    """Seeds numpy's global state for one test, too."""
    state = np.random.get_state()
    np.random.seed(0)
    yield np.random.default_rng(0)
    np.random.set_state(state)


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


def test_scale_of_any_type_by_1_and_of_coordinates(rng):
    labels = rng.choice(np.array([0, 3, 255, 65535, -1], np.int32), (30, 30))
    for scale in (0.5, 1.5):
        scaled = RandomScale([scale]).get_transform(labels).apply_segmentation(labels)
        assert set(np.unique(scaled)) <= set(np.unique(labels))
        assert scaled.dtype == np.int32
    image = rng.uniform(0, 255, (9, 7, 3)).astype(np.float32)
    transform = RandomScale([1.0]).get_transform(image)
    assert isinstance(transform, T.NoOpTransform)
    assert transform.apply_image(image) is image
    # 5 rows become 2, so that the true factor is 0.4; 8 columns become 4.
    transform = RandomScale([0.5]).get_transform(np.zeros((5, 8, 3), np.float32))
    corners = transform.apply_coords(np.array([[0.0, 0.0], [8.0, 5.0]]))
    np.testing.assert_allclose(corners, [[0, 0], [4, 2]])


def test_every_scale_is_drawn_about_as_often(rng):
    scales = [0.5, 0.75, 1.0, 1.25, 1.5]
    augmentation = RandomScale(scales)
    image = np.zeros((100, 40, 3), np.float32)
    heights = [augmentation.get_transform(image).apply_image(image).shape[0] for _ in range(300)]
    counts = {s: heights.count(int(100 * s)) for s in scales}
    assert sum(counts.values()) == 300
    assert all(30 < count < 90 for count in counts.values())  # 60 expected, sd 7


# ---- Pad and crop ------------------------------------------------------------------------------


def test_padding_is_the_mean_and_ignore(rng):
    image = rng.uniform(0, 255, (10, 30, 3)).astype(np.float32)
    labels = rng.integers(0, 21, (10, 30), np.uint8)
    transform = PaddedCropTransform(0, 4, (16, 20), np.asarray(MEAN, np.float32), 255)
    window = transform.apply_image(image)
    assert window.shape == (16, 20, 3)
    np.testing.assert_array_equal(window[:10], image[:, 4:24])
    np.testing.assert_array_equal(window[10:], np.broadcast_to(np.float32(MEAN), (6, 20, 3)))
    window = transform.apply_segmentation(labels)
    np.testing.assert_array_equal(window[:10], labels[:, 4:24])
    assert (window[10:] == 255).all()
    assert window.dtype == labels.dtype
    np.testing.assert_array_equal(transform.apply_coords(np.array([[4.0, 3.0]])), [[0, 3]])


def test_crop_reaches_every_place_and_no_other(rng):
    augmentation = RandomPaddedCrop((4, 6), image_value=MEAN, label_value=255)
    image = np.zeros((6, 7, 3), np.float32)
    places = {(t.top, t.left) for t in (augmentation.get_transform(image) for _ in range(200))}
    assert places == {(top, left) for top in range(3) for left in range(2)}
    # A small image is padded at the right and the bottom only.
    for size in [(4, 6), (3, 6), (4, 2), (1, 1)]:
        transform = augmentation.get_transform(np.zeros((*size, 3), np.float32))
        assert (transform.top, transform.left) == (0, 0)
        labels = transform.apply_segmentation(np.zeros(size, np.uint8))
        assert labels.shape == (4, 6)
        assert (labels == 0).sum() == size[0] * size[1]
        assert not labels[: size[0], : size[1]].any()


# ---- The pipeline ------------------------------------------------------------------------------


def test_image_and_labels_stay_together(tiny_cfg, rng):
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
