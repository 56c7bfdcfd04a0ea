"""Make what trains a model: fast modules, optimiser, poly schedule (docs/method.md#recipe)."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn

from d2_smallobj.config import task_a_iterations
from d2_smallobj.modeling.segmentor import SizeBalancedSegmentor
from d2_smallobj.utils.messages import look_up_option
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.solver import LRMultiplier
from detectron2.solver.build import maybe_add_gradient_clipping

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Split the trained parameters by learning rate and decay (docs/method.md#recipe).

    Returns:
        Optimiser groups with ``params``, ``lr``, ``weight_decay`` and a ``name`` for messages.

    Raises:
        ValueError: if nothing is trained.
    """
    solver, node = cfg.SOLVER, cfg.SMALLOBJ
    # Decay, and the factor of the rate in the head.
    kinds = {
        "weights": (solver.WEIGHT_DECAY, node.HEAD_LR_FACTOR),
        "biases": (node.BIAS_WEIGHT_DECAY, node.HEAD_BIAS_LR_FACTOR),
        "norms": (solver.WEIGHT_DECAY_NORM, node.HEAD_LR_FACTOR),
    }
    groups: dict[str, dict[str, Any]] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        part = "head" if module_name.split(".")[0] == "sem_seg_head" else "backbone"
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            kind = "biases" if name == "bias" else "weights"
            if isinstance(module, _NORMS):
                kind = "norms"
            decay, factor = kinds[kind]
            rate = solver.BASE_LR * (factor if part == "head" else 1.0)
            key = f"{part} {kind}"
            new = {"params": [], "lr": rate, "weight_decay": decay, "name": key}
            group = groups.setdefault(key, new)
            group["params"].append(parameter)
    if not groups:
        raise ValueError("the model has no parameter to train: everything is frozen")
    return list(groups.values())


def clipping(
    cfg: CfgNode, optimizer: type[torch.optim.Optimizer]
) -> Callable[..., torch.optim.Optimizer]:
    """Return a class of optimisers that clip gradients in a step (docs/training.md#without-a-gpu).

    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` is detectron2's "value" or "norm", both of each parameter by
    itself, or the "full_model" of its projects: the norm of all gradients together.

    Raises:
        ValueError: for another type, or a ``CLIP_VALUE`` that is not above 0.
    """
    options = cfg.SOLVER.CLIP_GRADIENTS
    if not options.ENABLED:
        return optimizer
    key, kinds = "SOLVER.CLIP_GRADIENTS", ("value", "norm", "full_model")
    look_up_option(f"{key}.CLIP_TYPE", options.CLIP_TYPE, kinds)
    if not options.CLIP_VALUE > 0:
        raise ValueError(f"{key}.CLIP_VALUE must be > 0, got {options.CLIP_VALUE!r}")
    if options.CLIP_TYPE != "full_model":
        return maybe_add_gradient_clipping(cfg, optimizer)
    value, norm = options.CLIP_VALUE, options.NORM_TYPE

    class FullModelClipping(optimizer):  # type: ignore[valid-type,misc]  # a variable
        def step(self, closure: Any = None) -> Any:
            parameters = [p for group in self.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, value, norm)
            return super().step(closure)

    return FullModelClipping


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build SGD with momentum over :func:`parameter_groups`, fused where torch and device can.

    Loss scaling (float16) makes the host wait for the GPU in every step unless SGD is fused.
    Gradients are clipped as ``SOLVER.CLIP_GRADIENTS`` says (:func:`clipping`).
    """
    has_fused = "fused" in inspect.signature(torch.optim.SGD).parameters  # torch >= 2.3
    fused = has_fused and cfg.MODEL.DEVICE.split(":")[0] in ("cpu", "cuda")
    return clipping(cfg, torch.optim.SGD)(
        parameter_groups(cfg, model),
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        **({"fused": True} if fused else {"foreach": False}),
    )


@contextlib.contextmanager
def same_implementation(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Keep how an optimiser computes (fused, foreach) while a state is loaded inside the block.

    The run that saved the state may have had another device. Momentum gets the memory formats of
    the parameters.
    """
    names = ("foreach", "fused")
    kept = [{k: g[k] for k in names if k in g} for g in optimizer.param_groups]
    yield
    for group, implementation in zip(optimizer.param_groups, kept):
        group.update(implementation)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)


@dataclasses.dataclass
class TwoTaskPoly(ParamScheduler):
    """Multiplier ``(1 - t/T)^power``, over the whole run or over each task on its own."""

    max_iter: int  # T, iterations of both tasks together
    task_a: int  # iterations of task A
    power: float = 0.9
    hold: int = 1  # iterations between two changes of the multiplier
    separate: bool = False  # whether each task has a schedule, t and T of its own
    factors: tuple[float, float] = (1.0, 1.0)  # on top, for task A and for task B
    warmup_iters: int = 0  # of a linear warm-up at the start of the run
    warmup_factor: float = 1.0  # multiplier that the warm-up starts from

    def __call__(self, where: float) -> float:
        """Return the multiplier at ``where`` = iteration / max_iter in [0, 1]."""
        return self.at(round(where * self.max_iter))

    def at(self, iteration: int) -> float:
        """Return the multiplier of an iteration."""
        # A run without a task B asks for the end of task A too, after its last iteration.
        in_b = self.task_a <= iteration and self.task_a < self.max_iter
        start, length = 0, self.max_iter
        if self.separate:
            start = self.task_a if in_b else 0
            length = self.max_iter - self.task_a if in_b else self.task_a
        step = (iteration - start) // self.hold * self.hold
        value = self.factors[in_b] * max(0.0, 1.0 - step / max(length, 1)) ** self.power
        if iteration < self.warmup_iters:
            progress = iteration / self.warmup_iters
            value *= self.warmup_factor * (1 - progress) + progress
        return value


