"""Read and write label maps of class or instance indices, PNG or ``.npy``, unconverted.

A VOC label map is a P-mode PNG: its pixel values are the indices, the palette only colours
them for the eye. Pillow and OpenCV both return pixels for some damaged files (rows that are
missing become 0, which is background), and both change indices of some intact ones (palettes are
painted, grey levels of 2 and 4 bits stretched). Here neither happens: the stored indices are
returned, every checksum and pixel count verified. Legend: H, W height and width of a map.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from d2_smallobj.utils.files import atomic_write
from d2_smallobj.utils.opencv import cv2

try:
    # Unpacks a label map in a fraction of zlib's time, which is most of the time of scoring one.
    from zlib_ng import zlib_ng as zlib
except ImportError:
    import zlib  # type: ignore[no-redef]  # the same functions

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, RGB, _PALETTE = 0, 2, 3
_COLOURS = {2: "RGB", 4: "LA", 6: "RGBA"}
MOST_PIXELS = 178_956_970
"""Largest number of pixels of an image: Pillow's own bound against decompression bombs."""

SUFFIXES = (".png", ".npy")
_INDEX_MODES = ("L", "P", "I;16", "I;16B", "I;16L", "1", "I")
# ADE20K's full set stores TIFFs.
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
_DAMAGE = (OSError, SyntaxError, EOFError, ValueError, struct.error)
CORRUPT_IMAGE = (*_DAMAGE, Image.DecompressionBombError)
"""Errors that Pillow raises on damaged files, depending on the place of the damage."""


class Header(NamedTuple):
    """A PNG's height, width, bits per sample, colour type, and whether its rows are interlaced."""

    height: int
    width: int
    depth: int
    colour: int
    interlaced: bool


