"""Paint the images of PASCAL-B and put its folder in place.

The folder is built beside its place, then renamed, so that it is whole or absent.

Legend: H, W height and width of an image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from d2_smallobj.annotations.classes import VOC_CLASS_NAMES
from d2_smallobj.annotations.coco_file import describe_mask
from d2_smallobj.annotations.image_lists import IMAGE_FOLDER
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.pascal_b.candidates import Candidate, Outcome
from d2_smallobj.pascal_b.compose import Composition
from d2_smallobj.pascal_b.manifest import (
    MANIFEST_NAME,
    Manifest,
    format_account,
    format_card,
    read_manifest,
)
from d2_smallobj.pascal_b.screening import ScreeningOptions, compose_candidate
from d2_smallobj.utils.files import atomic_write_text

VOID = 255
SEMANTIC_FOLDER, INSTANCE_FOLDER = "SegmentationClass", "SegmentationObject"
ANNOTATION_FILE = "annotations/instances_val.json"
_WRITTEN = {
    *(IMAGE_FOLDER, SEMANTIC_FOLDER, INSTANCE_FOLDER, "annotations", "val.txt"),
    *(MANIFEST_NAME, "DATA_CARD.md", "accounting.csv"),
}


@dataclasses.dataclass(frozen=True)
class RenderedImage:
    """An image whose label maps are written, with its COCO annotations without ids.

    These are the visible part of every instance, in the order of their ids in the instance map,
    then the void pixels of every class as crowd.
    """

    image_id: int
    annotations: tuple[dict[str, Any], ...]
    outcomes: tuple[Outcome, ...]  # of its LVIS, then its COCO annotations of the 20 classes
    digest: str  # SHA-256 of both label maps' pixels


def image_name(image_id: int) -> str:
    """Name of an image's files without suffix, as COCO 2017 names them."""
    return f"{image_id:012d}"


def render(
    candidate: Candidate, paths: Sequence[str], options: ScreeningOptions, folder: Path
) -> RenderedImage:
    """Paint an image and write its label maps, unless they are there from an interrupted run.

    ``paths`` are :attr:`AnnotationSources.paths`; ``folder`` is of :func:`open_partial_folder`.
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
    """Paint the layers of an image of ``height`` H and ``width`` W.

    Returns:
        semantic: uint8 (H, W), 0 = background, 1..20, 255 = void.
        instances: int32 (H, W), 0 = none, 255 = void; the k-th instance, in the order of the
            annotations, has id k, or k + 1 from the 255th on.
        void_class: uint8 (H, W), the class that a void pixel could be, else 0.
    """
    ids = composition.instance_ids
    # In column order, as decoded masks are; only the boxes of the masks are written.
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


def _annotations(
    candidate: Candidate, composition: Composition, instances: np.ndarray, void_class: np.ndarray
) -> list[dict[str, Any]]:
    """The COCO annotations of an image."""
    found = []
    ids = composition.instance_ids
    for layer in composition.instances:
        annotation = _annotation(layer.class_id, instances == ids[layer.piece], crowd=False)
        source = "lvis" if layer.piece < len(candidate.lvis) else "coco"
        annotation["source"] = f"{source}:{candidate.pieces[layer.piece].annotation_id}"
        found.append(annotation)
    for class_id in np.unique(void_class[void_class > 0]).tolist():
        found.append(_annotation(class_id, void_class == class_id, crowd=True))
    return [{"image_id": candidate.image_id, **annotation} for annotation in found]


def _annotation(class_id: int, mask: np.ndarray, *, crowd: bool) -> dict[str, Any]:
    """A mask as COCO annotation."""
    found = describe_mask(mask)
    fields = {key: found[key] for key in ("area", "bbox", "segmentation")}
    return {"category_id": class_id, "iscrowd": int(crowd), **fields}


def check_place(root: Path, *, force: bool) -> None:
    """Raise FileExistsError if a set is at ``root`` and not ``force``, or anything else is."""
    if not os.path.lexists(root) or (root.is_dir() and not any(root.iterdir())):
        return
    foreign = sorted(set(os.listdir(root)) - _WRITTEN) if root.is_dir() else [root.name]
    if not foreign:
        try:
            read_manifest(root / MANIFEST_NAME)
        except (OSError, ValueError) as error:
            foreign = [str(error)]
    if foreign:
        raise FileExistsError(
            f"{root} holds something else than a PASCAL-B built by this command "
            f"({', '.join(foreign[:10])}): move it away or choose another --output"
        )
    if not force:
        raise FileExistsError(f"{root} holds a PASCAL-B already; give --force to replace it")


def open_partial_folder(root: Path, key: Mapping[str, Any]) -> Path:
    """Make the folder beside ``root`` in which a set is built, or find that of an interrupted run.

    Its name depends on ``key``: everything that changes the label maps.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    partial = root.parent / f".{root.name}.{name}.partial"
    for folder in (SEMANTIC_FOLDER, INSTANCE_FOLDER):
        (partial / folder).mkdir(parents=True, exist_ok=True)
    return partial


def put_in_place(partial: Path, root: Path) -> None:
    """Rename a finished folder to ``root``; an older set there is removed."""
    old = root.parent / f".{root.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.lexists(root):
        os.rename(root, old)
    try:
        os.rename(partial, root)
    except OSError:
        with contextlib.suppress(OSError):
            os.rename(old, root)
        raise
    shutil.rmtree(old, ignore_errors=True)
    for leftover in root.parent.glob(f".{root.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def format_annotations(candidates: Sequence[Candidate], rendered: Sequence[RenderedImage]) -> str:
    """Format the annotation file in COCO's format."""
    annotations = [one for image in rendered for one in image.annotations]
    content = {
        "info": {"description": "PASCAL-B, re-created by d2_smallobj from LVIS and COCO"},
        "licenses": [],
        "images": [
            {
                "id": candidate.image_id,
                "file_name": f"{image_name(candidate.image_id)}.jpg",
                "height": candidate.height,
                "width": candidate.width,
                "coco_file": candidate.file_name,
            }
            for candidate in candidates
        ],
        "annotations": [
            {"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)
        ],
        "categories": [
            {"id": number, "name": name, "supercategory": "pascal_voc"}
            for number, name in enumerate(VOC_CLASS_NAMES[1:], start=1)
        ],
    }
    return json.dumps(content) + "\n"


def describe_outputs(annotations: str, rendered: Sequence[RenderedImage]) -> dict[str, Any]:
    """Hash the annotations and label maps, to compare a rebuilt set."""
    digests = hashlib.sha256("".join(image.digest for image in rendered).encode())
    return {
        "instances": sum(not one["iscrowd"] for image in rendered for one in image.annotations),
        "annotations_sha256": hashlib.sha256(annotations.encode()).hexdigest(),
        "label_maps_sha256": digests.hexdigest(),
    }


def write_texts(partial: Path, annotations: str, manifest: Manifest) -> None:
    """Write all files except pictures and label maps."""
    names = "".join(f"{image_name(image_id)}\n" for image_id in manifest["image_ids"])
    for name, text in (
        (ANNOTATION_FILE, annotations),
        ("val.txt", names),
        ("DATA_CARD.md", format_card(manifest)),
        ("accounting.csv", format_account(manifest["accounting"])),
        (MANIFEST_NAME, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"),
    ):
        atomic_write_text(partial / name, text)
