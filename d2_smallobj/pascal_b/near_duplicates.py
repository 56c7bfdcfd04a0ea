"""Find, check and copy the pictures of PASCAL-B, and leave out those that are also in VOC.

COCO and VOC were both collected on Flickr. The perceptual hash (pHash) of a picture are the signs
of its 64 lowest frequencies: rescaling, recompression and brightness hardly change it, another
picture changes half of its bits.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from d2_smallobj.annotations.dataset_files import resolve_inside
from d2_smallobj.annotations.image_files import open_picture
from d2_smallobj.annotations.image_lists import IMAGE_FOLDER
from d2_smallobj.pascal_b.candidates import Candidate
from d2_smallobj.utils.messages import itemized
from d2_smallobj.utils.opencv import cv2
from d2_smallobj.utils.parallel import parallel_map

MAX_DISTANCE = 8
"""Bits, of 64, in which near-duplicates may differ; unrelated pictures differ in 32 ± 4."""
_SIDE, _FREQUENCIES = 32, 8
_SPLITS = ("train2017", "val2017")
_BITS = np.array([bin(value).count("1") for value in range(256)], np.uint8)


def hash_picture(path: str | os.PathLike[str]) -> tuple[np.ndarray, tuple[int, int]]:
    """Hash a picture: uint8 (8,), and its height and width in pixels."""
    with open_picture(path) as image:
        width, height = image.size
        # JPEGs are decoded at a fraction of their size, several times as fast.
        image.draft("L", (2 * _SIDE, 2 * _SIDE))
        grey = np.asarray(image.convert("L"), np.float32)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small)[:_FREQUENCIES, :_FREQUENCIES].ravel()
    # The first is the brightness, many times as large as the others.
    return np.packbits(low > np.median(low[1:])), (height, width)


def nearest(hashes: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the most similar of R references, uint8 (R, 8), to each of M hashes, uint8 (M, 8).

    Returns its position and the number of bits that differ, 0..64: int64 (M,) each.
    """
    index, distance = np.zeros((2, len(hashes)), np.int64)
    for number, one in enumerate(hashes):
        differing = _BITS[references ^ one].sum(axis=1)
        index[number] = np.argmin(differing)
        distance[number] = differing[index[number]]
    return index, distance


def _hash_or_problem(path: str) -> tuple[np.ndarray, tuple[int, int]] | str:
    """Call :func:`hash_picture`; returns its error as text, so that all errors can be listed."""
    try:
        return hash_picture(path)
    except (OSError, ValueError) as error:
        return str(error)


class NearDuplicate(NamedTuple):
    """A picture of COCO that is also in VOC; their hashes differ in ``distance`` bits."""

    image_id: int
    voc_id: str
    distance: int


class PictureCheck:
    """Checks pictures below ``folder`` (``train2017``, ``val2017``), each of them once.

    Near-duplicates differ in at most ``max_distance`` of 64 bits from an image of ``voc``, a folder
    such as ``VOCdevkit/VOC2012``; None: they are not looked for.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        voc: str | os.PathLike[str] | None,
        *,
        max_distance: int,
        jobs: int = 1,
        progress: bool = False,
    ) -> None:
        self._folder = Path(folder)
        self._max_distance = max_distance
        self._jobs, self._progress = jobs, progress
        if not any((self._folder / split).is_dir() for split in _SPLITS):
            raise FileNotFoundError(
                f"{self._folder}: expected COCO's train2017 and val2017 in it, found neither; "
                "give --images, or --annotations-only"
            )
        self._known: dict[int, NearDuplicate | None] = {}
        self._voc_ids: list[str] = []
        if voc is not None:
            paths = sorted((Path(voc) / IMAGE_FOLDER).glob("*.jpg"))
            if not paths:
                raise FileNotFoundError(f"{Path(voc) / IMAGE_FOLDER}: no VOC images (*.jpg) there")
            self._voc_ids = [path.stem for path in paths]
            self._voc_hashes, _ = self._hash(paths, "VOC images")

    def near_duplicates(self, candidates: Sequence[Candidate]) -> list[NearDuplicate]:
        """Check pictures that have not been checked, and find those that are also in VOC."""
        new = [candidate for candidate in candidates if candidate.image_id not in self._known]
        paths = find_pictures(new, self._folder)
        hashes, sizes = self._hash(paths, "images of the set")
        wrong = [
            f"{path}: {size[0]} x {size[1]} pixels (height x width), annotated as "
            f"{candidate.height} x {candidate.width}"
            for path, size, candidate in zip(paths, sizes, new)
            if size != (candidate.height, candidate.width)
        ]
        if wrong:
            raise ValueError(itemized("image(s) of another size than annotated", wrong))
        self._known.update(dict.fromkeys(candidate.image_id for candidate in new))
        if self._voc_ids:
            for candidate, index, distance in zip(new, *nearest(hashes, self._voc_hashes)):
                if distance <= self._max_distance:
                    self._known[candidate.image_id] = NearDuplicate(
                        candidate.image_id, self._voc_ids[index], int(distance)
                    )
        found = (self._known[candidate.image_id] for candidate in candidates)
        return [duplicate for duplicate in found if duplicate is not None]

    def _hash(self, paths: Sequence[Path], what: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Hash pictures: uint8 (M, 8), and their sizes."""
        names = [os.fspath(path) for path in paths]
        results = list(
            parallel_map(
                _hash_or_problem,
                names,
                jobs=self._jobs,
                description=what,
                progress=self._progress,
            )
        )
        problems = [result for result in results if isinstance(result, str)]
        if problems:
            raise ValueError(itemized("image(s) unreadable", problems))
        pictures = [result for result in results if not isinstance(result, str)]
        hashes = np.array([found for found, _ in pictures], np.uint8).reshape(-1, 8)
        return hashes, [size for _, size in pictures]


def find_pictures(candidates: Iterable[Candidate], folder: Path) -> list[Path]:
    """Find the picture of every image below ``folder``, which has ``train2017`` and ``val2017``."""
    found, missing = [], []
    for candidate in candidates:
        where = f"image {candidate.image_id}"
        choices = [resolve_inside(folder, candidate.file_name, where)]
        if "/" not in candidate.file_name:
            choices += [folder / split / candidate.file_name for split in _SPLITS]
        there = [path for path in choices if path.is_file()]
        if there:
            found.append(there[0])
        else:
            missing.append(choices[0])
    if missing:
        total = len(found) + len(missing)
        paths = itemized(f"of {total} images of the set missing", [str(path) for path in missing])
        raise FileNotFoundError(
            f"{paths}\nPut COCO's train2017 and val2017 below --images, or give --annotations-only"
        )
    return found


def copy_pictures(pictures: Sequence[Path], names: Sequence[str], folder: Path) -> None:
    """Put pictures into a folder, as hard links where possible, else as copies."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture, name in zip(pictures, names):
        target, temporary = folder / f"{name}.jpg", folder / f".{name}.part"
        temporary.unlink(missing_ok=True)
        try:
            # realpath: a link to a relative symbolic link would break when the set is moved.
            os.link(os.path.realpath(picture), temporary)
        except OSError:
            # Names the picture if it has vanished since it was found.
            shutil.copyfile(picture, temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)
