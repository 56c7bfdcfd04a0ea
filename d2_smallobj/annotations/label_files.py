"""Label maps on disk, PNG or ``.npy``: headers for the check, indices for the work.

Indices are never converted. A file that is damaged is an error: Pillow alone fills a PNG whose
data end early with zeros and does not look at checksums, so that half a label map would be
scored as background. Legend: H, W height and width of a map.
"""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path

import numpy as np

from d2_smallobj.annotations import png
from d2_smallobj.annotations.label_maps import read_label_map

SUFFIXES = (".png", ".npy")


def label_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of a label map, from its header alone.

    Args:
        path: a file ending in ``.png`` or ``.npy``.

    Returns:
        (H, W).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header is damaged, or is one of a colour picture or of scores; names the
            file.
    """
    if _suffix(path) == ".npy":
        return _check_array(_load_array(path, header_only=True), path).shape
    with open(path, "rb") as file:
        start = file.read(33)
    if not start.startswith(png.SIGNATURE):
        # Another lossless format under the name of PNG, or no image: Pillow's reader tells.
        return read_label_map(path).shape
    header = png.parse_header(start, path)
    return header.height, header.width


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a label map; checksums are verified.

    Args:
        path: a ``.png`` of mode L, P or 16-bit grey, or a ``.npy`` of integers, not pickled.

    Returns:
        (H, W) integers: the stored indices. uint8, or uint16 from a 16-bit PNG; of a ``.npy``
        its own dtype.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt or truncated, or holds colours or scores; names it.
    """
    if _suffix(path) == ".npy":
        return _check_array(_load_array(path, header_only=False), path)
    return read_label_map(path)


def _suffix(path: str | os.PathLike[str]) -> str:
    return os.path.splitext(path)[1].lower()


def _load_array(path: str | os.PathLike[str], *, header_only: bool) -> np.ndarray:
    """Load a ``.npy`` file without ever unpickling."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.load(path, mmap_mode="r" if header_only else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "no such label map", os.fspath(path)) from error
    except (PermissionError, IsADirectoryError):
        raise
    except (OSError, ValueError, EOFError, SyntaxError, struct.error) as error:
        raise ValueError(
            f"{Path(path)}: not a complete .npy file of plain numbers ({error})"
        ) from error


def _check_array(labels: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    """Refuse arrays that are no label map."""
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
