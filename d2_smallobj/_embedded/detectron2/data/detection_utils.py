"""Reading images."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
from PIL import Image, ImageOps

_BROKEN_EXIF = (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error)


def read_image(file_name: str, format: str) -> np.ndarray:
    """Read an image as HxWx3 uint8 in "BGR" or "RGB", upright as its EXIF orientation says."""
    with open(file_name, "rb") as stream:
        image = Image.open(stream)
        # A broken image raises again when it is decoded.
        with contextlib.suppress(*_BROKEN_EXIF):
            image = ImageOps.exif_transpose(image)
        array = np.asarray(image.convert("RGB"))
    return array[:, :, ::-1] if format == "BGR" else array
