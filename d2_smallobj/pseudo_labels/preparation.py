"""Convert the files that a method wrote to one label map per image."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from d2_smallobj.annotations.dataset_files import FileCheck
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.pseudo_labels.box_labels import Refine
from d2_smallobj.pseudo_labels.formats import FORMATS, METHODS, read_pseudo_label
from d2_smallobj.pseudo_labels.targets import LabelTarget, TargetImage, read_picture
from d2_smallobj.utils.files import atomic_write_text, read_json
from d2_smallobj.utils.messages import Problems, look_up_option
from d2_smallobj.utils.parallel import parallel_map


class Sources(NamedTuple):
    """Files that a method wrote."""

    folders: tuple[Path, ...]  # one, or two whose maps are merged
    file_format: str  # a key of FORMATS
    files: tuple[tuple[str, ...], ...]  # for every image of the target, one in each folder
    others: int  # number of other files in the folders
    offset: bool = False  # whether its label maps may be too high; see formats.OFFSET


class Prepared(NamedTuple):
    """Numbers of label maps that were written, and kept because newer than their sources."""

    written: int
    kept: int


def find_sources(
    target: LabelTarget,
    method: str,
    folders: Sequence[str | os.PathLike[str]],
    *,
    file_format: str = "auto",
) -> Sources:
    """Find the file of every image in a method's folders; no file is opened.

    Args:
        target: the images.
        method: a key of :data:`d2_smallobj.pseudo_labels.formats.METHODS`.
        folders: as many as the method writes; for ``other`` one or two.
        file_format: ``"auto"``: PNG files or activation maps, by what exists.

    Raises:
        FileNotFoundError: folders or files are missing; one error for all.
        ValueError: an option is unknown, the number of folders is wrong, or the format is unclear.
    """
    known = METHODS[look_up_option("method", method, METHODS)]
    names = known.folders
    wanted = len(names) if method != "other" else min(max(len(folders), 1), 2)
    if len(folders) != wanted:
        raise ValueError(
            f"{method}: expected {wanted} folder(s) ({', '.join(names)}), got {len(folders)}"
        )
    look_up_option("--format", file_format, ("auto", *FORMATS))
    paths = tuple(Path(folder) for folder in folders)
    suffix = FORMATS.get(file_format, ".png or .npy")
    advice = (
        f"A method's labels are files of the images' names ({suffix}), of all images of the set: "
        "run its code on all of them. See datasets/README.md."
    )
    check = FileCheck(f"{method} pseudo labels", advice)
    for folder in paths:
        check.require_folder(folder)
    check.raise_if_missing()
    if file_format == "auto":
        file_format = _guess_format(paths[0], target, check, known.maps)
    suffix = FORMATS[file_format]
    files = tuple(
        tuple(_find(folder, image, suffix, check) for folder in paths) for image in target.images
    )
    for path in itertools.chain.from_iterable(files):
        check.require(path)
    check.raise_if_missing()
    found = sum(len(os.listdir(folder)) for folder in paths)
    others = found - len(files) * len(paths)
    return Sources(paths, file_format, files, others, known.offset)


def prepare_labels(
    target: LabelTarget,
    sources: Sources,
    *,
    threshold: float = 0.15,
    crf: Refine | None = None,
    jobs: int = 1,
    force: bool = False,
    progress: bool = False,
) -> Prepared:
    """Convert all pseudo labels to P-mode PNGs of class indices in the target's folder.

    Labels newer than their sources are kept, so that an interrupted run can be started again.
    ``<folder>.json`` beside the labels records their origin.

    Args:
        target: the images, and the folder of the labels.
        sources: the method's files.
        threshold: of activation maps.
        crf: refines the scores of the format ``clip_es``.
        jobs: number of processes.
        force: replace labels of another origin.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: the sources are the target's own folder, or the threshold is not finite.
        FileExistsError: there are labels of another origin, without ``force``.
        InputError: sources are malformed, or of another size than their images; all others are
            converted.
    """
    if not math.isfinite(threshold):
        raise ValueError(f"--threshold: expected a finite number, got {threshold}")
    own = os.path.realpath(target.folder)
    if any(os.path.realpath(folder) == own for folder in sources.folders):
        raise ValueError(
            f"{target.folder} is where the prepared labels belong: nothing to convert; check the "
            "labels with --check"
        )
    origin = {
        "data_set": target.data_set,
        "sources": [os.path.abspath(folder) for folder in sources.folders],
        "format": sources.file_format,
        "threshold": threshold if sources.file_format == "cams" else None,
    }
    advice = "check them with --check, replace them with --force, or choose another --name"
    keep = check_origin(target.folder, origin, force=force, advice=advice)
    atomic_write_text(marker_path(target), json.dumps(origin, indent=2) + "\n")
    options = {"folder": target.folder, "threshold": threshold, "crf": crf, "keep": keep}
    return _convert_all(target, sources, "converting", jobs=jobs, progress=progress, **options)


def check_labels(
    target: LabelTarget, sources: Sources, *, jobs: int = 1, progress: bool = False
) -> int:
    """Read all label maps as training will, and return their number.

    Raises:
        InputError: as :func:`prepare_labels`.
    """
    return _convert_all(target, sources, "checking", jobs=jobs, progress=progress).written


def marker_path(target: LabelTarget) -> Path:
    """Return the path of the file that records the labels' origin."""
    return target.folder.with_name(f"{target.folder.name}.json")


