"""Pseudo labels in every format that datasets/README.md lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from d2_smallobj.annotations.label_maps import voc_palette, write_label_map
from d2_smallobj.pseudo_labels.formats import METHODS, merge_labels, read_pseudo_label

SIZE = (6, 8)
CLASSES = 21


def _labels():
    labels = np.zeros(SIZE, np.uint8)
    labels[1:4, 2:7] = 15
    labels[4:, :3] = 20
    return labels


def _read(*paths, **options):
    return read_pseudo_label(paths, *SIZE, num_classes=CLASSES, **options)


def test_label_maps_of_any_palette(tmp_path):
    labels = _labels()
    labels[0] = 255
    for palette in (True, False):
        write_label_map(tmp_path / "a.png", labels, palette=palette)
        read = _read(tmp_path / "a.png")
        np.testing.assert_array_equal(read, labels)
        assert read.dtype == np.uint8
    # As RIB's COCO palette: colours of its own, index by index; then all black.
    own = [component for i in range(256) for component in (i, 7, 255 - i)]
    for palette in (own, [0, 0, 0] * 256):
        image = Image.fromarray(_labels())
        image.putpalette(palette)
        image.save(tmp_path / "own.png")
        np.testing.assert_array_equal(_read(tmp_path / "own.png"), _labels())


def test_a_picture_reduced_to_a_palette(tmp_path):
    picture = Image.fromarray(voc_palette()[_labels()])
    picture.quantize(colors=8).save(tmp_path / "quantized.png")
    stored = np.asarray(Image.open(tmp_path / "quantized.png"))
    assert stored.max() <= 20  # its values alone would pass
    with pytest.raises(ValueError, match=r"zed\.png: index \d has the colour of class (15|20)"):
        _read(tmp_path / "quantized.png")
    picture.save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match=r"rgb\.png: .*colour picture \(mode RGB\)\. Give the P"):
        _read(tmp_path / "rgb.png")


@pytest.mark.parametrize("value", [21, 60, 254])
@pytest.mark.parametrize("palette", [True, False])
def test_other_values(tmp_path, value, palette):
    labels = _labels()
    labels[0, :3] = value
    write_label_map(tmp_path / "a.png", labels, palette=palette)
    message = rf"a\.png: label values must be 0\.\.20 or 255 .*; found {value} in 3 of 48 pixels"
    with pytest.raises(ValueError, match=message):
        _read(tmp_path / "a.png")
    assert read_pseudo_label([tmp_path / "a.png"], *SIZE, num_classes=value + 1)[0, 0] == value


@pytest.mark.parametrize("size", [(5, 8), (8, 6), (6, 9)])
def test_other_sizes_and_formats(tmp_path, size):
    write_label_map(tmp_path / "a.png", np.zeros(size, np.uint8))
    np.save(tmp_path / "a.npy", {3: np.zeros(size, np.float32)})
    for suffix, file_format in ((".png", "indices"), (".npy", "cams")):
        told = rf"a\{suffix}: the pseudo label is {size[1]}x{size[0]}, its image 8x6"
        with pytest.raises(ValueError, match=told):
            _read(tmp_path / f"a{suffix}", file_format=file_format)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        _read(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"file_format: unknown value 'cam'.*did you mean 'cams'"):
        _read(tmp_path / "gone.png", file_format="cam")


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.uint8, (2, 4, 5), elements=st.sampled_from([0, 1, 20, 255])))
def test_merging(pair):
    """BANA: 255 where Y_crf and Y_ret disagree."""
    first, second = pair
    merged = merge_labels(first, second)
    for a, b, m in zip(first.ravel(), second.ravel(), merged.ravel()):
        assert m == (a if a == b else 255)
    np.testing.assert_array_equal(merged, merge_labels(second, first))
    np.testing.assert_array_equal(merge_labels(first, first), first)
    assert merged.dtype == np.uint8


def test_merged_files(tmp_path):
    first, second = _labels(), _labels()
    second[1] = 0
    write_label_map(tmp_path / "crf.png", first)
    write_label_map(tmp_path / "ret.png", second)
    expected = first.copy()
    expected[1, 2:7] = 255
    np.testing.assert_array_equal(_read(tmp_path / "crf.png", tmp_path / "ret.png"), expected)
    write_label_map(tmp_path / "ret.png", np.full(SIZE, 99, np.uint8))
    with pytest.raises(ValueError, match=r"ret\.png: label values"):
        _read(tmp_path / "crf.png", tmp_path / "ret.png")


def _activations():
    """Maps of the classes 15 and 20 (14 and 19 without background)."""
    maps = np.zeros((2, *SIZE), np.float32)
    maps[0, 1:5, 1:] = 0.6
    maps[1, 3:, :4] = 0.7
    maps[1, 0, 0] = 0.15
    return maps


def _expected(threshold):
    labels = np.zeros(SIZE, int)
    labels[1:5, 1:], labels[3:, :4] = 15, 20
    labels[0, 0] = 20 if threshold < 0.15 else 0
    return labels


def _scores():
    """What EDAM's CRF writes: 0 is background, class c is c."""
    maps = np.zeros((3, *SIZE), np.float32) + np.array([0.4, 0.35, 0.25])[:, None, None]
    maps[:, 1:4] = np.array([0.2, 0.7, 0.1])[:, None, None]
    return dict(zip((0, 15, 20), maps))


