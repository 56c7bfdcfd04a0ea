"""The demo data set: seeded synthetic scenes as real files in the VOC and COCO layouts.

::

    <root>/
      demo.json                                    marker: version, options, number of files
      annotations/instances_{train,val}.json       COCO instance annotations
      VOCdevkit/VOC2012/
        JPEGImages/<id>.jpg
        SegmentationClass/<id>.png                 P mode, 255 border
        SegmentationObject/<id>.png                P mode, 255 border, ids 1..N
        PseudoLabels/demo/<id>.png                 P mode, wrong as weakly supervised masks are
        ImageSets/Segmentation/{train,val}.txt

Annotation k of an image (in file order) is instance k of its SegmentationObject, of the same class.
The COCO masks are the visible parts without border, disjoint; the PNGs mark one pixel around every
instance, on what lies behind it, with 255. Every encoder option is given and no time is written, so
that the bytes depend on the options only.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from d2_smallobj.annotations.classes import DEMO_CLASS_NAMES
from d2_smallobj.annotations.coco_file import describe_mask
from d2_smallobj.annotations.label_maps import encode_label_map
from d2_smallobj.demo.scenes import Array, Scene, draw_scene, smooth_noise
from d2_smallobj.utils.files import lock_folder, read_json
from d2_smallobj.utils.opencv import cv2

PSEUDO_LABELS = "PseudoLabels/demo"
"""Folder of the pseudo labels within VOC2012."""
PREPARE_COMMAND = "python datasets/prepare_demo.py"
"""The command that makes the demo, for messages."""

_VERSION = 1
"""Raised whenever the same options give other files: an older folder is then made anew."""
_MARKER = "demo.json"
_IGNORE = 255
_TO_LOCK = 10.0  # seconds in which a folder is surely locked after it was made
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """Options on which the files of a demo depend."""

    seed: int = 0  # of all scenes, >= 0
    num_train: int = 300  # number of scenes, 1..99999, like num_val
    num_val: int = 100
    size: int = 192  # side in pixels, 64..1024; below 132 there are no objects of size L

    def __post_init__(self) -> None:
        for name, low, high in (
            ("seed", 0, 2**32 - 1),
            ("num_train", 1, 99999),
            ("num_val", 1, 99999),
            ("size", 64, 1024),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: expected an integer, got {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{name}: must be in {low}..{high}, got {value}")


def make_demo(
    root: str | os.PathLike[str],
    *,
    seed: int = 0,
    num_train: int = 300,
    num_val: int = 100,
    size: int = 192,
    force: bool = False,
) -> None:
    """Make the demo data set at ``root``, or keep it if it is there already with these options.

    Files are byte-identical for a seed (with the same Pillow and OpenCV), and scene i does not
    depend on how many are made. They are built in a folder beside ``root`` that is renamed when
    complete; a process that loses a race uses what the other one made. ``force`` replaces a demo
    with other options (see :class:`DemoOptions`) or an incomplete one.

    Raises:
        ValueError, TypeError: an option is out of its range.
        FileExistsError: ``root`` holds other files, or a demo with other options without
            ``force``. Files that this function did not make are never removed.
    """
    root = Path(root)
    options = DemoOptions(seed, num_train, num_val, size)
    found = _inspect(root)
    if found.complete and not force:
        if found.options == options:
            return
        raise FileExistsError(
            f"{root} holds a demo made with {found.options}, not {options}: remove it, or run "
            f"`{PREPARE_COMMAND} --force` with the options you want"
        )
    if found.foreign:
        raise FileExistsError(
            f"{root} holds files that are not a demo's ({found.foreign}), so nothing in it is "
            "replaced: move it away or choose another folder"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    # Beside the target, hence on the same file system: the rename at the end is atomic.
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    lock = lock_folder(temporary)
    try:
        built = temporary / "new"
        write_demo(built, options)
        _put_in_place(built, root, temporary / "old", options, force=force)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_leftovers(root: Path) -> None:
    """Remove the folders in which killed processes were making the demo at ``root``."""
    for folder in root.parent.glob(f".{glob.escape(root.name)}.????????"):
        made = not folder.is_symlink() and folder.is_dir()
        # Not one that was made just now, and is about to be locked.
        if not made or time.time() - folder.stat().st_mtime < _TO_LOCK:
            continue
        if {entry.name for entry in folder.iterdir()} <= {"new", "old"}:
            lock = lock_folder(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def ensure_demo(root: str | os.PathLike[str]) -> None:
    """Make the demo at ``root`` with default options unless a complete one is there.

    A complete demo with other options (``prepare_demo.py --num-train 1000``) is used as it is;
    one of an older version or with files missing is made anew. Raises as :func:`make_demo`.
    """
    if not _inspect(Path(root)).complete:
        _logger.info("making the demo scenes at %s (first use; takes some seconds)", root)
        make_demo(root)


@dataclasses.dataclass(frozen=True)
class _Found:
    """The demo that is found at a root."""

    exists: bool = True
    complete: bool = False  # of this version, with all its files
    options: DemoOptions | None = None
    foreign: str = ""  # files that were not made here; empty if the folder may be replaced


def _inspect(root: Path) -> _Found:
    """Look at ``root``; reads its marker and lists its folders."""
    if not os.path.lexists(root) or (root.is_dir() and not any(root.iterdir())):
        return _Found(exists=False)
    try:
        marker = read_json(root / _MARKER)
        version, options, files = marker["version"], marker["options"], dict(marker["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return _Found(foreign=f"no readable {_MARKER}; an incomplete copy looks like this too")
    counts = _count_files(root)
    more = [folder for folder, number in counts.items() if number > files.get(folder, 0)]
    complete = version == _VERSION and all(counts.get(f, 0) >= n for f, n in files.items())
    foreign = f"more files than were made in {more[0]}" if more else ""
    try:
        return _Found(complete=complete, options=DemoOptions(**options), foreign=foreign)
    except (TypeError, ValueError):
        return _Found(foreign=foreign)


def _count_files(root: Path) -> dict[str, int]:
    """Number of files by folder below ``root``, without the marker and hidden files."""
    counts = {}
    for folder, _, names in os.walk(root):
        number = sum(name != _MARKER and not name.startswith(".") for name in names)
        if number:
            counts[Path(folder).relative_to(root).as_posix()] = number
    return dict(sorted(counts.items()))


def _put_in_place(built: Path, root: Path, old: Path, options: DemoOptions, *, force: bool) -> None:
    """Rename the finished folder to ``root``; if another process was first, use its result."""
    found = _inspect(root)
    if found.complete and found.options == options and not force:
        return
    try:
        if found.exists and not found.foreign:
            os.rename(root, old)
        os.rename(built, root)
    except OSError:
        found = _inspect(root)
        if not found.complete or found.options != options:
            raise


def write_demo(root: Path, options: DemoOptions) -> None:
    """Draw the scenes and write them below ``root``, which must not exist yet; the marker last."""
    voc = root / "VOCdevkit" / "VOC2012"
    folders = ("JPEGImages", "SegmentationClass", "SegmentationObject", PSEUDO_LABELS)
    for folder in (*folders, "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    (root / "annotations").mkdir()
    splits = {"train": options.num_train, "val": options.num_val}
    # disable=None: no bar unless stderr is a terminal.
    with tqdm(total=sum(splits.values()), desc="demo scenes", unit="scene", disable=None) as bar:
        for number, (split, count) in enumerate(splits.items()):
            content: dict[str, Any] = {
                "info": {"description": "d2_smallobj demo scenes"},
                **{"licenses": [], "images": [], "annotations": []},
                "categories": [
                    {"id": class_id, "name": name, "supercategory": "demo"}
                    for class_id, name in enumerate(DEMO_CLASS_NAMES[1:], start=1)
                ],
            }
            for index in range(count):
                rng = np.random.default_rng([options.seed, number, index])
                scene = draw_scene(rng, options.size)
                name = f"{split}_{index:05d}"
                _write_scene(voc, name, scene, draw_pseudo_label(rng, scene))
                _add_scene(content, (number + 1) * 100000 + index, f"{name}.jpg", scene)
                bar.update()
            names = [Path(image["file_name"]).stem for image in content["images"]]
            lists = voc / "ImageSets" / "Segmentation" / f"{split}.txt"
            lists.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
            path = root / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(content), encoding="utf-8")
    own = dataclasses.asdict(options)
    marker = {"version": _VERSION, "options": own, "files": _count_files(root)}
    (root / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _write_scene(voc: Path, name: str, scene: Scene, pseudo: np.ndarray) -> None:
    """Write the picture and the three label maps of a scene."""
    path = voc / "JPEGImages" / f"{name}.jpg"
    Image.fromarray(scene.image).save(path, quality=90, subsampling="4:2:0", optimize=False)
    for folder, labels in (
        ("SegmentationClass", np.where(scene.border, _IGNORE, scene.semantic)),
        ("SegmentationObject", np.where(scene.border, _IGNORE, scene.instances)),
        (PSEUDO_LABELS, pseudo),
    ):
        (voc / folder / f"{name}.png").write_bytes(encode_label_map(labels.astype(np.uint8)))


def _add_scene(content: dict[str, Any], image_id: int, file_name: str, scene: Scene) -> None:
    """Add the visible instances of a scene, without border, in the order of their ids."""
    height, width = scene.instances.shape
    image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
    content["images"].append(image)
    for instance_id in range(1, len(scene.classes)):
        content["annotations"].append(
            {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": int(scene.classes[instance_id]),
                **describe_mask(scene.instances == instance_id),
                "iscrowd": 0,
            }
        )


MISSED_AT_SMALLEST, MISSED_SIDES = 0.5, (6.0, 40.0)
"""Chance that an object is missed: falls linearly in the log of its size between these sides."""
CONFUSED = 0.04
"""Chance that an object is given another class of the image."""
FALSE_ALARMS = 0.25
"""Chance that a scene gets one false blob."""
BLEEDING, WANDERING = 1.5, 2.0
"""Mean outward shift of boundaries and its standard deviation along them, pixels."""


def draw_pseudo_label(rng: np.random.Generator, scene: Scene) -> Array:
    """Make the pseudo label of a scene: uint8 (H, W), values 0..6."""
    size = scene.instances.shape[0]
    present = np.unique(scene.classes[1:])
    believed = _believed_classes(rng, scene, present)
    labels = believed[scene.instances]
    if rng.random() < FALSE_ALARMS and len(present):
        _add_false_alarm(rng, labels, int(rng.choice(present)))

    best = np.zeros((size, size), np.float32)
    result = np.zeros((size, size), np.uint8)
    for class_id in present:
        mask = (labels == class_id).astype(np.uint8)
        if not mask.any():
            continue
        shift = BLEEDING + WANDERING * smooth_noise(rng, size, max(size // 20, 2))
        score = _coarse(_signed_distance(mask) + shift)
        wins = score > best
        best[wins], result[wins] = score[wins], class_id
    return result


def _believed_classes(rng: np.random.Generator, scene: Scene, present: Array) -> Array:
    """The class that each instance gets, 0 if it is missed: uint8 (N + 1,)."""
    believed = scene.classes.copy()
    areas = np.bincount(scene.instances.ravel(), minlength=len(believed))
    low, high = np.log(MISSED_SIDES)
    for identity in range(1, len(believed)):
        smallness = (high - 0.5 * np.log(max(int(areas[identity]), 1))) / (high - low)
        missed, confused = rng.random(), rng.random()
        if missed < MISSED_AT_SMALLEST * np.clip(smallness, 0.0, 1.0):
            believed[identity] = 0
        elif confused < CONFUSED:
            believed[identity] = rng.choice(present)
    return believed


def _add_false_alarm(rng: np.random.Generator, labels: Array, class_id: int) -> None:
    """Give an ellipse of background to ``class_id``, in place."""
    size = labels.shape[0]
    blob = np.zeros_like(labels)
    centre = tuple(int(c) for c in rng.integers(0, size, 2))
    axes = tuple(int(a) for a in rng.integers(3, 12, 2))
    cv2.ellipse(blob, centre, axes, float(rng.integers(0, 180)), 0, 360, 1, -1)
    labels[(blob > 0) & (labels == 0)] = class_id


def _signed_distance(mask: Array) -> Array:
    """Distance to the outline in pixels, positive inside: float32, same shape as ``mask``."""
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return inside - outside


def _coarse(score: Array) -> Array:
    """Reduce to a quarter of the resolution and interpolate back: details are lost."""
    size = score.shape[0]
    small = cv2.resize(score, (size // 4,) * 2, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)
