"""Learning rates as multiples of their initial values."""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch.optim.lr_scheduler import LRScheduler


class LRMultiplier(LRScheduler):
    """Multiplies the initial rate of every parameter group by one schedule over [0, 1).

    ``max_iter`` iterations make up that interval; ``last_iter`` is the one to resume after.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: ParamScheduler,
        max_iter: int,
        last_iter: int = -1,
    ) -> None:
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs; the schedule itself has no state."""
        return {name: getattr(self, name) for name in ("base_lrs", "last_epoch")}

    def get_lr(self) -> list[float]:
        """Return the rate of every group at the current iteration (``last_epoch``)."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]
