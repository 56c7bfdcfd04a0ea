"""Label maps: indices survive reading and writing; damage is named."""

from __future__ import annotations

import io
import struct
import zlib

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2_smallobj.annotations import png as decoder
from d2_smallobj.annotations.label_maps import (
    check_label_values,
    encode_label_map,
    label_size,
    read_label_map,
    read_labels,
    voc_palette,
    write_label_map,
)
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

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"map\.png: No space left"):
        write_label_map(path, np.array([[3, 4]]))
    assert read_label_map(path).tolist() == [[1, 2]]
    assert [p.name for p in tmp_path.iterdir()] == ["map.png"]


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


def png(width, height, depth, colour, rows, *more):
    """A PNG of these raw rows, filter bytes included."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        *more,
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(labels, mode):
    """The same labels as another program would write them."""
    if mode == "cv2":
        return cv2.imencode(".png", labels)[1].tobytes()
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


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
    assert np.array_equal(read_label_map(path), labels)


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
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 1)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\7")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
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
        assert np.array_equal(read_labels(path), read_label_map(path))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_arrays(tmp_path, dtype):
    labels = np.arange(12, dtype=dtype).reshape(3, 4)
    np.save(tmp_path / "a.npy", labels)
    assert label_size(tmp_path / "a.npy") == (3, 4)
    assert read_labels(tmp_path / "a.npy").dtype == dtype
    assert np.array_equal(read_labels(tmp_path / "a.npy"), labels)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("read", [label_size, read_labels])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5)), r"a\.npy: a label map is .*float64; of scores, save the labels"),
        (np.zeros((21, 4, 5), np.uint8), r"got shape \(21, 4, 5\) of uint8; of scores"),
        (np.zeros((4, 5), bool), r"integer array of shape \(H, W\), got shape \(4, 5\) of bool$"),
        (np.zeros((0, 5), np.uint8), r"non-empty integer array"),
        (np.array([Evil()], object), r"a\.npy: not a complete \.npy file of plain numbers"),
    ],
)
def test_arrays_that_are_no_maps(tmp_path, read, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize("read", [label_size, read_labels])
def test_a_cut_array_and_an_archive(tmp_path, read):
    np.save(tmp_path / "a.npy", np.zeros((40, 50), np.uint8))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:500])
    with pytest.raises(ValueError, match=r"a\.npy: not a complete \.npy"):
        read(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.npy: not a complete \.npy"):
        read(tmp_path / "b.npy")
    np.savez(tmp_path / "c.npz", a=np.zeros(3))
    (tmp_path / "c.npz").rename(tmp_path / "c.npy")
    with pytest.raises(ValueError, match=r"c\.npy: a label map is one array"):
        read(tmp_path / "c.npy")


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


@pytest.mark.parametrize("read", [label_size, read_labels])
def test_pictures_are_refused(tmp_path, read):
    for mode in ("RGB", "RGBA", "LA"):
        Image.new(mode, (5, 4)).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match=rf"a\.png: .*colour picture \(mode {mode}\)"):
            read(tmp_path / "a.png")
    Image.new("RGB", (5, 4)).save(tmp_path / "b.png", "JPEG")
    with pytest.raises(ValueError, match=r"b\.png: .*without loss \(PNG\); this one is a JPEG"):
        read(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no image at all")
    with pytest.raises(ValueError, match=r"c\.png: corrupt or truncated"):
        read(tmp_path / "c.png")
    with pytest.raises(FileNotFoundError, match=r"d\.png"):
        read(tmp_path / "d.png")


@pytest.mark.parametrize("read", [label_size, read_labels])
def test_headers_are_checked(tmp_path, read):
    good, path = png(20, 10, 8, 0, bytes(210)), tmp_path / "a.png"
    path.write_bytes(good[:20])
    with pytest.raises(ValueError, match=r"no complete PNG header"):
        read(path)
    path.write_bytes(good[:18] + b"\7" + good[19:])
    with pytest.raises(ValueError, match=r"checksum of the PNG header"):
        read(path)
    # Nothing of such a size is allocated.
    for width, height in ((100_000, 100_000), (0, 10)):
        path.write_bytes(png(width, height, 8, 0, b""))
        with pytest.raises(ValueError, match=rf"pixels, got {width} x {height}"):
            read(path)


@pytest.mark.usefixtures("unpacker")
def test_a_bomb_is_not_unpacked(tmp_path):
    (tmp_path / "a.png").write_bytes(png(10, 10, 8, 0, bytes(20_000_000)))
    with pytest.raises(ValueError, match=r"111 bytes of pixels, its header promises 110"):
        read_labels(tmp_path / "a.png")
