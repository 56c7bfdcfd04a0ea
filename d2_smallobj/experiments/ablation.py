"""Run the paper's ablation (Table 4) over several seeds, as processes of ``smallobj train``.

The released code never applies its penalty, so "with L_SB" may mean two things: a size-weighted
second task without penalty, or with one (docs/method.md#size-balanced-loss). The variants here
separate them.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import math
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from d2_smallobj.engine.config_files import read_config_file
from d2_smallobj.engine.setup import build_config, flatten
from d2_smallobj.engine.tasks import TASK_A_CHECKPOINT
from d2_smallobj.engine.trainer import HEADLINE
from d2_smallobj.engine.weight_files import load_torch_file, save_torch_file
from d2_smallobj.experiments import ABLATION_VARIANTS
from d2_smallobj.experiments.paper_tables import BASELINE, mean_and_deviation
from d2_smallobj.experiments.scheduling import Job, Resources, divide_machine, run_jobs
from d2_smallobj.utils.files import atomic_write_text, read_json

TRAIN_COMMAND = (sys.executable, "-m", "d2_smallobj.commands.train_net")
KINDS = ABLATION_VARIANTS
_TASK_A_FILE = f"{TASK_A_CHECKPOINT}.pth"
_HOURS_FILE = "hours.txt"
_WITHOUT_EFFECT = (
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "SOLVER.CHECKPOINT_PERIOD",
    "SMALLOBJ.PICTURES.PERIOD",
    "SMALLOBJ.PICTURES.NUM_IMAGES",
)
"""Keys that may differ between the parts of a run: they do not change its figures."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str  # short, also of its folder
    label: str
    options: tuple[str, ...]  # config overrides
    # Whether its task A is the plain cross-entropy that others run too: trained once per seed.
    shares_task_a: bool = True

    @property
    def needs_online_fisher(self) -> bool:
        """Whether its task A must record the online Fisher information."""
        return "online" in self.options


def build_variants(
    strengths_online: Sequence[float],
    strengths_empirical: Sequence[float],
    kinds: Collection[str] = KINDS,
) -> list[Variant]:
    """Build the variants of some of :data:`KINDS`, in the order of the table.

    There is one variant for each lambda of the online and of the empirical Fisher.
    """
    no_penalty = ("SMALLOBJ.EWC.LAMBDA", "0.0")

    def penalty(fisher: str, strength: float) -> Variant:
        return Variant(
            f"ce_sb_{fisher}_{strength:g}",
            f"CE → L_SB, {fisher} Fisher, λ = {strength:g}",
            ("SMALLOBJ.EWC.FISHER", fisher, "SMALLOBJ.EWC.LAMBDA", str(float(strength))),
        )

    from_start = ("SMALLOBJ.TASK_A.ITERS", "0", *no_penalty)
    by_kind = {
        "ce": [Variant("ce", BASELINE, ("SMALLOBJ.TASK_B.LOSS", "cross_entropy", *no_penalty))],
        "sw": [Variant("sw", "L_SW from the start", from_start, shares_task_a=False)],
        "ce_sw": [Variant("ce_sw", "CE → L_SW", no_penalty)],
        "ce_sb_online": [penalty("online", strength) for strength in strengths_online],
        "ce_sb_empirical": [penalty("empirical", strength) for strength in strengths_empirical],
    }
    return [variant for kind in KINDS if kind in kinds for variant in by_kind[kind]]


