"""Open predictions and ground truth, and pair them image by image."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from d2_smallobj.annotations.classes import (
    VOC_CLASS_NAMES,
    choose_categories,
    default_stuff,
    read_class_names,
    stuff_ids,
)
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.image_lists import read_image_list
from d2_smallobj.annotations.truth import (
    GroundTruth,
    TruthImage,
    annotation_truth,
    cityscapes_truth,
    folder_truth,
    panoptic_truth,
    with_pictures,
)
from d2_smallobj.scoring.predictions import Entry, Predictions, check_prediction
from d2_smallobj.utils.messages import LIMIT
from d2_smallobj.utils.options import look_up_option
from d2_smallobj.utils.problems import Problems

PREDICTION_IDS = ("train", "label")
DatasetOpener = Callable[..., GroundTruth]
_DEFAULT_IGNORE = 255
_KINDS = ("semantic", "coco_json", "lvis_json", "panoptic", "cityscapes", "dataset")
PARTNERS = {
    "instances": ("semantic",),
    "category_map": ("coco_json", "lvis_json"),
    "panoptic_maps": ("panoptic",),
    "prediction_ids": ("cityscapes",),
    "missing_instances": ("dataset",),
    "unannotated": ("dataset",),
    "classes": ("semantic", "coco_json", "lvis_json"),
}
"""Ground truths that an option goes with."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Paths and names of predictions and ground truth; ``None``: not given.

    Exactly one of ``semantic``, ``coco_json``, ``lvis_json``, ``panoptic``, ``cityscapes`` and
    ``dataset`` is the ground truth.

    Attributes:
        predictions: folder of label maps, or detectron2's JSON file (:mod:`.predictions`).
        semantic: folder of semantic maps.
        instances: folder of instance maps, with ``semantic``.
        coco_json: COCO annotation file.
        lvis_json: LVIS annotation file.
        panoptic: COCO panoptic file.
        panoptic_maps: folder of its PNGs.
        cityscapes: folder ``gtFine``, or a split of it.
        dataset: name of a data set registered with detectron2; needs ``open_dataset``.
        stuff: names of the classes without instances; default: the ground truth's, or background.
        missing_instances: with ``dataset``, how to treat images without instances: ``"error"``
            (default), ``"components"`` or ``"void"``.
        unannotated: with ``dataset``, the class of pixels without annotation, or ``"void"``.
        prediction_ids: with ``cityscapes``, ids in the predictions: ``"train"`` (default) or
            ``"label"``.
        classes: see :func:`.classes.read_class_names`; default: those of the annotation file, and
            VOC's for folders.
        category_map: see :func:`.classes.choose_categories`.
        image_list: text file of the images to score; default: all images.
        pictures: folder of the pictures, for a report.
        open_dataset: :func:`d2_smallobj.data.ground_truth.open_dataset`, or one like it.
    """

    predictions: str
    semantic: str | None = None
    instances: str | None = None
    coco_json: str | None = None
    lvis_json: str | None = None
    panoptic: str | None = None
    panoptic_maps: str | None = None
    cityscapes: str | None = None
    dataset: str | None = None
    stuff: tuple[str, ...] | None = None
    missing_instances: str | None = None
    unannotated: str | None = None
    prediction_ids: str | None = None
    classes: str | None = None
    category_map: str | None = None
    image_list: str | None = None
    pictures: str | None = None
    open_dataset: DatasetOpener | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check that there is exactly one ground truth and that the other options go with it."""
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"ground truth: give one of {', '.join(map(_flag, _KINDS))}; got "
                f"{' and '.join(map(_flag, given)) or 'none'}"
            )
        for name, partners in PARTNERS.items():
            if getattr(self, name) is not None and given[0] not in partners:
                raise ValueError(
                    f"{_flag(name)} goes with {' or '.join(map(_flag, partners))}, not with "
                    f"{_flag(given[0])}"
                )
        if self.panoptic is not None and self.panoptic_maps is None:
            raise ValueError(f"--panoptic: give the folder of the PNGs, too: {self.panoptic} DIR")
        if self.prediction_ids is not None:
            look_up_option("--prediction-ids", self.prediction_ids, PREDICTION_IDS)

    def describe(self) -> dict[str, str]:
        """Return all paths and names that are given, as text for ``metrics.json``."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given = {k: v for k, v in values.items() if v is not None and k != "open_dataset"}
        if self.stuff is not None:
            # JSON, since names may hold any character.
            given["stuff"] = json.dumps(list(self.stuff), ensure_ascii=False)
        return {name: str(value) for name, value in given.items()}

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], open_dataset: DatasetOpener | None = None
    ) -> Inputs:
        """Rebuild the inputs from :meth:`describe`; ValueError if keys are missing or unknown."""
        given: dict[str, Any] = {str(key): str(value) for key, value in description.items()}
        try:
            if "stuff" in given:
                given["stuff"] = tuple(map(str, json.loads(given["stuff"])))
            return cls(**given, open_dataset=open_dataset)
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"inputs: {error}") from error

    def open_truth(self, *, label_maps: bool = True) -> GroundTruth:
        """Open the ground truth, with its class names and stuff classes.

        Without ``label_maps``, an annotation file may have more categories than an 8-bit label map
        has labels. Raises OSError, ValueError or ImportError (a registered data set without torch).
        """
        listed = None
        if self.image_list is not None:
            listed = [image.image_id for image in read_image_list(self.image_list)]
        if self.dataset is not None:
            truth = self._open_registered(listed)
        elif self.panoptic is not None:
            truth = panoptic_truth(self.panoptic, self.panoptic_maps, listed=listed)
        elif self.cityscapes is not None:
            truth = cityscapes_truth(self.cityscapes, listed=listed)
        else:
            truth = self._open_files(listed, label_maps)
        if self.stuff is not None and self.dataset is None:
            truth.stuff = stuff_ids(self.stuff, truth.class_names, "--stuff")
        return truth if self.pictures is None else with_pictures(truth, self.pictures)

    def _open_registered(self, listed: Sequence[str] | None) -> GroundTruth:
        """Open a registered data set with the function that was handed in."""
        if self.open_dataset is None:
            raise ValueError(
                f"data set {self.dataset!r}: give open_dataset, a function that opens registered "
                "data sets (d2_smallobj.data.ground_truth.open_dataset)"
            )
        try:
            return self.open_dataset(
                self.dataset,
                listed=listed,
                stuff=self.stuff,
                missing_instances=self.missing_instances or "error",
                unannotated=self.unannotated,
            )
        except ImportError as error:
            raise ImportError(
                f"--dataset: registered data sets need torch ({error}); name the folders with "
                "--semantic and --instances, or the file with --coco-json, instead"
            ) from error

    def _open_files(self, listed: Sequence[str] | None, label_maps: bool) -> GroundTruth:
        """Open folders of label maps or an annotation file, which do not tell their stuff."""
        names = None if self.classes is None else read_class_names(self.classes)
        stuff = default_stuff(self.classes, names or ()) if self.stuff is None else None
        if self.semantic is not None:
            truth = folder_truth(self.semantic, self.instances, listed=listed)
            truth.class_names, truth.stuff = names or VOC_CLASS_NAMES, stuff
            return truth
        kind, path = ("coco", self.coco_json) if self.coco_json else ("lvis", self.lvis_json)
        chosen = (self.classes, self.category_map, self.stuff) != (None, None, None)
        label_maps = label_maps or chosen
        annotations = InstanceAnnotations(
            path,
            kind=kind,
            category_map=choose_categories(path, names, self.category_map) if label_maps else None,
            class_names=names,
            label_maps=label_maps,
        )
        truth = annotation_truth(annotations, listed=listed)
        truth.stuff = stuff
        return truth


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def choose_ignore_label(given: int | None, truth: GroundTruth) -> int:
    """Return the label of ignored pixels: given, the ground truth's (they must agree), or 255."""
    own = truth.ignore_label
    if given is not None and own is not None and given != own:
        raise ValueError(f"--ignore-label: this ground truth ignores {own}, got {given}")
    return next(label for label in (given, own, _DEFAULT_IGNORE) if label is not None)


