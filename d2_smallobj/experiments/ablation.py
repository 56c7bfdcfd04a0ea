"""The paper's ablation (Table 4) over several seeds, as processes of ``tools/train_net.py``."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from tqdm import tqdm

from d2_smallobj.engine.checkpoint import load_torch_file, save_torch_file
from d2_smallobj.engine.fingerprint import flatten
from d2_smallobj.engine.setup import build_config
from d2_smallobj.engine.tables import HEADLINE, markdown_table
from d2_smallobj.engine.tasks import TASK_A_CHECKPOINT
from d2_smallobj.experiments.scheduling import Job, Slot, build_slots, run_jobs
from d2_smallobj.experiments.variants import KINDS, Variant, build_variants
from d2_smallobj.utils.files import atomic_write_text

__all__ = ["KINDS", "Ablation", "Variant", "build_variants", "final_results", "run_all"]

_WITHOUT_EFFECT = (
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "SOLVER.CHECKPOINT_PERIOD",
    "SMALLOBJ.PICTURES.PERIOD",
    "SMALLOBJ.PICTURES.NUM_IMAGES",
)
"""Keys that may differ between the parts of a run: they do not change its figures."""


@dataclasses.dataclass(frozen=True)
class Ablation:
    """All runs of an ablation on one training set.

    A run that is complete is not repeated, and one that was cut off resumes.

    Attributes:
        train_net: path of ``tools/train_net.py``.
        config_file: a two-task config.
        output_dir: holds one folder a variant and seed.
        variants: what to run, in the order of the table.
        seeds: what to run it with.
        num_gpus: GPUs of one run.
        options: config overrides of all runs.
        method: what made the labels of the training set, where several are compared; in front of
            the rows of the table.
    """

    train_net: Path
    config_file: str
    output_dir: Path
    variants: Sequence[Variant]
    seeds: Sequence[int]
    num_gpus: int = 1
    options: tuple[str, ...] = ()
    method: str = ""

    def run(self, jobs: int | None = 1, devices: Sequence[str] = ()) -> None:
        """Run whatever is not complete yet; see :func:`run_all`."""
        run_all([self], jobs, devices)

    def jobs(self) -> list[Job]:
        """What is not complete yet; seed by seed, one variant makes the task A of the others.

        Raises:
            ValueError: if a folder holds a run with other settings; names it and them.
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
            if _is_complete(self.folder(variant, seed)):
                continue
            name = str(self.folder(variant, seed))
            run = functools.partial(self._run, variant, seed)
            waits = variant.shares_task_a and not self._can_start(variant, seed)
            yield Job(name, run, leader if waits else None)
            if waits:
                leader = leader or name

    def _can_start(self, variant: Variant, seed: int) -> bool:
        """Whether a run has begun, or finds a task A to start from."""
        makers = [
            other
            for other in self.variants
            if other.shares_task_a and other.needs_online_fisher >= variant.needs_online_fisher
        ]
        task_a = [self.folder(other, seed) / f"{TASK_A_CHECKPOINT}.pth" for other in makers]
        begun = self.folder(variant, seed) / "last_checkpoint"
        return any(path.exists() for path in (begun, *task_a))

    def _run(self, variant: Variant, seed: int, slot: Slot) -> None:
        if variant.shares_task_a:
            self._start_from_task_a(variant, seed)
        self._train(variant, seed, slot)

    def folder(self, variant: Variant, seed: int) -> Path:
        """Where a run writes."""
        return self.output_dir / f"{variant.name}_seed{seed}"

    def _start_from_task_a(self, variant: Variant, seed: int) -> None:
        """Let a run that has not begun continue from another variant's task A."""
        folder = self.folder(variant, seed)
        if (folder / "last_checkpoint").exists():
            return
        for other in self.variants:
            source = self.folder(other, seed) / f"{TASK_A_CHECKPOINT}.pth"
            if not other.shares_task_a or not source.exists() or source.parent == folder:
                continue
            state = load_torch_file(str(source))
            if not variant.needs_online_fisher:
                # The Fisher information belongs to another estimator.
                state.pop("ewc", None)
            elif state.get("ewc", {}).get("estimator") != "online":
                continue
            save_torch_file(folder / f"{TASK_A_CHECKPOINT}.pth", state)
            atomic_write_text(folder / "last_checkpoint", f"{TASK_A_CHECKPOINT}.pth")
            return

    def _run_options(self, variant: Variant, seed: int) -> list[str]:
        """Config overrides of one run."""
        return [
            *(*self.options, *variant.options, "SMALLOBJ.EVAL_TASK_A", "False"),
            *("SEED", str(seed), "OUTPUT_DIR", str(self.folder(variant, seed))),
        ]

    def _check_settings(self, variant: Variant, seed: int) -> None:
        """Refuse a folder whose figures another configuration made: the table would mislead."""
        path = self.folder(variant, seed) / "config.yaml"
        if not path.exists():
            return
        found = dict(flatten(yaml.safe_load(path.read_text(encoding="utf-8"))))
        cfg = build_config(self.config_file, self._run_options(variant, seed))
        for key, value in flatten(yaml.safe_load(cfg.dump())):
            if key not in _WITHOUT_EFFECT and found.get(key, value) != value:
                raise ValueError(
                    f"{path.parent} holds a run with other settings ({key} {found[key]!r} there, "
                    f"{value!r} now): choose another --output-dir, or remove that folder"
                )

    def _train(self, variant: Variant, seed: int, slot: Slot) -> None:
        folder = self.folder(variant, seed)
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, str(self.train_net), "--config-file", self.config_file),
            *("--num-gpus", str(self.num_gpus), "--resume", "--dist-url", "auto"),
            *self._run_options(variant, seed),
        ]
        log = folder / "console.txt"
        with open(log, "ab") as file:
            code = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=slot.environment(),
                check=False,
            ).returncode
        if code != 0 or not _is_complete(folder):
            raise RuntimeError(
                f"{f'{self.method}, ' if self.method else ''}variant {variant.name}, seed {seed} "
                f"ended with code {code}: {_last_line(log)} (log: {log})"
            )

    def rows(self) -> Iterator[dict[str, object]]:
        """One row a variant, seed and data set: the figures of the complete runs."""
        method = {"method": self.method} if self.method else {}
        for variant in self.variants:
            for seed in self.seeds:
                for dataset, figures in final_results(self.folder(variant, seed)).items():
                    row = {"variant": variant.label, "seed": seed, "data set": dataset}
                    headline = {key: figures.get(key, math.nan) for key in HEADLINE}
                    yield {**method, **row, **headline}

    def write_tables(self) -> str:
        """Write ``ablation.csv`` (every run) and ``ablation.md`` (mean ± sd, returned)."""
        return write_tables([self], self.output_dir)


