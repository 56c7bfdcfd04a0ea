"""Decode image files: PNG with every checksum verified, pictures of all kinds with Pillow.

OpenCV and Pillow both return pixels for some damaged PNG files (rows that are missing become 0);
here, damage is an error. Legend: H, W height and width of an image.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from d2_smallobj.utils.files import open_file
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


@contextlib.contextmanager
def open_picture(
    path: str | os.PathLike[str],
    content: bytes | None = None,
    problem: str = "the image cannot be read",
) -> Iterator[Image.Image]:
    """Open a picture with Pillow, to be decoded in the ``with`` block.

    Args:
        path: the file.
        content: its bytes, if they have been read.
        problem: what messages say of a damaged one.

    Raises:
        OSError: the file is missing or no regular file.
        ValueError: it is damaged, no picture, or too large; names the file.
    """
    source = open_file(path) if content is None else io.BytesIO(content)
    with source:
        try:
            with Image.open(source) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"more than {MOST_PIXELS} pixels")
                yield image
        # Pillow fails in many ways (KeyError, ZeroDivisionError, ...), wherever the damage is.
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"{path}: {problem}: {reason}") from error


class Header(NamedTuple):
    """A PNG's height, width, bits per sample, colour type, and whether its rows are interlaced."""

    height: int
    width: int
    depth: int
    colour: int
    interlaced: bool


def decode_png(content: bytes, path: str | os.PathLike[str]) -> np.ndarray:
    """Decode a whole PNG file; result and errors as :func:`.label_maps.read_label_map`."""
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
    with open_picture(path, content, "corrupt or truncated label map") as image:
        labels = np.asarray(image)
    if header.depth == 16:
        return labels.astype(np.uint16)
    if header.colour == _GREY and header.depth in (2, 4):
        # Pillow stretches grey levels to 0..255; the indices are the levels themselves.
        labels = labels // (255 // (2**header.depth - 1))
    return labels.astype(np.uint8)
