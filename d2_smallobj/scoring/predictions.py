"""Read predictions, and pair them with the images of the ground truth.

A prediction is a label map in a folder, or run lengths in detectron2's JSON file.
Legend: H, W height and width of an image.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Union

import numpy as np

from d2_smallobj.annotations.cityscapes import predicted_train_ids
from d2_smallobj.annotations.coco_file import Id, decode_mask
from d2_smallobj.annotations.label_maps import LabelFolder, label_size, read_labels
from d2_smallobj.annotations.truth import GroundTruth, TruthImage
from d2_smallobj.utils.files import read_json
from d2_smallobj.utils.messages import LIMIT, Problems

JSON_NAME = "sem_seg_predictions.json"
"""File name that detectron2's SemSegEvaluator writes."""

Entry = Union[str, tuple[tuple[int, Any], ...]]
"""One prediction: a file, or pairs of label and run lengths."""


class FolderPredictions:
    """Label maps in a folder, ``<image>.png`` or ``.npy``."""

    def __init__(self, folder: LabelFolder) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Return the names of all predictions."""
        return list(self._folder.files)

    def find(self, image: TruthImage) -> tuple[str, Entry] | None:
        """Return name and prediction of an image, or ``None``; ValueError if two files claim it."""
        for stem in image.stems:
            if stem in self._folder.ambiguous:
                raise ValueError(" and ".join(self._folder.ambiguous[stem]))
            path = self._folder.find(stem)
            if path is not None:
                return stem, path
        return None


class JsonPredictions:
    """detectron2's ``sem_seg_predictions.json``: run lengths by ``file_name`` and class.

    An image is known by the last part of its ``file_name`` without suffix; no file is opened by
    that name. ``classes`` gives the class by ``category_id``; ``None``: they are the same. Every
    pixel must have exactly one label: any other choice would be a guess.
    """

    def __init__(
        self, path: str | os.PathLike[str], classes: Mapping[Id, int] | None = None
    ) -> None:
        self.path = Path(path)
        self._classes = classes
        self._entries: dict[str, list[tuple[int, Any]]] = {}
        try:
            content = read_json(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                error.errno, "--predictions: no such folder or JSON file", os.fspath(path)
            ) from error
        if not isinstance(content, list) or not content:
            raise ValueError(
                f"{path}: predictions are a non-empty JSON list of file_name, category_id and"
                f" segmentation, as detectron2's {JSON_NAME}; got {type(content).__name__}"
            )
        self._sort(content)

    def names(self) -> list[str]:
        """Return the names of all predictions."""
        return list(self._entries)

    def find(self, image: TruthImage) -> tuple[str, Entry] | None:
        """Return name and prediction of an image, or ``None``."""
        for stem in image.stems:
            if stem in self._entries:
                return stem, tuple(self._entries[stem])
        return None

    def _sort(self, content: list[Any]) -> None:
        """Sort the entries by image."""
        problems = Problems()
        full_names: dict[str, str] = {}
        for number, entry in enumerate(content):
            error = _entry_error(entry)
            if error:
                problems.add(f"malformed entries of {self.path}", f"entry {number}: {error}")
                continue
            name = entry["file_name"]
            stem = _stem(name)
            if full_names.setdefault(stem, name) != name:
                both = f"{full_names[stem]} and {name}"
                problems.add(f"image(s) of {self.path} that share their name with another", both)
            category = entry["category_id"]
            label = category if self._classes is None else self._classes.get(category)
            if label is None:
                problems.add(
                    f"entries of {self.path} whose category_id is no category of the ground truth "
                    "(detectron2's SemSegEvaluator writes the data set's own ids, the keys of "
                    "stuff_dataset_id_to_contiguous_id; only label maps hold class ids)",
                    f"entry {number}: {category}",
                )
                continue
            self._entries.setdefault(stem, []).append((label, entry["segmentation"]))
        problems.raise_if_any()


Predictions = Union[FolderPredictions, JsonPredictions]


def open_predictions(
    path: str | os.PathLike[str], json_classes: Mapping[Id, int] | None = None
) -> Predictions:
    """Open a folder of label maps, the JSON file (classes by ``category_id``), or its folder."""
    path = Path(path)
    if not path.is_dir():
        return JsonPredictions(path, json_classes)
    try:
        return FolderPredictions(LabelFolder(path, "--predictions"))
    except ValueError:
        if not (path / JSON_NAME).is_file():
            raise
        return JsonPredictions(path / JSON_NAME, json_classes)


def check_prediction(entry: Entry, size: tuple[int, int]) -> str | None:
    """Say how a prediction's size differs from (H, W), without decoding it; ``None`` if it fits."""
    sizes = [label_size(entry)] if isinstance(entry, str) else [runs["size"] for _, runs in entry]
    for height, width in sizes:
        if (height, width) != size:
            return f"{height} x {width} instead of {size[0]} x {size[1]}"
    return None