def build_schedule(cfg: CfgNode) -> TwoTaskPoly:
    """Build the multiplier of ``SMALLOBJ`` and ``SOLVER``."""
    node, solver = cfg.SMALLOBJ, cfg.SOLVER
    return TwoTaskPoly(
        max_iter=solver.MAX_ITER,
        task_a=task_a_iterations(cfg),
        power=node.POLY_POWER,
        hold=node.POLY_HOLD,
        separate=node.SCHEDULE == "separate",
        factors=(node.TASK_A.LR_FACTOR, node.TASK_B.LR_FACTOR),
        warmup_iters=solver.WARMUP_ITERS,
        warmup_factor=solver.WARMUP_FACTOR,
    )


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """Apply the poly schedule of ``SMALLOBJ`` to every parameter group."""
    return LRMultiplier(optimizer, build_schedule(cfg), cfg.SOLVER.MAX_ITER)


def prepare_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Fold frozen norms and set the memory format, as ``SMALLOBJ.SPEED`` says.

    Names, shapes and values in the state dict stay the same.

    Args:
        cfg: the config.
        model: changed in place, before its optimiser is made.

    Returns:
        ``model``.
    """
    if cfg.SMALLOBJ.SPEED.FOLD_FROZEN_BN:
        fold_frozen_norms(model)
    model.to(memory_format=memory_format(cfg))  # type: ignore[call-overload]  # not in the stubs
    return model


def compile_step(cfg: CfgNode, model: nn.Module) -> None:
    """Compile what ``SMALLOBJ.SPEED`` says of a training step; its first step then takes longer.

    Raises:
        ValueError: if nothing is there to compile with, or the model is none of ours.
    """
    mode, device = cfg.SMALLOBJ.SPEED.COMPILE, cfg.MODEL.DEVICE.split(":")[0]
    keys = ["SMALLOBJ.SPEED.COMPILE"] * (mode != "off")
    keys += ["SMALLOBJ.SPEED.COMPILE_EWC"] * cfg.SMALLOBJ.SPEED.COMPILE_EWC
    if keys and not can_compile(device):
        needed = "a C++ compiler (g++, or what CXX names)" if device == "cpu" else "triton"
        raise ValueError(
            f"{keys[0]} needs {needed} for MODEL.DEVICE {device}, and there is none: install it, "
            "or leave the key out"
        )
    if mode == "off":
        return
    if not isinstance(model, SizeBalancedSegmentor):
        raise ValueError(
            f"SMALLOBJ.SPEED.COMPILE {mode} needs MODEL.META_ARCHITECTURE SizeBalancedSegmentor or "
            f"UncertainSegmentor, got {type(model).__name__}; set it to off"
        )
    model.compile_training(mode)


def can_compile(device_type: str) -> bool:
    """Tell whether ``torch.compile`` finds what it compiles with for ``"cpu"`` or ``"cuda"``."""
    if device_type == "cpu":
        return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))
    return importlib.util.find_spec("triton") is not None


def memory_format(cfg: CfgNode) -> torch.memory_format:
    """Return the memory format that ``SMALLOBJ.SPEED.MEMORY_FORMAT`` means on this device."""
    chosen = cfg.SMALLOBJ.SPEED.MEMORY_FORMAT
    if chosen == "auto":
        mixed_on_gpu = cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE.startswith("cuda")
        chosen = "channels_last" if mixed_on_gpu else "contiguous"
    return torch.channels_last if chosen == "channels_last" else torch.contiguous_format


class FoldedConv2d(Conv2d):
    """detectron2's convolution with a frozen norm, computed as one convolution with a bias.

    ``norm(conv(x, W)) = conv(x, s W) + b`` with ``s = weight / sqrt(var + eps)`` and
    ``b = bias - mean s`` of the norm, per output channel. s and b are constants, so W's gradient
    is that of the two steps.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) as convolution and norm do."""
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            shift = shift + self.bias * scale
        x = self._conv_forward(x, self.weight * scale[:, None, None, None], shift)
        activation = getattr(self, "activation", None)
        return x if activation is None else activation(x)


def fold_frozen_norms(model: nn.Module) -> int:
    """Turn a model's convolutions with a frozen norm into :class:`FoldedConv2d`; count them."""
    folded = 0
    for module in model.modules():
        if type(module) is Conv2d and isinstance(module.norm, FrozenBatchNorm2d):
            # The object stays, because blocks refer to it by more than one name.
            module.__class__ = FoldedConv2d
            folded += 1
    return folded


@contextlib.contextmanager
def varied_sizes() -> Iterator[None]:
    """Switch ``CUDNN_BENCHMARK`` off inside: it would try all kernels for every image size."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
