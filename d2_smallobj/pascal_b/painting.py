"""The label maps and COCO annotations of an image of PASCAL-B.

Legend: H, W height and width of an image.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.pascal_b.candidates import Candidate
from d2_smallobj.pascal_b.compose import Composition
from d2_smallobj.pascal_b.outcomes import Outcome
from d2_smallobj.pascal_b.screening import ScreeningOptions, compose_candidate

VOID = 255
SEMANTIC_FOLDER, INSTANCE_FOLDER = "SegmentationClass", "SegmentationObject"


@dataclasses.dataclass(frozen=True)
class RenderedImage:
    """What was made of a chosen image.

    Attributes:
        image_id: COCO's id.
        annotations: COCO annotations without ids: the visible part of every instance, in the
            order of their ids in the instance map, then the void pixels of every class as crowd.
        outcomes: what became of its LVIS, then its COCO annotations of the 20 classes.
        digest: SHA-256 of both label maps' pixels, hexadecimal.
    """

    image_id: int
    annotations: tuple[dict[str, Any], ...]
    outcomes: tuple[Outcome, ...]
    digest: str


def image_name(image_id: int) -> str:
    """Name of an image's files without suffix, as COCO 2017 names them."""
    return f"{image_id:012d}"


def render(
    candidate: Candidate, paths: Sequence[str], options: ScreeningOptions, folder: Path
) -> RenderedImage:
    """Paint an image and write its label maps, unless they are there from an earlier start.

    Args:
        candidate: the image.
        paths: the annotation files, in the order of :attr:`Sources.files`, for messages.
        options: as it was screened with.
        folder: the data set's; it must hold nothing but what the same arguments wrote.

    Returns:
        Its annotations.

    Raises:
        ValueError: its masks cannot be read.
        OSError: a map cannot be written.
    """
    composition = compose_candidate(candidate, paths, options)
    semantic, instances, void_class = paint(composition, candidate.height, candidate.width)
    for name, labels in ((SEMANTIC_FOLDER, semantic), (INSTANCE_FOLDER, instances)):
        path = folder / name / f"{image_name(candidate.image_id)}.png"
        if not path.exists():
            write_label_map(path, labels)
    return RenderedImage(
        candidate.image_id,
        tuple(_annotations(candidate, composition, instances, void_class)),
        composition.outcomes,
        hashlib.sha256(semantic.tobytes() + instances.tobytes()).hexdigest(),
    )


def paint(
    composition: Composition, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paint the layers of an image.

    Args:
        composition: the layers.
        height: H.
        width: W.

    Returns:
        semantic: uint8 (H, W), 0 = background, 1..20, 255 = void.
        instances: int32 (H, W), 0 = none, 255 = void; the k-th instance, in the order of the
            annotations, has id k, or k + 1 from the 255th on.
        void_class: uint8 (H, W), the class that a void pixel could be, else 0.
    """
    ids = {layer.piece: _identity(n) for n, layer in enumerate(composition.instances, start=1)}
    # Masks come column by column; so does the canvas, on which only their boxes are touched.
    canvas = np.zeros((height, width), np.int32, order="F")
    values = [(0, 0, 0)]
    for number, layer in enumerate(composition.layers, start=1):
        x, y, w, h = (int(side) for side in coco_mask.toBbox(layer.mask))
        box = (slice(y, y + h), slice(x, x + w))
        np.copyto(canvas[box], number, where=coco_mask.decode(layer.mask)[box].astype(bool))
        void = (VOID, VOID, layer.class_id)
        values.append(void if layer.void else (layer.class_id, ids[layer.piece], 0))
    semantic, instances, void_class = np.array(values, np.int32).T
    canvas = np.ascontiguousarray(canvas)
    return (
        semantic.astype(np.uint8)[canvas],
        instances[canvas],
        void_class.astype(np.uint8)[canvas],
    )


def _identity(number: int) -> int:
    """Id of the k-th instance."""
    return number if number < VOID else number + 1


def _annotations(
    candidate: Candidate, composition: Composition, instances: np.ndarray, void_class: np.ndarray
) -> list[dict[str, Any]]:
    """The COCO annotations of an image."""
    pieces = (*candidate.lvis, *candidate.coco)
    found = []
    for number, layer in enumerate(composition.instances, start=1):
        annotation = _annotation(layer.class_id, instances == _identity(number), crowd=False)
        source = "lvis" if layer.piece < len(candidate.lvis) else "coco"
        annotation["source"] = f"{source}:{pieces[layer.piece].annotation_id}"
        found.append(annotation)
    for class_id in np.unique(void_class[void_class > 0]).tolist():
        found.append(_annotation(class_id, void_class == class_id, crowd=True))
    return [{"image_id": candidate.image_id, **annotation} for annotation in found]


def _annotation(class_id: int, mask: np.ndarray, *, crowd: bool) -> dict[str, Any]:
    """A mask as COCO annotation."""
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "category_id": class_id,
        "iscrowd": int(crowd),
        "area": int(coco_mask.area(runs)),
        "bbox": [float(value) for value in coco_mask.toBbox(runs)],
        "segmentation": {
            "size": [int(side) for side in runs["size"]],
            "counts": runs["counts"].decode("ascii"),
        },
    }
