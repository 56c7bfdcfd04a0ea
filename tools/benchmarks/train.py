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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from d2_smallobj.utils.cli import at_least, positive_int

from benchmarks import Measurement, race, table, torch_machine, train_steps
from benchmarks.train_steps import LOSSES, PLAIN, OurSteps, PlainSteps, Problem

YARDSTICK = "plain CE, float32"
MIXED = "mixed"
SB_TARGET, MIXED_TARGET, COPIES_TARGET = 1.03, 2.5, 2.0
_STEP_COLUMNS = {
    "ms": ("ms", ".1f"),
    "images_per_s": ("images/s", ".1f"),
    "speedup": ("× plain", ".2f"),
    "to_CE": ("/ CE", ".3f"),
    "best_to_CE": ("best / CE", ".3f"),
    "peak_mib": ("peak MiB", ".0f"),
}
_OPTION_COLUMNS = {"speedup": ("×", ".2f")} | {k: (k, ".1e") for k in ("loss", "gradient")}
_ON_GPU = {"depth": 101, "width": 256, "crop": 321, "batch": 10, "steps": 10}
_ON_CPU = {"depth": 50, "width": 64, "crop": 161, "batch": 4, "steps": 1}
_MIXED = ("SOLVER.AMP.ENABLED", "True", "SMALLOBJ.SPEED.MEMORY_FORMAT", "channels_last")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; those of the size have other defaults on a GPU."""
    add = parser.add_argument
    add("--depth", type=int, help="of the ResNet; 101 with a GPU, 50 without")
    text = "of its first stage; 256 (as in DeepLabV2) with a GPU, 64 without"
    add("--width", type=int, help=text)
    add("--crop", type=at_least(8), help="side; 321 with a GPU, 161 without")
    add("--batch", type=positive_int, help="images; 10 with a GPU, 4 without")
    add("--rounds", type=positive_int, default=5, help="timings of each step")
    add("--steps", type=positive_int, help="a timing; 10 with a GPU, 1 without")
    add("--amp-dtype", choices=("float16", "bfloat16"), default="float16", help="on a GPU")
    text = "also time the compiled network, whose compilation takes minutes"
    add("--compile", action="store_true", help=text)
    add("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> Measurement:
    """Measure on the GPU, or where there is none on the CPU."""
    gpu = torch.cuda.is_available()
    for name, default in (_ON_GPU if gpu else _ON_CPU).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    problem = Problem(args.depth, args.width, args.crop, args.batch, args.seed)
    mixed = [*_MIXED, "SMALLOBJ.AMP_DTYPE", args.amp_dtype]
    torch.backends.cudnn.benchmark = True  # as the recipe's configs say
    problem.config(mixed)  # a wrong size is an error before anything is drawn
    figures: dict[str, Any] = {
        **torch_machine(),
        "settings": {
            "net": f"DeepLabV2-ResNet{problem.depth}, width {problem.width} of 256",
            **{"crop": problem.crop, "batch": problem.batch},
            "mixed": args.amp_dtype if gpu else "bfloat16",
            "threads": torch.get_num_threads(),
            **{"rounds": args.rounds, "steps": args.steps, "seed": args.seed},
        },
        **measure(problem, mixed, rounds=args.rounds, count=args.steps, compiled=args.compile),
    }
    return Measurement(figures, format_figures(figures), find_missed(figures, gpu))


def measure(
    problem: Problem, mixed: Sequence[str], *, rounds: int, count: int, compiled: bool = False
) -> dict[str, Any]:
    """Measure all figures of a size."""
    batches = problem.batches()
    plain = PlainSteps(problem, batches)
    device = plain.device
    ours = {"float32": OurSteps(problem, batches), MIXED: OurSteps(problem, batches, mixed)}
    figures: dict[str, Any] = {"steps": measure_steps(plain, ours, rounds, count, problem.batch)}
    figures["penalty"] = train_steps.measure_penalty(ours["float32"], max(rounds, 3))
    if device.type == "cuda":
        figures["waits"] = find_wait(ours[MIXED])
    # Their memory is needed again.
    del plain, ours
    names = option_names(device, compiled)
    figures["options"] = measure_options(problem, batches, names, rounds=rounds, count=count)
    figures["weights"] = train_steps.measure_weights(batches, rounds)
    return figures


def measure_steps(
    plain: PlainSteps, ours: Mapping[str, OurSteps], rounds: int, count: int, batch: int
) -> dict[str, dict[str, float]]:
    """Measure time and memory of the yardstick and of every loss in every number format.

    ``peak_mib`` counts the step's tensors and those that stay; ``to_CE`` is within the format.
    """
    device = plain.device
    runs: dict[str, Callable[[int], None]] = {YARDSTICK: lambda n: _strict(plain, n)}
    persistent: dict[str, Callable[[], Iterable[torch.Tensor]]] = {YARDSTICK: plain.persistent}
    if device.type == "cuda":
        runs["plain CE, TF32"] = plain.run
        persistent["plain CE, TF32"] = persistent[YARDSTICK]
    for kind, steps in ours.items():
        for loss in LOSSES:
            runs[f"{loss}, {kind}"] = lambda n, s=steps, x=loss: s.run(x, n)
            persistent[f"{loss}, {kind}"] = lambda s=steps, x=loss: s.persistent(x)
    rows = {}
    for name, work in runs.items():
        work(2)  # kernels are chosen and momentum is made
        for steps in (plain, *ours.values()):
            steps.optimizer.zero_grad()
        peak = train_steps.peak_bytes(lambda work=work: work(1), device)
        kept = train_steps.num_bytes(persistent[name]())
        rows[name] = {"peak_mib": (peak + kept) / 2**20}

    timed = {n: lambda _, f=run: (f(count), train_steps.wait(device)) for n, run in runs.items()}
    times = race([None], timed, rounds, train_steps.clock(device), per=count)
    for name, row in rows.items():
        row["ms"] = times[name]["median"]
        row["images_per_s"] = 1e3 * batch / row["ms"]
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
    """Run steps in true float32; PyTorch's default for convolutions on a GPU is TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        plain.run(count)
    finally:
        torch.backends.cudnn.allow_tf32 = before


