"""Building PASCAL-B from annotation files, and building it again from a manifest."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from d2_smallobj.annotations.voc import IMAGE_FOLDER
from d2_smallobj.pascal_b.accounting import account
from d2_smallobj.pascal_b.candidates import Candidate, Sources
from d2_smallobj.pascal_b.card import format_short_cells
from d2_smallobj.pascal_b.files import (
    check_place,
    describe_outputs,
    format_annotations,
    open_workshop,
    put_in_place,
    write_texts,
)
from d2_smallobj.pascal_b.index import read_index
from d2_smallobj.pascal_b.manifest import (
    FORMAT,
    VERSION,
    Manifest,
    check_inputs,
    describe_balance,
    describe_inputs,
    describe_sampling,
    read_manifest,
    versions,
)
from d2_smallobj.pascal_b.options import BuildOptions, Place
from d2_smallobj.pascal_b.outcomes import Outcome
from d2_smallobj.pascal_b.painting import RenderedImage, image_name, render
from d2_smallobj.pascal_b.pictures import PictureCheck, copy_pictures, find_pictures
from d2_smallobj.pascal_b.rejects import read_reject_list
from d2_smallobj.pascal_b.sampling import import_scipy
from d2_smallobj.pascal_b.screening import ScreeningOptions, Verdict
from d2_smallobj.pascal_b.selection import (
    find_candidates,
    screen_candidates,
    select,
    write_candidate_list,
)
from d2_smallobj.utils.messages import itemized
from d2_smallobj.utils.parallel import parallel_map

CHOSEN = "in the set"
"""What became of an image that was chosen, in the manifest."""


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """What was built.

    Attributes:
        folder: where it is.
        manifest: its manifest.
        notes: what somebody should know, sentences: cells that fall short, masks that cannot be
            read, categories that are missing.
    """

    folder: Path
    manifest: Manifest
    notes: tuple[str, ...]


def build_pascal_b(place: Place, options: BuildOptions) -> BuildResult:
    """Build PASCAL-B.

    The set follows from the contents of the annotation files and the options, whatever the order
    of files and entries and the number of processes. Pictures have no say in it, except that
    near-duplicates of VOC's are left out.

    Args:
        place: inputs and output.
        options: what the set is to be.

    Raises:
        FileExistsError: something is at the output's place.
        FileNotFoundError: an input file, or pictures of the set, are missing.
        ImportError: SciPy is missing.
        ValueError: an input is malformed, or no image is fit.
    """
    check_place(Path(place.output), force=place.force)
    import_scipy()
    rejected = _read_rejected(options)
    pictures = _check_pictures(place, options)
    sources = _read_sources(place)
    candidates, dropped = find_candidates(sources, options.screening, rejected)
    verdicts = screen_candidates(
        sources, candidates, options.screening, jobs=place.jobs, progress=place.progress
    )
    if options.candidate_list is not None:
        write_candidate_list(options.candidate_list, candidates, verdicts)
    selection = select(candidates, dropped, verdicts, options, pictures)
    rendered, workshop = _render(sources, selection.chosen, options.screening, place)
    annotations = format_annotations(selection.chosen, rendered)
    outcomes = [(c, image.outcomes) for c, image in zip(selection.chosen, rendered)]
    images = Counter(outcome.value for outcome in selection.dropped.values())
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "description": "A re-creation of PASCAL-B; not its authors' list of images",
        "inputs": describe_inputs(sources.files),
        "screening": dataclasses.asdict(options.screening),
        "sampling": describe_sampling(selection.sample, options.number, options.seed),
        "balance": describe_balance(selection.counts, selection.sample, options.seed),
        "images": {
            CHOSEN: len(selection.chosen),
            **{o.value: images[o.value] for o in Outcome if images[o.value]},
        },
        "rejected": {str(n): rejected[n] for n in sorted(set(rejected) & set(selection.dropped))},
        "near_duplicates": _describe_duplicates(selection.near_duplicates),
        "missing_categories": sources.missing,
        "outputs": describe_outputs(annotations, rendered),
        "versions": versions(),
        "image_ids": [candidate.image_id for candidate in selection.chosen],
        "accounting": account(sources, selection.dropped, outcomes),
    }
    _finish(workshop, place, selection.chosen, annotations, manifest)
    lost = sorted(set(rejected) - set(selection.dropped))
    return BuildResult(Path(place.output), manifest, tuple(_notes(manifest, verdicts, lost)))


def rebuild_pascal_b(place: Place, manifest_path: str | os.PathLike[str]) -> BuildResult:
    """Build the set of a manifest again.

    Args:
        place: the same annotation files, by content, in any place; and the output.
        manifest_path: the manifest.

    Raises:
        FileExistsError: something is at the output's place.
        FileNotFoundError: an input file, or pictures of the set, are missing.
        ValueError: the manifest or an input is malformed, the inputs are other files than the
            manifest's, or the result is not the same; nothing is put in place then.
    """
    check_place(Path(place.output), force=place.force)
    manifest = read_manifest(manifest_path)
    try:
        screening = ScreeningOptions(
            **{**manifest["screening"], "from_coco": tuple(manifest["screening"]["from_coco"])}
        )
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{manifest_path}: 'screening': {error}") from error
    sources = _read_sources(place)
    check_inputs(manifest, sources.files, manifest_path)
    found = [
        sources.candidate(n, from_coco=screening.coco_class_ids) for n in manifest["image_ids"]
    ]
    chosen = [candidate for candidate in found if isinstance(candidate, Candidate)]
    if len(chosen) != len(found):
        raise ValueError(
            f"{manifest_path}: {len(found) - len(chosen)} of its images are no candidates in "
            "the inputs"
        )
    pictures = _check_pictures(place, BuildOptions())
    if pictures is not None:
        pictures.near_duplicates(chosen)
    rendered, workshop = _render(sources, chosen, screening, place)
    annotations = format_annotations(chosen, rendered)
    outputs = describe_outputs(annotations, rendered)
    if outputs != manifest["outputs"]:
        shutil.rmtree(workshop)
        raise ValueError(
            f"{manifest_path}: the same inputs gave another set ({outputs}, not "
            f"{manifest['outputs']}); the manifest was made with {manifest['versions']}, this is "
            f"{versions()}"
        )
    _finish(workshop, place, chosen, annotations, manifest)
    return BuildResult(Path(place.output), manifest, tuple(_notes(manifest, (), ())))


def _read_rejected(options: BuildOptions) -> dict[int, str]:
    """All reject lists together."""
    rejected: dict[int, str] = {}
    for path in options.rejected:
        rejected.update(read_reject_list(path))
    return rejected


def _check_pictures(place: Place, options: BuildOptions) -> PictureCheck | None:
    """What checks the pictures, where there are any."""
    if place.pictures is None:
        if options.voc is not None:
            raise ValueError("voc: near-duplicates can only be found with pictures, got none")
        return None
    return PictureCheck(
        place.pictures,
        options.voc,
        max_distance=options.max_distance,
        jobs=place.jobs,
        progress=place.progress,
    )


def _read_sources(place: Place) -> Sources:
    """Read all annotation files."""
    named = [("lvis", path) for path in place.lvis] + [("coco", path) for path in place.coco]
    files = [
        read_index(path, kind)
        for kind, path in tqdm(named, "reading", unit="file", disable=not place.progress)
    ]
    return Sources(files[: len(place.lvis)], files[len(place.lvis) :])


def _render(
    sources: Sources, chosen: Sequence[Candidate], screening: ScreeningOptions, place: Place
) -> tuple[list[RenderedImage], Path]:
    """Paint the images in the folder where the set is built."""
    key = {
        "inputs": [file.sha256 for file in sources.files],
        "screening": dataclasses.asdict(screening),
        "image_ids": [candidate.image_id for candidate in chosen],
        "versions": versions(),
    }
    workshop = open_workshop(Path(place.output), key)
    paths = [os.fspath(file.path) for file in sources.files]
    painted = parallel_map(
        functools.partial(render, paths=paths, options=screening, folder=workshop),
        chosen,
        jobs=place.jobs,
        description="painting",
        progress=place.progress,
    )
    return list(painted), workshop


def _finish(
    workshop: Path,
    place: Place,
    chosen: Sequence[Candidate],
    annotations: str,
    manifest: Manifest,
) -> None:
    """Add pictures and texts, and put the set in its place."""
    if place.pictures is not None:
        found = find_pictures(chosen, Path(place.pictures))
        names = [image_name(candidate.image_id) for candidate in chosen]
        copy_pictures(found, names, workshop / IMAGE_FOLDER)
    write_texts(workshop, annotations, manifest)
    put_in_place(workshop, Path(place.output))


def _describe_duplicates(found: Sequence[Any] | None) -> list[dict[str, Any]] | None:
    """Near-duplicates for the manifest."""
    return None if found is None else [duplicate._asdict() for duplicate in found]


def _notes(
    manifest: Mapping[str, Any], verdicts: Sequence[Verdict], lost: Sequence[int]
) -> list[str]:
    """What somebody should know about a set."""
    sampling = manifest["sampling"]
    notes = [f"LVIS lacks a category of {line}" for line in manifest["missing_categories"]]
    if lost:
        notes.append(itemized("rejected image(s) not in the inputs", list(map(str, lost))))
    bad = [verdict.message for verdict in verdicts if verdict.message]
    if bad:
        notes.append(itemized("image(s) dropped for a mask", bad))
    if len(manifest["image_ids"]) < sampling["requested_images"]:
        notes.append(
            f"only {len(manifest['image_ids'])} images are fit; "
            f"{sampling['requested_images']} were asked for"
        )
    short = format_short_cells(sampling)
    if short:
        lines = "".join(f"\n  {line[2:]}" for line in short)
        notes.append(f"{len(short)} of 60 cells fall short of {sampling['per_cell']}:{lines}")
    return notes
