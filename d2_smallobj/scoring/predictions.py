"""Read predictions: a folder of label maps, or detectron2's JSON file of run lengths.

Legend: H, W height and width of an image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Union

import numpy as np

from d2_smallobj.annotations.cityscapes import predicted_train_ids
from d2_smallobj.annotations.coco_file import decode_mask
from d2_smallobj.annotations.label_maps import LabelFolder, label_size, read_labels
from d2_smallobj.annotations.truth import TruthImage
from d2_smallobj.utils.problems import Problems

JSON_NAME = "sem_seg_predictions.json"
"""File name that detectron2's SemSegEvaluator writes."""

Entry = Union[str, tuple[tuple[int, Any], ...]]
"""One prediction: a file, or pairs of label and run lengths."""


class FolderPredictions:
    """Label maps in a folder, ``<image>.png`` or ``.npy``; ValueError if there is none."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._folder = LabelFolder(path, "--predictions")
        self.path = self._folder.path

    def names(self) -> list[str]:
        """Return the names of all predictions."""
        return list(self._folder.files)

    def find(self, image: TruthImage) -> tuple[str, Entry] | None:
        """Return name and prediction of an image, or ``None``; ValueError if two files claim it."""
        for stem in image.stems:
            if stem in self._folder.ambiguous:
                raise ValueError(" and ".join(self._folder.ambiguous[stem]))
            if stem in self._folder.files:
                return stem, self._folder.find(stem)
        return None


class JsonPredictions:
    """detectron2's ``sem_seg_predictions.json``: run lengths by ``file_name`` and class.

    An image is known by the last part of its ``file_name`` without suffix; no file is opened by
    that name. ``category_id`` is the label, or the data set's own id where the metadata have
    ``stuff_dataset_id_to_contiguous_id``. Every pixel must have exactly one label, as detectron2
    writes it: any other choice would be a guess. ``classes`` gives the class by ``category_id``;
    ``None``: they are the same. Malformed entries are one :class:`InputError` that lists them.
    """

    def __init__(
        self, path: str | os.PathLike[str], classes: Mapping[int, int] | None = None
    ) -> None:
        self.path = Path(path)
        self._classes = classes
        self._entries: dict[str, list[tuple[int, Any]]] = {}
        try:
            content = json.loads(self.path.read_bytes())
        except FileNotFoundError as error:
            raise FileNotFoundError(
                error.errno, "--predictions: no such folder or JSON file", os.fspath(path)
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}: not a complete JSON file ({error})") from error
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
    path: str | os.PathLike[str], json_classes: Mapping[int, int] | None = None
) -> Predictions:
    """Open a folder of label maps, the JSON file (classes by ``category_id``), or its folder."""
    path = Path(path)
    if not path.is_dir():
        return JsonPredictions(path, json_classes)
    if (path / JSON_NAME).is_file():
        try:
            LabelFolder(path, "--predictions")
        except ValueError:
            return JsonPredictions(path / JSON_NAME, json_classes)
    return FolderPredictions(path)


def check_prediction(entry: Entry, size: tuple[int, int]) -> str | None:
    """Say how a prediction's size differs from (H, W), without decoding it; ``None`` if it fits."""
    if isinstance(entry, str):
        found = [label_size(entry)]
    else:
        found = [tuple(runs["size"]) for _, runs in entry]
    for height, width in found:
        if (height, width) != size:
            return f"{height} x {width} instead of {size[0]} x {size[1]}"
    return None


def read_prediction(
    entry: Entry, size: tuple[int, int], where: str, *, label_ids: bool = False
) -> np.ndarray:
    """Read a prediction as (H, W) integers; ``where`` names run lengths in messages.

    ``label_ids``: it holds Cityscapes' label ids, to become train ids. Raises OSError or ValueError
    for a missing or corrupt file, or a pixel with no label or several.
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
