"""Gradient clipping from the config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from d2_smallobj.utils.messages import look_up_option
from detectron2.config import CfgNode


def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: type[torch.optim.Optimizer]
) -> type[torch.optim.Optimizer]:
    """Return a class of optimisers that clip each parameter's gradient before a step.

    ``SOLVER.CLIP_GRADIENTS`` says whether and how: by "value", or by "norm" of each parameter.
    """
    options = cfg.SOLVER.CLIP_GRADIENTS
    if not options.ENABLED:
        return optimizer
    look_up_option("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", options.CLIP_TYPE, ("value", "norm"))
    value, norm, by_value = options.CLIP_VALUE, options.NORM_TYPE, options.CLIP_TYPE == "value"

    class Clipping(optimizer):
        def step(self, closure: Callable | None = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if by_value:
                        nn.utils.clip_grad_value_(parameter, value)
                    else:
                        nn.utils.clip_grad_norm_(parameter, value, norm)
            return super().step(closure)

    return Clipping
