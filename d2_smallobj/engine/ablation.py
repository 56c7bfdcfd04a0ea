"""The paper's ablation (Table 4), every variant kept apart (SPEC 3), over several seeds.

The released code never applies its penalty, so "with L_SB" may mean two things: a size-weighted
second task without penalty, or with one. The variants here tell them apart.
"""

from __future__ import annotations

import concurrent.futures
import csv
import dataclasses
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from d2_smallobj.engine.checkpoint import load_torch_file, save_torch_file
from d2_smallobj.engine.setup import build_config
from d2_smallobj.engine.tables import HEADLINE, markdown_table
from d2_smallobj.engine.tasks import TASK_A_CHECKPOINT
from d2_smallobj.utils.files import atomic_write_text

_WITHOUT_EFFECT = ("DATALOADER.NUM_WORKERS", "MODEL.DEVICE", "SOLVER.CHECKPOINT_PERIOD")
"""Keys that may differ between the parts of a run: they do not change its figures."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: short name, also of its folder.
        label: what the table calls it.
        options: config overrides.
        shares_task_a: whether its task A is the plain cross-entropy that others run too; it is
            then trained once a seed.
    """

    name: str
    label: str
    options: tuple[str, ...]
    shares_task_a: bool = True


KINDS = ("ce", "sw", "ce_sw", "ce_sb_online", "ce_sb_empirical")


def build_variants(
    strengths_online: Sequence[float],
    strengths_empirical: Sequence[float],
    step: str,
    kinds: Collection[str] = KINDS,
) -> list[Variant]:
    """The variants of the ablation, in the order of the table.

    Args:
        strengths_online: one variant with the online Fisher for each lambda.
        strengths_empirical: one variant with the empirical Fisher for each lambda.
        step: ``SMALLOBJ.EWC.STEP``.
        kinds: which of :data:`KINDS` to build.
    """
    no_penalty = ("SMALLOBJ.EWC.LAMBDA", "0.0")

    def penalty(fisher: str, strength: float) -> Variant:
        return Variant(
            f"ce_sb_{fisher}_{strength:g}",
            f"CE → L_SB, {fisher} Fisher, λ = {strength:g}",
            (
                *("SMALLOBJ.EWC.FISHER", fisher, "SMALLOBJ.EWC.LAMBDA", str(float(strength))),
                *("SMALLOBJ.EWC.STEP", step),
            ),
        )

    by_kind = {
        "ce": [Variant("ce", "CE", ("SMALLOBJ.TASK_B.LOSS", "cross_entropy", *no_penalty))],
        "sw": [
            Variant(
                "sw",
                "L_SW from the start",
                ("SMALLOBJ.TASK_A.ITERS", "0", *no_penalty),
                shares_task_a=False,
            )
        ],
        "ce_sw": [Variant("ce_sw", "CE → L_SW", no_penalty)],
        "ce_sb_online": [penalty("online", strength) for strength in strengths_online],
        "ce_sb_empirical": [penalty("empirical", strength) for strength in strengths_empirical],
    }
    return [variant for kind in KINDS if kind in kinds for variant in by_kind[kind]]


@dataclasses.dataclass(frozen=True)
class Ablation:
    """All runs of an ablation; each is a process of ``tools/train_net.py``.

    A run that is complete is not repeated, and one that was cut off resumes.

    Attributes:
        train_net: path of ``tools/train_net.py``.
        config_file: a two-task config.
        output_dir: holds one folder a variant and seed.
        variants: what to run, in the order of the table.
        seeds: what to run it with.
        num_gpus: GPUs of one run.
        options: config overrides of all runs.
    """

    train_net: Path
    config_file: str
    output_dir: Path
    variants: Sequence[Variant]
    seeds: Sequence[int]
    num_gpus: int = 1
    options: tuple[str, ...] = ()

    def run(self, jobs: int = 1) -> None:
        """Run whatever is not complete yet.

        Args:
            jobs: seeds that run at once; each gets its share of the CPU's cores.

        Raises:
            RuntimeError: if a run fails; names its log.
            ValueError: if a folder holds a run with other settings; names it and them.
        """
        for seed in self.seeds:
            for variant in self.variants:
                self._check_settings(variant, seed)
        total = len(self.seeds) * len(self.variants)
        with tqdm(total=total, desc="ablation", unit="run") as bar:
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                futures = [pool.submit(self._run_seed, seed, jobs, bar) for seed in self.seeds]
                try:
                    concurrent.futures.wait(futures)
                except KeyboardInterrupt:
                    # The run that is on got the interrupt too; no other shall begin.
                    for future in futures:
                        future.cancel()
                    raise
            # Only now: one seed's failure does not stop the others.
            for future in futures:
                future.result()

    def _run_seed(self, seed: int, jobs: int, bar: tqdm) -> None:
        # The online Fisher information is recorded during task A: a variant that uses it makes
        # the task A that all others start from.
        for variant in sorted(self.variants, key=lambda v: "online" not in v.options):
            folder = self.folder(variant, seed)
            if not _is_complete(folder):
                if variant.shares_task_a:
                    self._start_from_task_a(variant, seed)
                self._train(variant, seed, jobs)
            bar.update()

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
            if "online" not in variant.options:
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
        found = _flatten(yaml.safe_load(path.read_text(encoding="utf-8")))
        cfg = build_config(self.config_file, self._run_options(variant, seed))
        for key, value in _flatten(yaml.safe_load(cfg.dump())).items():
            if key not in _WITHOUT_EFFECT and found.get(key, value) != value:
                raise ValueError(
                    f"{path.parent} holds a run with other settings ({key} {found[key]!r} there, "
                    f"{value!r} now): choose another --output-dir, or remove that folder"
                )

    def _train(self, variant: Variant, seed: int, jobs: int) -> None:
        folder = self.folder(variant, seed)
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, str(self.train_net), "--config-file", self.config_file),
            *("--num-gpus", str(self.num_gpus), "--resume", "--dist-url", "auto"),
            *self._run_options(variant, seed),
        ]
        threads = max(1, (os.cpu_count() or 1) // jobs)
        log = folder / "console.txt"
        with open(log, "ab") as file:
            code = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                check=False,
            ).returncode
        if code != 0 or not _is_complete(folder):
            raise RuntimeError(
                f"variant {variant.name}, seed {seed} ended with code {code}: "
                f"{_last_line(log)} (log: {log})"
            )

    def rows(self) -> Iterator[dict[str, object]]:
        """One row a variant, seed and data set: the figures of the complete runs."""
        for variant in self.variants:
            for seed in self.seeds:
                for dataset, figures in final_results(self.folder(variant, seed)).items():
                    row = {"variant": variant.label, "seed": seed, "data set": dataset}
                    yield {**row, **{key: figures.get(key, math.nan) for key in HEADLINE}}

    def write_tables(self) -> str:
        """Write ``ablation.csv`` (every run) and ``ablation.md`` (mean ± sd, returned)."""
        rows = list(self.rows())
        text = io.StringIO()
        writer = csv.DictWriter(text, ["variant", "seed", "data set", *HEADLINE])
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_text(self.output_dir / "ablation.csv", text.getvalue())
        table = markdown_table(rows)
        atomic_write_text(self.output_dir / "ablation.md", table)
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


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as dotted keys and values."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        below = isinstance(value, Mapping)
        flat.update(_flatten(value, f"{prefix}{key}.") if below else {f"{prefix}{key}": value})
    return flat


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
