"""How a model is computed, without changing what it computes: the node ``SMALLOBJ.SPEED``."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import shutil
from collections.abc import Iterator

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d

logger = logging.getLogger(__name__)

_KINDS = ("foreach", "fused")
"""The options of an optimiser group that say how it is computed."""


def prepare_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Fold frozen norms, set the memory format and compile, as ``SMALLOBJ.SPEED`` says.

    Names, shapes and values in the state dict stay the same.

    Args:
        cfg: the config.
        model: changed in place, before its optimiser is made.

    Returns:
        ``model``.

    Raises:
        ValueError: if it is to be compiled and something that this needs is missing.
    """
    node = cfg.SMALLOBJ.SPEED
    if node.FOLD_FROZEN_BN:
        fold_frozen_norms(model)
    model.to(memory_format=memory_format(cfg))
    if node.COMPILE:
        compile_backbone(model)
    return model


def memory_format(cfg: CfgNode) -> torch.memory_format:
    """The memory format that ``SMALLOBJ.SPEED.MEMORY_FORMAT`` means for this run's device."""
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
    """Turn the convolutions of a model that have a frozen norm into :class:`FoldedConv2d`.

    Returns:
        How many there were.
    """
    folded = 0
    for module in model.modules():
        if type(module) is Conv2d and isinstance(module.norm, FrozenBatchNorm2d):
            # The object stays, because blocks refer to it by more than one name.
            module.__class__ = FoldedConv2d
            folded += 1
    return folded


def compile_backbone(model: nn.Module) -> None:
    """Let ``model.backbone`` run compiled in training.

    Evaluation stays eager: its images come in many sizes, each of which would be compiled.

    Raises:
        ValueError: if the model has no backbone, or what compiling needs is missing.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            f"SMALLOBJ.SPEED.COMPILE: {type(model).__name__} has no `backbone` to compile; set it "
            "to False"
        )
    _check_compiler(next(model.parameters()).device)
    eager = backbone.forward
    compiled = torch.compile(eager, dynamic=False)

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return compiled(x) if backbone.training else eager(x)

    backbone.forward = forward
    logger.info("The backbone is compiled in the first iteration, which takes a while")


def _check_compiler(device: torch.device) -> None:
    """Refuse at once what torch.compile would refuse in the first iteration, with a traceback."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError(
            "SMALLOBJ.SPEED.COMPILE needs Triton on a GPU: pip install triton, or set it to False"
        )
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise ValueError(
            "SMALLOBJ.SPEED.COMPILE needs a C++ compiler: install g++, or set it to False"
        )


@contextlib.contextmanager
def varied_sizes() -> Iterator[None]:
    """Leave out ``CUDNN_BENCHMARK`` inside: it would try all kernels anew for every image size."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def sgd_options(cfg: CfgNode) -> dict[str, bool]:
    """Arguments of ``torch.optim.SGD`` for ``SMALLOBJ.SPEED.OPTIMIZER``."""
    kind = cfg.SMALLOBJ.SPEED.OPTIMIZER
    if kind == "fused" and "fused" not in inspect.signature(torch.optim.SGD).parameters:
        kind = "foreach"  # torch < 2.3
    return {"foreach": False} if kind == "loop" else {kind: True}


def computed_as_before(
    optimizer: torch.optim.Optimizer, kinds: list[dict[str, bool | None]]
) -> None:
    """Undo what a loaded state says about *how* an optimiser computes, on another device perhaps.

    Args:
        optimizer: after ``load_state_dict``; its momentum gets the parameters' memory formats.
        kinds: :func:`optimizer_kinds` from before.
    """
    for group, kind in zip(optimizer.param_groups, kinds):
        group.update(kind)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)


def optimizer_kinds(optimizer: torch.optim.Optimizer) -> list[dict[str, bool | None]]:
    """How each group of an optimiser is computed."""
    return [{k: group[k] for k in _KINDS if k in group} for group in optimizer.param_groups]
