"""Read COCO and LVIS annotation files and the masks in them.

The files are large (COCO 2017 train: 450 MB, LVIS v1: 1.1 GB). Only the fields named here are
decoded; segmentations stay the bytes of the file until somebody asks for one. Run lengths are
decoded here and not by pycocotools, whose C code would write counts that do not fit the image
beyond it. Legend: H, W height and width of the image.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Optional, TypeVar, Union

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

from d2_smallobj.annotations.dataset_files import decode_json
from d2_smallobj.annotations.image_files import MOST_PIXELS
from d2_smallobj.utils.messages import itemized

KINDS = ("coco", "lvis")
# The fields' types are evaluated, in Python 3.9, too, hence no `int | str` there.
Id = Union[int, str]
Flag = Union[int, bool, None]
_Pixels = Annotated[int, msgspec.Meta(ge=1)]
_Text = Optional[str]
_Ids = Optional[list[Id]]
_Entry = TypeVar("_Entry")
# Coordinates beyond so many sides of the image (at least 100 pixels long) are an error, and those
# beyond a number of pixels: the time to rasterise a polygon grows with its length.
_FARTHEST_SIDES, _FARTHEST = 5, 1e5


class ImageEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry of ``images``; sizes in pixels; only LVIS has the lists of category ids."""

    id: Id
    height: _Pixels
    width: _Pixels
    file_name: _Text = None
    coco_url: _Text = None
    neg_category_ids: _Ids = None
    not_exhaustive_category_ids: _Ids = None


class CategoryEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry of ``categories``."""

    id: Id
    name: str
    supercategory: _Text = None


class AnnotationEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry of ``annotations``; ``segmentation`` is its JSON text."""

    id: Id
    image_id: Id
    category_id: Id
    segmentation: msgspec.Raw
    iscrowd: Flag = 0


class _Content(msgspec.Struct, Generic[_Entry], frozen=True, gc=False):
    images: list[ImageEntry]
    annotations: list[_Entry]
    categories: list[CategoryEntry]


@dataclasses.dataclass(frozen=True)
class AnnotationFile:
    """An annotation file whose parts fit together.

    Attributes:
        path: the file.
        kind: ``"coco"`` or ``"lvis"``.
        images: by id, in file order.
        categories: by id, in file order.
        annotations: in file order; their images and categories exist.
    """

    path: Path
    kind: str
    images: dict[Id, ImageEntry]
    categories: dict[Id, CategoryEntry]
    annotations: list[Any]

    @property
    def class_ids(self) -> dict[Id, int]:
        """Class by category id: 1, 2, ... in the order of the ids."""
        return {category: n for n, category in enumerate(sorted(self.categories, key=id_order), 1)}

    def file_name(self, image_id: Id) -> str:
        """Return the file name of an image; ValueError if it has none.

        For LVIS it is the end of the URL, with the folder (``val2017/x.jpg``): v1 gives no names,
        v0.5 those of COCO 2014, and both mix images of train and val.
        """
        image = self.images[image_id]
        name = image.file_name
        if self.kind == "lvis" and image.coco_url:
            name = "/".join(image.coco_url.split("/")[-2:])
        if not name:
            raise ValueError(f"{self.path}: image {image_id} has no file name")
        return name


