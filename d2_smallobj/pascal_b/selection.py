"""From annotation files to the images of PASCAL-B, and why every other image is not among them."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import os
from collections.abc import Mapping, Sequence

import numpy as np

from d2_smallobj.annotations.class_names import VOC_CLASS_NAMES
from d2_smallobj.metrics.sizes import COCO_SIZE_BINS
from d2_smallobj.pascal_b.candidates import Candidate, Sources
from d2_smallobj.pascal_b.options import BuildOptions
from d2_smallobj.pascal_b.outcomes import Outcome
from d2_smallobj.pascal_b.pictures import NearDuplicate, PictureCheck
from d2_smallobj.pascal_b.sampling import Sample, sample_balanced
from d2_smallobj.pascal_b.screening import ScreeningOptions, Verdict, screen
from d2_smallobj.statistics.balance import class_size_counts
from d2_smallobj.utils.files import atomic_write_text
from d2_smallobj.utils.parallel import parallel_map

CLASSES = len(VOC_CLASS_NAMES) - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """The chosen images.

    Attributes:
        chosen: by image id.
        dropped: why each other image of the inputs is not chosen.
        counts: int64 (M, 60), instances by class × size of all fit images, chosen or not, whose
            choice ``sample`` describes.
        sample: the choice.
        near_duplicates: images left out because VOC has them; None: not looked for.
    """

    chosen: tuple[Candidate, ...]
    dropped: Mapping[int, Outcome]
    counts: np.ndarray
    sample: Sample
    near_duplicates: tuple[NearDuplicate, ...] | None


def find_candidates(
    sources: Sources, screening: ScreeningOptions, rejected: Mapping[int, str]
) -> tuple[dict[int, Candidate], dict[int, Outcome]]:
    """Candidates by image id, ascending, and why the other images are none."""
    candidates: dict[int, Candidate] = {}
    dropped: dict[int, Outcome] = {}
    for image_id in sources.image_ids():
        found = sources.candidate(image_id, from_coco=screening.coco_class_ids)
        if isinstance(found, Outcome):
            dropped[image_id] = found
        elif image_id in rejected:
            dropped[image_id] = Outcome.REJECTED
        else:
            candidates[image_id] = found
    return candidates, dropped


def screen_candidates(
    sources: Sources,
    candidates: Mapping[int, Candidate],
    screening: ScreeningOptions,
    *,
    jobs: int = 1,
    progress: bool = False,
) -> list[Verdict]:
    """The verdict on every candidate, by image id.

    Raises:
        RuntimeError: a process was killed.
    """
    paths = [os.fspath(file.path) for file in sources.files]
    judged = parallel_map(
        functools.partial(screen, paths=paths, options=screening),
        list(candidates.values()),
        jobs=jobs,
        description="screening",
        progress=progress,
    )
    return list(judged)


def select(
    candidates: Mapping[int, Candidate],
    dropped: Mapping[int, Outcome],
    verdicts: Sequence[Verdict],
    options: BuildOptions,
    pictures: PictureCheck | None = None,
) -> Selection:
    """Choose among the fit candidates.

    Args:
        candidates: by image id.
        dropped: why the other images are none.
        verdicts: on every candidate.
        options: number of images, balance and seed.
        pictures: checks the pictures of those that are chosen; near-duplicates of VOC's are left
            out and the choice made again.

    Raises:
        ValueError: no candidate is fit, or pictures are not what they should be.
        FileNotFoundError: pictures are missing.
    """
    dropped = {**dropped, **{v.image_id: v.outcome for v in verdicts if v.outcome is not None}}
    fit = [verdict for verdict in verdicts if verdict.outcome is None]
    table = np.stack([count_cells(verdict) for verdict in fit]) if fit else np.zeros((0, 60), int)
    duplicates: dict[int, NearDuplicate] = {}
    while True:
        rows = [n for n, verdict in enumerate(fit) if verdict.image_id not in duplicates]
        if not rows:
            raise ValueError(
                f"none of {len(dropped) + len(fit)} images is fit for PASCAL-B; see the "
                "options of screening, and --candidates FILE for the reason of each"
            )
        sample = sample_balanced(
            table[rows], options.number, seed=options.seed, per_cell=options.per_cell
        )
        chosen = tuple(candidates[fit[rows[n]].image_id] for n in sample.chosen.tolist())
        found = pictures.near_duplicates(chosen) if pictures is not None else []
        if not found:
            break
        duplicates.update({duplicate.image_id: duplicate for duplicate in found})
    dropped.update(dict.fromkeys(duplicates, Outcome.NEAR_DUPLICATE))
    taken = {candidate.image_id for candidate in chosen}
    left = (v.image_id for v in fit if v.image_id not in taken and v.image_id not in duplicates)
    dropped.update(dict.fromkeys(left, Outcome.NOT_SAMPLED))
    listed = tuple(sorted(duplicates.values())) if options.voc is not None else None
    return Selection(chosen, dropped, table[rows], sample, listed)


def count_cells(verdict: Verdict) -> np.ndarray:
    """Instances of an image by class × size: int64 (60,), a class's S, M and L in a row."""
    classes, areas = zip(*verdict.instances) if verdict.instances else ((), ())
    return class_size_counts(classes, areas, num_classes=CLASSES).ravel()


def format_candidate_list(candidates: Mapping[int, Candidate], verdicts: Sequence[Verdict]) -> str:
    """The verdict on every candidate as CSV, with its instances by class × size."""
    cells = [f"{name} {size}" for name in VOC_CLASS_NAMES[1:] for size in COCO_SIZE_BINS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["image_id", "file_name", "verdict", "disagreement", "void_share", "message", *cells]
    )
    for verdict in verdicts:
        candidate = candidates[verdict.image_id]
        writer.writerow(
            [
                verdict.image_id,
                candidate.file_name,
                verdict.outcome.value if verdict.outcome else "fit",
                f"{verdict.disagreement:.4f}",
                f"{verdict.void_share:.4f}",
                verdict.message,
                *count_cells(verdict).tolist(),
            ]
        )
    return text.getvalue()


def write_candidate_list(
    path: str | os.PathLike[str],
    candidates: Mapping[int, Candidate],
    verdicts: Sequence[Verdict],
) -> None:
    """Write :func:`format_candidate_list` to a file, atomically."""
    atomic_write_text(path, format_candidate_list(candidates, verdicts))