def _convert_all(
    target: LabelTarget, sources: Sources, what: str, *, jobs: int, progress: bool, **options: Any
) -> Prepared:
    """Convert all labels, or only read them; raise for all that cannot be used."""
    options.update(num_classes=len(target.class_names), file_format=sources.file_format)
    options.update(offset=sources.offset)
    convert, items = functools.partial(_convert, **options), list(zip(target.images, sources.files))
    results = parallel_map(convert, items, jobs=jobs, description=what, progress=progress)
    problems = Problems()
    counts: Counter[str | bool] = Counter()
    for result in results:
        if isinstance(result, str):
            problems.add("pseudo label(s) that cannot be used", result)
        counts[result] += 1
    problems.raise_if_any()
    return Prepared(written=counts[True], kept=counts[False])


def _convert(
    item: tuple[TargetImage, tuple[str, ...]],
    *,
    num_classes: int,
    file_format: str,
    folder: Path | None = None,
    threshold: float = 0.0,
    offset: bool = False,
    crf: Refine | None = None,
    keep: bool = False,
) -> str | bool:
    """Convert one label (without ``folder``: only read it); return success or the error text."""
    image, paths = item
    path = None if folder is None else os.path.join(folder, f"{image.stems[0]}.png")
    try:
        if keep and path is not None and _is_newer(path, paths):
            return False
        picture = None
        if crf is not None and file_format == "clip_es" and image.picture is not None:
            picture = read_picture(image.picture)
        labels = read_pseudo_label(
            paths,
            *image.read_size(),
            num_classes=num_classes,
            file_format=file_format,
            threshold=threshold,
            offset=offset,
            picture=picture,
            crf=None if picture is None else crf,
        )
    except (OSError, ValueError) as error:
        return str(error)
    if path is not None:
        write_label_map(path, labels)
    return True


def _guess_format(folder: Path, target: LabelTarget, check: FileCheck, maps: str) -> str:
    """Return the format of a method's files, by the suffixes of the images' files.

    ``maps`` is that of its ``.npy`` files.
    """
    found = {
        suffix
        for suffix in sorted(set(FORMATS.values()))
        if any(check.exists(_find(folder, image, suffix, check)) for image in target.images)
    }
    if len(found) == 1:
        return "indices" if ".png" in found else maps
    if found:
        raise ValueError(
            f"{folder} holds both .png and .npy files of the images: choose with --format "
            f"({', '.join(FORMATS)})"
        )
    stems = " or ".join(target.images[0].stems)
    raise FileNotFoundError(
        f"{folder}: no pseudo label of any of the {len(target.images)} images, e.g. {stems} with "
        ".png or .npy"
    )


def _find(folder: Path, image: TargetImage, suffix: str, check: FileCheck) -> str:
    """Return an image's file; the first of its possible names if there is none."""
    paths = [os.path.join(folder, f"{stem}{suffix}") for stem in image.stems]
    return next((path for path in paths if check.exists(path)), paths[0])


def _is_newer(path: str, sources: Sequence[str]) -> bool:
    """Return whether a file exists and is not older than any of its sources."""
    try:
        made = os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return False
    return all(os.stat(source).st_mtime_ns <= made for source in sources)


def check_origin(folder: Path, origin: Mapping[str, object], *, force: bool, advice: str) -> bool:
    """Return whether existing labels can be kept, since ``<folder>.json`` records this origin.

    Raises:
        FileExistsError: the labels have another origin and must not be replaced (no ``force``).
    """
    if not folder.is_dir() or not any(name.endswith(".png") for name in os.listdir(folder)):
        return True
    try:
        found = read_json(folder.with_name(f"{folder.name}.json"))
        made = f"were made from {', '.join(found['sources'])} ({found['format']})"
        changed = [
            k for k in origin if k not in ("sources", "format") and found.get(k) != origin[k]
        ]
        made += f" with another {', '.join(changed)}" if changed else ""
    except (OSError, ValueError, KeyError, TypeError):
        found, made = None, "were not made by this command"
    if found != origin and not force:
        raise FileExistsError(f"{folder} holds labels that {made}: {advice}")
    return found == origin