def read_prediction(
    entry: Entry, size: tuple[int, int], where: str, *, label_ids: bool = False
) -> np.ndarray:
    """Read a prediction as (H, W) integers, label ids of Cityscapes as train ids.

    ``where`` names run lengths in messages. Raises OSError or ValueError for a missing or corrupt
    file, or a pixel with no label or several.
    """
    labels = read_labels(entry) if isinstance(entry, str) else _paint(entry, size, where)
    return predicted_train_ids(labels, where) if label_ids else labels


def _paint(entry: Sequence[tuple[int, Any]], size: tuple[int, int], where: str) -> np.ndarray:
    """Decode run lengths into a label map."""
    labels = np.zeros(size, np.int64)
    claims = np.zeros(size, np.int32)
    for label, runs in entry:
        mask = decode_mask(runs, *size, f"{where}, class {label}")
        labels[mask] = label
        claims += mask
    none, several = np.count_nonzero(claims == 0), np.count_nonzero(claims > 1)
    if none or several:
        raise ValueError(
            f"{where}: every pixel must have exactly one class; {none} px have none, {several} px "
            "have several"
        )
    return labels


def _stem(name: str) -> str:
    """Return the last part of a path of any system, without suffix."""
    return PurePosixPath(name.replace("\\", "/")).stem


def _entry_error(entry: Any) -> str:
    """Say what is wrong with an entry of the JSON file; empty if nothing is."""
    if not isinstance(entry, Mapping):
        return f"expected an object, got {type(entry).__name__}"
    missing = [key for key in ("file_name", "category_id", "segmentation") if key not in entry]
    if missing:
        return f"lacks {', '.join(missing)}"
    name, label, runs = entry["file_name"], entry["category_id"], entry["segmentation"]
    if not isinstance(name, str) or _stem(name) in ("", ".", ".."):
        return f"file_name must name a file, got {name!r}"
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < 2**31:
        return f"category_id must be a label >= 0, got {label!r}"
    size = runs.get("size") if isinstance(runs, Mapping) else None
    if not isinstance(size, list) or len(size) != 2 or "counts" not in runs:
        return f"segmentation must be run lengths with size [height, width] and counts ({name})"
    return ""


@dataclasses.dataclass(frozen=True)
class Task:
    """One image to score: its ground truth, its prediction, its height and width."""

    truth: TruthImage
    prediction: Entry
    size: tuple[int, int]

    @property
    def where(self) -> str:
        """The prediction's name in messages."""
        name = f"prediction of {self.truth.stems[0]}"
        return self.prediction if isinstance(self.prediction, str) else name


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

    ``shard`` (i, n): headers are checked for every n-th image from the i-th on, by id. Problems of
    single images are noted in the plan; a ground truth without images is a ValueError.
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
    return Plan(list(filter(None, tasks)), unused, problems)


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
    heading = "unusable ground-truth map(s)"
    try:
        task = Task(image, entry, truth.size(image))
        heading = "unusable prediction(s)"
        difference = check_prediction(entry, task.size)
    except (OSError, ValueError) as error:
        problems.add(heading, _reason(error))
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
