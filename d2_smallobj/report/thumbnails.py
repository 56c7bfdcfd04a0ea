"""The small objects that were segmented worst, as pictures: image, ground truth, predictions.

Legend: H, W height and width of an image; h, w of a crop.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from d2_smallobj.metrics.summary import OUTCOMES, classify
from d2_smallobj.report.methods import ScoredMethod
from d2_smallobj.report.page import jpeg_uri
from d2_smallobj.report.scored_pixels import ScoredPixels, SourceError, read_map, read_scored_pixels
from d2_smallobj.utils.opencv import cv2

_PANEL = 208
_CONTEXT = 3.0
_SMALLEST_CROP = 56
_GAP = 2
"""Pixels of the picture between an object and the line around it."""
_TRIES = 4
"""Objects tried for each one wished; beyond that, missing files end the search."""

# Okabe and Ito's colours; the first is the object's class.
OBJECT_COLOUR = (230, 120, 0)
OTHER_COLOURS = ((0, 114, 178), (0, 158, 115), (204, 121, 167), (86, 180, 233))
REST_COLOUR = (120, 120, 120)


@dataclasses.dataclass(frozen=True)
class PoorObject:
    """A small object that was badly segmented.

    Attributes:
        image_id: its image.
        category: its class.
        instance: its id.
        area: its pixels.
        ious: IoU in 0..1 by method position; methods that did not score it are absent.
        outcomes: what happened to it, by method position.
    """

    image_id: str
    category: int
    instance: int
    area: int
    ious: dict[int, float]
    outcomes: dict[int, str]

    @property
    def mean_iou(self) -> float:
        """Mean over the methods."""
        return sum(self.ious.values()) / len(self.ious)

    @property
    def severity(self) -> tuple[int, float]:
        """Sort key: missed by the most methods first, then the lowest IoU, in steps of 0.1."""
        missed = sum(outcome == "missed" for outcome in self.outcomes.values())
        return -missed, round(self.mean_iou, 1)


def worst_small(methods: Sequence[ScoredMethod]) -> list[PoorObject]:
    """Find the objects of the first size bin whose mean IoU is below 0.5, worst first.

    Those missed by the most methods come first, then those of the smallest mean IoU (in steps
    of 0.1). Among equals, images and classes take turns, and larger objects, which were easier to
    see, come first.
    """
    found: dict[tuple[str, int, int], PoorObject] = {}
    for method in methods:
        table = method.run.table
        small = (table.size_of(method.bins) == 0) & table.things
        chosen = table.select(small)
        columns = (chosen.image_id, chosen.category_id, chosen.instance_id, chosen.area, chosen.iou)
        rows = zip(*(column.tolist() for column in (*columns, classify(chosen))))
        for image_id, category, instance, area, iou, outcome in rows:
            key = (image_id, category, instance)
            one = found.setdefault(key, PoorObject(*key, area, {}, {}))
            one.ious[method.position] = iou
            one.outcomes[method.position] = OUTCOMES[outcome]
    poor = [one for one in found.values() if one.mean_iou < 0.5]
    poor.sort(key=lambda one: (one.severity, -one.area, one.image_id, one.category, one.instance))
    shown: Counter[object] = Counter()
    turns = []
    for place, one in enumerate(poor):
        image, category = (one.severity, one.image_id), (one.severity, one.category)
        turns.append((one.severity, shown[image], shown[category], place))
        shown.update((image, category))
    return [poor[place] for *_, place in sorted(turns)]


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """The pictures of one object.

    Attributes:
        shown: the object.
        image: data URI of the crop; ``None`` if the picture is not known.
        truth: data URI of the ground truth.
        predictions: (method position, data URI, what was predicted on the object) for each.
        colours: (class name, RGB) of what the pictures show, the object's class first.
    """

    shown: PoorObject
    image: str | None
    truth: str
    predictions: list[tuple[int, str, str]]
    colours: list[tuple[str, tuple[int, int, int]]]


def make_thumbnails(
    methods: Sequence[ScoredMethod], objects: Sequence[PoorObject], limit: int
) -> tuple[list[Thumbnail], Counter[str]]:
    """Draw the first ``limit`` objects whose files can be read; count why others were left out."""
    drawn: list[Thumbnail] = []
    reasons: Counter[str] = Counter()
    for one in objects[: _TRIES * limit]:
        if len(drawn) == limit:
            break
        try:
            drawn.append(_draw(methods, one))
        except SourceError as error:
            reasons[str(error)] += 1
    return drawn, reasons


def _draw(methods: Sequence[ScoredMethod], one: PoorObject) -> Thumbnail:
    """Read the files of one object and draw its panels; SourceError if they do not fit."""
    truth, object_mask = _find(methods, one)
    window = crop_window(object_mask)
    mask, semantic = object_mask[window], truth.semantic[window]
    image = np.full((*mask.shape, 3), 128, np.uint8) if truth.image is None else truth.image[window]
    names, ignore = methods[0].class_names, methods[0].ignore_label
    crops, described = {}, {}
    for method in methods:
        if method.position in one.ious:
            labels = read_map(method.run, one.image_id, "prediction")
            if labels.shape != object_mask.shape:
                raise SourceError("a prediction no longer has the size of the ground truth")
            crops[method.position] = labels[window]
            described[method.position] = _describe(labels[object_mask], names)
    colours = _colours(one.category, [semantic, *crops.values()], {*methods[0].stuff, ignore})
    return Thumbnail(
        one,
        _data_uri(_outlined(_enlarge(image), mask)) if truth.image is not None else None,
        _data_uri(_panel(image, semantic, mask, colours, ignore)),
        [
            (position, _data_uri(_panel(image, labels, mask, colours, ignore)), described[position])
            for position, labels in crops.items()
        ],
        _legend(colours, names),
    )


def _find(methods: Sequence[ScoredMethod], one: PoorObject) -> tuple[ScoredPixels, np.ndarray]:
    """Ground truth from the first method that knows it, and the object's mask (H, W)."""
    problems = []
    for method in methods:
        if method.position not in one.ious:
            continue
        try:
            truth = read_scored_pixels(method.run, one.image_id)
        except SourceError as error:
            problems.append(str(error))
            continue
        mask = truth.instances == one.instance
        if np.count_nonzero(mask) == one.area:
            return truth, mask
        problems.append("the instance maps are no longer those that were scored")
    raise SourceError(problems[0])


