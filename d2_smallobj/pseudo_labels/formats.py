"""Read pseudo labels in the formats that the methods' own code writes.

The formats are listed in datasets/README.md, section "VOC-aug and pseudo labels".

Legend: H, W height and width of an image; C number of object classes; K classes of an image.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.annotations.dataset_files import METHODS as REGISTERED_METHODS
from d2_smallobj.annotations.image_files import open_picture
from d2_smallobj.annotations.label_maps import read_label_map, voc_palette
from d2_smallobj.annotations.label_rules import check_label_values
from d2_smallobj.pseudo_labels.activations import is_plain, read_classes, read_maps, resized_maps
from d2_smallobj.pseudo_labels.box_labels import Refine
from d2_smallobj.utils.messages import look_up_option
from d2_smallobj.utils.safe_pickle import read_npy_dict

IGNORE_LABEL = 255
FORMATS = {"indices": ".png", "cams": ".npy", "scores": ".npy", "clip_es": ".npy"}
"""Formats of one image's pseudo label, and the suffix of its file.

``indices``: label map of mode L or P, 0 background, 1..C, 255 ignored.
``cams``: activation maps of some classes, ``{"keys": classes, "high_res": maps}`` or
``{class: map}``, classes counted from 0 without background; background where none exceeds a
threshold. Or a plain array (K, h, w) of any size, with its classes in ``classes.json``
(:mod:`.activations`).
``scores``: scores of background and classes, ``{0: map, class: map}``, classes counted from 1, as
a CRF writes them, or ``{"keys": classes, "prob": maps}``; the largest wins.
``clip_es``: activation maps ``{"keys": classes, "attn_highres": maps}``, classes counted from 0;
background is one minus the largest; refined by a CRF, 255 where its confidence is below 0.95.
"""
CONFIDENCE = 0.95
"""CLIP-ES keeps a pixel's label from this probability on."""
OFFSET = 91
"""What MCTformer's and WeakTr's label maps of COCO carry above their class numbers."""


@dataclasses.dataclass(frozen=True)
class Method:
    """What a method writes.

    Attributes:
        folders: names of its folders; two are merged.
        threshold: of its activation maps; the default is IRN's.
        maps: format of its ``.npy`` files.
        offset: whether its label maps of COCO may be :data:`OFFSET` too high.
    """

    folders: tuple[str, ...] = ("labels",)
    threshold: float = 0.15
    maps: str = "cams"
    offset: bool = False


METHODS = {
    **{name: Method() for name in (*REGISTERED_METHODS, "other")},
    "edam": Method(threshold=0.5),
    "bana": Method(folders=("Y_crf", "Y_ret")),
    "clip_es": Method(maps="clip_es"),
    # Theirs is searched for with true masks; this is the default of MCTformer's next step (PSA).
    "mctformer": Method(threshold=0.39, offset=True),
    "weaktr": Method(threshold=0.43, offset=True),  # its guide's for VOC; 0.42 for COCO
    "sam_wsss": Method(),
}
"""By name; ``other`` for methods that the paper does not train on."""


def read_pseudo_label(
    paths: Sequence[str | os.PathLike[str]],
    height: int,
    width: int,
    *,
    num_classes: int,
    file_format: str = "indices",
    threshold: float = 0.15,
    offset: bool = False,
    picture: np.ndarray | None = None,
    crf: Refine | None = None,
) -> np.ndarray:
    """Read the pseudo label of an image of H x W pixels from its file, or merge two.

    Args:
        paths: one file, or two.
        height: H.
        width: W.
        num_classes: C + 1, background included.
        file_format: one of :data:`FORMATS`.
        threshold: of activation maps.
        offset: whether label maps may be :data:`OFFSET` too high.
        picture: the image, uint8 (H, W, 3), for ``crf``.
        crf: refines the scores of ``clip_es``; ``None``: they stay.

    Returns:
        uint8 (H, W): 0 background, 1..C, 255 ignored; from two files 255 where they disagree.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is malformed, of another size than the image, or has other values.
    """
    look_up_option("file_format", file_format, FORMATS)
    maps = []
    for path in paths:
        if file_format == "indices":
            labels = _read_indices(path, num_classes, offset)
        else:
            content, size = _read_npy(path, (height, width), file_format), (height, width)
            try:
                if file_format == "cams":
                    labels = _cam_labels(content, size, num_classes, threshold)
                elif file_format == "scores":
                    labels = _score_labels(content, size, num_classes)
                else:
                    labels = _confident_labels(content, size, num_classes, picture, crf)
            except _MapError as error:
                raise ValueError(f"{path}: {error}") from error
        if labels.shape != (height, width):
            raise ValueError(
                f"{path}: the pseudo label is {labels.shape[1]}x{labels.shape[0]}, its image "
                f"{width}x{height} (width x height); they must agree"
            )
        maps.append(labels.astype(np.uint8))
    return merge_labels(*maps) if len(maps) == 2 else maps[0]


