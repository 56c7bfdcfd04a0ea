"""Judge which candidates are fit for PASCAL-B, without painting them.

This stands in for the weeks that the paper's authors spent on removing wrong annotations by hand.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from d2_smallobj.annotations.classes import VOC_CLASS_NAMES
from d2_smallobj.annotations.coco_file import decode_segmentation, encode_mask
from d2_smallobj.metrics.records import COCO_SIZE_BINS
from d2_smallobj.pascal_b.candidates import Candidate, Outcome
from d2_smallobj.pascal_b.compose import Composition, Mask, compose
from d2_smallobj.pascal_b.index import COCO_CLASS_OPTIONS, class_id
from d2_smallobj.statistics.balance import class_size_counts
from d2_smallobj.utils.files import write_csv
from d2_smallobj.utils.messages import look_up_option

CLASSES_AND_SIZES = tuple((name, size) for name in VOC_CLASS_NAMES[1:] for size in COCO_SIZE_BINS)
"""Class and size of each of the 60 cells: S, M and L of a class in a row."""
_LEAST_FILL = 0.5
# Annotations are compared in pairs; LVIS and COCO together have fewer than 400 in any image.
_MOST_PIECES = 600


@dataclasses.dataclass(frozen=True)
class ScreeningOptions:
    """Requirements on an image.

    Attributes:
        from_coco: classes whose instances COCO provides where LVIS has none; the paper's set
            takes potted plants only.
        min_area: instances with fewer visible pixels become void, >= 1.
        max_overlap: an image with two instances of a larger intersection over union is dropped.
        max_disagreement: an image is dropped if LVIS and COCO differ on a larger share of the
            pixels that either labels; 0.5 means that their intersection over union is under 0.5.
        max_void: an image with a larger share of void pixels is dropped.
    """

    from_coco: tuple[str, ...] = ("pottedplant",)
    min_area: int = 16
    max_overlap: float = 0.5
    max_disagreement: float = 0.5
    max_void: float = 0.5

    def __post_init__(self) -> None:
        for name in self.from_coco:
            look_up_option("from_coco", name, COCO_CLASS_OPTIONS)
        if type(self.min_area) is not int or self.min_area < 1:
            raise ValueError(f"min_area: expected a number of pixels >= 1, got {self.min_area!r}")
        for name in ("max_overlap", "max_disagreement", "max_void"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a share in 0..1, got {value!r}")

    @property
    def coco_class_ids(self) -> frozenset[int]:
        """Ids of ``from_coco``."""
        return frozenset(class_id(name) for name in self.from_coco)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Result of screening an image."""

    image_id: int
    outcome: Outcome | None  # why it is dropped; None: it is fit
    instances: tuple[tuple[int, int], ...] = ()  # class id and visible pixels
    disagreement: float = float("nan")  # see Composition; NaN if a mask cannot be read
    void_share: float = float("nan")
    message: str = ""  # the error in a mask

    @property
    def counts(self) -> np.ndarray:
        """Instances by class and size: int64 (60,), see :data:`CLASSES_AND_SIZES`."""
        classes, areas = zip(*self.instances) if self.instances else ((), ())
        return class_size_counts(classes, areas, num_classes=len(VOC_CLASS_NAMES) - 1).ravel()


class MaskError(ValueError):
    """A mask that cannot be used; ``outcome`` is that of its image."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


def screen(candidate: Candidate, paths: Sequence[str], options: ScreeningOptions) -> Verdict:
    """Judge a candidate; bad masks are a reason to drop the image, not an error.

    ``paths`` are :attr:`AnnotationSources.paths`, for messages.
    """
    try:
        composition = compose_candidate(candidate, paths, options)
    except MaskError as error:
        return Verdict(candidate.image_id, error.outcome, message=str(error))
    return Verdict(
        candidate.image_id,
        _reason_to_drop(composition, options),
        tuple((layer.class_id, layer.visible) for layer in composition.instances),
        composition.disagreement,
        composition.void_share,
    )


def compose_candidate(
    candidate: Candidate, paths: Sequence[str], options: ScreeningOptions
) -> Composition:
    """Read an image's masks and compose it; errors as of :func:`read_masks`."""
    masks = read_masks(candidate, paths)
    return compose(candidate, masks, from_coco=options.coco_class_ids, min_area=options.min_area)


