"""Read and write label maps of class or instance indices, PNG or ``.npy``, unconverted.

A VOC label map is a P-mode PNG: its pixel values are the indices, the palette only colours
them for the eye. Converting it to L or RGB would give colours instead of indices; nothing here
ever does. Legend: H, W height and width of a map.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from d2_smallobj.annotations import png
from d2_smallobj.utils.files import atomic_write
from d2_smallobj.utils.messages import listed

SUFFIXES = (".png", ".npy")
_INDEX_MODES = ("L", "P", "I;16", "I;16B", "I;16L", "1", "I")
# ADE20K's full set stores TIFFs.
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
CORRUPT_IMAGE = (
    OSError,
    SyntaxError,
    EOFError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
)
"""Errors that Pillow raises on damaged files, depending on the place of the damage."""


def read_label_map(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a label map: a PNG or TIFF of mode L, P or 16-bit grey; a PNG's checksums are verified.

    Returns:
        (H, W), uint8, or uint16 for a 16-bit file: the stored indices.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt or truncated, or holds colours instead of indices.
    """
    content = read_content(path)
    if content.startswith(png.SIGNATURE):
        return png.decode_png(content, path)
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
    if not content.startswith((png.SIGNATURE, *_TIFF_SIGNATURES)):
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


def check_label_values(
    labels: np.ndarray, num_classes: int, ignore_label: int, path: str | os.PathLike[str]
) -> None:
    """Check that a semantic map holds nothing but class indices and the ignore label.

    Raises:
        ValueError: other values than 0..num_classes-1 and ``ignore_label`` occur; names the file,
            the first ten of them and their number of pixels.
    """
    bad = (labels < 0) | (labels >= num_classes)
    bad &= labels != ignore_label
    if not bad.any():
        return
    raise ValueError(
        f"{Path(path)}: label values must be 0..{num_classes - 1} or {ignore_label} (ignored); "
        f"found {listed(np.unique(labels[bad]))} in {np.count_nonzero(bad)} of {labels.size} pixels"
    )


def label_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read height and width of a label map, of a ``.png`` or ``.npy`` from its header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header is damaged, or of a colour picture or of scores.
    """
    if os.fspath(path).lower().endswith(".npy"):
        return _read_array(path, header_only=True).shape
    start = read_content(path, 33)
    if not start.startswith(png.SIGNATURE):
        return read_label_map(path).shape
    header = png.parse_header(start, path)
    return header.height, header.width


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a label map, a ``.png`` or a ``.npy`` of integers; checksums are verified.

    Returns:
        (H, W) integers: uint8, or uint16 from a 16-bit PNG; of a ``.npy`` its own dtype.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt or truncated, or holds colours or scores.
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
    except (OSError, ValueError, EOFError, SyntaxError, struct.error) as error:
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
