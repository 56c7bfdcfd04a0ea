"""What a command names as its inputs, and how they are opened (again, for a report's pictures)."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from d2_smallobj.annotations.benchmark_truth import cityscapes_truth, panoptic_truth
from d2_smallobj.annotations.class_names import VOC_CLASS_NAMES
from d2_smallobj.annotations.classes import (
    choose_categories,
    default_stuff,
    read_class_names,
    stuff_ids,
)
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.truth import AnnotationTruth, GroundTruth, folder_truth, with_pictures
from d2_smallobj.scoring.plan import read_list
from d2_smallobj.scoring.predictions import FolderPredictions, JsonPredictions, open_predictions
from d2_smallobj.utils.options import look_up_option

PREDICTION_IDS = ("train", "label")
_DEFAULT_IGNORE = 255
_KINDS = ("semantic", "coco_json", "lvis_json", "panoptic", "cityscapes", "dataset")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Paths and names of the inputs, as the user gave them; ``None`` = not given.

    Exactly one of ``semantic``, ``coco_json``, ``lvis_json``, ``panoptic``, ``cityscapes`` and
    ``dataset`` is the ground truth.

    Attributes:
        predictions: folder of label maps, or detectron2's JSON file.
        semantic: folder of semantic maps.
        instances: folder of instance maps, with ``semantic`` only.
        coco_json: COCO annotation file.
        lvis_json: LVIS annotation file.
        panoptic: COCO panoptic file.
        panoptic_maps: folder of its PNGs.
        cityscapes: folder ``gtFine``, or a split of it.
        dataset: name of a data set registered with detectron2.
        stuff: names of the classes that have no instances; ``()``: all have; default: what the
            ground truth says, and background otherwise.
        missing_instances: what images without instances are, with ``dataset``: ``"error"``
            (default), ``"components"`` or ``"void"``.
        unannotated: what pixels without annotation are, with ``dataset``, so that a detection set
            can be painted: a class, or ``"void"``.
        prediction_ids: what predictions hold, with ``cityscapes``: ``"train"`` or ``"label"``
            ids; default: ``"train"``.
        classes: see :func:`d2_smallobj.annotations.classes.read_class_names`; default: those of the
            annotation file or the data set, and VOC's for folders.
        category_map: see :func:`d2_smallobj.annotations.classes.choose_categories`.
        image_list: file that lists the images to score; default: all of the ground truth.
        pictures: folder of the pictures themselves, for a report.
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

    def __post_init__(self) -> None:
        """Check that there is one ground truth and that the rest goes with it.

        Raises:
            ValueError: there is none or more than one, or an option does not go with it.
        """
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"ground truth: give one of {', '.join(map(_flag, _KINDS))}; got "
                f"{' and '.join(map(_flag, given)) or 'none'}"
            )
        for name, partners in {
            "instances": ("semantic",),
            "category_map": ("coco_json", "lvis_json"),
            "panoptic_maps": ("panoptic",),
            "prediction_ids": ("cityscapes",),
            "missing_instances": ("dataset",),
            "unannotated": ("dataset",),
        }.items():
            if getattr(self, name) is not None and given[0] not in partners:
                raise ValueError(
                    f"{_flag(name)} goes with {' or '.join(map(_flag, partners))}, not with "
                    f"{_flag(given[0])}"
                )
        if self.dataset is not None and self.classes is not None:
            raise ValueError("--classes: a registered data set has its own classes")
        if given[0] in ("panoptic", "cityscapes") and self.classes is not None:
            raise ValueError(f"--classes: {_flag(given[0])} has its own classes")
        if self.panoptic is not None and self.panoptic_maps is None:
            raise ValueError(f"--panoptic: name the folder of the PNGs, too: {self.panoptic} DIR")
        if self.prediction_ids is not None:
            look_up_option("--prediction-ids", self.prediction_ids, PREDICTION_IDS)

    def describe(self) -> dict[str, str]:
        """What was given, to be written down."""
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        if self.stuff is not None:
            # Names may hold any sign.
            given["stuff"] = json.dumps(list(self.stuff), ensure_ascii=False)
        return {name: str(value) for name, value in given.items()}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Inputs:
        """Rebuild from :meth:`describe`.

        Raises:
            ValueError: it is incomplete or has other keys.
        """
        given: dict[str, Any] = {str(key): str(value) for key, value in description.items()}
        try:
            if "stuff" in given:
                given["stuff"] = tuple(map(str, json.loads(given["stuff"])))
            return cls(**given)
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"inputs: {error}") from error

    def open_predictions(self, truth: GroundTruth) -> FolderPredictions | JsonPredictions:
        """Open the predictions; errors as :func:`d2_smallobj.scoring.predictions`."""
        return open_predictions(self.predictions, truth.json_classes)

    def open_truth(self) -> GroundTruth:
        """Open the ground truth, with its class names and stuff classes.

        Raises:
            FileNotFoundError, NotADirectoryError: something is missing.
            ValueError: a file is malformed; :class:`.problems.InputError` if it is several.
            ImportError: a registered data set is wanted and detectron2 or torch is missing.
        """
        listed = None if self.image_list is None else read_list(self.image_list)
        if self.dataset is not None:
            truth = _registered_truth(
                self.dataset,
                listed=listed,
                stuff=self.stuff,
                missing_instances=self.missing_instances or "error",
                unannotated=self.unannotated,
            )
        elif self.panoptic is not None:
            truth = panoptic_truth(self.panoptic, self.panoptic_maps, listed=listed)
        elif self.cityscapes is not None:
            truth = cityscapes_truth(self.cityscapes, listed=listed)
        else:
            truth = self._open_classless(listed)
        if self.stuff is not None and self.dataset is None:
            truth.choose_stuff(stuff_ids(self.stuff, truth.class_names, "--stuff"))
        return truth if self.pictures is None else with_pictures(truth, self.pictures)

    def _open_classless(self, listed: Sequence[str] | None) -> GroundTruth:
        """Open what does not tell all about its classes: folders, annotation files."""
        names = None if self.classes is None else read_class_names(self.classes)
        stuff = default_stuff(self.classes, names or ()) if self.stuff is None else None
        if self.semantic is not None:
            truth = folder_truth(self.semantic, self.instances, listed=listed)
            truth.class_names, truth.stuff = names or VOC_CLASS_NAMES, stuff
            return truth
        kind = "coco" if self.coco_json is not None else "lvis"
        path = self.coco_json if self.coco_json is not None else self.lvis_json
        annotations = InstanceAnnotations(
            path,
            kind=kind,
            category_map=choose_categories(path, names, self.category_map),
            class_names=names,
        )
        truth = AnnotationTruth(annotations, path, listed=listed)
        truth.choose_stuff(stuff)
        return truth


def _registered_truth(name: str, **options: Any) -> GroundTruth:
    """The ground truth of a registered data set; only here detectron2 is needed, and torch."""
    try:
        from d2_smallobj.data.ground_truth import open_dataset
    except ImportError as error:
        raise ImportError(
            f"--dataset: registered data sets need torch ({error}); name the folders with "
            "--semantic and --instances, or the file with --coco-json, instead"
        ) from error
    return open_dataset(name, **options)


def choose_ignore_label(given: int | None, truth: GroundTruth) -> int:
    """The label of ignored pixels: the given one, the ground truth's, or 255.

    Raises:
        ValueError: the ground truth has another one than is given.
    """
    own = truth.ignore_label
    if given is not None and own is not None and given != own:
        raise ValueError(f"--ignore-label: this ground truth ignores {own}, got {given}")
    return next(label for label in (given, own, _DEFAULT_IGNORE) if label is not None)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def import_registrations(modules: Sequence[str]) -> None:
    """Import the modules with which a project registers its data sets.

    They are named by the user on the command line and never written down with a run: no file of a
    run leads to code.

    Args:
        modules: names such as ``mask_former.data``, found as Python finds modules.

    Raises:
        ImportError: one cannot be imported, for whatever reason; names it.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ImportError(
                f"--import {name}: {type(error).__name__}: {error} (run this in the project's"
                " folder with PYTHONPATH=. and its packages installed)"
            ) from error
