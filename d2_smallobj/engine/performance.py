"""Speed up a model without changing its results: the node ``SMALLOBJ.SPEED``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d


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
