"""Compare pseudo labels with true instances: misses by size and class.

Shapes: H, W height and width of an image; R number of instances.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.annotations.truth import GroundTruth, TruthImage
from d2_smallobj.metrics import (
    COCO_SIZE_BINS,
    OUTCOMES,
    Accumulator,
    InstanceTable,
    SizeBins,
    classify,
)
from d2_smallobj.pseudo_labels.formats import IGNORE_LABEL
from d2_smallobj.utils.messages import Problems
from d2_smallobj.utils.parallel import parallel_map

ALL = "all"
"""The row of all sizes, or of all classes."""


@dataclasses.dataclass(frozen=True)
class LabelSummary:
    """Pseudo labels against true instances.

    ``figures`` are those of :func:`d2_smallobj.metrics.summary.summarize`, with the labels as
    predictions.
    """

    name: str
    class_names: tuple[str, ...]  # background first
    figures: Mapping[str, float]
    table: InstanceTable  # one record per true instance
    ignored: np.ndarray  # int64 (R,), pixels of each instance that the label leaves out (255)
    num_images: int
    constant: tuple[str, float] = ("", float("nan"))  # best single label, and its mIoU in percent
    size_bins: SizeBins = COCO_SIZE_BINS

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per class and size, those of all classes first.

        Columns: ``class``, ``size`` (a bin's name or ``all``), ``instances``, the five
        :data:`d2_smallobj.metrics.OUTCOMES` (instances), ``IA-IoU`` (mean IoU of the instances),
        ``labelled`` (share of their pixels with the right label) and ``ignored`` (share that is
        255), all three in percent; NaN without instances.
        """
        bins = self.table.size_of(self.size_bins)
        outcome = classify(self.table)
        rows = []
        for number, name in enumerate((ALL, *self.class_names[1:])):
            for place, size in enumerate((*self.size_bins, ALL)):
                chosen = (name == ALL) | (self.table.category_id == number)
                chosen &= (size == ALL) | (bins == place)
                rows.append({"class": name, "size": size, **self._row(chosen, outcome)})
        return rows

    def _row(self, chosen: np.ndarray, outcome: np.ndarray) -> dict[str, Any]:
        """The figures of some instances."""
        part = self.table.select(chosen)
        pixels = int(part.pixels.sum())
        counts = np.bincount(outcome[chosen], minlength=len(OUTCOMES)).tolist()

        def share(value: float, total: int) -> float:
            return 100.0 * float(value) / total if total else float("nan")

        return {
            "instances": len(part),
            **dict(zip(OUTCOMES, counts)),
            "IA-IoU": share(part.iou.sum(), len(part)),
            "labelled": share(part.intersection.sum(), pixels),
            "ignored": share(self.ignored[chosen].sum(), pixels),
        }


def summarize_labels(
    truth: GroundTruth,
    labels: Mapping[str, str],
    *,
    name: str,
    jobs: int = 1,
    progress: bool = False,
) -> LabelSummary:
    """Compare pseudo labels with true instances, as if they were predictions.

    A pixel that a label ignores (255) counts as background; the number of them is reported beside
    it.

    Args:
        truth: the ground truth, with class names.
        labels: file of the pseudo label by image id.
        name: what tables call the labels.
        jobs: number of processes.
        progress: show a progress bar on stderr.

    Raises:
        InputError: files are malformed or do not fit each other; lists the first ten.
        ValueError: there is no image.
    """
    images = [image for image in truth.images if image.image_id in labels]
    if not images:
        raise ValueError(f"{name}: no image has both a pseudo label and true instances")
    num_classes = len(truth.class_names)
    compare = functools.partial(_compare, truth=truth.without_images())
    tasks = [(truth.self_contained(image), labels[image.image_id]) for image in images]
    total, problems = Accumulator(num_classes), Problems()
    ignored: dict[tuple[str, int], int] = {}
    results = parallel_map(compare, tasks, jobs=jobs, description="summary", progress=progress)
    for image, result in zip(images, results):
        if isinstance(result, str):
            problems.add("image(s) whose pseudo label and ground truth do not fit", result)
            continue
        state, left_out = result
        total.merge(Accumulator.from_state(state))
        ignored.update({(image.image_id, number): count for number, count in left_out.items()})
    problems.raise_if_any()
    table = total.table.select(total.table.things)
    keys = zip(table.image_id.tolist(), table.instance_id.tolist())
    pixels = np.array([ignored.get(key, 0) for key in keys], np.int64)
    names = truth.class_names
    figures, constant = total.summarize(names), _best_constant(total.confusion, names)
    return LabelSummary(name, names, figures, table, pixels, len(images), constant)


def _best_constant(confusion: np.ndarray, names: Sequence[str]) -> tuple[str, float]:
    """The class that labels every pixel best, and the mIoU of that, in percent.

    Its IoU is its share of the pixels; that of every other class that exists is 0.
    """
    truth = confusion.sum(axis=1)
    best, present = int(truth.argmax()), int((truth > 0).sum())
    return names[best], 100.0 * float(truth[best]) / max(int(truth.sum()), 1) / max(present, 1)


def _compare(
    task: tuple[TruthImage, str], *, truth: GroundTruth
) -> str | tuple[dict[str, Any], dict[int, int]]:
    """Records of one image, and ignored pixels by instance; or what is wrong with it."""
    image, path = task
    try:
        semantic, instances = truth.read(image)
        label = read_label_map(path)
    except (OSError, ValueError) as error:
        return str(error)
    if instances is None:
        return f"{image.where}: no instance map, and objects are counted one by one"
    left_out = label == IGNORE_LABEL
    accumulator = Accumulator(len(truth.class_names))
    try:
        accumulator.update(image.image_id, np.where(left_out, 0, label), semantic, instances)
    except (TypeError, ValueError) as error:
        return f"{path} (ground truth {image.where}): {error}"
    valid = (semantic != IGNORE_LABEL) & (instances != IGNORE_LABEL)
    numbers, counts = np.unique(instances[left_out & valid], return_counts=True)
    return accumulator.state(), dict(zip(numbers.tolist(), counts.tolist()))
