"""Look at the files of data sets: which exist, whether they are good, what classes they show."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from d2_smallobj.annotations.coco import Annotation, InstanceAnnotations
from d2_smallobj.annotations.coco_maps import image_fates
from d2_smallobj.annotations.dataset_files import FileCheck
from d2_smallobj.data.specs import IGNORE_LABEL, DatasetSpec
from d2_smallobj.data.supervision import read_instances, read_labels
from d2_smallobj.metrics.matching import match_image
from d2_smallobj.metrics.records import COCO_SIZE_BINS
from d2_smallobj.pseudo_labels.targets import TargetImage
from d2_smallobj.utils.messages import listed
from d2_smallobj.utils.parallel import parallel_map
from d2_smallobj.utils.tables import markdown_table

_SHOWN = 4


class DatasetFiles(NamedTuple):
    """State of a data set's files, as the list shows it."""

    state: str  # "ready", "on first use" (made when needed), "missing", "unusable" (a bad list)
    images: str = ""  # their number, and that of the published set if it is another
    missing: str = ""  # the missing paths, or their number and the first one
    what_to_do: str = ""  # what is wrong, or the command or page that helps to get the files


@dataclasses.dataclass
class Findings:
    """What a check of all images found.

    Attributes:
        problems: one sentence for every bad image.
        sizes: number of instances by class and place of their size; empty: there are no masks.
        surplus: images whose given labels have a class that the image does not have.
    """

    problems: list[str] = dataclasses.field(default_factory=list)
    sizes: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
    surplus: list[str] = dataclasses.field(default_factory=list)


def find_files(spec: DatasetSpec) -> DatasetFiles:
    """Look which files of a data set exist; opens only lists and annotation files."""
    check = FileCheck(spec.name, spec.prepare_command, made_in=spec.makes)
    try:
        number = len(spec.list_files(check))
        expected = spec.published or number
        images = f"{number:,}" + (f" of {expected:,}" if number != expected else "")
        return DatasetFiles("on first use" if check.to_make else "ready", images)
    except ValueError as error:
        return DatasetFiles("unusable", what_to_do=str(error))
    except FileNotFoundError:
        if spec.ensure is not None and spec.makes is None:
            return DatasetFiles("on first use")
    shown = [
        os.path.relpath(path, spec.folder) + os.sep * path.endswith(os.sep)
        for path in check.missing[:_SHOWN]
    ]
    missing = ", ".join(shown)
    if len(check.missing) > _SHOWN:
        missing = f"{len(check.missing):,} of {check.required:,} files, e.g. {shown[0]}"
    return DatasetFiles("missing", "", missing, spec.command or spec.see)


def paint_files(spec: DatasetSpec, jobs: int) -> list[str]:
    """Make the files of a user's data set that are made on first use; returns what is wrong."""
    assert spec.ensure is not None
    try:
        spec.ensure(jobs=jobs)
    except ValueError as error:
        return [str(error)]
    return []


def check_files(spec: DatasetSpec, jobs: int) -> Findings:
    """Read all label maps, or annotations, and the headers of all images of a data set."""
    annotations = None
    if spec.instances_json is not None:
        annotations = InstanceAnnotations(spec.instances_json)
    tasks = [
        (record, [] if annotations is None else annotations.annotations(record["image_id"]))
        for record in spec.list_files()
    ]
    source = spec.instances_json or "its data set"
    look = functools.partial(_look_at, num_classes=len(spec.class_names), source=source)
    found = Findings()
    results = parallel_map(look, tasks, jobs=jobs, description=spec.name[:40], progress=True)
    for (record, _), (problem, sizes, classes) in zip(tasks, results):
        found.problems += [problem] if problem else []
        found.sizes += sizes
        if spec.weak and "image_classes" in record and classes - {*record["image_classes"]}:
            found.surplus.append(record["sem_seg_file_name"])
    return found


def _look_at(
    task: tuple[Mapping[str, Any], list[Annotation]], *, num_classes: int, source: str
) -> tuple[str, Counter[tuple[int, int]], set[int]]:
    """Check that an image, its label maps and its annotations are valid and belong together.

    ``task`` is the image's dataset dict and its annotations, ``source`` their file. Returns a
    sentence that names the bad file, or none; the sizes of :class:`Findings`; and the classes of
    the semantic map.
    """
    record, annotations = task
    sizes: Counter[tuple[int, int]] = Counter()
    classes: set[int] = set()
    try:
        size = TargetImage((), record["file_name"]).read_size()
        expected = (record.get("height", size[0]), record.get("width", size[1]))
        if size != expected:
            what = f"height x width is {size}, {source} says {expected}"
            return f"{record['file_name']}: {what}", sizes, classes
        if "sem_seg_file_name" in record:
            sizes, classes = _read_maps(
                {**record, "height": size[0], "width": size[1]}, num_classes
            )
        _, problems = image_fates((annotations, *size), source=source)
    except (OSError, TypeError, ValueError) as error:
        return str(error), sizes, classes
    return "; ".join(problems), sizes, classes


def _read_maps(
    record: Mapping[str, Any], num_classes: int
) -> tuple[Counter[tuple[int, int]], set[int]]:
    """Check sizes and values of an image's label maps, and that they belong together."""
    semantic, instances = read_labels(record, num_classes, IGNORE_LABEL), None
    classes = set(np.unique(semantic).tolist()) - {0, IGNORE_LABEL}
    where = record["sem_seg_file_name"]
    if "ins_seg_file_name" in record:
        instances, where = read_instances(record, semantic), record["ins_seg_file_name"]
    elif "image_classes" not in record:
        return Counter(), classes
    try:
        records = match_image(semantic, semantic, instances, num_classes=num_classes).table
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    places = COCO_SIZE_BINS.positions(records.area, records.image_area).tolist()
    pairs = Counter(zip(records.category_id.tolist(), places))
    return Counter({pair: n for pair, n in pairs.items() if pair[0]}), classes


def describe(spec: DatasetSpec, checked: Findings) -> str:
    """Describe a user's data set: its classes in a table, and warnings, one a line."""
    dicts = spec.list_files(FileCheck(spec.name, made_in=spec.makes))
    if any("image_classes" not in record for record in dicts):
        return f"{spec.name}: its classes are counted when it is used first (--check is a use)"
    images = Counter(c for record in dicts for c in record["image_classes"])
    boxed = any("boxes" in record for record in dicts)
    boxes = Counter(int(row[0]) for record in dicts for row in record.get("boxes", ()))
    sizes = [*COCO_SIZE_BINS] if checked.sizes and not spec.weak else []
    rows = [
        [number, name, images[number], *([boxes[number]] if boxed else [])]
        + [checked.sizes[number, place] for place in range(len(sizes))]
        for number, name in enumerate(spec.class_names)
        if number
    ]
    header = ["class", "name", "images", *(["boxes"] if boxed else []), *sizes]
    lines = [markdown_table(header, [[*map(str, row)] for row in rows], text_columns=2)]
    unseen = [name for number, name in enumerate(spec.class_names) if number and not images[number]]
    if unseen:
        lines.append(f"warning: {len(unseen)} class(es) without any image: {listed(unseen)}")
    if checked.surplus:
        what = "label map(s) with a class that the annotations of the image do not have"
        lines.append(f"warning: {len(checked.surplus)} {what}: {listed(checked.surplus, 3)}")
    reasons = {record["no_masks"] for record in dicts if "no_masks" in record}
    return "\n".join([*lines, *(f"note: {reason}" for reason in reasons)])
