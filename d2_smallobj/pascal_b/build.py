"""Build PASCAL-B from annotation files, or build it again from a manifest."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

from tqdm import tqdm

from d2_smallobj.annotations.image_lists import IMAGE_FOLDER
from d2_smallobj.pascal_b.candidates import (
    AnnotationSources,
    Candidate,
    Outcome,
    find_candidates,
    read_reject_list,
)
from d2_smallobj.pascal_b.index import read_index
from d2_smallobj.pascal_b.manifest import (
    FORMAT,
    MANIFEST_VERSION,
    Manifest,
    check_inputs,
    count_outcomes,
    describe_balance,
    describe_inputs,
    describe_sampling,
    describe_shortfalls,
    read_manifest,
    versions,
)
from d2_smallobj.pascal_b.near_duplicates import (
    MAX_DISTANCE,
    PictureCheck,
    copy_pictures,
    find_pictures,
)
from d2_smallobj.pascal_b.painting import (
    RenderedImage,
    check_place,
    describe_outputs,
    format_annotations,
    image_name,
    open_partial_folder,
    put_in_place,
    render,
    write_texts,
)
from d2_smallobj.pascal_b.sampling import import_scipy, select
from d2_smallobj.pascal_b.screening import (
    ScreeningOptions,
    Verdict,
    screen,
    write_candidate_list,
)
from d2_smallobj.utils.files import require_files
from d2_smallobj.utils.messages import itemized
from d2_smallobj.utils.parallel import parallel_map

IMAGES = 1137
"""Number of images of the paper's set."""
PathLike = Union[str, "os.PathLike[str]"]


@dataclasses.dataclass(frozen=True)
class BuildPaths:
    """Inputs, output and processes; of these, only the inputs' content changes the set.

    Attributes:
        lvis: LVIS files of one version, at least one.
        coco: COCO 2017 files, at least one.
        output: the folder to make.
        pictures: folder of ``train2017`` and ``val2017``; None: annotations only.
        jobs: number of processes, >= 1.
        force: replace a set that is at ``output``.
        progress: show progress bars on stderr.
    """

    lvis: Sequence[PathLike]
    coco: Sequence[PathLike]
    output: PathLike
    pictures: PathLike | None = None
    jobs: int = 1
    force: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("lvis", "coco"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one file, got none")
        _check_integer("jobs", self.jobs, 1)

    @property
    def parallel(self) -> dict[str, Any]:
        """Arguments of functions that use several processes."""
        return {"jobs": self.jobs, "progress": self.progress}


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """Options that change the set.

    Attributes:
        number: images wanted, >= 1.
        per_cell: instances wanted of every class and size, >= 1; None: see :mod:`.sampling`.
        seed: of the choice between equally balanced sets, >= 0.
        screening: requirements on an image.
        rejected: reject lists, see :func:`.candidates.read_reject_list`.
        voc: ``VOCdevkit/VOC2012``, whose images must not be in the set; None: not checked.
        max_distance: bits, of 64, in which near-duplicates of VOC's images may differ.
        candidate_list: a CSV file to write with the verdict on every candidate.
    """

    number: int = IMAGES
    per_cell: int | None = None
    seed: int = 0
    screening: ScreeningOptions = dataclasses.field(default_factory=ScreeningOptions)
    rejected: Sequence[PathLike] = ()
    voc: PathLike | None = None
    max_distance: int = MAX_DISTANCE
    candidate_list: PathLike | None = None

    def __post_init__(self) -> None:
        for name, low in (("number", 1), ("seed", 0), ("max_distance", 0), ("per_cell", 1)):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), low)


def _require_inputs(paths: BuildPaths, rejected: Sequence[PathLike]) -> None:
    """Name all missing files before the first, which may take a minute, is read."""
    groups = (("--lvis-json", paths.lvis), ("--coco-json", paths.coco), ("--rejected", rejected))
    require_files((flag, path) for flag, files in groups for path in files)


def _check_integer(name: str, value: object, low: int) -> None:
    if type(value) is not int or value < low:
        raise ValueError(f"{name}: expected an integer >= {low}, got {value!r}")


