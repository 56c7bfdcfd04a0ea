"""The options of a build."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Union

from d2_smallobj.pascal_b.near_duplicates import MAX_DISTANCE
from d2_smallobj.pascal_b.screening import ScreeningOptions

IMAGES = 1137
"""Number of images of the paper's set."""
PathLike = Union[str, "os.PathLike[str]"]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where inputs and output are; nothing of it but the inputs' content shows in the set.

    Attributes:
        lvis: LVIS files of one version, at least one.
        coco: COCO 2017 files, at least one.
        output: the folder to make.
        pictures: folder of ``train2017`` and ``val2017``; None: annotations only.
        jobs: number of processes, >= 1.
        force: replace a set that is at ``output``.
        progress: show progress bars on stderr.

    Raises:
        ValueError: a file or a process too few.
    """

    lvis: Sequence[PathLike]
    coco: Sequence[PathLike]
    output: PathLike
    pictures: PathLike | None = None
    jobs: int = 1
    force: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("lvis", "coco"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one file, got none")
        check_integer("jobs", self.jobs, 1)


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """What makes one set differ from another.

    Attributes:
        number: images wanted, >= 1.
        per_cell: instances wanted of every class × size, >= 1; None: see :mod:`.sampling`.
        seed: of the choice between equally balanced sets, >= 0.
        screening: what is asked of an image.
        rejected: reject lists, see :func:`.rejects.read_reject_list`.
        voc: a VOC folder (``VOCdevkit/VOC2012``) whose images must not be in the set; None:
            not checked.
        max_distance: bits, of 64, in which near-duplicates of VOC's images may differ.
        candidate_list: a CSV file to write with the verdict on every candidate.

    Raises:
        ValueError: a number is out of its range.
    """

    number: int = IMAGES
    per_cell: int | None = None
    seed: int = 0
    screening: ScreeningOptions = dataclasses.field(default_factory=ScreeningOptions)
    rejected: Sequence[PathLike] = ()
    voc: PathLike | None = None
    max_distance: int = MAX_DISTANCE
    candidate_list: PathLike | None = None

    def __post_init__(self) -> None:
        check_integer("number", self.number, 1)
        check_integer("seed", self.seed, 0)
        check_integer("max_distance", self.max_distance, 0)
        if self.per_cell is not None:
            check_integer("per_cell", self.per_cell, 1)


def check_integer(name: str, value: object, low: int) -> None:
    """Raise ValueError unless a value is an integer and not below ``low``."""
    if type(value) is not int or value < low:
        raise ValueError(f"{name}: expected an integer >= {low}, got {value!r}")
