"""Tables of many trainings: means over seeds, and gains with intervals over images and seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from d2_smallobj.engine.trainer import inference_folder
from d2_smallobj.experiments.ablation import Ablation, Variant, final_results, hours_spent
from d2_smallobj.experiments.paper_tables import csv_cell, mean_and_deviation, sample_deviation
from d2_smallobj.scoring import ScoredRun, load_runs
from d2_smallobj.scoring.scored_run import METRICS_FILE
from d2_smallobj.statistics.comparison import shared_options
from d2_smallobj.statistics.intervals import Interval
from d2_smallobj.statistics.pairing import paired_over_seeds
from d2_smallobj.utils.files import atomic_write_text, write_csv
from d2_smallobj.utils.tables import markdown_table

SHOWN = (
    *("mIoU", "IA-mIoU", "IA-mIoU_S", "IA-mIoU_M", "IA-mIoU_L"),
    *("recall_S", "recall_M", "recall_L"),
)
"""The figures of the Markdown table; the CSV has all."""
_COLUMNS = (
    *("data set", "method", "variant", "seeds", "figure", "mean", "sd"),
    *("gain", "low", "high", "hours"),
)


@dataclasses.dataclass(frozen=True)
class SeedGain:
    """One variant on one data set.

    Attributes:
        data_set: of the evaluation.
        method: what made the training labels; may be empty.
        variant: label of the variant.
        seeds: those of its complete runs; a gain is over those that the baseline has, too.
        values: percent by figure, one for each seed.
        gains: over the baseline, in percentage points by figure; empty for the baseline itself.
        hours: of all its runs.
    """

    data_set: str
    method: str
    variant: str
    seeds: tuple[int, ...]
    values: dict[str, list[float]]
    gains: dict[str, Interval]
    hours: float


def measure_seed_gains(
    ablations: Sequence[Ablation], baseline: str, *, samples: int = 2000
) -> list[SeedGain]:
    """Compare all variants with one of them, by the scored runs that the trainings have written.

    Args:
        ablations: with the same data sets to evaluate on.
        baseline: name of the variant that the others are compared with.
        samples: number of resamples; see :func:`.pairing.paired_over_seeds`.

    Returns:
        A row for each data set, ablation and variant that has a complete run, in this order. Runs
        whose scored folder is gone are left out.

    Raises:
        ValueError: a run's folder is damaged, or runs of one data set differ in images, ground
            truth or options.
    """
    rows: list[SeedGain] = []
    total = sum(len(ablation.variants) for ablation in ablations)
    with tqdm(total=total, desc="comparing", unit="variant", disable=None, leave=False) as bar:
        for ablation in ablations:
            known: dict[Path, ScoredRun] = {}
            for variant in ablation.variants:
                rows += _rows_of(ablation, variant, baseline, samples, known)
                bar.update()
    order = list(dict.fromkeys(row.data_set for row in rows))
    return sorted(rows, key=lambda row: order.index(row.data_set))


def _rows_of(
    ablation: Ablation, variant: Variant, baseline: str, samples: int, known: dict[Path, ScoredRun]
) -> Iterator[SeedGain]:
    """Yield the rows of a variant, one a data set; ``known`` keeps the runs that were read."""
    base = next((other for other in ablation.variants if other.name == baseline), None)
    done = {seed: final_results(ablation.folder(variant, seed)) for seed in ablation.seeds}
    for data_set in dict.fromkeys(name for found in done.values() for name in found):
        runs = {
            seed: run
            for seed in ablation.seeds
            if (run := _scored(ablation.folder(variant, seed), data_set, known)) is not None
        }
        if not runs:
            continue
        seeds = list(runs)
        gains: dict[str, Interval] = {}
        if base is not None and base != variant:
            before = {seed: _scored(ablation.folder(base, seed), data_set, known) for seed in seeds}
            pairs = [(first, runs[seed]) for seed, first in before.items() if first is not None]
            if pairs:
                first, second = zip(*pairs)
                gains = paired_over_seeds(
                    first,
                    second,
                    samples=samples,
                    class_names=list(first[0].class_names),
                    **shared_options(first[0].options),
                )
        hours = sum(hours_spent(ablation.folder(variant, seed)) for seed in seeds)
        names = runs[seeds[0]].headline
        values = {name: [run.headline[name] for run in runs.values()] for name in names}
        yield SeedGain(data_set, ablation.method, variant.label, tuple(seeds), values, gains, hours)


def _scored(folder: Path, data_set: str, known: dict[Path, ScoredRun]) -> ScoredRun | None:
    """Read what the last evaluation of a complete training wrote; None where there is none."""
    scored = Path(inference_folder(folder, data_set))
    if data_set not in final_results(folder) or not (scored / METRICS_FILE).exists():
        return None
    if scored not in known:
        known[scored] = load_runs([scored])[0]
    return known[scored]


def write_seed_gains(folder: Path, name: str, rows: Sequence[SeedGain]) -> str:
    """Write ``<name>.csv`` (all figures) and ``<name>.md`` (returned; those of :data:`SHOWN`)."""
    cells = [
        [
            *(row.data_set, row.method, row.variant, " ".join(map(str, row.seeds)), figure),
            *map(csv_cell, (statistics.fmean(values), sample_deviation(values))),
            *map(csv_cell, _parts(row.gains.get(figure))),
            f"{row.hours:.2f}",
        ]
        for row in rows
        for figure, values in row.values.items()
    ]
    write_csv(folder / f"{name}.csv", _COLUMNS, cells)
    text = "\n".join(_table(data_set, rows) for data_set in dict.fromkeys(x.data_set for x in rows))
    atomic_write_text(folder / f"{name}.md", text)
    return text


def _table(data_set: str, rows: Sequence[SeedGain]) -> str:
    shown = [
        [
            *(row.method or "-", row.variant),
            *(_shown(row.values[figure], row.gains.get(figure)) for figure in SHOWN),
            *(str(len(row.seeds)), f"{row.hours:.1f}"),
        ]
        for row in rows
        if row.data_set == data_set
    ]
    header = ["labels", "variant", *SHOWN, "seeds", "hours"]
    return f"{data_set}\n\n{markdown_table(header, shown, text_columns=2)}\n"


def _shown(values: Sequence[float], gain: Interval | None) -> str:
    text = mean_and_deviation(values)
    if gain is None or math.isnan(gain.estimate):
        return text
    return f"{text} ({gain.estimate:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}])"


def _parts(gain: Interval | None) -> tuple[float, float, float]:
    return (math.nan,) * 3 if gain is None else (gain.estimate, gain.low, gain.high)
