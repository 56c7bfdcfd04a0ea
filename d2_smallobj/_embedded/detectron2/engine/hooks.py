"""Common hooks."""

from __future__ import annotations

import datetime
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer

from detectron2.evaluation import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from .train_loop import HookBase

logger = logging.getLogger(__name__)


class IterationTimer(HookBase):
    """Logs the scalar ``time`` of each iteration after a warm-up, and the time of the training."""

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter

    def before_train(self) -> None:
        """Start the clock of the training."""
        self._train_start = time.perf_counter()

    def before_step(self) -> None:
        """Start the clock of the iteration."""
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        """Log the iteration's time."""
        done = self.trainer.iter - self.trainer.start_iter + 1
        if done >= self._warmup_iter:
            self.trainer.storage.put_scalar("time", time.perf_counter() - self._step_start)

    def after_train(self) -> None:
        """Log the total."""
        seconds = int(time.perf_counter() - self._train_start)
        logger.info("Training took %s", datetime.timedelta(seconds=seconds))


class PeriodicWriter(HookBase):
    """Calls the writers every ``period`` iterations and at the end."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        """Write, if it is time."""
        following = self.trainer.iter + 1
        if following % self._period == 0 or following == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        """Write what other hooks have added since, and close."""
        for writer in self._writers:
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """Saves every ``period`` iterations and after the last one."""

    def before_train(self) -> None:
        """Learn the last iteration."""
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        """Save, if it is time."""
        self.step(self.trainer.iter)


class LRScheduler(HookBase):
    """Steps the trainer's schedule after every iteration and logs the scalar ``lr``."""

    def before_train(self) -> None:
        """Choose the group whose rate is logged: the largest, or one of the most common rate."""
        groups = self.trainer.optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        self._logged = sizes.index(max(sizes))
        if max(sizes) == 1:
            rates = [group["lr"] for group in groups]
            self._logged = rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        """Log the rate that was used, then set the next one."""
        rate = self.trainer.optimizer.param_groups[self._logged]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.trainer.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state."""
        return self.trainer.scheduler.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the schedule's state."""
        self.trainer.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluates every ``eval_period`` iterations (0: never) and after the last one.

    ``eval_function`` returns nested dicts of numbers; all processes must have the hook.
    """

    def __init__(
        self, eval_period: int, eval_function: Callable[[], Mapping[str, Any] | None]
    ) -> None:
        self._period = eval_period
        self._function = eval_function

    def _evaluate(self) -> None:
        results = self._function()
        if results:
            figures = flatten_results_dict(results)
            self.trainer.storage.put_scalars(smoothing_hint=False, **figures)
        comm.synchronize()  # evaluation takes one process longer than another

    def after_step(self) -> None:
        """Evaluate, if it is time; the last time is left to :meth:`after_train`."""
        following = self.trainer.iter + 1
        due = self._period > 0 and following % self._period == 0
        if due and following != self.trainer.max_iter:
            self._evaluate()

    def after_train(self) -> None:
        """Evaluate, unless training failed."""
        failed = self.trainer.iter + 1 < self.trainer.max_iter
        if not failed:
            self._evaluate()
        del self._function  # a closure over the trainer, most likely
