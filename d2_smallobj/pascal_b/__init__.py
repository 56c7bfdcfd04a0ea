"""PASCAL-B, re-created from LVIS and COCO (paper, section 3; docs/method.md#data-sets).

Files are indexed (:mod:`.index`), LVIS and COCO joined by image and category name
(:mod:`.categories`, :mod:`.candidates`), images composed of run lengths
(:mod:`.masks`, :mod:`.compose`) and judged (:mod:`.screening`), a balanced set chosen of those
that are fit (:mod:`.sampling`, :mod:`.selection`) and written (:mod:`.painting`,
:mod:`.pictures`, :mod:`.files`) with its manifest, account and data card (:mod:`.manifest`,
:mod:`.accounting`, :mod:`.card`); :mod:`.build` does all that in turn.
"""

from __future__ import annotations

from d2_smallobj.pascal_b.build import (
    BuildResult,
    build_pascal_b,
    rebuild_pascal_b,
)
from d2_smallobj.pascal_b.options import IMAGES, BuildOptions, Place
from d2_smallobj.pascal_b.screening import ScreeningOptions

__all__ = [
    "IMAGES",
    "BuildOptions",
    "BuildResult",
    "Place",
    "ScreeningOptions",
    "build_pascal_b",
    "rebuild_pascal_b",
]
