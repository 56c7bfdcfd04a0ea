"""Read panoptic annotations: an RGB PNG of segment ids, and the category of each segment.

The id of a pixel is R + 256 G + 65536 B; 0 is unlabelled. ``segments_info`` gives the category of
every segment, and whether it is a crowd: objects that are not separated. Legend: H, W height and
width of an image; C number of classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Union

import msgspec
import numpy as np

from d2_smallobj.annotations.coco_file import Flag, Id, id_order, repeated
from d2_smallobj.annotations.dataset_files import decode_json
from d2_smallobj.annotations.image_files import RGB, decode_plain, image_data, parse_header
from d2_smallobj.annotations.label_maps import read_content
from d2_smallobj.annotations.label_rules import VOID, unique_by_runs
from d2_smallobj.utils.messages import itemized, listed

_IsThing = Union[int, bool]


class Segment(NamedTuple):
    """One segment of an image.

    Attributes:
        segment_id: its id in the PNG, >= 1.
        class_id: 0..C-1.
        crowd: whether it is a group of objects of its class.
    """

    segment_id: int
    class_id: int
    crowd: bool


class PanopticMaps(NamedTuple):
    """The two maps that a panoptic annotation is.

    Attributes:
        semantic: (H, W) integers: classes, and the ignore label where nothing is labelled.
        instances: int32 (H, W): the ids of thing segments; 0 on stuff and where nothing is
            labelled; 255 on crowds. A segment whose id is 255 has another, unused one.
        classes: class of every instance by its id in ``instances``.
    """

    semantic: np.ndarray
    instances: np.ndarray
    classes: dict[int, int]


def read_panoptic_ids(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the segment ids of a panoptic PNG, int32 (H, W).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt or no RGB PNG.
    """
    content = read_content(path)
    header = parse_header(content, path, colours=True)
    if header.colour != RGB or header.depth != 8:
        raise ValueError(
            f"{path}: expected a PNG of mode RGB with 8 bits a channel (panoptic: id = R + 256 G + "
            f"65536 B), got PNG colour type {header.colour} with {header.depth} bits; is it a "
            "semantic map?"
        )
    blue, green, red = np.moveaxis(decode_plain(header, image_data(content, path), path), 2, 0)
    return red.astype(np.int32) | green.astype(np.int32) << 8 | blue.astype(np.int32) << 16


def panoptic_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of a panoptic PNG, from its header; errors as above."""
    header = parse_header(read_content(path, 33), path, colours=True)
    return header.height, header.width


def segments_of(entries: Sequence[Any], num_classes: int, source: str) -> tuple[Segment, ...]:
    """Read detectron2's ``segments_info``: dicts of ``id``, ``category_id`` and ``iscrowd``.

    Raises:
        ValueError: an entry of the PNG ``source`` lacks a key, or its category is none of the
            ``num_classes`` classes.
    """
    segments = []
    for entry in entries:
        try:
            number, category = int(entry["id"]), int(entry["category_id"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{source}: an entry of segments_info has integers 'id' and 'category_id', got "
                f"{entry!r:.200}"
            ) from error
        if not 0 <= category < num_classes:
            raise ValueError(
                f"{source}: segment {number} has category_id {category}, but the data set has "
                f"classes 0..{num_classes - 1}; segments_info must hold contiguous class ids"
            )
        segments.append(Segment(number, category, bool(entry.get("iscrowd", 0))))
    return tuple(segments)


def panoptic_maps(
    path: str | os.PathLike[str],
    segments: Sequence[Segment],
    *,
    stuff: Iterable[int],
    ignore_label: int,
) -> PanopticMaps:
    """Read a panoptic PNG and split it into a semantic and an instance map.

    Args:
        path: the PNG.
        segments: of this image.
        stuff: classes whose segments are no instances.
        ignore_label: label of pixels with id 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt, or its ids are not those of the segments.
    """
    ids = read_panoptic_ids(path)
    ordered = sorted(segments)
    known = np.array([0, *(s.segment_id for s in ordered)], np.int64)
    _check_segments(known, path)
    found, among, pixels = unique_by_runs(ids.ravel())
    _check_ids(found, pixels, known, path)
    place = np.searchsorted(known, found)[among].reshape(ids.shape)
    largest = max([ignore_label, *(s.class_id for s in ordered)])
    semantic = np.array([ignore_label, *(s.class_id for s in ordered)], np.min_scalar_type(largest))
    stuff = set(stuff)
    # The one number that means void is taken from the segment that has it.
    renamed = int(known[-1]) + 1 if known[-1] > VOID else VOID + 1
    instances, classes = [0], {}
    for segment in ordered:
        identity = 0
        if segment.class_id not in stuff:
            identity = renamed if segment.segment_id == VOID else segment.segment_id
            if segment.crowd:
                identity = VOID
            else:
                classes[identity] = segment.class_id
        instances.append(identity)
    return PanopticMaps(semantic[place], np.array(instances, np.int32)[place], classes)


def _check_segments(known: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Refuse segment ids that are out of range or repeated."""
    wrong = known[1:][(known[1:] < 1) | (known[1:] >= 1 << 24)]
    if len(wrong):
        raise ValueError(f"{path}: segment ids must be in 1..16777215, got {listed(wrong)}")
    twice = known[1:][known[1:] == known[:-1]]
    if len(twice):
        raise ValueError(f"{path}: segments_info has segment(s) {listed(twice)} twice")