def read_masks(candidate: Candidate, paths: Sequence[str]) -> list[Mask]:
    """Decode the masks of an image, in the order of its pieces; MaskError if one is unusable."""
    masks = []
    if len(candidate.pieces) > _MOST_PIECES:
        raise MaskError(
            Outcome.MALFORMED,
            f"{paths[candidate.pieces[0].source]}: image {candidate.image_id} has "
            f"{len(candidate.pieces)} annotations of the 20 classes, at most {_MOST_PIECES} are "
            "looked at",
        )
    for piece in candidate.pieces:
        where = f"{paths[piece.source]}: annotation {piece.annotation_id}"
        segmentation = decode_segmentation(piece.segmentation)
        try:
            mask = encode_mask(segmentation, candidate.height, candidate.width, where)
        except ValueError as error:
            raise MaskError(Outcome.MALFORMED, str(error)) from error
        area = int(coco_mask.area(mask))
        if isinstance(segmentation, list) and _is_degenerate(segmentation, area):
            raise MaskError(
                Outcome.DEGENERATE,
                f"{where}: its polygons cross themselves, overlap or leave the image: they cover "
                f"{area} pixels",
            )
        masks.append(mask)
    return masks


def _is_degenerate(polygons: list[Any], area: int) -> bool:
    """Tell if polygons cover much less or more pixels than their outlines enclose.

    Lobes of a crossed outline are of opposite sign and cancel in the shoelace formula, but not
    in the mask; an outline walked twice, one within another, or one outside the image leaves no
    pixels. Pixels on the outline belong to the mask, hence the tolerance of its length.
    """
    enclosed = length = 0.0
    for polygon in polygons:
        if len(polygon) < 6:
            continue
        closed = np.array([*polygon, *polygon[:2]], np.float64)
        x, y = closed[0::2], closed[1::2]
        enclosed += 0.5 * abs(float(x[:-1] @ y[1:] - y[:-1] @ x[1:]))
        length += float(np.abs(np.diff(x)).sum() + np.abs(np.diff(y)).sum())
    return abs(area - enclosed) > _LEAST_FILL * max(area, enclosed) + length


def _reason_to_drop(composition: Composition, options: ScreeningOptions) -> Outcome | None:
    """The first reason to drop an image; None: there is none."""
    reasons = {
        Outcome.OVERLAP: composition.overlap > options.max_overlap,
        Outcome.NOT_EXHAUSTIVE: not composition.complete,
        Outcome.DISAGREEMENT: composition.disagreement > options.max_disagreement,
        Outcome.MOSTLY_VOID: composition.void_share > options.max_void,
        Outcome.NOTHING_LEFT: not composition.instances,
    }
    return next((outcome for outcome, found in reasons.items() if found), None)


def write_candidate_list(
    path: str | os.PathLike[str], candidates: Mapping[int, Candidate], verdicts: Sequence[Verdict]
) -> None:
    """Write the verdict on every candidate as CSV, with its instances by class and size."""
    columns = ("image_id", "file_name", "verdict", "disagreement", "void_share", "message")
    rows = [
        [
            verdict.image_id,
            candidates[verdict.image_id].file_name,
            verdict.outcome.value if verdict.outcome else "fit",
            f"{verdict.disagreement:.4f}",
            f"{verdict.void_share:.4f}",
            verdict.message,
            *verdict.counts.tolist(),
        ]
        for verdict in verdicts
    ]
    write_csv(path, [*columns, *map(" ".join, CLASSES_AND_SIZES)], rows)