def read_annotation_file(
    path: str | os.PathLike[str], kind: str, entry: type = AnnotationEntry
) -> AnnotationFile:
    """Read and check an annotation file of kind ``"coco"`` or ``"lvis"``, masks aside.

    ``entry`` names the fields of the annotations that are decoded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or malformed, an id or file name is repeated, an image
            is larger than any (:func:`check_size`), or an annotation has an unknown image or
            category.
    """
    fields = msgspec.structs.fields(entry)
    needed = ", ".join(field.name for field in fields if field.default is msgspec.NODEFAULT)
    expected = (
        f"an annotation file of kind {kind!r} has lists 'images' (id, height, width), "
        f"'annotations' ({needed}) and 'categories' (id, name)"
    )
    content = decode_json(path, _Content[entry], expected)  # type: ignore[valid-type]  # at run time
    images = {image.id: image for image in content.images}
    categories = {category.id: category for category in content.categories}
    problems = []
    for section in ("images", "categories", "annotations"):
        problems += repeated((e.id for e in getattr(content, section)), "id", section)
    owner: dict[str, Id] = {}
    for image in content.images:
        try:
            check_size(image.height, image.width, f"image {image.id}")
        except ValueError as error:
            problems.append(str(error))
        # The URL tells LVIS's images apart, whose names are those of another year.
        name = image.coco_url or image.file_name
        if name and owner.setdefault(name, image.id) != image.id:
            problems.append(f"images {owner[name]} and {image.id} are the same file, {name!r}")
    absent = "which is not in the file"
    for a in content.annotations:
        if a.image_id not in images:
            problems.append(f"annotation {a.id} belongs to image {a.image_id!r}, {absent}")
        if a.category_id not in categories:
            problems.append(f"annotation {a.id} has category {a.category_id!r}, {absent}")
    if problems:
        raise ValueError(f"{path}: {itemized('error(s)', problems)}")
    return AnnotationFile(Path(path), kind, images, categories, content.annotations)


def check_size(height: int, width: int, where: str) -> None:
    """Bound an image's size as that of a label map: a ValueError that begins with ``where``."""
    if not 0 < height * width <= MOST_PIXELS:
        raise ValueError(
            f"{where}: height and width must give 1..{MOST_PIXELS} pixels, got {height} x {width}"
        )


def repeated(values: Iterable[Hashable], key: str, section: str) -> list[str]:
    """Name the values of a key that several entries of a section have."""
    return [
        f"{key} {value!r} occurs {'twice' if count == 2 else f'{count} times'} in {section!r}"
        for value, count in Counter(values).items()
        if count > 1
    ]


def id_order(identity: Id) -> tuple[bool, Id]:
    """Sorting key for ids: numbers before texts, which cannot be compared with each other."""
    return isinstance(identity, str), identity


def decode_segmentation(text: bytes) -> Any:
    """Decode a segmentation from its JSON text.

    Malformed text, such as numbers out of range, is returned unchanged; :func:`decode_mask` then
    refuses it and names the annotation.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return bytes(text)


def decode_mask(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Decode a mask to bool (H, W).

    Polygons of fewer than three points have no area and are skipped.

    Args:
        segmentation: a list of polygons ``[x0, y0, x1, y1, ...]``, or a dict of ``size`` (height,
            width) and ``counts``: run lengths by columns, background first, or COCO's compressed
            string of them.
        height: H of the image.
        width: W of the image.
        where: the annotation for messages ("x.json: annotation 7").

    Raises:
        ValueError: the mask is malformed or of another size than the image.
    """
    if isinstance(segmentation, list):
        encoded = _encode_polygons(segmentation, height, width, where)
        return coco_mask.decode(encoded).astype(bool)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise ValueError(
            f"{where}: a segmentation is a list of polygons or a run-length dict with 'size' and "
            f"'counts', got {_shorten(segmentation)}"
        )
    size = segmentation["size"]
    if list(size if isinstance(size, (list, tuple)) else [size]) != [height, width]:
        raise ValueError(
            f"{where}: its run-length mask is for an image of [height, width] = {size}, the image "
            f"has [{height}, {width}]"
        )
    counts = segmentation["counts"]
    runs = parse_runs(counts, where) if isinstance(counts, (str, bytes)) else counts
    return _decode_runs(runs, height, width, where)


def encode_mask(segmentation: Any, height: int, width: int, where: str) -> dict[str, Any]:
    """Encode a mask for ``pycocotools.mask``; arguments and errors as :func:`decode_mask`.

    Returns compressed run lengths, ``size`` and ``counts`` (bytes); polygons are not painted.
    """
    if isinstance(segmentation, list):
        return _encode_polygons(segmentation, height, width, where)
    mask = decode_mask(segmentation, height, width, where)
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def mask_area(mask: dict[str, Any]) -> int:
    """Number of pixels of an encoded mask; ``coco_mask.area`` of 256 masks or more fails."""
    return int(coco_mask.area(mask))