def crop_window(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a square around a mask, with context, moved into the image if possible.

    It is not square where the image is too narrow.
    """
    ends = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    extent = max(int(last - first) + 1 for first, last in ends)
    side = max(round(_CONTEXT * extent), _SMALLEST_CROP)
    parts = []
    for (first, last), length in zip(ends, mask.shape):
        size = min(side, length)
        start = min(max(int(first + last + 1 - size) // 2, 0), length - size)
        parts.append(slice(start, start + size))
    return parts[0], parts[1]


def _colours(
    category: int, maps: Sequence[np.ndarray], left_out: set[int]
) -> dict[int, tuple[int, int, int]]:
    """Colours by label: the object's class, then the most frequent others of the crop."""
    counts: Counter[int] = Counter()
    for labels in maps:
        values, numbers = np.unique(labels, return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist())))
    others = [label for label, _ in counts.most_common() if label not in {category, *left_out}]
    colours = {category: OBJECT_COLOUR}
    for position, label in enumerate(others):
        known = position < len(OTHER_COLOURS)
        colours[label] = OTHER_COLOURS[position] if known else REST_COLOUR
    return colours


def _panel(
    image: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    colours: dict[int, tuple[int, int, int]],
    ignore: int,
) -> np.ndarray:
    """A grey crop under coloured labels, with the object's outline."""
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    # Less contrast below, so that the colours over it stay themselves.
    base = np.repeat((70 + 0.55 * grey.astype(np.float32))[..., None], 3, axis=2)
    canvas = _enlarge(base.astype(np.uint8)).astype(np.float32)
    big = _enlarge(labels.astype(np.int32), labels=True)
    for label, rgb in colours.items():
        inside = big == label
        canvas[inside] = 0.3 * canvas[inside] + 0.7 * np.array(rgb, np.float32)
    canvas[big == ignore] = 0.25 * canvas[big == ignore] + 0.75 * 235.0
    return _outlined(canvas.astype(np.uint8), mask)


def _outlined(canvas: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw a line around a crop's mask (h, w) on its enlargement, white within black.

    It keeps off the object, whose pixels are what the picture is about.
    """
    shape = _enlarge(mask.astype(np.uint8), labels=True)
    inner, middle, outer = (
        cv2.dilate(shape, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1,) * 2))
        for by in (_GAP, _GAP + 2, _GAP + 3)
    )
    canvas = canvas.copy()
    canvas[(outer > 0) & (middle == 0)] = 0
    canvas[(middle > 0) & (inner == 0)] = 255
    return canvas


def _enlarge(crop: np.ndarray, *, labels: bool = False) -> np.ndarray:
    """Enlarge a crop (h, w, ...) to a panel; labels are not mixed."""
    scale = _PANEL / max(crop.shape[:2])
    size = [max(round(length * scale), 1) for length in crop.shape[1::-1]]
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    way = cv2.INTER_NEAREST if labels else way
    return cv2.resize(np.ascontiguousarray(crop), size, interpolation=way)


def _describe(labels: np.ndarray, names: Sequence[str]) -> str:
    """The two most frequent labels on the object's pixels, with their shares."""
    values, numbers = np.unique(labels, return_counts=True)
    order = np.argsort(-numbers, kind="stable")[:2].tolist()
    parts = []
    for index in order:
        value, share = int(values[index]), 100 * numbers[index] / labels.size
        name = names[value] if 0 <= value < len(names) else f"label {value}"
        if share >= 1:
            parts.append(f"{share:.0f} % {name}")
    return ", ".join(parts)


def _legend(
    colours: dict[int, tuple[int, int, int]], names: Sequence[str]
) -> list[tuple[str, tuple[int, int, int]]]:
    """Class names with their colours; classes that share the last colour are one entry."""
    own = [(label, rgb) for label, rgb in colours.items() if rgb != REST_COLOUR]
    legend = [(names[label] if label < len(names) else f"label {label}", rgb) for label, rgb in own]
    return legend if len(own) == len(colours) else [*legend, ("other classes", REST_COLOUR)]


def _data_uri(pixels: np.ndarray) -> str:
    return jpeg_uri(Image.fromarray(pixels), quality=84)
