"""A training loop, the base of its hooks, and a trainer that runs iterations."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage

logger = logging.getLogger(__name__)


class HookBase:
    """Something to do at certain points of a training; ``trainer`` is set on registration."""

    trainer: TrainerBase = None

    def before_train(self) -> None:
        """Called before the first iteration."""

    def after_train(self) -> None:
        """Called after the last iteration, also after an exception."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint should keep; a hook with a state also needs load_state_dict."""
        return {}


class TrainerBase:
    """A loop with hooks; a subclass implements ``run_step``.

    Attributes:
        iter: the current iteration.
        start_iter: the first iteration of this run.
        max_iter: the end; after a training without exception, ``iter == max_iter``.
        storage: the event storage, while training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = 0
        self.start_iter = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Sequence[HookBase]) -> None:
        """Append hooks, to be called in this order."""
        for hook in hooks:
            hook.trainer = weakref.proxy(self)  # owning each other, neither would be freed
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations from ``start_iter`` up to, not including, ``max_iter``."""
        logger.info("Training from iteration %d to %d", start_iter, max_iter)
        self.start_iter, self.max_iter = start_iter, max_iter
        self.iter = start_iter
        self.storage = EventStorage(start_iter)
        with self.storage:
            try:
                self.before_train()
                while self.iter < max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            except Exception:
                logger.exception("Training stopped at iteration %d", self.iter)
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        """Call the hooks."""
        self._call_hooks("before_train")

    def after_train(self) -> None:
        """Call the hooks."""
        self._call_hooks("after_train")

    def before_step(self) -> None:
        """Call the hooks."""
        self._call_hooks("before_step")

    def after_step(self) -> None:
        """Call the hooks."""
        self._call_hooks("after_step")

    def _call_hooks(self, moment: str) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            getattr(hook, moment)()

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration and the states of the hooks, by class.

        Of several hooks of one class the first one's is kept, as in detectron2.
        """
        states: dict[str, Any] = {}
        for hook in self._hooks:
            state = hook.state_dict()
            if state:
                states.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, **({"hooks": states} if states else {})}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self.iter = state_dict["iteration"]
        for name, state in state_dict.get("hooks", {}).items():
            hook = next((h for h in self._hooks if type(h).__qualname__ == name), None)
            if hook is None:
                logger.warning("No hook %r is registered: its saved state is not used", name)
            else:
                hook.load_state_dict(state)


class SimpleTrainer(TrainerBase):
    """One model, one loader, one optimiser, and the sum of the losses that the model returns."""

    def __init__(
        self, model: nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        super().__init__()
        self.model = model.train()
        self.data_loader = data_loader
        self.optimizer = optimizer
        self._data_loader_iter_obj: Iterator[Any] | None = None

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        # Replacing the loader resets it.
        started = self._data_loader_iter_obj
        self._data_loader_iter_obj = iter(self.data_loader) if started is None else started
        return self._data_loader_iter_obj

    def run_step(self) -> None:
        """Load, forward, backward, log, step."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        seconds = time.perf_counter() - start
        losses = self.model(batch)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self._write_metrics(losses, seconds)
        self.optimizer.step()

    def _write_metrics(self, loss_dict: Mapping[str, torch.Tensor], data_time: float) -> None:
        """Put the losses, averaged over the processes, into the storage of the main process.

        Of ``data_time``, the seconds that each process waited for data, the maximum is logged. A
        sum of losses that is not finite is a ``FloatingPointError``.
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time)
        gathered = comm.gather((data_time, {name: x.item() for name, x in loss_dict.items()}))
        if not comm.is_main_process():
            return
        storage.put_scalar("data_time", max(seconds for seconds, _ in gathered))
        averages = {name: np.mean([x[name] for _, x in gathered]) for name in loss_dict}
        total = sum(averages.values())
        if not np.isfinite(total):
            raise FloatingPointError(f"the loss is not finite at iteration={self.iter}: {averages}")
        storage.put_scalar("total_loss", total)
        if len(averages) > 1:
            storage.put_scalars(**averages)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loop and of the optimiser."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