@dataclasses.dataclass(frozen=True)
class Task:
    """One image to score: its ground truth, its prediction, its height and width."""

    truth: TruthImage
    prediction: Entry
    size: tuple[int, int]

    @property
    def where(self) -> str:
        """The prediction's name in messages."""
        if isinstance(self.prediction, str):
            return self.prediction
        return f"prediction of {self.truth.stems[0]}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The images to score by id, predictions without ground truth, problems of other images."""

    tasks: list[Task]
    unused: list[str]
    problems: Problems


def make_plan(
    truth: GroundTruth, predictions: Predictions, *, shard: tuple[int, int] = (1, 1)
) -> Plan:
    """Find the prediction of every image; compare sizes and modes by the files' headers alone.

    ``shard`` (i, n) takes every n-th image from the i-th on, in the order of ids: missing
    predictions are found for all images, headers checked for these only. Problems of single images
    are noted in the plan; a ground truth without images is a ValueError.
    """
    if not truth.images:
        raise ValueError("the ground truth has no images")
    problems = Problems()
    found: list[tuple[TruthImage, Entry]] = []
    used: dict[str, str] = {}
    for image in sorted(truth.images, key=lambda image: image.image_id):
        try:
            hit = predictions.find(image)
        except ValueError as error:
            problems.add("prediction(s) in two files each", str(error))
            continue
        if hit is None:
            problems.add("image(s) without a prediction", " or ".join(image.stems))
            continue
        name, entry = hit
        if name in used:
            both = f"{name}: {used[name]} and {image.image_id}"
            problems.add("prediction(s) that two images claim", both)
        used[name] = image.image_id
        found.append((image, entry))
    _check_ids(truth.images, problems)
    if len(problems) == len(truth.images):
        problems.add(
            "prediction name(s) found instead; do they belong to this data set?",
            ", ".join(sorted(predictions.names())[:LIMIT]),
        )
    part, parts = shard
    tasks = [_check(image, entry, truth, problems) for image, entry in found[part - 1 :: parts]]
    unused = sorted(set(predictions.names()) - set(used))
    return Plan([task for task in tasks if task is not None], unused, problems)


def _check_ids(images: Sequence[TruthImage], problems: Problems) -> None:
    """Refuse ids that are not unique or cannot be written to a file."""
    seen: set[str] = set()
    for image in images:
        if image.image_id in seen:
            problems.add("image id(s) used twice in the ground truth", image.image_id)
        seen.add(image.image_id)
        if not image.image_id.isprintable():
            # Surrogates of a file name that is not UTF-8, control characters.
            problems.add("image name(s) with unprintable characters", repr(image.image_id))


def _check(image: TruthImage, entry: Entry, truth: GroundTruth, problems: Problems) -> Task | None:
    """Compare the headers of one image; return ``None`` and note the problem if they differ."""
    try:
        task = Task(image, entry, truth.size(image))
    except (OSError, ValueError) as error:
        problems.add("unusable ground-truth map(s)", _reason(error))
        return None
    try:
        difference = check_prediction(entry, task.size)
    except (OSError, ValueError) as error:
        problems.add("unusable prediction(s)", _reason(error))
        return None
    if difference:
        problems.add(
            "prediction(s) of another height x width than the ground truth",
            f"{task.where}: {difference}",
        )
        return None
    return task


def _reason(error: Exception) -> str:
    """Return an error's text, with the file that an OSError names."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