def _with(value):
    maps = _activations()
    maps[0, 0, 0] = value
    return {"keys": [14, 19], "high_res": maps}


FULL, ONES = {"keys": [14, 19], "high_res": _activations()}, np.ones(SIZE, np.float32)


@pytest.mark.parametrize(
    ("file_format", "content", "message"),
    [
        ("cams", {**FULL, "keys": [14, 20]}, r"classes must be in 0\.\.19, got \[14, 20\]"),
        ("cams", {**FULL, "keys": [-1, 14]}, r"classes must be in 0\.\.19, got \[-1, 14\]"),
        ("cams", {**FULL, "keys": [14, 14]}, r"classes must be distinct integers, got \[14, 14\]"),
        ("cams", {**FULL, "keys": [1.0, 2.0]}, "classes must be distinct integers"),
        ("cams", {**FULL, "keys": [14]}, r"one \(H, W\) map of numbers for each of 1 class\(es\)"),
        ("cams", {**FULL, "high_res": _activations()[0]}, "for each of 2 class"),
        ("cams", {**FULL, "high_res": "none"}, "for each of 2 class"),
        ("cams", {**FULL, "high_res": None}, "has no maps 'high_res'"),
        ("cams", {"keys": [14], "cam": np.ones((1, 2, 2))}, "has no maps 'high_res'"),
        ("cams", {"logits": _activations()}, r"expected the keys 'keys' and 'high_res', or class"),
        ("cams", {1: np.zeros((2, 2)), 2: np.zeros((3, 3))}, r"shapes \[\(2, 2\), \(3, 3\)\]"),
        ("cams", {1: np.zeros(5)}, r"one \(H, W\) map for each class, got shapes \[\(5,\)\]"),
        (
            "cams",
            {2**63: ONES, 1: ONES},
            r"must be below 255, got \[9223372036854775808, 1",
        ),
        ("cams", {**FULL, "keys": np.uint64([2**63, 1])}, r"must be in 0\.\.19, got \[92233720"),
        ("cams", _with(np.nan), "a map holds values that are not finite"),
        ("cams", _with(-np.inf), "a map holds values that are not finite"),
        # 0 would be the first class there, and every class one too high.
        ("cams", _scores(), r"its maps add up to 1 .*--format scores"),
        ("scores", {15: ONES}, r"scores need a map 0 \(background\), got keys \[15\]"),
        ("scores", {**_scores(), 21: ONES}, r"must be in 0\.\.20, got \[0, 15, 20, 21\]"),
    ],
)
def test_malformed_maps(tmp_path, file_format, content, message):
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(ValueError, match=rf"a\.npy: .*{message}"):
        _read(tmp_path / "a.npy", file_format=file_format)


@pytest.mark.parametrize("keys", [[14, 19], np.array([14, 19]), torch.tensor([14, 19])])
@pytest.mark.parametrize("maps", [_activations(), torch.from_numpy(_activations())])
@pytest.mark.parametrize("threshold", [0.1, 0.15])
def test_keys_and_high_res(tmp_path, keys, maps, threshold):
    content = {"keys": keys, "cam": torch.rand(2, 2, 2), "high_res": maps}
    np.save(tmp_path / "a.npy", content)
    read = _read(tmp_path / "a.npy", file_format="cams", threshold=threshold)
    np.testing.assert_array_equal(read, _expected(threshold))
    assert read.dtype == np.uint8