def read_label_map(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a label map: a PNG or TIFF of mode L, P or 16-bit grey; a PNG's checksums are verified.

    Returns:
        (H, W), uint8, or uint16 for a 16-bit file: the stored indices.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt or truncated, or holds colours instead of indices.
    """
    content = read_content(path)
    if content.startswith(SIGNATURE):
        return decode_png(content, path)
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode, labels = image.mode, np.asarray(image)
    except CORRUPT_IMAGE as error:
        raise ValueError(f"{path}: corrupt or truncated label map ({error})") from error
    if mode not in _INDEX_MODES or labels.min() < 0 or labels.max() > 65535:
        raise ValueError(
            f"{path}: a label map holds class indices in 0..65535; this one is a picture of mode "
            f"{mode}. Give the file with indices, not its rendering"
        )
    # 16-bit grey comes as int32 from the Pillow versions that open it in mode I.
    return labels.astype(np.uint8 if labels.dtype.itemsize == 1 else np.uint16)


def read_content(path: str | os.PathLike[str], size: int = -1) -> bytes:
    """Read the beginning of a PNG or TIFF file, or all of it."""
    try:
        with open(path, "rb") as file:
            content = file.read(size)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "no such label map", os.fspath(path)) from error
    if not content.startswith((SIGNATURE, *_TIFF_SIGNATURES)):
        raise ValueError(
            f"{path}: corrupt or truncated label map, or neither PNG nor TIFF, which store indices "
            "without loss"
        )
    return content


def decode_png(content: bytes, path: str | os.PathLike[str]) -> np.ndarray:
    """Decode a whole PNG file; result and errors as :func:`read_label_map`."""
    header = parse_header(content, path)
    data = image_data(content, path)
    if header.depth < 8 or header.interlaced:
        return _decode_packed(header, data, content, path)
    if header.depth == 8 and (header.colour == _PALETTE or _unpack(data, 1, path) == b"\0"):
        # Palette images are normally stored so: nothing is left to do but to unpack.
        rows = _inflate(header, data, path)
        if not rows[:, 0].any():
            return np.ascontiguousarray(rows[:, 1:])
    # As grey: OpenCV would paint a palette's colours.
    return decode_plain(header._replace(colour=_GREY), data, path)


def parse_header(content: bytes, path: str | os.PathLike[str], *, colours: bool = False) -> Header:
    """Read the header chunk, the first of a PNG; colour pictures are refused unless wanted."""
    if len(content) < 33 or content[12:16] != b"IHDR":
        raise ValueError(f"{path}: corrupt or truncated label map (no complete PNG header)")
    if zlib.crc32(content[12:29]) != int.from_bytes(content[29:33], "big"):
        raise ValueError(f"{path}: corrupt label map (checksum of the PNG header)")
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", content[16:29])
    if colour in _COLOURS and not colours:
        raise ValueError(
            f"{path}: a label map holds class indices; this one is a colour picture (mode "
            f"{_COLOURS[colour]}). Give the P or L PNG with indices, not its rendering"
        )
    if not 0 < height * width <= MOST_PIXELS:
        raise ValueError(
            f"{path}: a label map must have 1..{MOST_PIXELS} pixels, got {width} x {height}"
        )
    return Header(height, width, depth, colour, bool(interlace))


def image_data(content: bytes, path: str | os.PathLike[str]) -> bytes:
    """The compressed pixels, all chunks up to the end of the PNG verified."""
    position, parts = 33, []
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        kind = content[position + 4 : position + 8]
        end = position + 8 + length
        if zlib.crc32(content[position + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise ValueError(f"{path}: corrupt or truncated label map (PNG checksum)")
        if kind == b"IDAT":
            parts.append(content[position + 8 : end])
        elif kind == b"IEND" and parts:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        position = end + 4
    raise ValueError(f"{path}: corrupt or truncated label map (the PNG has no end)")


def _inflate(header: Header, data: bytes, path: str | os.PathLike[str]) -> np.ndarray:
    """Unpacked rows, each led by its filter byte: uint8 (H, 1 + bytes of a row)."""
    row = 1 + (header.width * header.depth + 7) // 8
    # One byte more than there may be, so that too long data are noticed and bombs are not fed.
    raw = _unpack(data, header.height * row + 1, path)
    if len(raw) != header.height * row:
        raise ValueError(
            f"{path}: corrupt label map ({len(raw)} bytes of pixels, its header promises "
            f"{header.height * row})"
        )
    return np.frombuffer(raw, np.uint8).reshape(header.height, row)


def _unpack(data: bytes, most: int, path: str | os.PathLike[str]) -> bytes:
    """The first bytes of compressed pixels, at most so many."""
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error as error:  # type: ignore[misc]  # zlib_ng's stubs call it an instance
        raise ValueError(f"{path}: corrupt or truncated label map ({error})") from error


def decode_plain(header: Header, data: bytes, path: str | os.PathLike[str]) -> np.ndarray:
    """Decode with OpenCV, the faster decoder, as stored: (H, W), or (H, W, 3), blue first.

    It gets the pixels without the other chunks, so that there is no colour management to obey.
    """
    height, width, depth, colour, interlaced = header
    fields = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    plain = ((b"IHDR", fields), (b"IDAT", data), (b"IEND", b""))
    encoded = SIGNATURE + b"".join(_chunk(kind, body) for kind, body in plain)
    stored = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    shape = (height, width, 3) if colour == RGB else (height, width)
    if stored is None or stored.shape != shape:
        raise ValueError(f"{path}: corrupt or truncated label map (its pixels cannot be decoded)")
    return stored


def _chunk(kind: bytes, body: bytes) -> bytes:
    checked = kind + body
    return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))


def _decode_packed(
    header: Header, data: bytes, content: bytes, path: str | os.PathLike[str]
) -> np.ndarray:
    """Decode an interlaced map, or one with several pixels to a byte: uint8 or uint16 (H, W)."""
    if not header.interlaced:
        _inflate(header, data, path)
    try:
        with Image.open(io.BytesIO(content)) as image:
            labels = np.asarray(image)
    except _DAMAGE as error:
        raise ValueError(f"{path}: corrupt or truncated label map ({error})") from error
    if header.depth == 16:
        return labels.astype(np.uint16)
    if header.colour == _GREY and header.depth in (2, 4):
        # Pillow stretches grey levels to 0..255; the indices are the levels themselves.
        labels = labels // (255 // (2**header.depth - 1))
    return labels.astype(np.uint8)


def encode_label_map(labels: np.ndarray, *, palette: bool = True) -> bytes:
    """Encode a label map as PNG bytes; arguments and errors as :func:`write_label_map`."""
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.size == 0:
        raise ValueError(
            "labels: expected a non-empty integer array of shape (H, W), got shape "
            f"{labels.shape} of {labels.dtype}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 65535:
        raise ValueError(f"labels: values must be in 0..65535 for a PNG, got {low}..{high}")
    if high > 255:
        image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint16))
    else:
        image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
        if palette:
            # On an L image, this gives mode P with the pixel values as they are.
            image.putpalette(voc_palette().tobytes())
    content = io.BytesIO()
    image.save(content, "PNG", optimize=False, compress_level=6)
    return content.getvalue()


def write_label_map(
    path: str | os.PathLike[str], labels: np.ndarray, *, palette: bool = True
) -> None:
    """Write a label map, (H, W) integers in 0..65535, as PNG, atomically.

    Labels up to 255 are stored in 8 bits, in P mode with the VOC palette or, without ``palette``,
    in L mode; larger ones in 16 bits.

    Raises:
        ValueError: ``labels`` has another shape, type or range.
        OSError: the file cannot be written; an older one stays as it was.
    """
    content = encode_label_map(labels, palette=palette)
    with atomic_write(path) as file:
        file.write(content)


def voc_palette() -> np.ndarray:
    """Return the colours of the VOC label maps: uint8 (256, 3), RGB; 255 is (224, 224, 192)."""
    index = np.arange(256)[:, None]
    colours = np.zeros((256, 3), np.uint8)
    # Three bits of the index at a time, one to each channel, most significant place first.
    for step in range(3):
        colours |= ((index >> (3 * step + np.arange(3)) & 1) << (7 - step)).astype(np.uint8)
    return colours


def label_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read height and width of a label map from its header; errors as :func:`read_labels`."""
    if os.fspath(path).lower().endswith(".npy"):
        return _read_array(path, header_only=True).shape
    start = read_content(path, 33)
    if not start.startswith(SIGNATURE):
        return read_label_map(path).shape
    header = parse_header(start, path)
    return header.height, header.width


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a label map, a ``.npy`` of integers or a ``.png`` as :func:`read_label_map` does.

    Returns (H, W) integers, of a ``.npy`` of its own dtype; errors are the same.
    """
    if os.fspath(path).lower().endswith(".npy"):
        return _read_array(path, header_only=False)
    return read_label_map(path)


def _read_array(path: str | os.PathLike[str], *, header_only: bool) -> np.ndarray:
    """Read a label map from a ``.npy`` file without ever unpickling."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            labels = np.load(path, mmap_mode="r" if header_only else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "no such label map", os.fspath(path)) from error
    except (PermissionError, IsADirectoryError):
        raise
    except _DAMAGE as error:
        raise ValueError(f"{path}: not a complete .npy file of plain numbers ({error})") from error
    if not isinstance(labels, np.ndarray):
        raise ValueError(f"{path}: a label map is one array, this is an archive of several")
    if labels.ndim == 2 and labels.dtype.kind in "iu" and labels.size:
        return labels
    hint = ""
    if labels.ndim == 3 or labels.dtype.kind == "f":
        hint = "; of scores, save the labels: scores.argmax(0).astype(numpy.uint8)"
    raise ValueError(
        f"{path}: a label map is a non-empty integer array of shape (H, W), got shape "
        f"{labels.shape} of {labels.dtype}{hint}"
    )


class LabelFolder:
    """The label maps in a folder, by name without suffix.

    Subfolders, hidden files and other kinds of files are skipped. ``argument`` names the option for
    messages.

    Attributes:
        path: the folder.
        files: file name by stem.
        ambiguous: stems that two files have (``a.png`` and ``a.npy``), with both names.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: there is no label map in it.
    """

    def __init__(self, path: str | os.PathLike[str], argument: str) -> None:
        self.path = Path(path)
        self.files: dict[str, str] = {}
        self.ambiguous: dict[str, tuple[str, str]] = {}
        try:
            names = sorted(os.listdir(self.path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise type(error)(
                error.errno, f"{argument}: no such folder of label maps", os.fspath(path)
            ) from error
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in SUFFIXES or name.startswith("."):
                continue
            if stem in self.files:
                self.ambiguous[stem] = (self.files[stem], name)
            self.files.setdefault(stem, name)
        if not self.files:
            raise ValueError(
                f"{argument}: no label map ({', '.join(SUFFIXES)}) in {self.path}"
                f" ({len(names)} other entries)"
            )

    def find(self, *stems: str) -> str | None:
        """Path of the label map of the first of these names that has one."""
        for stem in stems:
            if stem in self.files:
                return os.path.join(self.path, self.files[stem])
        return None