def _check_ids(
    found: np.ndarray, pixels: np.ndarray, known: np.ndarray, path: str | os.PathLike[str]
) -> None:
    """Compare the ids of the PNG, of so many pixels each, with those of the segments."""
    unknown = ~np.isin(found, known)
    if unknown.any():
        raise ValueError(
            f"{path}: id(s) {listed(found[unknown])} ({pixels[unknown].sum()} px) have no "
            "entry in segments_info; do the JSON and the PNG belong together?"
        )
    empty = np.setdiff1d(known[1:], found)
    if len(empty):
        raise ValueError(
            f"{path}: segment(s) {listed(empty)} of segments_info have no pixel; do the JSON and "
            "the PNG belong together?"
        )


# ---- The JSON file -----------------------------------------------------------------------------


class PanopticCategory(msgspec.Struct, frozen=True):
    """An entry of ``categories``."""

    id: Id
    name: str
    isthing: _IsThing


class _SegmentEntry(msgspec.Struct, frozen=True):
    id: int
    category_id: Id
    iscrowd: Flag = 0


class PanopticEntry(msgspec.Struct, frozen=True):
    """An entry of ``annotations``: one image; ``file_name`` is its PNG."""

    image_id: Id
    file_name: str
    segments_info: list[_SegmentEntry]


class _ImageEntry(msgspec.Struct, frozen=True):
    id: Id
    file_name: str = ""


class _Content(msgspec.Struct, frozen=True):
    annotations: list[PanopticEntry]
    categories: list[PanopticCategory]
    images: list[_ImageEntry] = []


class PanopticFile(NamedTuple):
    """A COCO panoptic file.

    Attributes:
        class_names: names of the classes: the categories in ascending order of their ids.
        stuff: classes that are no things, ascending.
        entries: one for each image, in the order of the file.
        segments: of each entry.
        pictures: file name of the picture by image id, where the file has a list of images.
        class_ids: class by category id.
    """

    class_names: tuple[str, ...]
    stuff: tuple[int, ...]
    entries: tuple[PanopticEntry, ...]
    segments: tuple[tuple[Segment, ...], ...]
    pictures: Mapping[Id, str]
    class_ids: Mapping[Id, int]


def read_panoptic_file(path: str | os.PathLike[str]) -> PanopticFile:
    """Read and check a COCO panoptic file; no PNG is opened.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or malformed, an image or category is repeated, or a
            segment has an unknown category.
    """
    expected = (
        "a COCO panoptic file has lists 'annotations' (image_id, file_name, segments_info) and "
        "'categories' (id, name, isthing)"
    )
    content = decode_json(path, _Content, expected)
    categories = sorted(content.categories, key=lambda category: id_order(category.id))
    class_ids = {category.id: number for number, category in enumerate(categories)}
    problems = [
        *repeated((category.id for category in categories), "id", "categories"),
        *repeated((category.name for category in categories), "name", "categories"),
        *repeated((entry.image_id for entry in content.annotations), "image_id", "annotations"),
    ]
    problems += [
        f"image {entry.image_id}: segment {segment.id} has category_id {segment.category_id!r}, "
        "which is not in 'categories'"
        for entry in content.annotations
        for segment in entry.segments_info
        if segment.category_id not in class_ids
    ]
    if problems:
        raise ValueError(f"{path}: {itemized('error(s)', problems)}")
    return PanopticFile(
        tuple(category.name for category in categories),
        tuple(number for number, category in enumerate(categories) if not category.isthing),
        tuple(content.annotations),
        tuple(
            tuple(Segment(s.id, class_ids[s.category_id], bool(s.iscrowd)) for s in e.segments_info)
            for e in content.annotations
        ),
        {image.id: image.file_name for image in content.images},
        class_ids,
    )
