"""Label maps: indices survive reading and writing; damage is named."""

from __future__ import annotations

import struct
import zlib

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2_smallobj.annotations.label_maps import (
    check_label_values,
    encode_label_map,
    read_label_map,
    voc_palette,
    write_label_map,
)


@settings(max_examples=30, deadline=None)
@given(
    labels=hnp.arrays(
        np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 999)
    ),
    palette=st.booleans(),
)
def test_what_is_written_is_read(tmp_path_factory, labels, palette):
    path = tmp_path_factory.mktemp("maps") / "map.png"
    write_label_map(path, labels, palette=palette)
    read = read_label_map(path)
    np.testing.assert_array_equal(read, labels)
    assert read.dtype == (np.uint16 if labels.max() > 255 else np.uint8)


def test_palette_mode_and_colours(tmp_path):
    labels = np.array([[0, 1, 15, 255]], np.uint8)
    write_label_map(tmp_path / "p.png", labels)
    write_label_map(tmp_path / "l.png", labels, palette=False)
    with Image.open(tmp_path / "p.png") as image:
        assert image.mode == "P"
        # The colours of the VOC development kit: black, dark red, person, border.
        assert np.asarray(image.convert("RGB"))[0].tolist() == [
            [0, 0, 0],
            [128, 0, 0],
            [192, 128, 128],
            [224, 224, 192],
        ]
    with Image.open(tmp_path / "l.png") as image:
        assert image.mode == "L"


def test_palette_is_that_of_the_real_files(realdata):
    path = realdata / "voc/VOC2012/SegmentationClass/2007_000032.png"
    with Image.open(path) as image:
        stored = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(voc_palette()[: len(stored)], stored)
    labels = read_label_map(path)
    assert labels.shape == (281, 500)
    assert np.unique(labels).tolist() == [0, 1, 15, 255]


def test_the_palette_is_a_copy():
    voc_palette()[:] = 7
    assert voc_palette()[1].tolist() == [128, 0, 0]


def test_encoding_does_not_depend_on_memory_layout():
    labels = np.arange(12, dtype=np.int64).reshape(3, 4)
    assert encode_label_map(labels) == encode_label_map(np.asfortranarray(labels))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 2, 3), np.uint8), r"labels: .*shape \(H, W\), got shape \(2, 2, 3\)"),
        (np.zeros((2, 2)), "labels: expected .*integer.* of float64"),
        (np.zeros((0, 2), int), r"labels: expected a non-empty .*\(0, 2\)"),
        (np.array([[-1, 3]]), r"labels: .*0\.\.65535.*got -1\.\.3"),
        (np.array([[1, 65536]]), r"got 1\.\.65536"),
    ],
)
def test_refused_arrays(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        write_label_map(tmp_path / "x.png", labels)
    assert list(tmp_path.iterdir()) == []


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such label map: .*gone\.png"):
        read_label_map(tmp_path / "gone.png")


@pytest.mark.parametrize("kept", [0, 10, 40, 0.5])
def test_truncated_file_is_named(tmp_path, kept):
    rng = np.random.default_rng(0)
    content = encode_label_map(rng.integers(0, 21, (60, 60)))
    path = tmp_path / "cut.png"
    path.write_bytes(content[: int(len(content) * kept) if kept == 0.5 else kept])
    with pytest.raises(ValueError, match=r"cut\.png: corrupt or truncated label map"):
        read_label_map(path)


def test_missing_rows_are_not_background(tmp_path):
    """Intact chunks, too few pixels: Pillow fills what is missing with 0."""

    def chunk(kind, body):
        checked = kind + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    half = zlib.compress(4 * (b"\0" + 8 * b"\3"))
    path = tmp_path / "half.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", half) + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match=r"half\.png: corrupt label map \(36 bytes of pixels"):
        read_label_map(path)


def test_any_damaged_byte_is_read_or_refused_by_name(tmp_path):
    content = encode_label_map(np.random.default_rng(0).integers(0, 21, (8, 8)), palette=False)
    path = tmp_path / "bad.png"
    refused = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        path.write_bytes(bytes(damaged))
        try:
            read_label_map(path)
        except ValueError as error:
            refused += "bad.png" in str(error)
    assert refused > len(content) / 3


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "png"), ("RGBA", "png"), ("LA", "png")])
def test_colour_pictures_are_refused(tmp_path, mode, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(ValueError, match=rf"picture\.{suffix}: .*colour picture \(mode {mode}\)"):
        read_label_map(path)


def test_jpeg_is_refused(tmp_path):
    path = tmp_path / "lossy.jpg"
    Image.new("L", (4, 4)).save(path)
    with pytest.raises(ValueError, match=r"lossy\.jpg: .*stored without loss"):
        read_label_map(path)


def test_a_failed_write_keeps_the_old_map(tmp_path, monkeypatch):
    path = tmp_path / "map.png"
    write_label_map(path, np.array([[1, 2]]))

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"map\.png: No space left"):
        write_label_map(path, np.array([[3, 4]]))
    assert read_label_map(path).tolist() == [[1, 2]]
    assert [p.name for p in tmp_path.iterdir()] == ["map.png"]


def test_values_in_range_pass():
    check_label_values(np.array([[0, 20, 255]], np.uint8), 21, 255, "x.png")
    check_label_values(np.array([[0, 254]], np.int64), 255, 255, "x.png")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [[0, 21, 21]],
            r"a/x\.png: label values must be 0\.\.20 or 255 .*found 21 in 2 of 3 pixels",
        ),
        ([[-1, 0, 5]], "found -1 in 1 of 3 pixels"),
        ([list(range(255))], r"found 21, 22, .*, 30 and 224 more in 234 of 255 pixels"),
    ],
)
def test_values_out_of_range_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        check_label_values(np.array(labels), 21, 255, "a/x.png")
