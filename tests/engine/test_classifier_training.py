"""The image classifier: what it learns from image labels alone, and how it continues."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import CONFIG, TINY, as_options

from d2_smallobj.data.weak_images import WeakImage
from d2_smallobj.engine import build_config
from d2_smallobj.engine import classifier_training as training
from d2_smallobj.engine.classifier_training import (
    ClassifierMapper,
    ClassifierOptions,
    train_classifier,
    write_activations,
)
from d2_smallobj.modeling.image_classifier import build_classifier

COLOURS = ((220, 30, 30), (30, 60, 220))
NO_BOXES = np.zeros((0, 5), np.int32)


@pytest.fixture
def cfg():
    return build_config(str(CONFIG), as_options(TINY))


@pytest.fixture
def images(tmp_path):
    """Twelve grey images with a red square, a blue one, both, or none, at known places."""
    found = []
    for number in range(12):
        rng = np.random.default_rng(number)
        pixels = rng.integers(90, 130, (48, 64, 3), np.uint8)
        classes = [(1,), (2,), (1, 2), ()][number % 4]
        for c in classes:
            left = 6 + 32 * (c - 1)
            pixels[12:30, left : left + 20] = COLOURS[c - 1]
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        found.append(WeakImage(str(number), str(path), (48, 64), classes, NO_BOXES))
    return found


def _train(cfg, images, path, settings=None, **options):
    chosen = ClassifierOptions(**{"batch_size": 4, "crop": 48, "learning_rate": 0.02, **options})
    return train_classifier(cfg, images, 2, chosen, path, settings or {"a": 1})


def test_image_labels_alone_show_where_the_objects_are(cfg, images, tmp_path):
    model = _train(cfg, images, tmp_path / "net.pth", iterations=40)
    assert not model.training
    folder, options = tmp_path / "maps", {"image_format": "BGR", "scales": [1.0, 2.0]}
    assert write_activations(model, images, folder, **options) == 12
    for image in images:
        maps = np.load(folder / f"{image.stem}.npy", allow_pickle=False)
        assert maps.shape == (len(image.classes), 12, 16)
        for c, found in zip(image.classes, maps):
            row, column = np.unravel_index(found.argmax(), found.shape)
            left = 6 + 32 * (c - 1)
            assert 12 <= 4 * row + 2 < 30, image
            assert left <= 4 * column + 2 < left + 20, image
    assert write_activations(model, images, folder, **options) == 0


def test_a_killed_training_continues_to_the_bit(cfg, images, tmp_path, monkeypatch, assert_same):
    monkeypatch.setattr(training, "_CHECKPOINT_PERIOD", 3)
    whole = _train(cfg, images, tmp_path / "whole.pth", iterations=7)
    steps = []

    def dies(*args):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(*args)

    step = training._step
    monkeypatch.setattr(training, "_step", dies)
    path = tmp_path / "killed.pth"
    with pytest.raises(KeyboardInterrupt):
        _train(cfg, images, path, iterations=7)
    resumed = _train(cfg, images, path, iterations=7)
    assert len(steps) == 5 + 4  # from the checkpoint after three steps
    assert_same(dict(whole.state_dict()), dict(resumed.state_dict()))
    # A finished one is loaded; one with other settings is trained anew.
    loaded = _train(cfg, images, path, iterations=7)
    assert_same(dict(whole.state_dict()), dict(loaded.state_dict()))
    assert len(steps) == 9
    other = _train(cfg, images, path, {"a": 2}, iterations=7, seed=1)
    assert len(steps) == 16
    assert not torch.equal(other.classifier.weight, whole.classifier.weight)


def test_the_mapper(cfg, images):
    mapper = ClassifierMapper("RGB", 2, (1.0, 2.0, 3.0), ClassifierOptions(crop=80, seed=3))
    x = {"file_name": images[2].file_name, "classes": (2,)}
    first, again, other = (mapper({**x, "stream_position": p}) for p in (0, 0, 1))
    assert first["image"].shape == (3, 80, 80)
    assert first["labels"].tolist() == [0, 1]
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])


def test_logits_are_the_means_of_the_activations(cfg):
    torch.manual_seed(0)
    model = build_classifier(cfg, 3).eval()
    image = 255 * torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        found = model.activations(image)
        torch.testing.assert_close(model(image), found.mean(dim=(2, 3)))
    maps = model.activation_maps(image[0], (3, 1), (1.0,))
    assert maps.shape == (2, 10, 14)
    assert maps.min() >= 0
    # A mirrored image has mirrored maps.
    mirrored = model.activation_maps(image[0].flip(-1), (3, 1), (1.0,))
    np.testing.assert_allclose(mirrored, maps[..., ::-1], atol=1e-5)
    assert model.activation_maps(image[0], (), (1.0,)).shape == (0, 10, 14)


def test_bad_input(cfg, images, tmp_path):
    with pytest.raises(FloatingPointError, match="give a smaller --learning-rate than 1e"):
        _train(cfg, images, tmp_path / "a.pth", iterations=20, learning_rate=1e30)
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"3\.png: the image cannot be read"):
        _train(cfg, images, tmp_path / "a.pth", iterations=8)
    model, folder = build_classifier(cfg, 2).eval(), tmp_path / "maps"
    with pytest.raises(ValueError, match=r"1 image\(s\) that cannot be read:\n.*3\.png"):
        write_activations(model, images, folder, image_format="BGR", scales=[1.0])
    assert len(list(folder.glob("*.npy"))) == 11
    (tmp_path / "a.pth").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"a\.pth cannot be read as a checkpoint"):
        _train(cfg, images, tmp_path / "a.pth", iterations=1)
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res5"]
    with pytest.raises(ValueError, match="ends in 'res5', but the backbone returns res2"):
        build_classifier(cfg, 2)