def test_class_to_map(tmp_path):
    maps = _activations()
    np.save(tmp_path / "a.npy", {19: maps[1], 14: maps[0].astype(np.float64)})
    read = _read(tmp_path / "a.npy", file_format="cams", threshold=0.5)
    np.testing.assert_array_equal(read, _expected(0.5))
    # Scores: the largest wins.
    np.save(tmp_path / "a.npy", _scores())
    expected = np.zeros(SIZE, int)
    expected[1:4] = 15
    np.testing.assert_array_equal(_read(tmp_path / "a.npy", file_format="scores"), expected)
    # RIB writes no maps for an image without classes.
    none = {"keys": np.zeros(0, np.int64)}
    for content in (none, {**none, "high_res": np.zeros((0, *SIZE), np.float32)}, {}):
        np.save(tmp_path / "a.npy", content)
        assert not _read(tmp_path / "a.npy", file_format="cams").any()


# ---- Newer methods, in the form that their public code writes ------------------------------------


def _attention(low=0.0):
    """CLIP-ES: float16 activations in 0..1 of the classes 15 and 20, counted from 0."""
    maps = np.full((2, *SIZE), low, np.float16)
    maps[0, 1:3], maps[1, 4:] = 0.99, 0.7
    return {"keys": np.array([14, 19]), "attn_highres": maps}


def test_clip_es(tmp_path):
    picture = np.zeros((*SIZE, 3), np.uint8)
    np.save(tmp_path / "a.npy", _attention())
    read = _read(tmp_path / "a.npy", file_format="clip_es")
    expected = np.zeros(SIZE, int)
    expected[1:3], expected[4:] = 15, 255  # 0.7 against a background of 0.3 is not sure
    np.testing.assert_array_equal(read, expected)

    def certain(scores, image):
        assert image is picture
        np.testing.assert_allclose(scores.sum(axis=0), 1, atol=1e-6)
        return (scores == scores.max(axis=0)).astype(np.float32)

    read = _read(tmp_path / "a.npy", file_format="clip_es", picture=picture, crf=certain)
    np.testing.assert_array_equal(read, np.where(expected == 255, 20, expected))
    # An image without classes is background.
    np.save(tmp_path / "a.npy", {"keys": [], "attn_highres": np.zeros((0, *SIZE), np.float16)})
    assert not _read(tmp_path / "a.npy", file_format="clip_es").any()
    for content, told in (
        ({"keys": [14], "high_res": ONES[None]}, "expected the keys 'keys' and 'attn_highres'"),
        ({**_attention(), "keys": [14, 20]}, r"classes must be in 0\.\.19"),
        ({"keys": [14], "attn_highres": ONES[None] * 2}, r"activations must be in 0\.\.1, got 2"),
        ({"keys": [14], "attn_highres": np.ones((1, 2, 2))}, "label is 2x2, its image 8x6"),
    ):
        np.save(tmp_path / "a.npy", content)
        with pytest.raises(ValueError, match=rf"a\.npy: .*{told}"):
            _read(tmp_path / "a.npy", file_format="clip_es")


@pytest.mark.parametrize("method", ["mctformer", "weaktr"])
def test_an_offset_of_91(tmp_path, method):
    assert METHODS[method].offset
    labels = _labels()
    labels[5, 5] = 80
    options = {"num_classes": 81, "offset": True}
    for stored in (labels, labels + 91):
        stored = stored.copy()
        stored[0, 0], labels[0, 0] = 255, 255
        Image.fromarray(stored).save(tmp_path / "a.png")
        found = read_pseudo_label([tmp_path / "a.png"], *SIZE, **options)
        np.testing.assert_array_equal(found, labels)
    for value, told in ((172, r"a\.png \(less 91\): label values"), (30, r"a\.png: label values")):
        wrong = labels + 91
        wrong[0, 0], wrong[1, 0] = 255, value
        Image.fromarray(wrong).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match=told):
            read_pseudo_label([tmp_path / "a.png"], *SIZE, **options)
    with pytest.raises(ValueError, match=r"a\.png: label values"):
        read_pseudo_label([tmp_path / "a.png"], *SIZE, num_classes=81)


def test_what_weaktr_and_sam_wsss_write(tmp_path):
    # Activations by class from 0; after retraining, probabilities with the background's key 0.
    np.save(tmp_path / "a.npy", dict(zip((14, 19), _activations())))
    read = _read(tmp_path / "a.npy", file_format=METHODS["weaktr"].maps, threshold=0.43)
    np.testing.assert_array_equal(read, _expected(0.43))
    scores = _scores()
    content = {"prob": np.stack(list(scores.values())), "keys": np.array(list(scores))}
    np.save(tmp_path / "a.npy", content)
    read = _read(tmp_path / "a.npy", file_format="scores")
    assert (read[1:4] == 15).all()
    assert not read[4:].any()
    # SAM_WSSS: mode L.
    Image.fromarray(_labels()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(_read(tmp_path / "a.png"), _labels())
