"""The event storage that training writes scalars into, and the writers that read it."""

from __future__ import annotations

import datetime
import functools
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer

_WINDOW = 20  # iterations that smoothed scalars are the median of

_open_storages: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    """Return the innermost open storage; ``RuntimeError`` if none is open."""
    if not _open_storages:
        raise RuntimeError("get_event_storage() needs an open 'with EventStorage(...)' context")
    return _open_storages[-1]


class EventStorage:
    """Histories of scalars.

    Attributes:
        iter: the current iteration; a trainer keeps it equal to its own.
    """

    def __init__(self, start_iter: int = 0) -> None:
        self.iter = start_iter
        self._histories: defaultdict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothed: set[str] = set()
        self._latest: dict[str, tuple[float, int]] = {}
        self._vis_data: list[tuple[str, Any, int]] = []

    def __enter__(self) -> EventStorage:
        _open_storages.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _open_storages.remove(self)

    def put_scalar(self, name: str, value: Any, smoothing_hint: bool = True) -> None:
        """Record a scalar; with ``smoothing_hint`` writers show a median, not the last value."""
        if smoothing_hint:
            self._smoothed.add(name)
        self._histories[name].update(float(value), self.iter)
        self._latest[name] = (float(value), self.iter)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Keep a (C, H, W) picture of the current iteration: uint8, or float in 0..1."""
        self._vis_data.append((img_name, img_tensor, self.iter))

    def put_scalars(self, *, smoothing_hint: bool = True, **kwargs: Any) -> None:
        """Record each keyword argument as a scalar."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint)

    def history(self, name: str) -> HistoryBuffer:
        """Return the history of one scalar; ``KeyError`` if there is none."""
        return self.histories()[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """Return the histories of all scalars."""
        return dict(self._histories)

    def latest(self) -> dict[str, tuple[float, int]]:
        """Return the last (value, iteration) of every scalar."""
        return self._latest

    def latest_with_smoothing_hint(
        self, window_size: int = _WINDOW
    ) -> dict[str, tuple[float, int]]:
        """Return :meth:`latest`, with medians over the window where the hint asks for them."""
        return {
            name: (self.smoothed(name, window_size) if name in self._smoothed else value, step)
            for name, (value, step) in self._latest.items()
        }

    def smoothed(self, name: str, window_size: int = _WINDOW) -> float:
        """Return the median of a scalar over its last ``window_size`` iterations."""
        return self.history(name).median(self.count_samples(name, window_size))

    def count_samples(self, name: str, window_size: int = _WINDOW) -> int:
        """Return how many values of a scalar fall into its last ``window_size`` iterations."""
        steps = [step for _, step in self.history(name).values()]
        return sum(1 for step in steps if step > steps[-1] - window_size)


class EventWriter:
    """Base of the objects that :class:`PeriodicWriter` calls."""

    def write(self) -> None:
        """Write what is new in the open storage."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the output."""


class _ScalarWriter(EventWriter):
    """The common part of writers to files."""

    def __init__(self, window_size: int) -> None:
        self._window_size = window_size
        self._last_write = -1

    def _new_scalars(self) -> Iterator[tuple[str, float, int]]:
        """Yield (name, value, iteration) of what was recorded since the last call."""
        newest = self._last_write
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write:
                newest = max(newest, iteration)
                yield name, value, iteration
        self._last_write = newest


class JSONWriter(_ScalarWriter):
    """Appends one JSON object per iteration to a file."""

    def __init__(self, json_file: str, window_size: int = _WINDOW) -> None:
        super().__init__(window_size)
        self._stream = open(json_file, "a", encoding="utf-8")  # noqa: SIM115 (open until close)

    def write(self) -> None:
        """Append the scalars recorded since the last call, grouped by iteration."""
        rows: defaultdict[int, dict[str, float]] = defaultdict(dict)
        for name, value, iteration in self._new_scalars():
            rows[iteration][name] = value
        for iteration, row in rows.items():
            self._stream.write(json.dumps({**row, "iteration": iteration}, sort_keys=True) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class TensorboardXWriter(_ScalarWriter):
    """Writes scalars for TensorBoard."""

    def __init__(self, log_dir: str, window_size: int = _WINDOW) -> None:
        super().__init__(window_size)
        self._folder = log_dir

    @functools.cached_property
    def _writer(self) -> Any:
        # Slow to import, and a run that writes nothing makes no file.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self._folder)

    def write(self) -> None:
        """Write the scalars and pictures recorded since the last call."""
        for scalar in self._new_scalars():
            self._writer.add_scalar(*scalar)
        storage = get_event_storage()
        for picture in storage._vis_data:
            self._writer.add_image(*picture)
        storage._vis_data.clear()

    def close(self) -> None:
        """Close the event file, if one was opened."""
        if "_writer" in vars(self):
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs iteration, losses, times, rate and memory in one line."""

    def __init__(self, max_iter: int) -> None:
        self.logger = logging.getLogger(__name__)
        self._max_iter = max_iter

    def write(self) -> None:
        """Log the line, unless training is over."""
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return
        histories = storage.histories()
        parts = [f"iter: {storage.iter}"]
        parts += [f"{name}: {storage.smoothed(name):.4g}" for name in histories if "loss" in name]
        if "time" in histories:
            seconds = histories["time"].median(1000) * (self._max_iter - storage.iter - 1)
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            parts.insert(0, f"eta: {datetime.timedelta(seconds=int(seconds))}")
            parts.append(f"time: {histories['time'].global_avg():.4f}")
        if "data_time" in histories:
            window = storage.count_samples("data_time")
            parts.append(f"data_time: {histories['data_time'].avg(window):.4f}")
        parts.append(f"lr: {histories['lr'].latest():.5g}" if "lr" in histories else "lr: N/A")
        if torch.cuda.is_available():
            parts.append(f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M")
        self.logger.info("  ".join(parts))