class BuildResult(NamedTuple):
    """A set that was built: its folder, its manifest, and sentences for the user."""

    folder: Path
    manifest: Manifest
    notes: tuple[str, ...]


def build_pascal_b(paths: BuildPaths, options: BuildOptions) -> BuildResult:
    """Build PASCAL-B.

    The set depends on the contents of the annotation files and the options only, not on the order
    of files and entries or the number of processes. Pictures do not change it, except that
    near-duplicates of VOC's are left out.

    Raises:
        FileExistsError: something else is at the output's place.
        FileNotFoundError: an input file, or pictures of the set, are missing.
        ImportError: SciPy is missing.
        ValueError: an input is malformed, or no image is fit.
    """
    check_place(Path(paths.output), force=paths.force)
    import_scipy()
    rejected: dict[int, str] = {}
    _require_inputs(paths, options.rejected)
    for path in options.rejected:
        rejected.update(read_reject_list(path))
    pictures = _check_pictures(paths, options)
    sources = _read_sources(paths)
    candidates, others = find_candidates(sources, options.screening.coco_class_ids, rejected)
    judge = functools.partial(screen, paths=sources.paths, options=options.screening)
    images = list(candidates.values())
    verdicts = list(parallel_map(judge, images, description="screening", **paths.parallel))
    if options.candidate_list is not None:
        write_candidate_list(options.candidate_list, candidates, verdicts)
    wanted = {name: getattr(options, name) for name in ("number", "seed", "per_cell")}
    selection = select(candidates, others, verdicts, pictures, **wanted)
    rendered, partial = _render(sources, selection.chosen, options.screening, paths)
    annotations = format_annotations(selection.chosen, rendered)
    outcomes = [(c, image.outcomes) for c, image in zip(selection.chosen, rendered)]
    dropped = Counter(outcome.value for outcome in selection.dropped.values())
    duplicates = [duplicate._asdict() for duplicate in selection.near_duplicates]
    manifest = {
        "format": FORMAT,
        "version": MANIFEST_VERSION,
        "description": "A re-creation of PASCAL-B; not its authors' list of images",
        "inputs": describe_inputs(sources.files),
        "screening": dataclasses.asdict(options.screening),
        "sampling": describe_sampling(selection.sample, options.number, options.seed),
        "balance": describe_balance(selection.counts, selection.sample, options.seed),
        "images": {
            "in the set": len(selection.chosen),
            **{o.value: dropped[o.value] for o in Outcome if dropped[o.value]},
        },
        "rejected": {str(n): rejected[n] for n in sorted(set(rejected) & set(selection.dropped))},
        "near_duplicates": None if options.voc is None else duplicates,
        "missing_categories": sources.missing,
        "outputs": describe_outputs(annotations, rendered),
        "versions": versions(),
        "image_ids": [candidate.image_id for candidate in selection.chosen],
        "accounting": count_outcomes(sources, selection.dropped, outcomes),
    }
    _finish(partial, paths, selection.chosen, annotations, manifest)
    unknown = sorted(set(rejected) - set(selection.dropped))
    return BuildResult(Path(paths.output), manifest, tuple(_notes(manifest, verdicts, unknown)))