def fill_mask(columns: np.ndarray, mask: dict[str, Any], value: int) -> None:
    """Write a value to the pixels of an encoded mask; ``columns`` (H * W,) are the image's columns.

    The time grows with the mask's runs, not with the image as that of decoding does.
    """
    ends = np.cumsum(parse_runs(mask["counts"], "mask")).tolist()
    for start, end in zip(ends[::2], ends[1::2]):
        columns[start:end] = value


def describe_mask(mask: np.ndarray) -> dict[str, Any]:
    """Write a mask, bool (H, W), as COCO does: ``segmentation``, ``area`` and ``bbox``."""
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    size = [int(side) for side in runs["size"]]
    segmentation = {"size": size, "counts": runs["counts"].decode("ascii")}
    bbox = [float(value) for value in coco_mask.toBbox(runs)]
    return {"segmentation": segmentation, "area": mask_area(runs), "bbox": bbox}


def parse_runs(text: str | bytes, where: str) -> list[int]:
    """Read COCO's compressed run lengths; ValueError for bytes outside the code.

    They are digits of 5 bits, least significant first; from the third run on, the difference to
    the run two before is stored.
    """
    data = text.encode("utf-8") if isinstance(text, str) else text
    runs: list[int] = []
    value, shift = 0, 0
    for byte in data:
        digit = byte - 48
        if not 0 <= digit < 64 or shift > 60:
            raise ValueError(f"{where}: corrupt compressed run lengths, byte {byte}")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:  # the sign, in the last digit
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError(f"{where}: compressed run lengths end within a number")
    return runs


def _decode_runs(runs: Any, height: int, width: int, where: str) -> np.ndarray:
    """Decode run lengths, column by column, the first one of background: bool (H, W)."""
    try:
        lengths = np.asarray(runs)
    except ValueError as error:
        raise ValueError(f"{where}: run lengths are integers, got {_shorten(runs)}") from error
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise ValueError(f"{where}: run lengths are integers, got {_shorten(runs)}")
    # Each one is bounded before the sum, which could wrap around.
    pixels = height * width
    if (lengths < 0).any() or (lengths > pixels).any() or lengths.sum() != pixels:
        raise ValueError(
            f"{where}: run lengths must be >= 0 and add up to height * width = {pixels}, "
            f"got {_shorten(runs)}"
        )
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape(width, height).T


def _encode_polygons(polygons: list[Any], height: int, width: int, where: str) -> dict[str, Any]:
    """Compressed run lengths of the union of polygons."""
    far = min(_FARTHEST_SIDES * max(height, width, 100), _FARTHEST)
    checked = [_check_polygon(polygon, far, where) for polygon in polygons]
    outlines = [outline for outline in checked if len(outline) >= 6]
    if not outlines:
        empty = {"size": [height, width], "counts": [height * width]}
        return coco_mask.frPyObjects(empty, height, width)
    return coco_mask.merge(coco_mask.frPyObjects(outlines, height, width))


def _check_polygon(polygon: Any, far: float, where: str) -> list[float]:
    """Check one polygon, within ``far`` pixels of the corner; returns its coordinates."""
    try:
        coordinates = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: a polygon is a list of numbers, got {_shorten(polygon)}"
        ) from error
    if coordinates.ndim != 1 or len(coordinates) % 2:
        raise ValueError(
            f"{where}: a polygon is a flat list of x, y pairs, got {_shorten(polygon)}"
        )
    if not (np.abs(coordinates) <= far).all():  # NaN fails this as well
        raise ValueError(
            f"{where}: polygon coordinates must be finite and near the image, within {far:g} "
            f"pixels, got {_shorten(polygon)}"
        )
    return coordinates.tolist()


def _shorten(value: Any) -> str:
    """The beginning of a value's repr."""
    text = repr(value[:20] if isinstance(value, Sequence) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."
