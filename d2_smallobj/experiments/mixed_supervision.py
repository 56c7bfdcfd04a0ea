"""Compare mixed supervision with its baselines over several seeds (docs/mixed.md#figures)."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from d2_smallobj.engine.trainer import HEADLINE
from d2_smallobj.experiments import MIXED_VARIANTS
from d2_smallobj.experiments.ablation import Ablation, Variant, final_results, write_tables
from d2_smallobj.experiments.seed_gains import measure_seed_gains, write_seed_gains

KINDS = MIXED_VARIANTS
"""The variants that can be compared; the first is the reference of all."""

FOREGROUND_IOU = "IoU_fg"
"""The mean IoU of the foreground classes; the IoU of the object in a binary task."""
SHARE = "% of full"
COLUMNS = (FOREGROUND_IOU, SHARE, *HEADLINE)

_CERTAIN = ("MODEL.META_ARCHITECTURE", "SizeBalancedSegmentor")
_UNCERTAIN = ("MODEL.META_ARCHITECTURE", "UncertainSegmentor")
_NEVER = ("SMALLOBJ.UNCERTAINTY.BOOTSTRAP.WARMUP", "1.0")
_ALL_MASKS = ("SMALLOBJ.SUPERVISION.MASK_FRACTION", "1.0")
_NO_BOXES = ("SMALLOBJ.SUPERVISION.REST", "none")
_NO_PENALTY = ("SMALLOBJ.EWC.LAMBDA", "0.0")
# The figure of the tables is a mean over classes.
_PER_CLASS = ("SMALLOBJ.TEST.PER_CLASS", "True")


def build_variants(
    fraction: float,
    iterations: int,
    kinds: Collection[str] = KINDS,
    varied: Mapping[str, Sequence[str]] | None = None,
) -> list[Variant]:
    """Build the variants, in the order of the table.

    Args:
        fraction: ``SUPERVISION.MASK_FRACTION`` of the config, for the labels.
        iterations: ``SOLVER.MAX_ITER`` of the config; the size-balanced variant takes the first
            half of them for task A, and ``SMALLOBJ.EWC`` as it is in the config.
        kinds: which of :data:`KINDS` to build.
        varied: config keys and values; one more variant of ``bootstrap`` for each value.
    """
    masks, boxes = f"{100 * fraction:g} % masks", f"{100 * (1 - fraction):g} % boxes"
    bootstrap = f"{masks} + {boxes}, doubted, bootstrapped"
    # Task B alone, which can be size-weighted from the start.
    one_task = ("SMALLOBJ.TASK_A.ITERS", "0", "SMALLOBJ.TASK_B.LOSS")
    plain = (*one_task, "cross_entropy", *_NO_PENALTY)
    weighted = (*one_task, "size_weighted", *_NO_PENALTY)
    balanced = (
        *("SMALLOBJ.TASK_A.ITERS", str(iterations // 2), "SMALLOBJ.TASK_A.LOSS", "cross_entropy"),
        *("SMALLOBJ.TASK_B.LOSS", "size_weighted"),
    )
    table = {
        "full": ("full supervision, 100 % masks", (*_CERTAIN, *_ALL_MASKS, *plain)),
        "masks": (f"{masks} only", (*_CERTAIN, *_NO_BOXES, *plain)),
        "boxes": (f"{masks} + {boxes} as masks", (*_CERTAIN, *plain)),
        "uncertainty": (f"{masks} + {boxes}, doubted", (*_UNCERTAIN, *_NEVER, *plain)),
        "bootstrap": (bootstrap, (*_UNCERTAIN, *plain)),
        "bootstrap_sw": ("the same with size weights", (*_UNCERTAIN, *weighted)),
        "bootstrap_sb": (
            "the same with size weights and EWC in the second half",
            (*_UNCERTAIN, *balanced),
        ),
    }
    rows = [(kind, *table[kind]) for kind in KINDS if kind in kinds]
    for key, values in (varied or {}).items():
        leaf = key.rsplit(".", 1)[-1]
        for value in values:
            options = (*_UNCERTAIN, key, value, *plain)
            rows.append((f"{leaf.lower()}_{value}", f"{bootstrap}, {leaf} = {value}", options))
    return [
        Variant(name, label, (*options, *_PER_CLASS), shares_task_a=False)
        for name, label, options in rows
    ]


@dataclasses.dataclass(frozen=True)
class MixedSupervision(Ablation):
    """All runs of a comparison; see :class:`.ablation.Ablation`."""

    def rows(self) -> Iterator[dict[str, str | float]]:
        """Yield the percentages of the complete runs, one row per variant, seed and data set.

        ``% of full`` is the foreground IoU in percent of that of full supervision with the same
        seed; NaN where that run is not complete.
        """
        reference = Variant("full", "", ())
        for variant in self.variants:
            for seed in self.seeds:
                full = final_results(self.folder(reference, seed))
                for dataset, figures in final_results(self.folder(variant, seed)).items():
                    value = foreground_iou(figures)
                    whole = foreground_iou(full.get(dataset, {}))
                    yield {
                        **{"variant": variant.label, "seed": seed, "data set": dataset},
                        **{FOREGROUND_IOU: value, SHARE: 100 * value / whole},
                        **{key: figures.get(key, math.nan) for key in HEADLINE},
                    }


def foreground_iou(figures: Mapping[str, float]) -> float:
    """Average ``IoU-<class>`` over the foreground classes of an evaluation; NaN without any."""
    values = [
        value
        for name, value in figures.items()
        if name.startswith("IoU-") and name != "IoU-background" and not math.isnan(value)
    ]
    return statistics.fmean(values) if values else math.nan


def write_all_tables(comparisons: Sequence[MixedSupervision], folder: Path) -> str:
    """Write the tables of the complete runs.

    ``mixed.csv`` and ``mixed.md`` (returned), and ``gains.csv`` and ``gains.md`` with paired
    intervals against the bootstrapped variant.
    """
    table = write_tables(comparisons, folder, "mixed", COLUMNS)
    write_seed_gains(folder, "gains", measure_seed_gains(comparisons, "bootstrap"))
    return table
