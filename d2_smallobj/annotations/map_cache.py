"""Keep label maps that are painted from annotation files, outside the user's folders.

::

    $D2_SMALLOBJ_CACHE, else $XDG_CACHE_HOME/d2_smallobj, else ~/.cache/d2_smallobj
      painted/<key>/semantic/<file name of the image>.png
      painted/<key>/instances/<file name of the image>.png

The key is a digest of the file's content and of the choice of classes, so that a file that changed
is painted anew. Painting "area" of :mod:`d2_smallobj.annotations.coco`: the smaller object on top,
crowds 255.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from d2_smallobj.annotations.coco import Annotation, InstanceAnnotations, paint
from d2_smallobj.annotations.coco_file import Id
from d2_smallobj.annotations.dataset_files import FileCheck
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.utils.files import file_sha256
from d2_smallobj.utils.messages import itemized
from d2_smallobj.utils.parallel import parallel_map

VARIABLE = "D2_SMALLOBJ_CACHE"
_VERSION = "1"
"""Raised whenever the same file is painted otherwise."""
_KEY_LENGTH = 24
_logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder of what is made once from a user's files."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(os.path.abspath(os.path.expanduser(given)))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(os.path.abspath(os.path.expanduser(base)), "d2_smallobj")


def cache_error(error: OSError) -> OSError:
    """The error about a cache that cannot be written, which names the variable."""
    reason = error.strerror or error
    text = f"the cache {cache_folder()} cannot be written ({reason}): set {VARIABLE} to a folder"
    return OSError(f"{text} that can")


class MapCache:
    """The painted maps of an annotation file with a choice of classes.

    Args:
        json_path: the annotation file.
        class_ids: class by category id.
    """

    def __init__(self, json_path: str | os.PathLike[str], class_ids: Mapping[Id, int]) -> None:
        self._json_path = os.fspath(json_path)
        self._class_ids = dict(class_ids)
        state = os.stat(json_path)
        content = _digest(os.path.abspath(json_path), state.st_mtime_ns, state.st_size)
        text = f"{_VERSION} {content} {sorted(self._class_ids.items(), key=repr)!r}"
        key = hashlib.sha256(text.encode("utf-8")).hexdigest()[:_KEY_LENGTH]
        self.folder = cache_folder() / "painted" / key

    def files(self, file_name: str) -> tuple[str, str]:
        """Semantic and instance map of an image, by its path below the folder of images."""
        return (
            os.path.join(self.folder, "semantic", f"{file_name}.png"),
            os.path.join(self.folder, "instances", f"{file_name}.png"),
        )

    def paint(self, image_ids: Mapping[str, Id], *, jobs: int = 1) -> None:
        """Paint the maps that are missing.

        Args:
            image_ids: id of every image by its path below the folder of images.
            jobs: number of processes.

        Raises:
            OSError: the cache cannot be written.
            ValueError: a mask is malformed; all other images are painted.
        """
        check = FileCheck("")
        missing = [n for n in image_ids if not all(map(check.exists, self.files(n)))]
        if not missing:
            return
        annotations = InstanceAnnotations(self._json_path, category_map=self._class_ids)
        _logger.info("painting the masks of %s into %s", self._json_path, self.folder)
        # Another process that paints the same begins elsewhere, so that they share the work.
        start = os.getpid() * 7919 % len(missing)
        tasks = [
            (*self.files(name), annotations.annotations(number), annotations.image_size(number))
            for name in missing[start:] + missing[:start]
            for number in [image_ids[name]]
        ]
        write = functools.partial(_paint_image, source=self._json_path)
        try:
            os.makedirs(self.folder, exist_ok=True)
            done = parallel_map(write, tasks, jobs=jobs, description="masks", progress=True)
            problems = sorted(problem for problem in done if problem)
        except OSError as error:
            raise cache_error(error) from error
        if problems:
            what = "image(s) whose masks cannot be painted"
            raise ValueError(f"{self._json_path}: {itemized(what, problems)}")


def _paint_image(
    task: tuple[str, str, Sequence[Annotation], tuple[int, int]], *, source: str
) -> str:
    """Paint one image; returns what is wrong with its annotations, if anything is."""
    semantic_path, instances_path, annotations, size = task
    if os.path.exists(semantic_path) and os.path.exists(instances_path):
        return ""
    try:
        semantic, instances = paint(annotations, *size, source=source)
    except ValueError as error:
        return str(error)
    write_label_map(instances_path, instances)
    write_label_map(semantic_path, semantic)
    return ""


@functools.lru_cache(maxsize=8)
def _digest(path: str, modified: int, size: int) -> str:
    """SHA-256 of a file; time and size only tell one state of the file from another."""
    return file_sha256(path)
