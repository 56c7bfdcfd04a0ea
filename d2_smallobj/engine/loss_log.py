"""Losses that stay on the device until it is time to read, log and check them together."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import distributed as dist

from d2_smallobj.engine.faults import stop_for_loss
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage

_KEPT_KEYS = ("file_name", "sem_seg_file_name", "stream_position")


@dataclasses.dataclass(frozen=True)
class Step:
    """What is kept of one optimiser step.

    Attributes:
        iteration: its number.
        names: of the losses.
        values: float32 (len(names),), on the device.
        data_time: seconds that this process waited for data.
        samples: of each image of this process the files and the position in the stream.
    """

    iteration: int
    names: tuple[str, ...]
    values: torch.Tensor
    data_time: float
    samples: list[dict[str, Any]]


class LossLog:
    """Puts the losses, averaged over the processes, into the event storage of the main process.

    Reading a loss makes the host wait for everything that the device has yet to do, so it is done
    for ``period`` steps at once; each loss is logged under its own iteration all the same.

    Args:
        period: :meth:`add` reads after the iterations whose successor is a multiple of it, >= 1.
        output_dir: where ``nan_batch.json`` is written if a loss is not finite; None: nowhere.
    """

    def __init__(self, period: int = 1, output_dir: str | None = None) -> None:
        self.period = period
        self.output_dir = output_dir
        self._steps: list[Step] = []
        self._before: Step | None = None

    def add(
        self,
        iteration: int,
        losses: Mapping[str, torch.Tensor],
        data_time: float,
        samples: list[dict[str, Any]],
    ) -> None:
        """Keep the losses of a step, and read all kept ones if it is time.

        Args:
            iteration: the step's number.
            losses: 0-d tensors on one device.
            data_time: seconds that this process waited for data.
            samples: :func:`samples_of` of this process's data.

        Raises:
            FloatingPointError: see :meth:`flush`.
        """
        names = tuple(losses)
        if self._steps and names != self._steps[0].names:
            self.flush()
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        self._steps.append(Step(iteration, names, values, data_time, samples))
        if (iteration + 1) % self.period == 0:
            self.flush()

    def flush(self) -> None:
        """Read, log and check what was kept. All processes must call it together.

        Raises:
            FloatingPointError: on every process, if a loss of any is not finite; names the
                iteration, and the main process saves which files were in the batch.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        storage = get_event_storage()
        befores = [self._before, *steps]
        self._before = steps[-1]
        for before, step, (times, means) in zip(befores, steps, _read(steps)):
            if not math.isfinite(sum(means)):
                stop_for_loss(step, before, means, self.output_dir)
            with _at(storage, step.iteration):
                _put(storage, step, times, means)


def samples_of(batch: Sequence[Any]) -> list[dict[str, Any]]:
    """Files and stream positions of a batch's images; nothing of samples that are no dicts."""
    return [
        {key: x[key] for key in _KEPT_KEYS if key in x} for x in batch if isinstance(x, Mapping)
    ]


def _read(steps: Sequence[Step]) -> list[tuple[float, list[float]]]:
    """For every step the longest wait for data and the mean losses over the processes."""
    means = torch.stack([step.values for step in steps])
    times = torch.tensor([step.data_time for step in steps], device=means.device)
    if comm.get_world_size() > 1:
        dist.all_reduce(means)
        means /= comm.get_world_size()
        dist.all_reduce(times, op=dist.ReduceOp.MAX)
    return list(zip(times.tolist(), means.tolist()))


def _put(storage: EventStorage, step: Step, data_time: float, means: Sequence[float]) -> None:
    """Log one step under the names that detectron2 uses."""
    storage.put_scalar("rank_data_time", step.data_time)
    if not comm.is_main_process():
        return
    storage.put_scalar("data_time", data_time)
    storage.put_scalar("total_loss", sum(means))
    if len(means) > 1:
        storage.put_scalars(**dict(zip(step.names, means)))


@contextlib.contextmanager
def _at(storage: EventStorage, iteration: int) -> Iterator[None]:
    """Record scalars under an earlier iteration."""
    now = storage.iter
    storage.iter = iteration
    try:
        yield
    finally:
        storage.iter = now