def rebuild_pascal_b(paths: BuildPaths, manifest_path: str | os.PathLike[str]) -> BuildResult:
    """Build the set of a manifest again, from the same annotation files in any place.

    Raises:
        FileExistsError, FileNotFoundError: as of :func:`build_pascal_b`.
        ValueError: the manifest or an input is malformed, the inputs are not the manifest's, or
            the result is not the same; then the output's place is left as it was.
    """
    check_place(Path(paths.output), force=paths.force)
    manifest = read_manifest(manifest_path)
    options = manifest["screening"]
    try:
        screening = ScreeningOptions(**{**options, "from_coco": tuple(options["from_coco"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{manifest_path}: 'screening': {error}") from error
    sources = _read_sources(paths)
    check_inputs(manifest, sources.files, manifest_path)
    found = [
        sources.candidate(n, from_coco=screening.coco_class_ids) for n in manifest["image_ids"]
    ]
    chosen = [candidate for candidate in found if isinstance(candidate, Candidate)]
    if len(chosen) != len(found):
        missing = f"{len(found) - len(chosen)} of its images are no candidates in the inputs"
        raise ValueError(f"{manifest_path}: {missing}")
    pictures = _check_pictures(paths, BuildOptions())
    if pictures is not None:
        pictures.near_duplicates(chosen)
    rendered, partial = _render(sources, chosen, screening, paths)
    annotations = format_annotations(chosen, rendered)
    outputs = describe_outputs(annotations, rendered)
    if outputs != manifest["outputs"]:
        shutil.rmtree(partial)
        raise ValueError(
            f"{manifest_path}: the same inputs gave another set ({outputs}, not "
            f"{manifest['outputs']}); the manifest was made with {manifest['versions']}, this is "
            f"{versions()}"
        )
    _finish(partial, paths, chosen, annotations, manifest)
    return BuildResult(Path(paths.output), manifest, tuple(_notes(manifest, (), ())))


def _check_pictures(paths: BuildPaths, options: BuildOptions) -> PictureCheck | None:
    """Make the check of pictures; None without pictures."""
    if paths.pictures is not None:
        distance = options.max_distance
        return PictureCheck(paths.pictures, options.voc, max_distance=distance, **paths.parallel)
    if options.voc is not None:
        raise ValueError("voc: near-duplicates can only be found with pictures, got none")
    return None


def _read_sources(paths: BuildPaths) -> AnnotationSources:
    """Read all annotation files."""
    named = [("lvis", path) for path in paths.lvis] + [("coco", path) for path in paths.coco]
    files = [
        read_index(path, kind)
        for kind, path in tqdm(named, "reading", unit="file", disable=not paths.progress)
    ]
    return AnnotationSources(files[: len(paths.lvis)], files[len(paths.lvis) :])


def _render(
    sources: AnnotationSources,
    chosen: Sequence[Candidate],
    screening: ScreeningOptions,
    paths: BuildPaths,
) -> tuple[list[RenderedImage], Path]:
    """Paint the images in the folder where the set is built."""
    key = {
        "inputs": [file.sha256 for file in sources.files],
        "screening": dataclasses.asdict(screening),
        "image_ids": [candidate.image_id for candidate in chosen],
        "versions": versions(),
    }
    partial = open_partial_folder(Path(paths.output), key)
    painted = parallel_map(
        functools.partial(render, paths=sources.paths, options=screening, folder=partial),
        chosen,
        description="painting",
        **paths.parallel,
    )
    return list(painted), partial


def _finish(
    partial: Path,
    paths: BuildPaths,
    chosen: Sequence[Candidate],
    annotations: str,
    manifest: Manifest,
) -> None:
    """Add pictures and texts, and put the set in its place."""
    if paths.pictures is not None:
        names = [image_name(candidate.image_id) for candidate in chosen]
        copy_pictures(find_pictures(chosen, Path(paths.pictures)), names, partial / IMAGE_FOLDER)
    write_texts(partial, annotations, manifest)
    put_in_place(partial, Path(paths.output))


def _notes(manifest: Manifest, verdicts: Sequence[Verdict], unknown: Sequence[int]) -> list[str]:
    """Sentences for the user: what falls short, and what is missing or unreadable."""
    sampling = manifest["sampling"]
    number, wanted = len(manifest["image_ids"]), sampling["requested_images"]
    notes = [f"LVIS lacks a category of {line}" for line in manifest["missing_categories"]]
    if unknown:
        notes.append(itemized("rejected image(s) not in the inputs", list(map(str, unknown))))
    bad = [verdict.message for verdict in verdicts if verdict.message]
    if bad:
        notes.append(itemized("image(s) dropped for a mask", bad))
    if number < wanted:
        notes.append(f"only {number} images are fit; {wanted} were asked for")
    short = describe_shortfalls(sampling)
    if short:
        lines = "".join(f"\n  {line}" for line in short)
        notes.append(f"{len(short)} of 60 cells fall short of {sampling['per_cell']}:{lines}")
    return notes
