"""Put the evaluator beside those that a project already has."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any

from d2_smallobj.evaluation.evaluator import (
    TASK,
    SmallObjectEvaluator,
    check_task,
    evaluation_logger,
)
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

_HOST_TASKS = {
    "SemSegEvaluator": ("sem_seg",),
    "CityscapesSemSegEvaluator": ("sem_seg",),
    "CityscapesInstanceEvaluator": ("segm",),
    "COCOPanopticEvaluator": ("panoptic_seg",),
    "COCOEvaluator": ("bbox", "segm", "keypoints", "box_proposals"),
    "LVISEvaluator": ("bbox", "segm", "box_proposals"),
    "PascalVOCDetectionEvaluator": ("bbox",),
}
"""Result keys of detectron2's evaluators, known before hours of inference."""

_LONGEST = 100
"""Characters of a folder's name; names of data sets may hold several paths."""

_CITYSCAPES_PACKAGES = ("deeplearning", "cityscapesscripts")
"""Packages in which versions of detectron2 look for the Cityscapes scripts."""


def add_small_objects(
    evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    dataset_name: str,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> DatasetEvaluators:
    """Append the small-object evaluator to what any ``build_evaluator`` returned.

    .. code-block:: python

        return d2_smallobj.add_small_objects(evaluators, dataset_name, output_dir=output_folder)

    With ``[]`` ours runs alone, for Cityscapes where detectron2's own evaluator cannot run: it
    imports packages that only its authors have
    (https://github.com/facebookresearch/detectron2/issues/5436). One that is given here and could
    not run is left out with a warning, instead of ending the inference at its first image. Our
    mIoU is the benchmark's as long as every predicted class is in the ground truth, as on the
    whole val set: the Cityscapes scripts count a class that is predicted and present nowhere as 0;
    ours, as detectron2's ``SemSegEvaluator``, leaves it out.

    Args:
        evaluators: one, several in a list, or several as ``DatasetEvaluators``.
        dataset_name: registered name of the data set.
        output_dir: the project's folder of results; the run is written to
            ``<output_dir>/<task>/<dataset_name>``, apart from the training's ``metrics.json`` and
            other data sets. ``None`` writes nothing.
        **options: of :class:`~d2_smallobj.evaluation.evaluator.SmallObjectEvaluator`.

    Returns:
        All of them; their results have ours under ``task``.

    Raises:
        TypeError: ``evaluators`` holds something else.
        ValueError: one of them reports under the same key; otherwise as for the evaluator.
    """
    task = check_task(options.get("task", TASK))
    members = [member for member in _members(evaluators) if _can_run(member, dataset_name, task)]
    for member in _leaves(members):
        if task in _tasks_of(member):
            raise ValueError(
                f"task {task!r}: {type(member).__name__} reports under this key already;"
                " name another with task="
            )
    folder = (
        None if output_dir is None else os.path.join(output_dir, task, folder_name(dataset_name))
    )
    members.append(SmallObjectEvaluator(dataset_name, output_dir=folder, **options))
    return DatasetEvaluators(members)


def _members(evaluators: Any) -> list[DatasetEvaluator]:
    """List the evaluators; a subclass of ``DatasetEvaluators`` counts as one."""
    if evaluators is None:
        return []
    if type(evaluators) is DatasetEvaluators:
        return list(evaluators._evaluators)
    members = list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]
    wrong = [type(member).__name__ for member in members if not _evaluates(member)]
    if wrong:
        raise TypeError(
            "evaluators must be a DatasetEvaluator, DatasetEvaluators or a list of such (what"
            f" build_evaluator returns), got {', '.join(wrong)}"
        )
    return members


def _evaluates(value: Any) -> bool:
    return not isinstance(value, type) and all(
        callable(getattr(value, name, None)) for name in ("reset", "process", "evaluate")
    )


def _leaves(members: Sequence[Any]) -> Iterator[Any]:
    """Yield the members, and those inside of members that hold several."""
    for member in members:
        yield member
        if isinstance(member, DatasetEvaluators):
            yield from _leaves(member._evaluators)


def _tasks_of(member: Any) -> tuple[str, ...]:
    """Return the result keys that an evaluator is known to use, which may be none."""
    if isinstance(member, SmallObjectEvaluator):
        return (member.task,)
    known = (_HOST_TASKS.get(kind.__name__) for kind in type(member).__mro__)
    return next((tasks for tasks in known if tasks), ())


def _can_run(member: Any, dataset_name: str, task: str) -> bool:
    """Tell whether an evaluator can run; log a warning if it would end at its first image."""
    missing = _missing_packages(type(member))
    if not missing:
        return True
    evaluation_logger().warning(
        "%s: %s is left out: it needs the package %s, which is not installed"
        " (https://github.com/facebookresearch/detectron2/issues/5436). See the mIoU of %r"
        " instead; to avoid this warning, call add_small_objects([], ...).",
        dataset_name,
        type(member).__name__,
        " and ".join(missing),
        task,
    )
    return False


def _missing_packages(kind: type) -> list[str]:
    """List the missing packages that the methods of a Cityscapes evaluator import."""
    if not any(base.__name__.startswith("Cityscapes") for base in kind.__mro__):
        return []
    methods = [value for base in kind.__mro__ for value in vars(base).values()]
    functions = [method for method in methods if isinstance(method, FunctionType)]
    names = {name for method in functions for name in method.__code__.co_names if "." in name}
    packages = {name.partition(".")[0] for name in names}
    wanted = [package for package in _CITYSCAPES_PACKAGES if package in packages]
    return [package for package in wanted if importlib.util.find_spec(package) is None]


def folder_name(dataset_name: str) -> str:
    """Return a name that is one folder: ``voc_2012_trainaug@/data/mine`` has slashes."""
    plain = re.sub(r"[^\w.@+-]+", "_", dataset_name)
    if len(plain) <= _LONGEST:
        return plain
    digest = hashlib.sha256(dataset_name.encode("utf-8")).hexdigest()
    return f"{plain[:_LONGEST]}_{digest[:8]}"
