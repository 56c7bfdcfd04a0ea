"""Where the data sets keep their files below the folder of all data sets."""

from __future__ import annotations

import os
from pathlib import Path

VOC_FOLDER = Path("VOCdevkit", "VOC2012")
COCO_FOLDER = Path("coco")
DEMO_FOLDER = Path("smallobj_demo")
COCO_YEARS = ("2014", "2017")
METHODS = ("irn", "cda", "amn", "rib", "clims", "rca", "edam", "nsrom", "bana", "bbam")
"""Methods whose pseudo labels are registered, on VOC and on COCO (docs/method.md#data-sets)."""
PSEUDO_LABELS = "PseudoLabels"


def datasets_root() -> Path:
    """The folder of all data sets: ``$DETECTRON2_DATASETS``, else ``datasets``."""
    return Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))


def coco_annotations(root: Path, split: str, year: str) -> Path:
    """COCO's instance annotations of a split (``"train"``, ``"val"``)."""
    return root / COCO_FOLDER / "annotations" / f"instances_{split}{year}.json"


def coco_images(root: Path, split: str, year: str) -> Path:
    """Folder of COCO's images."""
    return root / COCO_FOLDER / f"{split}{year}"


def voc_labels(method: str) -> str:
    """Folder of a method's pseudo labels below VOC's folder."""
    return f"{PSEUDO_LABELS}/{method}"


def coco_labels(method: str, year: str) -> str:
    """Folder of a method's pseudo labels below COCO's folder."""
    return f"{PSEUDO_LABELS}/{method}_{year}"