@dataclasses.dataclass(frozen=True)
class Ablation:
    """All runs of an ablation on one training set.

    A complete run is not repeated, and an interrupted one resumes.

    Attributes:
        config_file: a two-task config.
        output_dir: holds one folder per variant and seed.
        variants: the rows of the table, in its order.
        seeds: of the runs of each variant.
        num_gpus: GPUs of one run.
        options: config overrides of all runs.
        method: what made the labels of the training set, if several are compared.
        deadline: ``time.monotonic()`` at which runs are ended, to be resumed by another call.
    """

    config_file: str
    output_dir: Path
    variants: Sequence[Variant]
    seeds: Sequence[int]
    num_gpus: int = 1
    options: tuple[str, ...] = ()
    method: str = ""
    deadline: float = math.inf

    def jobs(self) -> list[Job]:
        """List the incomplete runs; for each seed, one variant makes the task A of the others.

        Raises ValueError if a folder holds a run with other settings; names it and them.
        """
        for seed in self.seeds:
            for variant in self.variants:
                self._check_settings(variant, seed)
        return [job for seed in self.seeds for job in self._jobs_of_seed(seed)]

    def _jobs_of_seed(self, seed: int) -> Iterator[Job]:
        # The online Fisher information is recorded during task A: a variant that uses it makes
        # the task A that all others start from.
        leader = None
        for variant in sorted(self.variants, key=lambda v: not v.needs_online_fisher):
            folder = self.folder(variant, seed)
            if _is_complete(folder):
                continue
            run = functools.partial(self._run, variant, seed)
            begun = (folder / "last_checkpoint").exists()
            waits = variant.shares_task_a and not begun and self._task_a(variant, seed) is None
            yield Job(str(folder), run, leader if waits else None)
            if waits:
                leader = leader or str(folder)

    def _task_a(self, variant: Variant, seed: int) -> Path | None:
        """Find a finished task A from which a run can go on."""
        for other in self.variants:
            path = self.folder(other, seed) / _TASK_A_FILE
            suits = other.needs_online_fisher or not variant.needs_online_fisher
            if other.shares_task_a and suits and path.exists():
                return path
        return None

    def folder(self, variant: Variant, seed: int) -> Path:
        """Return the output folder of a run."""
        return self.output_dir / f"{variant.name}_seed{seed}"

    def _start_from_task_a(self, variant: Variant, seed: int) -> None:
        """Let a run that has not begun continue from another variant's task A."""
        folder, source = self.folder(variant, seed), self._task_a(variant, seed)
        if source is None or (folder / "last_checkpoint").exists():
            return
        state = load_torch_file(str(source))
        if not variant.needs_online_fisher:
            # The Fisher information belongs to another estimator.
            state.pop("ewc", None)
        save_torch_file(folder / _TASK_A_FILE, state)
        atomic_write_text(folder / "last_checkpoint", _TASK_A_FILE)

    def _run_options(self, variant: Variant, seed: int) -> list[str]:
        """List the config overrides of one run."""
        return [
            *(*self.options, *variant.options, "SMALLOBJ.EVAL_TASK_A", "False"),
            *("SEED", str(seed), "OUTPUT_DIR", str(self.folder(variant, seed))),
        ]

    def _check_settings(self, variant: Variant, seed: int) -> None:
        """Refuse a folder whose figures another config made: the table would mislead."""
        path = self.folder(variant, seed) / "config.yaml"
        if not path.exists():
            # The end of task A is put there before a run begins.
            if any((path.parent / name).exists() for name in ("results.json", "model_final.pth")):
                raise ValueError(
                    f"{path.parent} holds a run without its config.yaml, which may have other "
                    "settings: choose another --output, or remove that folder"
                )
            return
        found = dict(flatten(read_config_file(path)))
        cfg = build_config(self.config_file, self._run_options(variant, seed))
        for key, value in flatten(yaml.safe_load(cfg.dump())):
            if key not in _WITHOUT_EFFECT and found.get(key, value) != value:
                raise ValueError(
                    f"{path.parent} holds a run with other settings ({key} {found[key]!r} there, "
                    f"{value!r} now): choose another --output, or remove that folder"
                )

    def _run(self, variant: Variant, seed: int, resources: Resources) -> None:
        if variant.shares_task_a:
            self._start_from_task_a(variant, seed)
        folder = self.folder(variant, seed)
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            *(*TRAIN_COMMAND, "--config-file", self.config_file),
            *("--num-gpus", str(self.num_gpus), "--resume", "--dist-url", "auto"),
            *self._run_options(variant, seed),
        ]
        log, environment = folder / "console.txt", resources.environment()
        title = f"{f'{self.method}, ' if self.method else ''}variant {variant.name}, seed {seed}"
        start, before = time.monotonic(), hours_spent(folder)
        if start >= self.deadline:
            raise RuntimeError(f"{title} has not begun: time is up")
        limit = {} if math.isinf(self.deadline) else {"timeout": self.deadline - start}
        with open(log, "ab") as file:
            streams: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT}
            try:
                done = subprocess.run(command, env=environment, check=False, **streams, **limit)
            except subprocess.TimeoutExpired:
                done = None  # killed: its last checkpoint is what the next call goes on from
        hours = before + (time.monotonic() - start) / 3600
        atomic_write_text(folder / _HOURS_FILE, f"{hours:.4f}\n")
        if done is None:
            raise RuntimeError(f"{title} was ended before its end: time is up")
        if done.returncode != 0 or not _is_complete(folder):
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1] if lines else "no output"
            raise RuntimeError(f"{title} ended with code {done.returncode}: {last} (log: {log})")

    def rows(self) -> Iterator[dict[str, str | float]]:
        """Yield the figures of the complete runs, one row per variant, seed and data set."""
        method = {"method": self.method} if self.method else {}
        for variant in self.variants:
            for seed in self.seeds:
                for dataset, figures in final_results(self.folder(variant, seed)).items():
                    yield {
                        **method,
                        **{"variant": variant.label, "seed": seed, "data set": dataset},
                        **{key: figures.get(key, math.nan) for key in HEADLINE},
                    }


