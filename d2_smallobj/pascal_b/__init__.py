"""PASCAL-B, re-created from LVIS and COCO (paper, section 3; docs/method.md#data-sets).

The steps: read the annotation files (:mod:`.index`), join LVIS and COCO by image and by category
name (:mod:`.candidates`), compose images of run lengths (:mod:`.compose`) and
judge them (:mod:`.screening`), choose a balanced set (:mod:`.sampling`) without images of VOC
(:mod:`.near_duplicates`), write it (:mod:`.painting`) with its manifest, account and data card
(:mod:`.manifest`). :mod:`.build` runs them in turn.
"""

from __future__ import annotations

from d2_smallobj.pascal_b.build import (
    IMAGES,
    BuildOptions,
    BuildPaths,
    BuildResult,
    build_pascal_b,
    rebuild_pascal_b,
)
from d2_smallobj.pascal_b.screening import ScreeningOptions

__all__ = [
    "IMAGES",
    "BuildOptions",
    "BuildPaths",
    "BuildResult",
    "ScreeningOptions",
    "build_pascal_b",
    "rebuild_pascal_b",
]
