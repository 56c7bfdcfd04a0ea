"""Take one optimiser step: accumulation, mixed precision, Fisher information, penalty."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from d2_smallobj.engine.loss_log import LossLog, samples_of
from d2_smallobj.engine.solver import same_implementation
from d2_smallobj.losses.ewc import ElasticWeightConsolidation
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import get_event_storage

SMALLEST_SCALE = 2.0**-24
"""Loss scale of float16 below which no scale will help; a run starts at 2^16."""


class TaskStepTrainer(SimpleTrainer):
    """detectron2's inner trainer with Fisher information and penalty after the backward pass.

    detectron2's hooks never see the gradients (its inner trainer has a hook list of its own, and
    under AMP they would be scaled): here they are unscaled, and DDP has averaged them. With batches
    on the device (:class:`~d2_smallobj.data.loaders.DeviceLoader`) the host waits for the device
    only in steps in which the loss log is read.

    Args:
        model: returns a dict of losses; may be wrapped in DDP.
        data_loader: infinite iterable of batches.
        optimizer: steps the model.
        accumulate: backward passes per step; their gradients are averaged.
        amp_dtype: None for float32, or the type for autocast.
        ewc: Fisher and penalty; None when the run has no penalty.
        proximal: whether the penalty acts as a step after the optimiser's own.
        loss_log: logs and checks the losses; None: after every step.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
        amp_dtype: torch.dtype | None = None,
        ewc: ElasticWeightConsolidation | None = None,
        proximal: bool = False,
        loss_log: LossLog | None = None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.accumulate = accumulate
        self.amp_dtype = amp_dtype
        self.ewc = ewc
        self.proximal = proximal
        self.loss_log = LossLog() if loss_log is None else loss_log
        #: Set by the task switch.
        self.in_task_b = False
        self.device_type = next(model.parameters()).device.type
        scaled = amp_dtype is torch.float16
        if hasattr(torch.amp, "GradScaler"):  # torch >= 2.3
            self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=scaled)
        else:
            self.grad_scaler = torch.cuda.amp.GradScaler(enabled=scaled)

    @property
    def penalty(self) -> ElasticWeightConsolidation | None:
        """The EWC penalty, if it acts in this step."""
        return self.ewc if self.in_task_b else None

    def replace_data_loader(self, data_loader: Iterable[list[dict[str, Any]]]) -> None:
        """Continue with another loader."""
        self.data_loader = data_loader
        self._data_loader_iter_obj = None

    def run_step(self) -> None:
        """Take one step on ``accumulate`` batches."""
        if not self.model.training:
            raise RuntimeError("the model was left in evaluation mode; training needs train()")
        self.optimizer.zero_grad()
        losses, data_time, samples = self._backward_passes()
        self.grad_scaler.unscale_(self.optimizer)
        ewc = self.penalty
        if ewc is not None:
            losses["loss_ewc"] = ewc.penalty() if self.proximal else ewc.add_gradient_()
        elif self.ewc is not None and self.ewc.estimator == "online":
            # Leaves the estimate as it is where float16 overflowed: that step is skipped too.
            self.ewc.record_gradients()
        get_event_storage().put_scalar("in_task_B", self.in_task_b, smoothing_hint=False)
        self._optimizer_step()
        self.loss_log.add(self.iter, losses, data_time, samples)
        if self.grad_scaler.is_enabled() and (self.iter + 1) % self.loss_log.period == 0:
            self._check_loss_scale()

    def _check_loss_scale(self) -> None:
        """Refuse to continue when float16 overflows at every loss scale.

        A single overflow is harmless: that step is skipped and the scale halved.
        """
        scale = self.grad_scaler.get_scale()
        if scale < SMALLEST_SCALE:
            raise FloatingPointError(
                f"float16 gradients overflow in every step up to iteration={self.iter} (the loss "
                f"scale has fallen to {scale:g}), so nothing is learned: use SMALLOBJ.AMP_DTYPE "
                "bfloat16, or SOLVER.AMP.ENABLED False"
            )

    def _backward_passes(self) -> tuple[dict[str, torch.Tensor], float, list[dict[str, Any]]]:
        """Add the gradients of ``accumulate`` batches; return mean losses, data time, samples."""
        totals: dict[str, torch.Tensor] = {}
        samples: list[dict[str, Any]] = []
        data_time = 0.0
        distributed = isinstance(self.model, nn.parallel.DistributedDataParallel)
        for index in range(self.accumulate):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            samples += samples_of(data)
            # DDP averages gradients over the processes in the last pass only.
            early = distributed and index < self.accumulate - 1
            with self.model.no_sync() if early else contextlib.nullcontext():
                with torch.autocast(
                    self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
                ):
                    losses = self.model(data)
                losses = {key: loss / self.accumulate for key, loss in losses.items()}
                self.grad_scaler.scale(sum(losses.values())).backward()
            for key, loss in losses.items():
                totals[key] = totals.get(key, 0) + loss.detach()
        return totals, data_time, samples

    def _optimizer_step(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if self.proximal and self.penalty is not None:
            self.penalty.proximal_step_(self.penalty.learning_rates(self.optimizer))

    def state_dict(self) -> dict[str, Any]:
        """Return optimiser and loss scale, as detectron2's inner trainers keep them."""
        state = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        with same_implementation(self.optimizer):
            super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