def find_wait(steps: OurSteps) -> str:
    """Find a place where an L_SB step lets the host wait for the GPU; "" if there is none."""
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
    """List the targets that were missed, a sentence each."""
    steps, missed = figures["steps"], []
    for kind in ("float32", MIXED) if gpu else ("float32",):
        ratio = steps[f"L_SB, {kind}"]["best_to_CE"]
        if ratio > SB_TARGET:
            missed.append(f"the L_SB step, {kind}, takes {ratio:.3f} times CE's, not {SB_TARGET}")
    speedup = steps[f"CE, {MIXED}"]["speedup"]
    if gpu and speedup < MIXED_TARGET:
        missed.append(f"mixed precision is {speedup:.2f} times as fast, not {MIXED_TARGET}")
    if figures["penalty"]["copies"] > COPIES_TARGET:
        missed.append(f"EWC takes {figures['penalty']['copies']:.3f} copies, not {COPIES_TARGET}")
    if figures["penalty"]["to_autograd"] >= 1:
        missed.append("the penalty's formula is not faster than autograd")
    if figures.get("waits"):
        missed.append(f"the host waits for the GPU: {figures['waits']}")
    return missed


def format_figures(figures: Mapping[str, Any]) -> str:
    """Format the figures as Markdown."""
    lines = [figures["machine"], f"{figures['device']}; {figures['settings']}"]
    if figures["device"] == "CPU":
        lines.append("On a CPU, so a narrow net: mixed precision here says nothing of GPUs.")
    text = "Each option by itself in our CE step; relative changes of its loss and gradient:"
    lines += ["", table(figures["steps"], "step", _STEP_COLUMNS), "", text, ""]
    lines.append(table(figures["options"], "option", _OPTION_COLUMNS))
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


OPTIONS = {
    "folded frozen norms": ("SMALLOBJ.SPEED.FOLD_FROZEN_BN", "True"),
    "channels-last": ("SMALLOBJ.SPEED.MEMORY_FORMAT", "channels_last"),
    "prefetch": ("SMALLOBJ.SPEED.PREFETCH", "True"),
    "loss image by image": ("SMALLOBJ.SPEED.LOSS_IMAGES", "1"),
    "bfloat16": ("SOLVER.AMP.ENABLED", "True", "SMALLOBJ.AMP_DTYPE", "bfloat16"),
    "float16": ("SOLVER.AMP.ENABLED", "True", "SMALLOBJ.AMP_DTYPE", "float16"),
}
"""Overrides of :data:`.train_steps.PLAIN`, by themselves."""
COMPILED = {
    f"compiled, {mode}": (*OPTIONS["bfloat16"], "SMALLOBJ.SPEED.COMPILE", mode)
    for mode in ("default", "reduce-overhead")
}
"""The same, with ``--compile``; to be compared with bfloat16 alone."""


def option_names(device: torch.device, compiled: bool = False) -> list[str]:
    """List those of :data:`OPTIONS` that have an effect on a device, then :data:`COMPILED`."""
    on_cpu = device.type == "cpu"
    names = [name for name in OPTIONS if not (on_cpu and name in ("prefetch", "float16"))]
    return names + list(COMPILED) * compiled


def measure_options(
    problem: Problem, batches: Sequence[Any], names: Sequence[str], *, rounds: int, count: int
) -> dict[str, dict[str, float]]:
    """Time the cross-entropy step with each option, and measure what it changes.

    That is the relative differences of loss and gradient (its norm) at the same weights.
    """
    plain = OurSteps(problem, batches, PLAIN)
    rows, timer = {}, train_steps.clock(plain.model.device)
    for name in names:
        other = OurSteps(problem, batches, [*PLAIN, *(OPTIONS | COMPILED)[name]])
        row = _differences(plain, other, batches[0])
        work = {"plain": _timed(plain, count), name: _timed(other, count)}
        rows[name] = {"speedup": 1 / race([None], work, rounds, timer)[name]["ratio"], **row}
        for steps in (plain, other):
            steps.read_losses()
    return rows


def _timed(steps: OurSteps, count: int) -> Callable[[object], None]:
    steps.run("CE", 1)  # kernels are chosen and momentum is made
    return lambda _: (steps.run("CE", count), train_steps.wait(steps.model.device))


def _differences(plain: OurSteps, other: OurSteps, batch: Any) -> dict[str, float]:
    losses, gradients = [], []
    for steps in (plain, other):
        other.model.load_state_dict(plain.model.state_dict())
        steps.optimizer.zero_grad()
        dtype = steps.trainer.amp_dtype
        with torch.autocast(steps.model.device.type, dtype=dtype, enabled=dtype is not None):
            loss = sum(steps.model(batch).values())
        scale = 2.0**16 if dtype is torch.float16 else 1.0  # where a gradient scaler starts
        (scale * loss).backward()
        losses.append(loss.item())
        parameters = [p for p in steps.model.parameters() if p.requires_grad]
        gradients.append([p.grad.float() / scale for p in parameters])
    distance = torch.stack(torch._foreach_norm(torch._foreach_sub(*gradients))).norm()
    length = torch.stack(torch._foreach_norm(gradients[0])).norm()
    return {"loss": abs(losses[1] / losses[0] - 1), "gradient": (distance / length).item()}
