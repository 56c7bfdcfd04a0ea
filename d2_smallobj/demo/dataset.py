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

PNG maps and COCO annotations hold the same instances: annotation k of an image (in file order)
is instance k of its SegmentationObject, of the same class. The COCO masks are the visible parts
without border, disjoint; the PNGs mark one pixel around every instance, on what lies behind it,
with 255. So an instance has the same pixels in both except where a neighbour in front of it
takes its border from it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from d2_smallobj.demo.files import (
    DEMO_CLASS_NAMES,
    PSEUDO_LABELS,
    DemoOptions,
    write_demo,
)

__all__ = [
    "DEMO_CLASS_NAMES",
    "PREPARE_COMMAND",
    "PSEUDO_LABELS",
    "DemoOptions",
    "ensure_demo",
    "make_demo",
]

PREPARE_COMMAND = "python datasets/prepare_demo.py"
"""The command that makes the demo, for messages."""

_VERSION = 1
"""Raised whenever the same options give other files: an older folder is then made anew."""
_MARKER = "demo.json"
_logger = logging.getLogger(__name__)


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
    depend on how many are made. They are built in a folder beside ``root`` that takes its place
    when complete; a process that loses a race uses what the other one made.

    Args:
        root: the folder to make.
        seed: see :class:`DemoOptions`, as the next three.
        num_train: number of training scenes.
        num_val: number of validation scenes.
        size: side of the scenes in pixels.
        force: replace a demo folder that has other options or is incomplete.

    Raises:
        ValueError, TypeError: an option is out of its range.
        FileExistsError: ``root`` holds other files, or a demo with other options without
            ``force``. Files that this function did not make are never removed.
    """
    root = Path(root)
    options = DemoOptions(seed, num_train, num_val, size)
    state = _inspect(root)
    if state.complete and not force:
        if state.options == options:
            return
        raise FileExistsError(
            f"{root} holds a demo made with {state.options}, not {options}: remove it, or run "
            f"`{PREPARE_COMMAND} --force` with the options you want"
        )
    if state.foreign:
        raise FileExistsError(
            f"{root} holds files that are not a demo's ({state.foreign}), so nothing in it is "
            "replaced: move it away or choose another folder"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, hence on the same file system: the rename at the end is atomic.
    workshop = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        built = workshop / "new"
        _build(built, options)
        _put_in_place(built, root, workshop / "old", options, force=force)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def ensure_demo(root: str | os.PathLike[str]) -> None:
    """Make the demo at ``root`` with default options unless a complete one is there.

    A complete demo with other options (``prepare_demo.py --num-train 1000``) is used as it is;
    one of an older version or with files missing is made anew.

    Raises:
        FileExistsError: ``root`` holds files that are not a demo.
    """
    state = _inspect(Path(root))
    if state.complete:
        return
    _logger.info("making the demo scenes at %s (first use; takes some seconds)", root)
    make_demo(root)


@dataclasses.dataclass(frozen=True)
class _State:
    """What is found at a root.

    Attributes:
        exists: whether there is anything at all.
        complete: whether it is a demo of this version with all its files.
        options: those of the demo, if it tells legal ones.
        foreign: what about it was not made here; empty if it may be replaced.
    """

    exists: bool = True
    complete: bool = False
    options: DemoOptions | None = None
    foreign: str = ""


def _inspect(root: Path) -> _State:
    """Look at ``root`` without reading more than its marker and its folders' listings."""
    if not os.path.lexists(root) or (root.is_dir() and not any(root.iterdir())):
        return _State(exists=False)
    try:
        marker = json.loads((root / _MARKER).read_text(encoding="utf-8"))
        version, options, files = marker["version"], marker["options"], dict(marker["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return _State(foreign=f"no readable {_MARKER}; half a copy looks like this too")
    found = _count_files(root)
    more = [folder for folder, number in found.items() if number > files.get(folder, 0)]
    complete = version == _VERSION and all(found.get(f, 0) >= n for f, n in files.items())
    foreign = f"more files than were made in {more[0]}" if more else ""
    try:
        return _State(complete=complete, options=DemoOptions(**options), foreign=foreign)
    except (TypeError, ValueError):
        return _State(foreign=foreign)


def _count_files(root: Path) -> dict[str, int]:
    """Number of files in every folder below ``root`` that holds any; the marker not counted."""
    counts = {}
    for folder, _, names in os.walk(root):
        number = sum(name != _MARKER and not name.startswith(".") for name in names)
        if number:
            counts[Path(folder).relative_to(root).as_posix()] = number
    return dict(sorted(counts.items()))


def _put_in_place(built: Path, root: Path, old: Path, options: DemoOptions, *, force: bool) -> None:
    """Rename the finished folder to ``root``; if another process was first, use its result."""
    state = _inspect(root)
    if state.complete and state.options == options and not force:
        return
    try:
        if state.exists and not state.foreign:
            os.rename(root, old)
        os.rename(built, root)
    except OSError:
        state = _inspect(root)
        if state.complete and state.options == options:
            return
        raise


def _build(root: Path, options: DemoOptions) -> None:
    """Write all files of a demo below ``root``; the marker is the last one."""
    write_demo(root, options)
    marker = {
        "version": _VERSION,
        "options": dataclasses.asdict(options),
        "files": _count_files(root),
    }
    (root / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
