"""The folder of PASCAL-B: built beside its place, then renamed, so that it is whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2_smallobj.annotations.class_names import VOC_CLASS_NAMES
from d2_smallobj.annotations.voc import IMAGE_FOLDER
from d2_smallobj.pascal_b.accounting import format_csv
from d2_smallobj.pascal_b.candidates import Candidate
from d2_smallobj.pascal_b.card import format_card
from d2_smallobj.pascal_b.manifest import (
    MANIFEST_NAME,
    Manifest,
    format_manifest,
    read_manifest,
)
from d2_smallobj.pascal_b.painting import (
    INSTANCE_FOLDER,
    SEMANTIC_FOLDER,
    RenderedImage,
    image_name,
)
from d2_smallobj.utils.files import atomic_write_text

ANNOTATION_FILE = "annotations/instances_val.json"
_OURS = frozenset(
    {
        *(IMAGE_FOLDER, SEMANTIC_FOLDER, INSTANCE_FOLDER, "annotations", "val.txt"),
        *(MANIFEST_NAME, "DATA_CARD.md", "accounting.csv"),
    }
)
_SHOWN = 10


def check_place(root: Path, *, force: bool) -> None:
    """Check that the set may be put at ``root``, before any work is done.

    Raises:
        FileExistsError: something is there: a set without ``force``, or files that are none of
            a set's; these are never removed.
    """
    if not os.path.lexists(root) or (root.is_dir() and not any(root.iterdir())):
        return
    foreign = sorted(set(os.listdir(root)) - _OURS) if root.is_dir() else [root.name]
    if not foreign:
        try:
            read_manifest(root / MANIFEST_NAME)
        except (OSError, ValueError) as error:
            foreign = [str(error)]
    if foreign:
        raise FileExistsError(
            f"{root} holds something else than a PASCAL-B built by this command "
            f"({', '.join(foreign[:_SHOWN])}): move it away or choose another --output"
        )
    if not force:
        raise FileExistsError(f"{root} holds a PASCAL-B already; give --force to replace it")


def open_workshop(root: Path, key: Mapping[str, Any]) -> Path:
    """The folder beside ``root`` in which a set is built; one that was interrupted goes on.

    Args:
        root: where the set is to be.
        key: what the label maps follow from.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    workshop = root.parent / f".{root.name}.{name}.partial"
    for folder in (SEMANTIC_FOLDER, INSTANCE_FOLDER):
        (workshop / folder).mkdir(parents=True, exist_ok=True)
    return workshop


def put_in_place(workshop: Path, root: Path) -> None:
    """Rename a finished folder to ``root``; an older set there is removed."""
    old = root.parent / f".{root.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.lexists(root):
        os.rename(root, old)
    try:
        os.rename(workshop, root)
    except OSError:
        with contextlib.suppress(OSError):
            os.rename(old, root)
        raise
    shutil.rmtree(old, ignore_errors=True)
    for leftover in root.parent.glob(f".{root.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def format_annotations(candidates: Sequence[Candidate], rendered: Sequence[RenderedImage]) -> str:
    """The annotation file in COCO's format."""
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
    """Hashes by which a rebuilt set is compared."""
    digests = hashlib.sha256("".join(image.digest for image in rendered).encode())
    return {
        "instances": sum(not one["iscrowd"] for image in rendered for one in image.annotations),
        "annotations_sha256": hashlib.sha256(annotations.encode()).hexdigest(),
        "label_maps_sha256": digests.hexdigest(),
    }


def write_texts(workshop: Path, annotations: str, manifest: Manifest) -> None:
    """Write everything but pictures and label maps."""
    names = "".join(f"{image_name(image_id)}\n" for image_id in manifest["image_ids"])
    for name, text in (
        (ANNOTATION_FILE, annotations),
        ("val.txt", names),
        ("DATA_CARD.md", format_card(manifest)),
        ("accounting.csv", format_csv(manifest["accounting"])),
        (MANIFEST_NAME, format_manifest(manifest)),
    ):
        atomic_write_text(workshop / name, text)
