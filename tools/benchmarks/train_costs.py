"""What single parts of a training step cost: penalty, size weights, each option of speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from d2_smallobj.losses.ewc import ElasticWeightConsolidation
from d2_smallobj.losses.size_balanced import resize_labels
from d2_smallobj.losses.size_weights import SizeWeights

from benchmarks.timing import race
from benchmarks.train_steps import FISHER, PLAIN, OurSteps, Problem, num_bytes

OPTIONS = {
    "folded frozen norms": ("SMALLOBJ.SPEED.FOLD_FROZEN_BN", "True"),
    "channels-last": ("SMALLOBJ.SPEED.MEMORY_FORMAT", "channels_last"),
    "prefetch": ("SMALLOBJ.SPEED.PREFETCH", "True"),
    "bfloat16": ("SOLVER.AMP.ENABLED", "True", "SMALLOBJ.AMP_DTYPE", "bfloat16"),
    "float16": ("SOLVER.AMP.ENABLED", "True", "SMALLOBJ.AMP_DTYPE", "float16"),
}
"""Overrides of :data:`.train_steps.PLAIN`, by themselves."""

_GPU_ONLY = ("prefetch", "float16")


def clock(device: torch.device) -> Callable[[], float]:
    """What to time with: on a CPU this process alone, whatever else the machine does."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def option_names(device: torch.device) -> list[str]:
    """List those of :data:`OPTIONS` that have an effect on a device."""
    return [name for name in OPTIONS if device.type != "cpu" or name not in _GPU_ONLY]


def measure_options(
    problem: Problem, batches: Sequence[Any], names: Sequence[str], *, rounds: int, count: int
) -> dict[str, dict[str, float]]:
    """Time the cross-entropy step with each option by itself, and what it changes.

    Returns:
        By name ``speedup`` over the step with none, and of the first step from the same weights
        and images ``loss``, its relative difference, and ``gradient``, the norm of the
        difference of the gradients over that of the gradient.
    """
    plain = OurSteps(problem, batches, PLAIN)
    rows, timer = {}, clock(plain.model.device)
    for name in names:
        other = OurSteps(problem, batches, [*PLAIN, *OPTIONS[name]])
        row = _differences(plain, other, batches[0])
        work = {"plain": _timed(plain, count), name: _timed(other, count)}
        rows[name] = {"speedup": 1 / race([None], work, rounds, timer)[name]["ratio"], **row}
        for steps in (plain, other):
            steps.read_losses()
    return rows


def _timed(steps: OurSteps, count: int) -> Callable[[object], None]:
    steps.run("CE", 1)  # kernels are chosen and momentum is made

    def work(_: object) -> None:
        steps.run("CE", count)
        wait(steps.model.device)

    return work


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
    return {
        "loss": abs(losses[1] / losses[0] - 1),
        "gradient": (distance / length).item(),
    }


def measure_penalty(steps: OurSteps, rounds: int) -> dict[str, Any]:
    """Time the penalty's value and gradient, analytic and by autograd, against the SGD step.

    Returns:
        ``ms`` by name, ``to_autograd`` (analytic over autograd), and ``copies``: memory of Fisher
        and anchor over that of the trained parameters.
    """
    ewc, device = steps.ewc["L_SB"], steps.model.device
    trained = [p for p in steps.model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)

    def autograd() -> None:
        ewc.penalty(differentiable=True).backward()

    work = {
        "SGD step": steps.optimizer.step,
        "analytic": ewc.add_gradient_,
        "autograd": autograd,
        "Fisher recorded": steps.ewc[FISHER].record_gradients,
        "proximal step": lambda: ewc.proximal_step_([0.0] * len(trained)),
    }

    def timed(name: str) -> Any:
        return lambda _: (work[name](), wait(device))

    times = race([None], {name: timed(name) for name in work}, rounds, clock(device))
    return {
        "ms": {name: row["median"] for name, row in times.items()},
        "to_autograd": times["analytic"]["median"] / times["autograd"]["median"],
        "copies": penalty_copies(ewc, trained),
    }


def penalty_copies(ewc: ElasticWeightConsolidation, trained: Sequence[torch.Tensor]) -> float:
    """Memory that the penalty holds, in copies of the trained parameters."""
    return num_bytes((*ewc.fisher.values(), *ewc.anchor_values.values())) / num_bytes(trained)


def measure_weights(batches: Sequence[Any], rounds: int) -> dict[str, float]:
    """Milliseconds an image for the size-weight map of a crop, in one loader worker.

    Returns:
        ``input``: of the label map; ``logits``: of the maps at the four sizes that the recipe's
        multi-scale losses have.
    """
    rule = SizeWeights()
    labels = [x["sem_seg"] for batch in batches for x in batch]
    side = labels[0].shape[-1]
    sizes = [(-(-side * part // 32),) * 2 for part in (4, 2, 3, 4)]  # stride 8, scales 1, 1/2, 3/4

    def on_logits(x: torch.Tensor) -> list[np.ndarray]:
        return [rule(resize_labels(x[None], size)[0].numpy()) for size in sizes]

    work = {"input": lambda x: rule(x.numpy()), "logits": on_logits}
    return {
        name: row["median"] for name, row in race(labels, work, rounds, time.process_time).items()
    }
