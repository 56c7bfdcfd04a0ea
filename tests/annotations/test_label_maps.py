"""Label maps: indices survive reading and writing; damage is named."""

from __future__ import annotations

import io
import struct
import zlib
from unittest.mock import Mock

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2_smallobj.annotations import image_files as decoder
from d2_smallobj.annotations.label_maps import (
    encode_label_map,
    label_size,
    read_label_map,
    read_labels,
    voc_palette,
    write_label_map,
)
from d2_smallobj.annotations.label_rules import check_label_values
from d2_smallobj.utils.opencv import cv2


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
        expected = [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]
        assert np.asarray(image.convert("RGB"))[0].tolist() == expected
    with Image.open(tmp_path / "l.png") as image:
        assert image.mode == "L"


def test_palette_is_that_of_the_real_files(realdata):
    path = realdata / "voc/VOC2012/SegmentationClass/2007_000032.png"
    with Image.open(path) as image:
        stored = np.array(image.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(voc_palette()[: len(stored)], stored)
    assert np.unique(read_label_map(path)).tolist() == [0, 1, 15, 255]


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


def test_a_failed_write_keeps_the_old_map(tmp_path, monkeypatch):
    path = tmp_path / "map.png"
    write_label_map(path, np.array([[1, 2]]))
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"map\.png: No space left"):
        write_label_map(path, np.array([[3, 4]]))
    assert read_label_map(path).tolist() == [[1, 2]]
    assert [p.name for p in tmp_path.iterdir()] == ["map.png"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 21, 21]], r"a/x\.png: .* must be 0\.\.20 or 255 .*found 21 in 2 of 3 pixels"),
        ([[-1, 0, 5]], "found -1 in 1 of 3 pixels"),
        ([list(range(255))], r"found 21, 22, .*, 30 and 224 more in 234 of 255 pixels"),
    ],
)
def test_values_out_of_range_are_named(labels, message):
    check_label_values(np.array([[0, 20, 255]], np.uint8), 21, 255, "x.png")
    with pytest.raises(ValueError, match=message):
        check_label_values(np.array(labels), 21, 255, "a/x.png")


@pytest.fixture(params=["zlib", "zlib_ng.zlib_ng"])
def unpacker(request, monkeypatch):
    """Both libraries that pixels are unpacked with, the faster where it is installed."""
    monkeypatch.setattr(decoder, "zlib", pytest.importorskip(request.param))