def merge_labels(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Merge BANA's Y_crf and Y_ret, uint8 (H, W): 255 where they disagree."""
    return np.where(first == second, first, np.uint8(IGNORE_LABEL))


class _MapError(ValueError):
    """Maps that are no pseudo label; the message lacks the file."""


def _read_indices(
    path: str | os.PathLike[str], num_classes: int, offset: bool = False
) -> np.ndarray:
    """A label map of class indices, checked; all of them may have the offset."""
    labels = read_label_map(path)
    named = labels[labels != IGNORE_LABEL]
    if offset and named.size and named.min() >= max(OFFSET, num_classes):
        return _less_offset(labels, num_classes, path)
    check_label_values(labels, num_classes, IGNORE_LABEL, path)
    _check_palette(path, np.unique(labels).tolist(), num_classes)
    return labels


def _less_offset(labels: np.ndarray, num_classes: int, path: str | os.PathLike[str]) -> np.ndarray:
    """Class indices of a map that is too high; its palette is that of the stored values."""
    labels = np.where(labels == IGNORE_LABEL, IGNORE_LABEL, labels.astype(np.int32) - OFFSET)
    check_label_values(labels, num_classes, IGNORE_LABEL, f"{path} (less {OFFSET})")
    return labels


def _check_palette(path: str | os.PathLike[str], used: Sequence[int], num_classes: int) -> None:
    """Refuse a VOC-coloured picture that was reduced to a palette of its own.

    Its indices are numbers of colours, not of classes, and small enough to pass for them.
    """
    with open_picture(path) as image:
        palette = image.getpalette() if image.mode == "P" else None
    if palette is None:
        return
    colours = np.array(palette, np.uint8).reshape(-1, 3)
    known = {tuple(c): index for index, c in enumerate(voc_palette()[:num_classes].tolist())}
    for index in used:
        shown = known.get(tuple(colours[index].tolist()), index) if index < len(colours) else index
        # Black is background, and the colour of palettes that end early, too.
        if shown not in (index, 0):
            raise ValueError(
                f"{path}: index {index} has the colour of class {shown}: this is a colour picture "
                "reduced to a palette, whose indices are not classes. Give the P or L PNG that the "
                "method wrote"
            )


def _read_npy(
    path: str | os.PathLike[str], size: tuple[int, int], file_format: str
) -> Mapping[str | int, Any]:
    """The dict in an ``.npy`` file; of a plain array of activations one with keys and maps."""
    if file_format != "cams" or not is_plain(path):
        return read_npy_dict(path)
    maps, classes = read_maps(path), np.array(read_classes(path), np.int64)
    return {"keys": classes - 1, "high_res": resized_maps(maps, size)}


def _cam_labels(
    content: Mapping[str | int, Any], size: tuple[int, int], num_classes: int, threshold: float
) -> np.ndarray:
    """The class of the largest activation, background where none exceeds the threshold."""
    if "keys" in content:
        keys = np.asarray(content["keys"])
        # RIB writes no maps for an image without classes.
        maps = content.get("high_res", None if keys.size else np.zeros((0, *size)))
        if maps is None:
            raise _MapError(f"has no maps 'high_res' (activations at full size): {list(content)}")
    else:
        keys, maps = _by_class(content, size)
        if 0 in keys and len(keys) > 1 and np.allclose(maps.sum(axis=0), 1, atol=1e-3):
            raise _MapError(
                "its maps add up to 1 everywhere, so they are scores, and 0 is background: give "
                "--format scores"
            )
    maps, classes = _checked_maps(maps, keys, num_classes - 1)
    best = np.concatenate([np.full((1, *maps.shape[1:]), threshold, maps.dtype), maps])
    return np.concatenate([[0], classes + 1])[best.argmax(axis=0)]


def _score_labels(
    content: Mapping[str | int, Any], size: tuple[int, int], num_classes: int
) -> np.ndarray:
    """The class of the largest score, background included."""
    if content.keys() >= {"keys", "prob"}:
        keys, maps = np.asarray(content["keys"]), content["prob"]
    else:
        keys, maps = _by_class(content, size)
    maps, classes = _checked_maps(maps, keys, num_classes)
    if 0 not in classes:
        raise _MapError(f"scores need a map 0 (background), got keys {classes.tolist()}")
    return classes[maps.argmax(axis=0)]


def _confident_labels(
    content: Mapping[str | int, Any],
    size: tuple[int, int],
    num_classes: int,
    picture: np.ndarray | None,
    crf: Refine | None,
) -> np.ndarray:
    """CLIP-ES: the class of the largest refined score, 255 where that is not sure."""
    if not content.keys() >= {"keys", "attn_highres"}:
        raise _MapError(f"expected the keys 'keys' and 'attn_highres', got {list(content)}")
    maps, classes = _checked_maps(
        content["attn_highres"], np.asarray(content["keys"]), num_classes - 1
    )
    if maps.shape[1:] != size:
        return np.zeros(maps.shape[1:], np.uint8)  # The caller says that the sizes differ.
    if maps.size and not (maps.min() >= 0 and maps.max() <= 1):
        raise _MapError(f"activations must be in 0..1, got {maps.min():g}..{maps.max():g}")
    background = 1 - maps.max(axis=0, initial=0)[None]
    scores = np.concatenate([background, maps])
    scores /= scores.sum(axis=0)
    if crf is not None:
        assert picture is not None
        scores = crf(scores, picture)
    labels = np.concatenate([[0], classes + 1])[scores.argmax(axis=0)]
    return np.where(scores.max(axis=0) < CONFIDENCE, IGNORE_LABEL, labels)


def _by_class(
    content: Mapping[str | int, Any], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Keys (K,) and maps (K, H, W) of a dict from class to map."""
    wrong = [key for key in content if not isinstance(key, int)]
    if wrong:
        raise _MapError(f"expected the keys 'keys' and 'high_res', or classes; got {list(content)}")
    try:
        keys = np.array(list(content), np.int64)
    except OverflowError as error:
        raise _MapError(
            f"classes must be below {IGNORE_LABEL}, got {list(content)[:10]}"
        ) from error
    shapes = {np.shape(value) for value in content.values()} or {size}
    if len(shapes) > 1 or len(*shapes) != 2:
        raise _MapError(f"expected one (H, W) map for each class, got shapes {sorted(shapes)}")
    maps = np.array(list(content.values()), np.float32).reshape(-1, *shapes.pop())
    return keys, maps


def _checked_maps(maps: Any, keys: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps (K, H, W) and keys (K,) of one image, the keys being in 0..limit-1."""
    maps = np.asarray(maps)
    keys = keys.reshape(-1) if keys.size else np.zeros(0, np.int64)
    if maps.ndim != 3 or len(maps) != len(keys) or maps.dtype.kind not in "fiu":
        raise _MapError(
            f"expected one (H, W) map of numbers for each of {len(keys)} class(es), got shape "
            f"{maps.shape} of {maps.dtype}"
        )
    if keys.dtype.kind not in "iu" or len(set(keys.tolist())) != len(keys):
        raise _MapError(f"classes must be distinct integers, got {keys.tolist()[:10]}")
    if ((keys < 0) | (keys >= limit)).any():
        raise _MapError(f"classes must be in 0..{limit - 1}, got {keys.tolist()[:10]}")
    if not np.isfinite(maps).all():
        raise _MapError("a map holds values that are not finite")
    return maps.astype(np.float32), keys.astype(np.int64)
