"""The printed training line, with the task in front."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from detectron2.utils.events import CommonMetricPrinter, get_event_storage


class _TaskAdapter(logging.LoggerAdapter):
    """Puts the task that is on before every message."""

    def process(
        self, msg: str, kwargs: MutableMapping[str, Any]
    ) -> tuple[str, MutableMapping[str, Any]]:
        task, _ = get_event_storage().latest().get("task", (1, 0))
        return f"task {'A' if task == 1 else 'B'} {msg}", kwargs


class TaskMetricPrinter(CommonMetricPrinter):
    """detectron2's printer; every line starts with the task, e.g. ``task B  eta: ...``.

    Args:
        max_iter: the last iteration, for the estimated time.
    """

    def __init__(self, max_iter: int) -> None:
        super().__init__(max_iter)
        self.logger = _TaskAdapter(self.logger, {})
