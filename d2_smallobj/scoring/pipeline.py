"""Score a method's predictions: open the inputs, match every image, collect a run."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import Any

import d2_smallobj
from d2_smallobj.annotations.truth import GroundTruth
from d2_smallobj.metrics import COCO_SIZE_BINS, Accumulator, SizeBins
from d2_smallobj.metrics.summary import WORST_PERCENT, check_worst
from d2_smallobj.metrics.validation import MODES, check_classes
from d2_smallobj.scoring.inputs import DatasetOpener, Inputs, PixelSources, choose_ignore_label
from d2_smallobj.scoring.predictions import (
    Plan,
    Task,
    make_plan,
    open_predictions,
    read_prediction,
)
from d2_smallobj.scoring.scored_run import LEVEL, ScoredRun
from d2_smallobj.scoring.suspicious_maps import fits_exchanged, refuse_exchanged
from d2_smallobj.utils.messages import Problems, listed, look_up_option
from d2_smallobj.utils.parallel import parallel_batches

# Images that a process scores before it sends its records.
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of scoring.

    Attributes:
        mode: ``"exact"`` or ``"official"``; see :func:`d2_smallobj.metrics.match_image`.
        ignore_label: semantic label that is left out; default: the ground truth's, or 255.
        size_bins: the sizes.
        worst: percentage of the images, or of a class's images, that figures with ``@`` rest on.
        samples: number of bootstrap samples for the intervals; 0 = no intervals.
        seed: seed of the bootstrap.
        shard: (i, n): score every n-th image from the i-th on; merged later.
    """

    mode: str = "exact"
    ignore_label: int | None = None
    size_bins: SizeBins = COCO_SIZE_BINS
    worst: int = WORST_PERCENT
    samples: int = 1000
    seed: int = 0
    shard: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        """Check the values."""
        look_up_option("mode", self.mode, MODES)
        check_worst(self.worst)
        if self.samples < 0 or self.seed < 0:
            raise ValueError(
                f"bootstrap samples and seed must be >= 0, got {self.samples} and {self.seed}"
            )


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``i/n``, i from 1 to n; ValueError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise ValueError(f"--shard must be i/n with i in 1..n, e.g. 1/4, got {text!r}")
    return part, parts


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Reads and matches images. ``label_ids``: predictions hold Cityscapes' label ids."""

    truth: GroundTruth
    mode: str
    label_ids: bool = False

    def new_accumulator(self) -> Accumulator:
        """Make an empty accumulator with these settings."""
        return Accumulator(
            len(self.truth.class_names),
            stuff=self.truth.stuff,
            ignore_label=choose_ignore_label(None, self.truth),
            void_instance=self.truth.void_instance,
            mode=self.mode,
        )

    def score(
        self, tasks: Sequence[Task]
    ) -> tuple[dict[str, Any], list[tuple[str, str]], list[str]]:
        """Score some images.

        Returns an accumulator's state, the problems of the other images, and the names of those
        of them whose ground-truth maps would fit if they were exchanged.
        """
        accumulator, problems = self.new_accumulator(), Problems()
        exchanged: list[str] = []
        void = (accumulator.ignore_label, accumulator.void_instance)
        misfit = (
            f"image(s) whose labels do not fit the {accumulator.num_classes} classes (--classes),"
            f" the ignore label {accumulator.ignore_label} or each other"
        )
        for task in tasks:
            heading, where = "unusable ground-truth map(s)", ""
            try:
                semantic, instances = self.truth.read(task.truth)
                heading = "unusable prediction(s)"
                labels = read_prediction(
                    task.prediction, task.size, task.where, label_ids=self.label_ids
                )
                # The message says which of the maps is wrong, but not in which file.
                heading, where = misfit, f"{task.where} (ground truth {task.truth.both}): "
                accumulator.update(task.truth.image_id, labels, semantic, instances)
            except (OSError, ValueError) as error:
                problems.add(heading, f"{where}{error}")
                if where and fits_exchanged(
                    semantic, instances, num_classes=accumulator.num_classes, void=void
                ):
                    exchanged.append(task.truth.where)
        return accumulator.state(), problems.pairs(), exchanged


@dataclasses.dataclass(frozen=True)
class ScoringJob:
    """Inputs that were opened and checked; options and remarks (sentences) for ``metrics.json``."""

    scorer: Scorer
    plan: Plan
    class_names: tuple[str, ...]
    options: dict[str, Any]
    remarks: tuple[str, ...]
    open_dataset: DatasetOpener | None = None


