"""Name the predictions and the ground truth of a run, and open them, now or in a later process."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Union

import numpy as np

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
from d2_smallobj.metrics import component_instances
from d2_smallobj.scoring.predictions import Predictions, open_predictions, read_prediction
from d2_smallobj.utils.files import require_files
from d2_smallobj.utils.installation import explain_missing
from d2_smallobj.utils.messages import UsageError, look_up_option

SOURCE_KINDS = ("prediction", "semantic", "instances", "image")
"""Kinds of files of an image, in this order."""
Source = Union[str, Callable[[], np.ndarray]]
Sources = Mapping[str, Mapping[str, Source]]

PREDICTION_IDS = ("train", "label")
DatasetOpener = Callable[..., GroundTruth]
_KINDS = ("semantic", "coco_json", "lvis_json", "panoptic", "cityscapes", "dataset")
_FILES = (
    *("semantic", "instances", "coco_json", "lvis_json", "panoptic", "panoptic_maps"),
    *("cityscapes", "category_map", "image_list", "pictures"),
)
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
        missing_instances: images without instances: ``"error"``, ``"components"`` or ``"void"``.
        unannotated: with ``dataset``, the class of pixels without annotation, or ``"void"``.
        prediction_ids: with ``cityscapes``, ids in the predictions: ``"train"`` or ``"label"``.
        classes: see :func:`.classes.read_class_names`; default: the file's, or VOC's for folders.
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
            raise UsageError(
                f"ground truth: give one of {', '.join(map(_flag, _KINDS))}; got "
                f"{' and '.join(map(_flag, given)) or 'none'}"
            )
        for name, partners in PARTNERS.items():
            if getattr(self, name) is not None and given[0] not in partners:
                raise UsageError(
                    f"{_flag(name)} goes with {' or '.join(map(_flag, partners))}, not with "
                    f"{_flag(given[0])}"
                )
        if self.panoptic is not None and self.panoptic_maps is None:
            raise UsageError(f"--panoptic: give the folder of the PNGs, too: {self.panoptic} DIR")
        if self.prediction_ids is not None:
            look_up_option("--prediction-ids", self.prediction_ids, PREDICTION_IDS)

    def describe(self) -> dict[str, str]:
        """Return all paths and names that are given, as text for ``metrics.json``."""
        given = {k: v for k, v in vars(self).items() if v is not None and k != "open_dataset"}
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
        except (TypeError, RecursionError, json.JSONDecodeError, UsageError) as error:
            raise ValueError(f"inputs: {error}") from error

    def open_truth(self, *, label_maps: bool = True) -> GroundTruth:
        """Open the ground truth; OSError, ValueError, or ImportError (``dataset`` without torch).

        Without ``label_maps``, an annotation file may have more categories than a map has labels.
        """
        self._require_files()
        listed = None
        if self.image_list is not None:
            listed = [image.image_id for image in read_image_list(self.image_list)]
        if self.dataset is not None:
            truth = self._open_registered(listed)
        elif self.panoptic is not None:
            assert self.panoptic_maps is not None
            truth = panoptic_truth(self.panoptic, self.panoptic_maps, listed=listed)
        elif self.cityscapes is not None:
            truth = cityscapes_truth(self.cityscapes, listed=listed)
        else:
            truth = self._open_files(listed, label_maps)
        if self.stuff is not None and self.dataset is None:
            truth.stuff = stuff_ids(self.stuff, truth.class_names, "--stuff")
        return truth if self.pictures is None else with_pictures(truth, self.pictures)

    def _require_files(self) -> None:
        """Name all files and folders that are missing at once, before one is read."""
        flags = {"image_list": "--list", "panoptic_maps": "--panoptic"}
        require_files((flags.get(name, _flag(name)), getattr(self, name)) for name in _FILES)

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
                f"--dataset: registered data sets need torch ({explain_missing(error) or error}); "
                "or name the folders with --semantic and --instances, or the file with --coco-json"
            ) from error

    def _open_files(self, listed: Sequence[str] | None, label_maps: bool) -> GroundTruth:
        """Open folders of label maps or an annotation file, which do not tell their stuff."""
        names = None if self.classes is None else read_class_names(self.classes)
        stuff = default_stuff(self.classes, names or ()) if self.stuff is None else ()
        if self.semantic is not None:
            truth = folder_truth(self.semantic, self.instances, listed=listed)
            truth.class_names, truth.stuff = names or VOC_CLASS_NAMES, stuff
            return truth
        kind, path = ("coco", self.coco_json) if self.coco_json else ("lvis", self.lvis_json)
        assert path is not None
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
    return next(label for label in (given, own, 255) if label is not None)


class PixelSources(Sources):
    """The pixels behind a run, by image id and kind.

    Values are files, or functions that return the array where there is none (annotations, run
    lengths). The first such call opens the inputs again; without a ``description``
    (:meth:`.Inputs.describe`) there are only files, ``files``, by image id in the order of
    :data:`SOURCE_KINDS`.
    """

    def __init__(
        self,
        files: Mapping[str, Sequence[str]],
        description: Mapping[str, Any] | None = None,
        open_dataset: DatasetOpener | None = None,
    ) -> None:
        self.files = files
        self._description = description
        self._open_dataset = open_dataset

    def __getitem__(self, image_id: str) -> Mapping[str, Source]:
        paths = zip(SOURCE_KINDS, self.files[image_id])
        found: dict[str, Source] = {kind: path for kind, path in paths if path}
        if self._description is None:
            return found
        # Ground truth in files: without an instance map, there is none.
        if "semantic" not in found:
            for place, kind in enumerate(("semantic", "instances")):
                found[kind] = functools.partial(self._truth_map, image_id, place)
        found.setdefault("prediction", functools.partial(self._prediction, image_id))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def _truth_map(self, image_id: str, which: int) -> np.ndarray:
        truth = self._opened[1]
        maps = truth.read(self._image(image_id))
        wanted = maps[which]
        if wanted is not None:
            return wanted
        ignore_label = choose_ignore_label(None, truth)
        return component_instances(maps[0], stuff=truth.stuff, ignore_label=ignore_label)

    def _prediction(self, image_id: str) -> np.ndarray:
        image, (inputs, truth, _) = self._image(image_id), self._opened
        found = self._predictions.find(image)
        if found is None:
            raise ValueError(
                f"prediction of {image_id!r} not found; were the predictions changed since scoring?"
            )
        where, label_ids = f"prediction of {image_id}", inputs.prediction_ids == "label"
        return read_prediction(found[1], truth.size(image), where, label_ids=label_ids)

    def _image(self, image_id: str) -> TruthImage:
        image = self._opened[2].get(image_id)
        if image is None:
            raise ValueError(
                f"ground truth of {image_id!r} not found; were the inputs moved since scoring?"
            )
        return image

    @functools.cached_property
    def _opened(self) -> tuple[Inputs, GroundTruth, dict[str, TruthImage]]:
        assert self._description is not None
        inputs = Inputs.from_description(self._description, self._open_dataset)
        truth = inputs.open_truth()
        return inputs, truth, {image.image_id: image for image in truth.images}

    @functools.cached_property
    def _predictions(self) -> Predictions:
        inputs, truth, _ = self._opened
        return open_predictions(inputs.predictions, truth.json_classes)
