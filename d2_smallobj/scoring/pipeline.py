"""Scoring a method's predictions, from inputs to a run."""

from __future__ import annotations

import dataclasses
import hashlib

import d2_smallobj
from d2_smallobj.annotations.truth import GroundTruth
from d2_smallobj.metrics import COCO_SIZE_BINS, SizeBins
from d2_smallobj.metrics.image_means import WORST_PERCENT, check_worst
from d2_smallobj.metrics.image_runs import MODES
from d2_smallobj.metrics.validation import check_classes
from d2_smallobj.scoring.inputs import Inputs, choose_ignore_label
from d2_smallobj.scoring.plan import Plan, Task, make_plan
from d2_smallobj.scoring.reopen import reopener
from d2_smallobj.scoring.runner import Scorer, score_tasks
from d2_smallobj.scoring.scored_run import ScoredRun, Sources
from d2_smallobj.statistics.intervals import bootstrap
from d2_smallobj.utils.options import look_up_option

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Settings:
    """How predictions are scored.

    Attributes:
        mode: ``"exact"`` or ``"official"``; see :func:`d2_smallobj.metrics.match_image`.
        ignore_label: semantic label that is left out; default: the ground truth's, or 255.
        size_bins: the sizes.
        worst: share of the images, or of a class's images, that the figures with ``@`` rest on, in
            percent.
        samples: of the bootstrap that gives the intervals; 0 = no intervals.
        seed: of the bootstrap.
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
        """Check the values.

        Raises:
            ValueError: one is out of range.
        """
        look_up_option("mode", self.mode, MODES)
        check_worst(self.worst)
        if self.samples < 0 or self.seed < 0:
            raise ValueError(
                f"bootstrap samples and seed must be >= 0, got {self.samples} and {self.seed}"
            )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Inputs that were opened and checked, ready to be scored.

    Attributes:
        scorer: reads and matches.
        plan: the images.
        class_names: names of the classes.
        options: what the run will say about how it was made.
        settings: how to score.
        remarks: what the reader should know, one sentence each.
    """

    scorer: Scorer
    plan: Plan
    class_names: tuple[str, ...]
    options: dict[str, object]
    settings: Settings
    remarks: tuple[str, ...]


def prepare(inputs: Inputs, settings: Settings | None = None, *, defer: bool = False) -> Prepared:
    """Open the inputs and check everything that can be checked without decoding a map.

    Args:
        inputs: where predictions and ground truth are.
        settings: how to score.
        defer: leave files with a wrong header to :func:`score`, whose error then lists them
            together with those whose pixels are wrong.

    Raises:
        InputError: files are missing, unreadable, of another size or kind; lists all of them.
        ValueError: an input is malformed, or options do not fit.
        OSError: something cannot be read.
    """
    settings = settings or Settings()
    truth = inputs.open_truth()
    ignore_label = choose_ignore_label(settings.ignore_label, truth)
    # Folders do not know theirs, and an instance may have ignored pixels.
    truth.ignore_label = ignore_label
    class_names = truth.class_names
    check_classes(len(class_names), ignore_label)
    plan = make_plan(truth, inputs.open_predictions(truth), shard=settings.shard)
    if not defer:
        plan.problems.raise_if_any()
    remarks = [*truth.remarks, *([plan.remark] if plan.remark else [])]
    options: dict[str, object] = {
        "mode": settings.mode,
        "ignore_label": ignore_label,
        "stuff": list(truth.stuff),
        "void_instance": truth.void_instance,
        "size_bins": str(settings.size_bins),
        "worst": settings.worst,
        "bootstrap": settings.samples,
        "seed": settings.seed,
        "level": _LEVEL,
        "version": d2_smallobj.__version__,
        "inputs": inputs.describe(),
        "image_set": _image_set(truth),
    }
    if settings.shard[1] > 1:
        options["shard"] = "{}/{}".format(*settings.shard)
    scorer = Scorer(
        truth,
        len(class_names),
        ignore_label,
        settings.mode,
        stuff=truth.stuff,
        void_instance=truth.void_instance,
        label_ids=inputs.prediction_ids == "label",
    )
    return Prepared(scorer, plan, class_names, options, settings, tuple(remarks))


def score(
    prepared: Prepared, *, name: str = "", jobs: int = 1, progress: bool = False
) -> ScoredRun:
    """Score the images; the result does not depend on ``jobs``.

    Args:
        prepared: by :func:`prepare`.
        name: of the run.
        jobs: number of processes.
        progress: show a progress bar on stderr.

    Returns:
        The run; a shard has no intervals.

    Raises:
        InputError: images could not be scored; lists all of them.
        RuntimeError: a process was killed.
    """
    plan = prepared.plan
    accumulator = score_tasks(
        prepared.scorer, plan.tasks, known=plan.problems, jobs=jobs, progress=progress
    )
    label_ids = prepared.scorer.label_ids
    files = {task.truth.image_id: _files(task, label_ids=label_ids) for task in plan.tasks}
    scored = ScoredRun.from_accumulator(
        accumulator,
        prepared.class_names,
        name=name,
        options=prepared.options,
        sources=Sources(files, reopener(prepared.options["inputs"])),
        remarks=prepared.remarks,
    )
    return scored if "shard" in prepared.options else with_intervals(scored)


def evaluate(
    inputs: Inputs,
    settings: Settings | None = None,
    *,
    name: str = "",
    jobs: int = 1,
    progress: bool = False,
) -> ScoredRun:
    """Score a method's predictions; arguments and errors as :func:`prepare` and :func:`score`."""
    prepared = prepare(inputs, settings, defer=True)
    return score(prepared, name=name, jobs=jobs, progress=progress)


def with_intervals(scored: ScoredRun) -> ScoredRun:
    """Add bootstrap intervals as the options say; none for no samples or no image."""
    samples = int(scored.options.get("bootstrap", 0))
    if samples == 0 or not scored.images:
        return scored
    found = bootstrap(
        scored,
        class_names=scored.class_names,
        stuff=scored.stuff,
        size_bins=scored.size_bins,
        worst=scored.worst,
        samples=samples,
        seed=int(scored.options.get("seed", 0)),
        level=float(scored.options.get("level", _LEVEL)),
    )
    return dataclasses.replace(scored, intervals=found)


def _image_set(truth: GroundTruth) -> str:
    """Number and digest of all ids: shards of a folder that has changed must not be merged."""
    ids = sorted(image.image_id for image in truth.images)
    digest = hashlib.sha256("\n".join(ids).encode("utf-8")).hexdigest()
    return f"{len(ids)} images, ids sha256:{digest[:16]}"


def _files(task: Task, *, label_ids: bool) -> tuple[str, str, str, str]:
    """Files of an image by :data:`SOURCE_KINDS`, empty where none can be shown as it is."""
    plain = isinstance(task.prediction, str) and not label_ids
    prediction = task.prediction if plain else ""
    truth = task.truth
    return prediction, truth.semantic or "", truth.instances or "", truth.picture or ""
