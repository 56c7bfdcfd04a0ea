"""Class activation maps: their labels, and their files."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.pseudo_labels.activations import (
    activation_labels,
    normalized,
    read_classes,
    read_maps,
    write_activation_label,
    write_classes,
    write_maps,
)
from d2_smallobj.pseudo_labels.formats import read_pseudo_label

SIZE = (8, 12)


def _maps():
    """Classes 3 and 7 at a quarter of the size: each at an end."""
    maps = np.zeros((2, 2, 3), np.float32)
    maps[0, :, 0], maps[1, :, 2] = 1.0, 0.8
    return maps


def test_labels():
    labels = activation_labels(_maps(), (3, 7), SIZE, 0.6)
    assert labels.dtype == np.uint8
    assert labels.shape == SIZE
    assert (labels[:, :2] == 3).all()
    assert (labels[:, -2:] == 7).all()
    assert (labels[:, 5:7] == 0).all()
    assert (activation_labels(_maps(), (3, 7), SIZE, 0.9)[:, 6:] == 0).all()
    assert not activation_labels(_maps()[:0], (), SIZE, 0.5).any()


def test_the_crf_refines_the_labels_on_the_smaller_image():
    seen = []

    def swap(probabilities, image):
        seen.append((probabilities, image.shape))
        return probabilities[::-1]

    image = np.zeros((640, 320, 3), np.uint8)
    labels = activation_labels(_maps()[:1], (3,), (640, 320), 0.5, image=image, crf=swap)
    plain = activation_labels(_maps()[:1], (3,), (640, 320), 0.5)
    assert labels.shape == (640, 320)
    assert ((labels == 3) != (plain == 3)).mean() > 0.98
    probabilities, shape = seen[0]
    assert shape == (320, 160, 3)
    np.testing.assert_allclose(np.unique(probabilities), [0.3, 0.7], atol=1e-6)
    # An image that is all background needs no CRF.
    assert not activation_labels(_maps(), (3, 7), SIZE, 1.0, image=image[:8, :12], crf=swap).any()
    assert len(seen) == 1


def test_normalized():
    maps = np.stack([np.arange(6.0).reshape(2, 3), np.zeros((2, 3))])
    np.testing.assert_allclose(normalized(maps), [np.arange(6).reshape(2, 3) / 5, np.zeros((2, 3))])
    assert normalized(maps[:0]).shape == (0, 2, 3)


def test_files_without_pickles(tmp_path):
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.jpg")
    write_maps(tmp_path / "a.npy", _maps())
    write_classes(tmp_path, {"a": (3, 7), "b": ()})
    stored = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert stored.dtype == np.float16
    assert read_classes(tmp_path / "a.npy") == [3, 7]
    write = functools.partial(write_activation_label, threshold=0.5, crf=None, keep=True)
    item = (str(tmp_path / "a.jpg"), (3, 7), str(tmp_path / "a.npy"), str(tmp_path / "a.png"))
    assert write(item) is True
    expected = activation_labels(_maps(), (3, 7), SIZE, 0.5)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), expected)
    assert write(item) is False
    assert "gone.npy" in write((*item[:2], str(tmp_path / "gone.npy"), str(tmp_path / "b.png")))
    # What reads the methods' activation maps reads these, too.
    options = {"num_classes": 9, "file_format": "cams", "threshold": 0.5}
    found = read_pseudo_label([tmp_path / "a.npy"], *SIZE, **options)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("array", "listing", "told"),
    [
        (np.zeros((2, 3), np.float32), {"a": [1]}, r"a\.npy: expected activation maps.*\(2, 3\)"),
        (np.zeros((1, 2, 3), np.int64), {"a": [1]}, r"a\.npy: expected activation maps.*int64"),
        (np.full((1, 2, 3), np.nan), {"a": [1]}, r"a\.npy: expected activation maps, finite"),
        (_maps(), {"b": [1, 2]}, r"needs its class numbers in .*classes\.json.*KeyError"),
        (_maps(), None, r"needs its class numbers in .*classes\.json"),
        (_maps(), {"a": [1]}, r"a\.npy: expected one \(H, W\) map of numbers for each of 1"),
        (_maps(), {"a": [0, 1]}, r"a\.npy: classes must be in 0\.\.7, got \[-1, 0\]"),
    ],
)
def test_malformed(tmp_path, array, listing, told):
    np.save(tmp_path / "a.npy", array)
    if listing is not None:
        (tmp_path / "classes.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match=told):
        read_pseudo_label([tmp_path / "a.npy"], *SIZE, num_classes=9, file_format="cams")


def test_damaged(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"a\.npy: not a complete \.npy"):
        read_maps(tmp_path / "a.npy")