def run_all(
    ablations: Sequence[Ablation], jobs: int | None = 1, devices: Sequence[str] = ()
) -> None:
    """Run all incomplete runs of one or several ablations with the same ``num_gpus``.

    Args:
        ablations: at least one.
        jobs: runs at once; None: as many as the GPUs allow. Each gets its share of the machine.
        devices: all GPUs, as ``CUDA_VISIBLE_DEVICES`` names them; empty: none is assigned.

    Raises:
        RuntimeError: runs failed, after all others; names their logs.
        ValueError: before any begins: a folder holds a run with other settings, or a run needs
            more GPUs than there are.
    """
    missing = [job for ablation in ablations for job in ablation.jobs()]
    shares = divide_machine(jobs, num_gpus=ablations[0].num_gpus, devices=devices)
    total = sum(len(ablation.seeds) * len(ablation.variants) for ablation in ablations)
    done = total - len(missing)
    with tqdm(total=total, initial=done, desc="training", unit="run") as bar:
        run_jobs(missing, shares, progress=bar)


def write_tables(
    ablations: Sequence[Ablation],
    folder: Path,
    name: str = "ablation",
    columns: Sequence[str] = HEADLINE,
) -> str:
    """Write ``<name>.csv`` (every run) and ``<name>.md`` (:func:`seed_table`, returned)."""
    rows = [row for ablation in ablations for row in ablation.rows()]
    method = ["method"] if ablations[0].method else []
    text = io.StringIO()
    writer = csv.DictWriter(text, [*method, "variant", "seed", "data set", *columns])
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(folder / f"{name}.csv", text.getvalue())
    table = seed_table(rows, columns)
    atomic_write_text(folder / f"{name}.md", table)
    return table


def seed_table(rows: Sequence[Mapping[str, str | float]], columns: Sequence[str] = HEADLINE) -> str:
    """Lay out mean ± sample standard deviation over seeds as Markdown, as the paper's Table 4.

    The rows are those of :meth:`Ablation.rows`: all with a method, or none.
    """
    names = ["data set", *(["method"] if rows and "method" in rows[0] else []), "variant"]
    groups: dict[tuple[object, ...], list[Mapping[str, str | float]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    lines = [
        f"| {' | '.join((*names, *columns))} | seeds |",
        "|---" * (len(names) + len(columns) + 1) + "|",
    ]
    for group, members in groups.items():
        cells = [mean_and_deviation([float(row[key]) for row in members]) for key in columns]
        lines.append(f"| {' | '.join([*map(str, group), *cells])} | {len(members)} |")
    return "\n".join(lines) + "\n"


def final_results(folder: Path) -> dict[str, dict[str, float]]:
    """Read ``{data set: {figure: percent}}`` at the end of a run; empty if it is not complete."""
    if not _is_complete(folder):
        return {}
    return read_json(folder / "results.json")["B"]


def hours_spent(folder: Path) -> float:
    """Return the hours that the trainings of a run took, those that ended by an error included."""
    path = folder / _HOURS_FILE
    return float(path.read_text("ascii")) if path.exists() else 0.0


def _is_complete(folder: Path) -> bool:
    """Tell whether a run has saved its last weights and the figures of its last task."""
    path = folder / "results.json"
    saved = (folder / "model_final.pth").exists() and path.exists()
    return saved and "B" in read_json(path)
