"""Time training steps, with each loss and number format, against a plainly written step.

The yardstick is the recipe's cross-entropy step (docs/method.md#recipe) as it is usually written:
the same net in float32 (on a GPU without TF32), images copied when they are needed, SGD as
PyTorch's default, the loss read in every step. Ours are the trainer's own steps, losses included,
with what SMALLOBJ.SPEED has by default, in float32 and in mixed precision with channels-last. CE is
task A, L_SW the size-weighted loss, L_SB the same with the EWC penalty; weights come from the
loader's workers, as in training. All steps take turns, on synthetic crops in memory.

With a GPU: DeepLabV2-ResNet101, 321 x 321, batch 10. Targets: L_SB at most 1.03 times CE, mixed
precision with channels-last at least 2.5 times as fast as the yardstick, Fisher and anchor two
copies of the trained parameters. Without one: ResNet-50 at a quarter of the width, 161 x 161, batch
4, in this process's CPU time; mixed precision has no target there, and the other losses' share is
larger than in the full net. Also: each option of speed by itself, and what it
changes; the penalty by formula against autograd; the size weights; on a GPU whether the host waits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import d2_smallobj

from benchmarks import Measurement
from benchmarks.timing import machine, race
from benchmarks.train_costs import (
    clock,
    measure_options,
    measure_penalty,
    measure_weights,
    option_names,
    wait,
)
from benchmarks.train_steps import (
    LOSSES,
    OurSteps,
    PlainSteps,
    Problem,
    num_bytes,
    peak_bytes,
)

YARDSTICK = "plain CE, float32"
MIXED = "mixed"
SB_TARGET, MIXED_TARGET, COPIES_TARGET = 1.03, 2.5, 2.0
_ON_GPU = {"depth": 101, "width": 256, "crop": 321, "batch": 10, "steps": 10}
_ON_CPU = {"depth": 50, "width": 64, "crop": 161, "batch": 4, "steps": 1}
_MIXED = ("SOLVER.AMP.ENABLED", "True", "SMALLOBJ.SPEED.MEMORY_FORMAT", "channels_last")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; those of the size have other defaults on a GPU."""
    parser.add_argument("--depth", type=int, help="of the ResNet; 101 with a GPU, 50 without")
    parser.add_argument(
        "--width", type=int, help="of its first stage; 256 (as in DeepLabV2) with a GPU, 64 without"
    )
    parser.add_argument("--crop", type=int, help="side of the crops; 321 with a GPU, 161 without")
    parser.add_argument("--batch", type=int, help="images a step; 10 with a GPU, 4 without")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each step (%(default)s)")
    parser.add_argument("--steps", type=int, help="steps a timing; 10 with a GPU, 1 without")
    parser.add_argument(
        "--amp-dtype", choices=("float16", "bfloat16"), default="float16", help="on a GPU"
    )
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> Measurement:
    """Measure on the GPU, or where there is none on the CPU."""
    gpu = torch.cuda.is_available()
    for name, default in (_ON_GPU if gpu else _ON_CPU).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    for name, least in (("crop", 8), ("batch", 1), ("rounds", 1), ("steps", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    problem = Problem(args.depth, args.width, args.crop, args.batch, args.seed)
    mixed = [*_MIXED, "SMALLOBJ.AMP_DTYPE", args.amp_dtype]
    torch.backends.cudnn.benchmark = True  # as the recipe's configs say
    problem.config(mixed)  # a wrong size is an error before anything is drawn
    host = d2_smallobj.host()
    figures: dict[str, Any] = {
        "machine": f"{machine()}, torch {torch.__version__}, {host.name} host {host.version}",
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "settings": {
            "net": f"DeepLabV2-ResNet{problem.depth}, width {problem.width} of 256",
            "crop": problem.crop,
            "batch": problem.batch,
            "mixed": args.amp_dtype if gpu else "bfloat16",
            "threads": torch.get_num_threads(),
            "rounds": args.rounds,
            "steps": args.steps,
            "seed": args.seed,
        },
        **measure(problem, mixed, rounds=args.rounds, count=args.steps),
    }
    return Measurement(figures, format_figures(figures), find_missed(figures, gpu))


def measure(problem: Problem, mixed: Sequence[str], *, rounds: int, count: int) -> dict[str, Any]:
    """All figures of a size; see :func:`format_figures` for what they are."""
    batches = problem.batches()
    plain = PlainSteps(problem, batches)
    device = plain.device
    ours = {"float32": OurSteps(problem, batches), MIXED: OurSteps(problem, batches, mixed)}
    figures: dict[str, Any] = {"steps": measure_steps(plain, ours, rounds, count, problem.batch)}
    figures["penalty"] = measure_penalty(ours["float32"], max(rounds, 3))
    if device.type == "cuda":
        figures["waits"] = find_wait(ours[MIXED])
    # Their memory is needed again.
    del plain, ours
    names = option_names(device)
    figures["options"] = measure_options(problem, batches, names, rounds=rounds, count=count)
    figures["weights"] = measure_weights(batches, rounds)
    return figures


def measure_steps(
    plain: PlainSteps, ours: Mapping[str, OurSteps], rounds: int, count: int, batch: int
) -> dict[str, dict[str, float]]:
    """Time and memory of the yardstick and of every loss in every number format.

    Returns:
        By name ``ms`` of a step, ``images_per_s``, ``speedup`` over the yardstick, and
        ``peak_mib``: the most that the step's tensors and those that stay between steps take
        together. Of ours ``to_CE`` of the same number format, and ``best_to_CE``, that of the best
        rounds, which other work on the machine disturbs less.
    """
    device = plain.device
    runs: dict[str, Callable[[int], None]] = {YARDSTICK: lambda n: _strict(plain, n)}
    persistent = {YARDSTICK: lambda: num_bytes(plain.persistent())}
    if device.type == "cuda":
        runs["plain CE, TF32"] = plain.run
        persistent["plain CE, TF32"] = persistent[YARDSTICK]
    for kind, steps in ours.items():
        for loss in LOSSES:
            runs[f"{loss}, {kind}"] = lambda n, s=steps, x=loss: s.run(x, n)
            persistent[f"{loss}, {kind}"] = lambda s=steps, x=loss: num_bytes(s.persistent(x))
    rows = {}
    for name, work in runs.items():
        work(2)  # kernels are chosen and momentum is made
        for steps in (plain, *ours.values()):
            steps.optimizer.zero_grad()
        peak = peak_bytes(lambda work=work: work(1), device)
        rows[name] = {"peak_mib": (peak + persistent[name]()) / 2**20}

    def timed(work: Callable[[int], None]) -> Callable[[object], None]:
        return lambda _: (work(count), wait(device))

    times = race([None], {name: timed(work) for name, work in runs.items()}, rounds, clock(device))
    for name, row in rows.items():
        milliseconds = times[name]["median"] / count
        row.update(ms=milliseconds, images_per_s=1e3 * batch / milliseconds)
        row["speedup"] = 1 / times[name]["ratio"]
        kind = name.rsplit(", ", 1)[1]
        if not name.startswith("plain"):
            ce = times[f"CE, {kind}"]
            row["to_CE"] = times[name]["median"] / ce["median"]
            row["best_to_CE"] = times[name]["quiet"] / ce["quiet"]
    for steps in ours.values():
        steps.read_losses()
    return rows


def _strict(plain: PlainSteps, count: int) -> None:
    """Steps in true float32; PyTorch's default for convolutions on a GPU is TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        plain.run(count)
    finally:
        torch.backends.cudnn.allow_tf32 = before


def find_wait(steps: OurSteps) -> str:
    """Whether a step with the size-balanced loss lets the host wait for the GPU: "" if not."""
    steps.run("L_SB", 2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps.run("L_SB", 3)
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def find_missed(figures: Mapping[str, Any], gpu: bool) -> list[str]:
    """The targets that were missed, a sentence each."""
    steps, missed = figures["steps"], []
    for kind in ("float32", MIXED) if gpu else ("float32",):
        ratio = steps[f"L_SB, {kind}"]["best_to_CE"]
        if ratio > SB_TARGET:
            missed.append(f"the L_SB step, {kind}, takes {ratio:.3f} times CE's, not {SB_TARGET}")
    if gpu and steps[f"CE, {MIXED}"]["speedup"] < MIXED_TARGET:
        speedup = steps[f"CE, {MIXED}"]["speedup"]
        missed.append(f"mixed precision is {speedup:.2f} times as fast, not {MIXED_TARGET}")
    if figures["penalty"]["copies"] > COPIES_TARGET:
        missed.append(f"EWC takes {figures['penalty']['copies']:.3f} copies, not {COPIES_TARGET}")
    if figures["penalty"]["to_autograd"] >= 1:
        missed.append("the penalty's formula is not faster than autograd")
    if figures.get("waits"):
        missed.append(f"the host waits for the GPU: {figures['waits']}")
    return missed


def format_figures(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [figures["machine"], f"{figures['device']}; {figures['settings']}"]
    if figures["device"] == "CPU":
        lines.append("On a CPU, so a narrow net: mixed precision here says nothing of GPUs.")
    lines += [
        "",
        "| step | ms | images/s | × plain | / CE | best / CE | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in figures["steps"].items():
        ratios = [f"{row[key]:.3f}" if key in row else "" for key in ("to_CE", "best_to_CE")]
        lines.append(
            f"| {name} | {row['ms']:.1f} | {row['images_per_s']:.1f} | {row['speedup']:.2f} | "
            f"{' | '.join(ratios)} | {row['peak_mib']:.0f} |"
        )
    lines += [
        "",
        "Each option by itself in our CE step; relative changes of its loss and gradient:",
        "",
    ]
    lines += ["| option | × | loss | gradient |", "|---|---|---|---|"]
    for name, row in figures["options"].items():
        lines.append(
            f"| {name} | {row['speedup']:.2f} | {row['loss']:.1e} | {row['gradient']:.1e} |"
        )
    penalty, weights = figures["penalty"], figures["weights"]
    times = ", ".join(f"{name} {ms:.2f}" for name, ms in penalty["ms"].items())
    lines += [
        "",
        f"EWC, ms: {times}; formula / autograd {penalty['to_autograd']:.2f}; memory "
        f"{penalty['copies']:.3f} copies of the trained parameters",
        f"Size weights in a worker, ms an image: {weights['input']:.2f} on the crop, "
        f"{weights['logits']:.2f} on multi-scale logit maps",
    ]
    if "waits" in figures:
        lines.append(f"Host waits for the GPU inside a step: {figures['waits'] or 'never'}")
    return "\n".join(lines)
