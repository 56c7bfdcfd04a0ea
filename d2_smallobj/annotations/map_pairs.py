"""List images with a folder of semantic PNGs and perhaps one of instance PNGs.

What a dict says of its maps (size, classes, boxes) is read from all of them once and kept in the
cache, until a file changes. Legend: H, W height and width of an image.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from d2_smallobj.annotations.boxes import IGNORE_LABEL, checked_boxes, instance_boxes
from d2_smallobj.annotations.dataset_files import FileCheck, decode_json
from d2_smallobj.annotations.image_lists import choose_listed
from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.annotations.label_rules import check_label_values
from d2_smallobj.annotations.map_cache import cache_error, cache_folder
from d2_smallobj.annotations.truth import PICTURES
from d2_smallobj.utils.files import atomic_write, check_names
from d2_smallobj.utils.messages import itemized, listed
from d2_smallobj.utils.parallel import parallel_map

_VERSION = "1"


class _Seen(msgspec.Struct, frozen=True):
    """What the maps of an image hold: its size, its classes and its boxes."""

    height: int
    width: int
    classes: list[int]
    boxes: list[tuple[int, int, int, int, int]]


class MapPairs:
    """A data set of label maps; making one reads nothing.

    The images are those that have a semantic map: ``<name>.png`` for ``<name>.jpg``.

    Args:
        images: folder of the images.
        semantic: folder of semantic maps: 0 background, 1..num_classes-1, 255 ignored.
        instances: folder of instance maps, 0 = none, 255 = void; ``None``: the connected components
            are the instances.
        num_classes: number of classes with background.
        list_file: text file of the images to take, one name with or without suffix a line;
            ``None``: all.
    """

    def __init__(
        self,
        images: str,
        semantic: str,
        instances: str | None = None,
        *,
        num_classes: int,
        list_file: str | None = None,
    ) -> None:
        self._images, self._semantic, self._instances = images, semantic, instances
        self._num_classes, self._list_file = num_classes, list_file

    def dicts(self, *, check: FileCheck | None = None) -> list[dict[str, Any]]:
        """List the images.

        Returns:
            One dict per image: ``file_name``, ``sem_seg_file_name``, ``image_id`` (str),
            ``height``, ``width``, ``image_classes``, ``boxes``, with instance maps
            ``ins_seg_file_name``. Where ``check`` passes over what is made on first use, those
            that tell of the maps are absent.

        Raises:
            FileNotFoundError: files are missing, or :meth:`look` has not been called; one error
                for all.
            ValueError: the list is bad, or two images have the same name.
        """
        found = self._files(check := check or FileCheck(self._semantic))
        index = self._index(found)
        if not check.require(index, one_of_many=False):
            check.raise_if_missing()
            return found
        seen = decode_json(index, list[_Seen], "expected what was seen in the maps")
        return [
            {
                **record,
                "height": x.height,
                "width": x.width,
                "image_classes": x.classes,
                "boxes": np.asarray(x.boxes, np.int32).reshape(-1, 5),
            }
            for record, x in zip(found, seen)
        ]

    def look(self, *, jobs: int = 1) -> None:
        """Read all maps, with progress, unless that is done; raises as :meth:`dicts`.

        Raises:
            OSError: the cache cannot be written; names its variable.
            ValueError: maps are damaged, have other labels or do not belong together.
        """
        found = self._files(FileCheck(self._semantic))
        index = self._index(found)
        if index.exists():
            return
        see = functools.partial(_see, num_classes=self._num_classes)
        results = list(parallel_map(see, found, jobs=jobs, description="label maps", progress=True))
        problems = [result for result in results if isinstance(result, str)]
        if problems:
            raise ValueError(f"{self._semantic}: {itemized('bad label map(s)', problems)}")
        try:
            with atomic_write(index) as file:
                file.write(msgspec.json.encode(results))
        except OSError as error:
            raise cache_error(error) from error

    def _files(self, check: FileCheck) -> list[dict[str, Any]]:
        """The files of every image; raises if any is missing."""
        folders = [self._images, self._semantic, *([self._instances] if self._instances else [])]
        for folder in folders:
            check.require_folder(folder)
        if self._list_file is not None:
            check.require(self._list_file, one_of_many=False)
        check.raise_if_missing()
        pictures: dict[str, list[str]] = {}
        for name in sorted(os.listdir(self._images)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in PICTURES:
                pictures.setdefault(stem, []).append(name)
        check_names(self._images, itertools.chain.from_iterable(pictures.values()))
        chosen = self._chosen(pictures)
        twice = [" and ".join(pictures[stem]) for stem in chosen if len(pictures.get(stem, ())) > 1]
        if twice:
            raise ValueError(f"{self._images}: images that share a label map: {listed(twice)}")
        records = []
        for stem in chosen:
            picture = pictures.get(stem, [f"{stem}.jpg"])[0]
            record: dict[str, Any] = {
                "file_name": os.path.join(self._images, picture),
                "sem_seg_file_name": os.path.join(self._semantic, f"{stem}.png"),
            }
            if self._instances:
                record["ins_seg_file_name"] = os.path.join(self._instances, f"{stem}.png")
            for path in record.values():
                check.require(path)
            records.append({**record, "image_id": stem})
        # What is missing is told before anything is read.
        check.raise_if_missing()
        return records

    def _chosen(self, pictures: dict[str, list[str]]) -> list[str]:
        """Names without suffix of the images."""
        stems = sorted(n[:-4] for n in os.listdir(self._semantic) if n.lower().endswith(".png"))
        if not stems:
            raise ValueError(f"{self._semantic}: there is no PNG in it")
        if self._list_file is None:
            return stems
        names = {stem: {stem} for stem in stems}
        for stem in stems:
            for name in pictures.get(stem, ()):
                names.setdefault(name, set()).add(stem)
        listed_stems = choose_listed(self._list_file, names, self._semantic)
        return [stem for stem in stems if stem in listed_stems]

    def _index(self, records: list[dict[str, Any]]) -> Path:
        """The file of what the maps hold; another one whenever a map changes."""
        digest = hashlib.sha256(f"{_VERSION} {self._num_classes}".encode())
        for record in records:
            for key in ("sem_seg_file_name", "ins_seg_file_name"):
                if key in record:
                    state = os.stat(record[key])
                    digest.update(f"\0{record[key]}\0{state.st_mtime_ns}\0{state.st_size}".encode())
        return cache_folder() / "maps" / f"{digest.hexdigest()[:24]}.json"


def _see(record: dict[str, Any], *, num_classes: int) -> _Seen | str:
    """Read the maps of an image; a sentence if they are bad."""
    path = record["sem_seg_file_name"]
    try:
        semantic, instances = read_label_map(path), None
        height, width = semantic.shape
        check_label_values(semantic, num_classes, IGNORE_LABEL, path)
        if "ins_seg_file_name" in record:
            path = record["ins_seg_file_name"]
            instances = read_label_map(path)
        boxes = checked_boxes(instance_boxes(semantic, instances), height, width, path)
    except (OSError, ValueError) as error:
        return str(error) if str(path) in str(error) else f"{path}: {error}"
    classes = [int(c) for c in np.unique(semantic) if c not in (0, IGNORE_LABEL)]
    return _Seen(height, width, classes, boxes.tolist())
