"""Count the operations and bytes of a training step, and the least time that a GPU needs for them.

Nothing is computed: the step runs on tensors without memory, and every kernel's floating-point
operations (torch.utils.flop_counter) and the bytes that it must read and write are counted, each
tensor once. A kernel takes at least operations / peak or bytes / bandwidth, whichever is longer;
the floor of a part is the sum over its kernels as PyTorch runs them one by one. "matrix units" is
convolutions and matrix products, which run there; a compiler can fuse the rest away in part.
Peaks are those of NVIDIA's data sheets, without sparsity: H100 SXM 989 TFLOP/s in bfloat16, 495 in
TF32, 67 in float32, 3.35 TB/s; H200 the same and 4.8 TB/s.

DeepLabV2-ResNet101, 321 x 321, batch 10 by default. Runs the same with and without a GPU. `--step
MS` also says how far a measured step is from the floor.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from d2_smallobj.engine.solver import fold_frozen_norms
from d2_smallobj.losses import (
    ElasticWeightConsolidation,
    SizeWeightedCrossEntropy,
    size_balanced,
)
from d2_smallobj.utils.cli import at_least, positive_int
from detectron2.modeling import META_ARCH_REGISTRY

from benchmarks import Measurement, table
from benchmarks.train_steps import Problem

GPUS = {"H100": 3.35e12, "H200": 4.8e12}
"""Bytes per second, by name (SXM)."""
PEAKS = {"bfloat16": 989e12, "TF32": 495e12, "float32": 67e12}
"""Operations per second of both, by number format."""
MATRIX = "network: matrix units"
REST = "network: all else"
_COLUMNS = {
    "gflop": ("GFLOP", ",.1f"),
    "gbyte": ("GB", ".3f"),
    "kernels": ("kernels", ".0f"),
    "floor_ms": ("floor, ms", ".3f"),
}
_NO_TRAFFIC = ("empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view")
_TOY = 1 << 12  # elements of a parameter whose passes are counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("--depth", type=int, default=101, help="of the ResNet")
    add("--width", type=int, default=256, help="of its first stage")
    add("--crop", type=at_least(8), default=321, help="side")
    add("--batch", type=positive_int, default=10, help="images")
    add("--gpu", choices=GPUS, default="H100", help="whose floor")
    add("--format", choices=PEAKS, default="bfloat16", help="of the network")
    add("--step", type=float, metavar="MS", help="a measured step, compared with the floor")


def run(args: argparse.Namespace) -> Measurement:
    """Count; no target can be missed."""
    problem = Problem(args.depth, args.width, args.crop, args.batch)
    rates = Rates(PEAKS[args.format], GPUS[args.gpu])
    parts, weights = count_parts(problem, rates, args.format == "bfloat16")
    steps = step_floors(parts)
    settings = {k: getattr(args, k) for k in ("depth", "width", "crop", "batch", "gpu", "format")}
    figures = {"settings": settings, "trained_parameters": weights, "parts": parts, "steps": steps}
    lines = [f"{settings}, {weights:,} trained parameters", "", table(parts, "part", _COLUMNS), ""]
    for name, floor in steps.items():
        lines.append(f"{name}: {floor:.2f} ms at least")
    if args.step:
        figures["to_floor"] = args.step / steps["CE"]
        lines.append(f"A CE step of {args.step:g} ms is {figures['to_floor']:.2f} times its floor")
    return Measurement(figures, "\n".join(lines))


@dataclasses.dataclass(frozen=True)
class Rates:
    """Operations of the matrix units, and bytes, per second."""

    flops: float
    bandwidth: float


class Traffic(TorchDispatchMode):
    """Counts operations and bytes of every kernel inside the block, in and outside matrix units."""

    def __init__(self, rates: Rates) -> None:
        super().__init__()
        self.rates = rates
        self.rows = {key: dict.fromkeys(_COLUMNS, 0.0) for key in (True, False)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        # "prim" asks for properties of a tensor.
        if func.namespace == "prim" or func.is_view or func._overloadpacket.__name__ in _NO_TRAFFIC:
            return out
        operations = 0
        if func._overloadpacket in flop_registry:
            operations = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        moved = sum(map(_num_bytes, _tensors(args, kwargs)))
        moved += sum(map(_num_bytes, _written(func, args, kwargs, out)))
        row = self.rows[operations > 0]
        row["gflop"] += operations / 1e9
        row["gbyte"] += moved / 1e9
        row["kernels"] += 1
        seconds = max(operations / self.rates.flops, moved / self.rates.bandwidth)
        row["floor_ms"] += 1e3 * seconds
        return out

    def total(self) -> dict[str, float]:
        """All kernels together."""
        return {key: self.rows[True][key] + self.rows[False][key] for key in _COLUMNS}


def _tensors(*trees: Any) -> Iterator[torch.Tensor]:
    return (x for x in tree_leaves(trees) if isinstance(x, torch.Tensor))


def _written(func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> Iterator[torch.Tensor]:
    """The tensors that a kernel writes: arguments that it changes, or else its results."""
    given = [*args, *[kwargs.get(a.name) for a in func._schema.arguments[len(args) :]]]
    changed = [
        value
        for argument, value in zip(func._schema.arguments, given)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return _tensors(changed) if changed else _tensors(out)


def _num_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, what is repeated by strides of 0 counted once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def count_parts(
    problem: Problem, rates: Rates, mixed: bool
) -> tuple[dict[str, dict[str, float]], int]:
    """Count the parts of a step; return rows by part, and the number of trained parameters."""
    cfg = problem.config(["MODEL.DEVICE", "cpu"])
    parts = {}
    with FakeTensorMode():
        # Not build_model, nor prepare_model: tensors without memory cannot be moved.
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).train()
        fold_frozen_norms(model)
        images = torch.empty(problem.batch, 3, problem.crop, problem.crop)
        with Traffic(rates) as traffic, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            (logits,) = model.logits(images).values()
            logits.backward(torch.empty_like(logits))
        parts[MATRIX], parts[REST] = traffic.rows[True], traffic.rows[False]
        for images_at_once in (0, 1):
            for weighted in (False, True):
                name = "L_SW" if weighted else "CE"
                name = f"{name} loss, {'image by image' if images_at_once else 'all images'}"
                parts[name] = _count_loss(problem, rates, logits, weighted, images_at_once)
        parameters = [p for p in model.parameters() if p.requires_grad]
        weights = sum(p.numel() for p in parameters)
    for name, row in _count_passes(rates).items():
        parts[name] = {key: value * weights / _TOY for key, value in row.items()}
        parts[name]["kernels"] = row["kernels"]
    return parts, weights


def _count_loss(
    problem: Problem, rates: Rates, logits: torch.Tensor, weighted: bool, images_at_once: int
) -> dict[str, float]:
    loss = SizeWeightedCrossEntropy(size_weighted=weighted, images_at_once=images_at_once)
    size = (problem.batch, problem.crop, problem.crop)
    given = torch.empty_like(logits).requires_grad_()
    labels = torch.empty(size, dtype=torch.int64)
    maps = torch.empty(size) if weighted else None
    # The check of labels reads their values on a CPU; on a GPU it does not, and here are none.
    unchecked = mock.patch.object(size_balanced, "check_batch")
    with unchecked, Traffic(rates) as traffic:
        loss(given, labels, maps).backward()
    return traffic.total()


def _count_passes(rates: Rates) -> dict[str, dict[str, float]]:
    """Count the passes over all parameters on one of :data:`_TOY` elements."""
    toy = nn.Linear(_TOY, 1, bias=False)
    toy.weight.grad = torch.ones_like(toy.weight)
    optimizer = torch.optim.SGD(toy.parameters(), lr=1e-9, momentum=0.9, fused=True)
    optimizer.step()
    ewc = ElasticWeightConsolidation(toy.named_parameters())
    toy.weight.grad.normal_()
    ewc.record_gradients()
    anchored = ElasticWeightConsolidation(toy.named_parameters())
    anchored.load_state_dict(ewc.state_dict())
    anchored.anchor()
    work: dict[str, Callable[[], object]] = {
        "SGD, fused": optimizer.step,
        "EWC: online Fisher": ewc.record_gradients,
        "EWC: gradient": anchored.add_gradient_,
        "EWC: proximal": lambda: (anchored.penalty(), anchored.proximal_step_({"weight": 1e-9})),
    }
    rows = {}
    for name, function in work.items():
        with Traffic(rates) as traffic:
            function()
        rows[name] = traffic.total()
    return rows


def step_floors(parts: dict[str, dict[str, float]]) -> dict[str, float]:
    """The floor in ms of whole steps, and of what the matrix units do in them."""
    ms = {name: row["floor_ms"] for name, row in parts.items()}
    common = ms[MATRIX] + ms[REST] + ms["SGD, fused"]
    return {
        "matrix units alone": ms[MATRIX],
        "CE": common + ms["CE loss, all images"],
        "CE, loss image by image": common + ms["CE loss, image by image"],
        "L_SB": common + ms["L_SW loss, all images"] + ms["EWC: gradient"],
        "L_SB, loss image by image": common + ms["L_SW loss, image by image"] + ms["EWC: gradient"],
    }
