"""Layers: convolution with normalisation, frozen batch norm, the base of CNN blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from d2_smallobj.utils.messages import look_up_option


@dataclass
class ShapeSpec:
    """Channels, size and stride of a feature map, each None where it is not known."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` with an optional ``norm`` module after it."""

    def __init__(self, *args: Any, norm: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve, then normalise."""
        x = super().forward(x)
        return x if self.norm is None else self.norm(x)


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose four vectors are buffers: nothing in it is learned or updated.

    It starts as the identity. Weights from Caffe2 hold only ``weight`` and ``bias``, with the
    statistics folded in.
    """

    _version = 3  # in state dicts; before 2 they had no running statistics

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        initial = {
            "weight": torch.ones(num_features),
            "bias": torch.zeros(num_features),
            "running_mean": torch.zeros(num_features),
            "running_var": torch.ones(num_features) - eps,
            # None is left out of state dicts; a converted BatchNorm's count is kept in them.
            "num_batches_tracked": None,
        }
        for name, value in initial.items():
            self.register_buffer(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise an (N, C, H, W) tensor."""
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        # The backward of F.batch_norm computes gradients for weight and bias too: memory for
        # nothing, since they are buffers.
        factor = (self.running_var + self.eps).rsqrt() * self.weight
        shift = self.bias - self.running_mean * factor
        return x * factor[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any
    ) -> None:
        if (local_metadata.get("version") or 0) < 2:
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Freeze every BatchNorm2d and SyncBatchNorm in a module.

        Returns:
            A new module if ``module`` itself is one, otherwise ``module``, changed in place.
        """
        if not isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            for name, part in list(module.named_children()):
                setattr(module, name, cls.convert_frozen_batchnorm(part))
            return module
        frozen = cls(module.num_features, module.eps)
        for name, value in module.state_dict().items():
            setattr(frozen, name, value)
        return frozen


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": functools.partial(nn.GroupNorm, 32),
}


def get_norm(norm: str, out_channels: int) -> nn.Module | None:
    """Return the layer called "BN", "SyncBN", "FrozenBN" or "GN" (32 groups); "": None."""
    if not norm:
        return None
    return _NORMS[look_up_option("norm", norm, _NORMS)](out_channels)


class CNNBlockBase(nn.Module):
    """A block that maps (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> CNNBlockBase:
        """Stop the learning of all parameters and freeze the batch norms; return self."""
        self.requires_grad_(False)
        return FrozenBatchNorm2d.convert_frozen_batchnorm(self)