def run_all(
    ablations: Sequence[Ablation], jobs: int | None = 1, devices: Sequence[str] = ()
) -> None:
    """Run whatever is not complete yet of one or several ablations.

    Args:
        ablations: with the same ``num_gpus``.
        jobs: runs at once; None: as many as the GPUs allow. Each gets its share of the CPU's
            cores, and of the GPUs.
        devices: all GPUs, as ``CUDA_VISIBLE_DEVICES`` names them; empty: none is assigned.

    Raises:
        RuntimeError: if runs fail, after all others; names their logs.
        ValueError: if a folder holds a run with other settings, or a run needs more GPUs than
            there are; before any begins.
    """
    missing = [job for ablation in ablations for job in ablation.jobs()]
    slots = build_slots(jobs, num_gpus=ablations[0].num_gpus, devices=devices)
    total = sum(len(ablation.seeds) * len(ablation.variants) for ablation in ablations)
    done = total - len(missing)
    with tqdm(total=total, initial=done, desc="training", unit="run") as bar:
        run_jobs(missing, slots, progress=bar)


def write_tables(
    ablations: Sequence[Ablation],
    folder: Path,
    name: str = "ablation",
    columns: Sequence[str] = HEADLINE,
) -> str:
    """Write ``<name>.csv`` (every run) and ``<name>.md`` (mean ± sd, returned).

    Args:
        ablations: whose rows to write.
        folder: where to.
        name: of the files.
        columns: the figures of the rows.
    """
    rows = [row for ablation in ablations for row in ablation.rows()]
    method = ["method"] if ablations[0].method else []
    text = io.StringIO()
    writer = csv.DictWriter(text, [*method, "variant", "seed", "data set", *columns])
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(folder / f"{name}.csv", text.getvalue())
    table = markdown_table(rows, columns)
    atomic_write_text(folder / f"{name}.md", table)
    return table


def final_results(folder: Path) -> dict[str, dict[str, float]]:
    """``{data set: {figure: percent}}`` at the end of a run; empty while it is not complete."""
    if not _is_complete(folder):
        return {}
    noted = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return noted[max(noted)]


def _is_complete(folder: Path) -> bool:
    """Whether a run has saved its last weights and noted the figures of its last task."""
    path = folder / "results.json"
    if not (folder / "model_final.pth").exists() or not path.exists():
        return False
    return "B" in json.loads(path.read_text(encoding="utf-8"))


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