def prepare(inputs: Inputs, settings: Settings | None = None, *, defer: bool = False) -> ScoringJob:
    """Open the inputs and check everything that can be checked without decoding a map.

    All missing or unfitting files are one :class:`InputError`. With ``defer`` they are left to
    :func:`score`, whose error then lists them together with those whose pixels are wrong.
    """
    settings = settings or Settings()
    truth = inputs.open_truth()
    # Folders do not know their ignore label, and an instance may have ignored pixels.
    truth.ignore_label = choose_ignore_label(settings.ignore_label, truth)
    check_classes(len(truth.class_names), truth.ignore_label)
    predictions = open_predictions(inputs.predictions, truth.json_classes)
    plan = make_plan(truth, predictions, shard=settings.shard)
    if not defer:
        plan.problems.raise_if_any()
    remarks = list(truth.remarks)
    if plan.unused:
        remarks.append(
            f"{len(plan.unused)} prediction(s) are not scored, since their images are not wanted or"
            f" have no ground truth: {listed(plan.unused)}"
        )
    options: dict[str, Any] = {
        "mode": settings.mode,
        "ignore_label": truth.ignore_label,
        "stuff": list(truth.stuff),
        "void_instance": truth.void_instance,
        "size_bins": str(settings.size_bins),
        "worst": settings.worst,
        "bootstrap": settings.samples,
        "seed": settings.seed,
        "level": LEVEL,
        "version": d2_smallobj.__version__,
        "inputs": inputs.describe(),
        "image_set": _image_set(truth),
    }
    if settings.shard[1] > 1:
        options["shard"] = "{}/{}".format(*settings.shard)
    # Each process gets the images that it reads, not all of them.
    lean = copy.copy(truth)
    lean.images = []
    scorer = Scorer(lean, settings.mode, inputs.prediction_ids == "label")
    return ScoringJob(scorer, plan, truth.class_names, options, tuple(remarks), inputs.open_dataset)


def score(prepared: ScoringJob, *, jobs: int = 1, progress: bool = False) -> ScoredRun:
    """Score the images; the result does not depend on the number of processes, ``jobs``.

    A shard has no intervals. All images that could not be scored are one :class:`InputError`; a
    killed process is a WorkerError.
    """
    plan, scorer = prepared.plan, prepared.scorer
    accumulator, problems = scorer.new_accumulator(), Problems()
    problems.extend(plan.problems.pairs())
    # Images with problems are known already: read the others, so that one error names all.
    what = "looking for more problems" if problems else "scoring"
    results = parallel_batches(
        scorer.score, plan.tasks, largest=_BATCH, jobs=jobs, description=what, progress=progress
    )
    exchanged: list[str] = []
    for state, found, names in results:
        problems.extend(found)
        exchanged += names
        accumulator.merge(Accumulator.from_state(state))
    refuse_exchanged(exchanged, len(problems), accumulator.table)
    problems.raise_if_any()
    files = {task.truth.image_id: _files(task, scorer.label_ids) for task in plan.tasks}
    scored = ScoredRun.from_accumulator(
        accumulator,
        prepared.class_names,
        options=prepared.options,
        sources=PixelSources(files, prepared.options["inputs"], prepared.open_dataset),
        remarks=prepared.remarks,
    )
    return scored if "shard" in prepared.options else scored.with_intervals()


def evaluate(
    inputs: Inputs, settings: Settings | None = None, *, jobs: int = 1, progress: bool = False
) -> ScoredRun:
    """Score a method's predictions; arguments and errors as :func:`prepare` and :func:`score`."""
    return score(prepare(inputs, settings, defer=True), jobs=jobs, progress=progress)


def _image_set(truth: GroundTruth) -> str:
    """Number and digest of all ids: shards of a folder that has changed must not be merged."""
    ids = sorted(image.image_id for image in truth.images)
    digest = hashlib.sha256("\n".join(ids).encode("utf-8")).hexdigest()
    return f"{len(ids)} images, ids sha256:{digest[:16]}"


def _files(task: Task, label_ids: bool) -> tuple[str, str, str, str]:
    """Files of an image by :data:`.SOURCE_KINDS`, empty where none can be shown as it is."""
    truth, prediction = task.truth, task.prediction
    if label_ids or not isinstance(prediction, str):
        prediction = ""
    return prediction, truth.semantic or "", truth.instances or "", truth.picture or ""
