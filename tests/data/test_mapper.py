"""The mapper: tensors, size weights, determinism, and what it says about bad files."""

from __future__ import annotations

import pickle
import random
import re

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from d2_smallobj.data.mapper import SemSegMapper, images_per_step, read_image
from d2_smallobj.losses.size_weights import size_weights

WEIGHTED = ("SMALLOBJ.TASK_A.LOSS", "size_weighted")


@pytest.fixture
def image_and_labels(tmp_path):
    """A lossless picture and its labels, to compare pixels with."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (24, 32, 3), np.uint8)
    labels = np.zeros((24, 32), np.uint8)
    labels[2:12, 3:17] = 1
    labels[15:18, 20:24] = 6
    labels[20:] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
    }
    return record, image, labels


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


def test_test_sample(tiny_cfg, image_and_labels):
    record, image, _ = image_and_labels
    cfg = tiny_cfg(*WEIGHTED)
    given = {"file_name": record["file_name"]}
    x = SemSegMapper(cfg, False)(given)
    assert x.keys() == {"file_name", "height", "width", "image"}
    np.testing.assert_array_equal(x["image"].numpy(), image[:, :, ::-1].transpose(2, 0, 1))
    assert x["image"].dtype == torch.float32
    assert given.keys() == {"file_name"}


def test_rgb_and_grey_images(tiny_cfg, image_and_labels, tmp_path):
    record, image, _ = image_and_labels
    x = SemSegMapper(tiny_cfg("INPUT.FORMAT", "RGB"), False)(record)
    np.testing.assert_array_equal(x["image"].numpy(), image.transpose(2, 0, 1))
    Image.fromarray(image[..., 0]).save(tmp_path / "grey.png")
    grey = read_image(str(tmp_path / "grey.png"), "BGR")
    np.testing.assert_array_equal(grey, np.repeat(image[..., :1], 3, axis=2))


def test_jpeg_files_of_all_sizes_give_crops_of_one(tiny_cfg, tiny_dicts):
    mapper = SemSegMapper(tiny_cfg(), True)
    for position, record in enumerate(tiny_dicts):
        x = mapper({**record, "stream_position": position})
        assert x["image"].shape == (3, 24, 32)
        assert x["sem_seg"].shape == (24, 32)
        assert set(x["sem_seg"].unique().tolist()) <= {0, 1, 2, 3, 4, 5, 6, 255}
        decoded = cv2.imread(record["file_name"])
        assert (x["height"], x["width"]) == decoded.shape[:2]
        assert record.keys() == {"file_name", "sem_seg_file_name", "image_id"}


@pytest.mark.parametrize("ignore", [-1, 200, 65535])
def test_any_ignore_label(tiny_cfg, image_and_labels, ignore):
    record, _, labels = image_and_labels
    Image.fromarray(np.where(labels == 255, 0, labels)).save(record["sem_seg_file_name"])
    cfg = tiny_cfg(
        *("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", ignore, "SMALLOBJ.SCALES", "[0.5]", *WEIGHTED)
    )
    x = SemSegMapper(cfg, True)({**record, "stream_position": 1})
    outside = x["sem_seg"] == ignore
    assert outside.sum() == 24 * 32 - 12 * 16
    assert torch.equal(outside, x["size_weights"] == 0)


# ---- Size weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 3.0, 5.0])
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


def test_the_test_mapper_never_weighs(tiny_cfg, tiny_dicts):
    assert "size_weights" not in SemSegMapper(tiny_cfg(*WEIGHTED), False)(tiny_dicts[0])


# ---- Determinism -------------------------------------------------------------------------------


def test_position_and_seed_decide_the_sample(tiny_cfg, tiny_dicts):
    def sample(position, seed=4):
        # Whatever has been drawn before.
        np.random.seed(random.randrange(2**32))
        mapper = SemSegMapper(tiny_cfg("SEED", seed), True)
        return mapper({**tiny_dicts[5], "stream_position": position})["image"]

    first = [sample(position) for position in range(6)]
    assert all(torch.equal(a, sample(p)) for p, a in enumerate(first))
    assert len({x.numpy().tobytes() for x in first}) > 3
    assert any(not torch.equal(a, sample(p, seed=5)) for p, a in enumerate(first))


def test_a_random_seed_is_taken_as_0(tiny_cfg, tiny_dicts):
    x = {**tiny_dicts[5], "stream_position": 3}
    assert same(*(SemSegMapper(tiny_cfg("SEED", seed), True)(x) for seed in (-1, 0)))


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


def test_the_mapper_can_be_sent_to_workers(tiny_cfg, tiny_dicts):
    mapper = SemSegMapper(tiny_cfg(*WEIGHTED), True)
    x = {**tiny_dicts[3], "stream_position": 11}
    assert same(pickle.loads(pickle.dumps(mapper))(x), mapper(x))


# ---- Bad files ---------------------------------------------------------------------------------


@pytest.fixture
def bad(tiny_cfg, image_and_labels):
    """Map the sample after its files were tampered with."""
    record, _, labels = image_and_labels

    def run():
        return SemSegMapper(tiny_cfg(), True)({**record, "stream_position": 0})

    run.image, run.label_file, run.labels = record["file_name"], record["sem_seg_file_name"], labels
    return run


def truncate(path, keep=0.5):
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[: int(len(content) * keep)])


def test_labels_of_another_size(bad):
    Image.fromarray(bad.labels[:20]).save(bad.label_file)
    expected = f"{bad.label_file}: the label map is 32x20, its image {bad.image} is 32x24"
    with pytest.raises(ValueError, match=re.escape(expected)):
        bad()


@pytest.mark.parametrize("value", [7, 254])
def test_labels_out_of_range(bad, value):
    bad.labels[0, :3] = value
    Image.fromarray(bad.labels).save(bad.label_file)
    expected = f"{bad.label_file}: label values must be 0..6 or 255 (ignored); found {value} in 3"
    with pytest.raises(ValueError, match=re.escape(expected)):
        bad()


def test_labels_that_are_a_colour_picture(bad):
    Image.fromarray(np.repeat(bad.labels[..., None], 3, axis=2)).save(bad.label_file)
    with pytest.raises(
        ValueError, match=rf"{re.escape(bad.label_file)}: .*colour picture \(mode RGB\)"
    ):
        bad()


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5])
def test_corrupt_labels(bad, keep):
    truncate(bad.label_file, keep)
    with pytest.raises(ValueError, match=rf"{re.escape(bad.label_file)}: corrupt or truncated"):
        bad()


def test_missing_labels(bad, tmp_path):
    (tmp_path / "labels.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"no such label map: '{re.escape(bad.label_file)}"
    ):
        bad()


def test_missing_image(bad, tmp_path):
    (tmp_path / "image.png").unlink()
    with pytest.raises(OSError, match=rf"^{re.escape(bad.image)}: the image cannot be read: .*No "):
        bad()


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_corrupt_image(tmp_path, suffix, keep):
    path = tmp_path / f"broken.{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    truncate(path, keep)
    with pytest.raises(OSError, match=rf"^{re.escape(str(path))}: the image cannot be read: "):
        read_image(str(path), "BGR")


def test_an_image_too_large_to_be_true(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(OSError, match=r"bomb\.png: the image cannot be read: .*exceeds limit"):
        read_image(str(path), "BGR")
