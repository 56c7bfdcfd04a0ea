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
from pathlib import Path

import numpy as np
from PIL import Image

from d2_smallobj.annotations.image_files import SIGNATURE, decode_png, open_picture, parse_header
from d2_smallobj.utils.files import atomic_write, check_names, open_file
from d2_smallobj.utils.npy_files import read_npy

SUFFIXES = (".png", ".npy")
_INDEX_MODES = ("L", "P", "I;16", "I;16B", "I;16L", "1", "I")
# ADE20K's full set stores TIFFs.
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*")


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
    with open_picture(path, content, "corrupt or truncated label map") as image:
        mode, labels = image.mode, np.asarray(image)
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
        with open_file(path) as file:
            content = file.read(size)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "no such label map", os.fspath(path)) from error
    if not content.startswith((SIGNATURE, *_TIFF_SIGNATURES)):
        raise ValueError(
            f"{path}: corrupt or truncated label map, or neither PNG nor TIFF, which store indices "
            "without loss"
        )
    return content


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
    """Read a label map from a ``.npy`` file without ever unpickling; of the header, no pixels."""
    try:
        labels = read_npy(path, header_only=header_only)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "no such label map", os.fspath(path)) from error
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
        check_names(self.path, self.files.values())
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