def chunk(kind, body):
    checked = kind + body
    return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(width, height, depth, colour, rows, *more, interlaced=0):
    """A PNG of these raw rows, filter bytes included."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    data = chunk(b"IDAT", zlib.compress(rows))
    return decoder.SIGNATURE + chunk(b"IHDR", header) + b"".join(more) + data + chunk(b"IEND", b"")


def stored(image, kind="PNG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def encoded(labels, mode):
    """The same labels as another program would write them."""
    if mode == "cv2":
        return cv2.imencode(".png", labels)[1].tobytes()
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    return stored(image)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    highest=st.sampled_from([1, 2, 15, 21, 255]),
    mode=st.sampled_from(["P", "L", "cv2"]),
    smooth=st.booleans(),
)
def test_indices_are_what_was_written(tmp_path_factory, seed, shape, highest, mode, smooth):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, highest + 1, shape, dtype=np.uint8)
    if smooth:
        labels = np.sort(labels, axis=1)
    path = tmp_path_factory.mktemp("maps") / "a.png"
    path.write_bytes(encoded(labels, mode))
    assert label_size(path) == shape
    found = read_labels(path)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert np.array_equal(found, labels)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("colour", [0, 3])
def test_several_pixels_to_a_byte(tmp_path, depth, colour):
    # Pillow writes a small palette this way, and stretches such greys to 0..255 when reading.
    rng = np.random.default_rng(depth)
    labels = rng.integers(0, 2**depth, (5, 16), dtype=np.uint8)
    bits = ((labels[..., None] >> np.arange(depth - 1, -1, -1)) & 1).reshape(5, -1)
    rows = np.hstack([np.zeros((5, 1), np.uint8), np.packbits(bits, axis=1)]).tobytes()
    palette = [chunk(b"PLTE", bytes(3 * 2**depth))] if colour == 3 else []
    (tmp_path / "a.png").write_bytes(png(16, 5, depth, colour, rows, *palette))
    assert np.array_equal(read_labels(tmp_path / "a.png"), labels)


def test_interlaced(tmp_path):
    # Adam7 by hand would be long: a real interlaced file is made of an image of one pixel.
    (tmp_path / "a.png").write_bytes(png(1, 1, 8, 0, b"\0\7", interlaced=1))
    assert read_labels(tmp_path / "a.png").tolist() == [[7]]


def test_transparency_and_gamma_change_nothing(tmp_path):
    rows = b"".join(b"\1" + bytes(range(10)) for _ in range(4))
    more = [chunk(b"gAMA", struct.pack(">I", 10000)), chunk(b"tRNS", struct.pack(">H", 3))]
    (tmp_path / "a.png").write_bytes(png(10, 4, 8, 0, rows, *more))
    expected = np.cumsum(np.arange(10), dtype=np.uint8)
    assert np.array_equal(read_labels(tmp_path / "a.png"), np.tile(expected, (4, 1)))


@pytest.mark.usefixtures("unpacker")
def test_real_voc_maps(realdata):
    paths = sorted((realdata / "voc" / "VOC2012").glob("Segmentation*/*.png"))
    assert len(paths) == 48
    for path in paths:
        with Image.open(path) as image:
            assert np.array_equal(read_labels(path), np.asarray(image))


@pytest.mark.parametrize("name", ["a.npy", "a.tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_and_tiffs(tmp_path, name, dtype):
    labels = np.arange(12, dtype=dtype).reshape(3, 4)
    content = npy(labels) if name == "a.npy" else stored(Image.fromarray(labels), "TIFF")
    (tmp_path / name).write_bytes(content)
    assert label_size(tmp_path / name) == (3, 4)
    assert read_labels(tmp_path / name).dtype == dtype
    assert np.array_equal(read_labels(tmp_path / name), labels)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def npy(array, save=np.save):
    stream = io.BytesIO()
    save(stream, array)
    return stream.getvalue()


GOOD = png(20, 10, 8, 0, bytes(210))
ARRAY = npy(np.zeros((4, 5), np.uint8))
CUT = r"not a complete \.npy file"


@pytest.mark.parametrize("read", [label_size, read_labels])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", npy(np.zeros((4, 5))), "a label map is .*float64; of scores, save the labels"),
        ("a.npy", npy(np.zeros((21, 4, 5), np.uint8)), r"shape \(21, 4, 5\) of uint8; of scores"),
        ("a.npy", npy(np.zeros((4, 5), bool)), r"\(H, W\), got shape \(4, 5\) of bool$"),
        ("a.npy", npy(np.zeros((0, 5), np.uint8)), "non-empty integer array"),
        ("a.npy", npy(np.array([Evil()], object)), "plain numbers, but of object"),
        ("a.npy", npy(np.zeros((40, 50), np.uint8))[:500], CUT),
        ("a.npy", b"", CUT),
        ("a.npy", ARRAY.replace(b"(4, 5), }" + b" " * 6, b"(True, True), }"), CUT),
        ("a.npy", ARRAY.replace(b"(4, 5)", b"(4, 5("), CUT),
        ("a.npy", ARRAY.replace(b"(4, 5)", b"(9, 9)"), "20 bytes of them, its header promises 81"),
        ("a.npy", npy(np.zeros(3), np.savez), "expected one array, this is an archive"),
        ("a.png", stored(Image.new("RGB", (5, 4))), r"colour picture \(mode RGB\)"),
        ("a.png", stored(Image.new("RGBA", (5, 4))), r"colour picture \(mode RGBA\)"),
        ("a.png", stored(Image.new("LA", (5, 4))), r"colour picture \(mode LA\)"),
        ("a.png", stored(Image.new("L", (5, 4)), "JPEG"), "neither PNG nor TIFF"),
        ("a.tif", stored(Image.new("RGB", (5, 4)), "TIFF"), "this one is a picture of mode RGB"),
        ("a.tif", stored(Image.new("L", (5, 4)), "TIFF")[:20], "corrupt or truncated"),
        ("a.png", b"", "corrupt or truncated"),
        ("a.png", GOOD[:20], "no complete PNG header"),
        ("a.png", GOOD[:18] + b"\7" + GOOD[19:], "checksum of the PNG header"),
        # Nothing of such a size is allocated.
        ("a.png", png(100_000, 100_000, 8, 0, b""), "pixels, got 100000 x 100000"),
        ("a.png", png(0, 10, 8, 0, b""), "pixels, got 0 x 10"),
    ],
)
def test_files_that_are_no_maps(tmp_path, read, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        read(tmp_path / name)


@pytest.mark.parametrize("read", [label_size, read_labels])
@pytest.mark.parametrize("name", ["d.png", "d.npy"])
def test_files_that_are_not_there(tmp_path, read, name):
    with pytest.raises(FileNotFoundError, match=f"no such label map.*{name}"):
        read(tmp_path / name)


@pytest.mark.usefixtures("unpacker")
@pytest.mark.parametrize("mode", ["P", "L", "cv2"])
def test_damage_anywhere_is_noticed(tmp_path, mode):
    labels = np.random.default_rng(0).integers(0, 20, (30, 40), dtype=np.uint8)
    content, path = encoded(labels, mode), tmp_path / "a.png"
    start = content.index(b"IDAT")
    for length in (0, *range(8, len(content) - 1, 37)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.png: corrupt or truncated"):
            read_labels(path)
    for position in range(start, len(content) - 12, 29):
        damaged = bytearray(content)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.png: corrupt"):
            read_labels(path)


@pytest.mark.usefixtures("unpacker")
@pytest.mark.parametrize("depth", [8, 4])
def test_pixels_that_end_early_are_noticed(tmp_path, depth):
    # All checksums are right; Pillow fills the rest with zeros and says nothing.
    rows = bytes(21) * 5 if depth == 8 else bytes(11) * 5
    path = tmp_path / "a.png"
    for content in (rows, rows + rows + b"\0"):
        path.write_bytes(png(20, 10, depth, 0, content))
        with pytest.raises(ValueError, match=r"a\.png: corrupt label map .* header promises"):
            read_labels(path)
    path.write_bytes(png(20, 10, 8, 0, (b"\1" + bytes(20)) * 5))
    with pytest.raises(ValueError, match=r"a\.png: corrupt or truncated label map"):
        read_labels(path)


@pytest.mark.usefixtures("unpacker")
def test_a_bomb_is_not_unpacked(tmp_path):
    (tmp_path / "a.png").write_bytes(png(10, 10, 8, 0, bytes(20_000_000)))
    with pytest.raises(ValueError, match=r"111 bytes of pixels, its header promises 110"):
        read_labels(tmp_path / "a.png")
