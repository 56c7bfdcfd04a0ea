"""Which files of a data set are there, and whether they are what they should be."""

from __future__ import annotations

import dataclasses
import functools

from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.dataset_files import FileCheck
from d2_smallobj.data.image_check import check_image
from d2_smallobj.data.specs import DatasetSpec
from d2_smallobj.utils.parallel import parallel_map


@dataclasses.dataclass(frozen=True)
class Presence:
    """What is there of a data set.

    Attributes:
        state: ``"ready"``; ``"on first use"``: files are made when they are wanted;
            ``"missing"``: files are missing; ``"unusable"``: a list or annotation file is
            malformed.
        images: number of images listed; 0 unless ready.
        missing: paths that are missing; a folder that is missing as a whole ends in a separator.
        required: number of files looked for.
        problem: what is wrong with an unusable one.
    """

    state: str
    images: int = 0
    missing: tuple[str, ...] = ()
    required: int = 0
    problem: str = ""

    @property
    def usable(self) -> bool:
        """Whether the data set can be used now."""
        return self.state in ("ready", "on first use")


def find_files(spec: DatasetSpec) -> Presence:
    """Look which files of a data set are there; only lists and annotation files are opened."""
    check = FileCheck(spec.name, spec.prepare_command)
    try:
        images = len(spec.list_files(check))
    except FileNotFoundError:
        if spec.ensure is not None:
            return Presence("on first use")
        return Presence("missing", missing=tuple(check.missing), required=check.required)
    except ValueError as error:
        return Presence("unusable", problem=str(error))
    return Presence("ready", images, required=check.required)


def check_files(spec: DatasetSpec, *, jobs: int = 1, progress: bool = False) -> list[str]:
    """Read all label maps, or annotations, and the headers of all images of a data set.

    Args:
        spec: a data set whose files are there.
        jobs: number of processes.
        progress: show a progress bar on stderr.

    Returns:
        What is wrong, a sentence for every image; empty if nothing is.
    """
    annotations = None
    if spec.instances_json is not None:
        annotations = InstanceAnnotations(spec.instances_json, kind=spec.json_kind)
    tasks = [
        (record, [] if annotations is None else annotations.annotations(record["image_id"]))
        for record in spec.list_files()
    ]
    check = functools.partial(
        check_image, num_classes=len(spec.class_names), source=str(spec.instances_json)
    )
    results = parallel_map(check, tasks, jobs=jobs, description=spec.name, progress=progress)
    return [problem for problem in results if problem is not None]
