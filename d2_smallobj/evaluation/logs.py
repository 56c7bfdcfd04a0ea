"""Where the evaluator logs, and its line to copy and paste."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

_OWN = "d2_smallobj"
_HOST = "detectron2"
_told: set[str] = set()


def evaluation_logger() -> logging.Logger:
    """Return the logger whose messages the running program shows.

    A project that has never heard of this package sets up detectron2's logger alone. Ours would
    be silent there, so that the figures appear neither on the screen nor in ``log.txt``.
    """
    own = logging.getLogger(_OWN)
    if not own.handlers and logging.getLogger(_HOST).handlers:
        return logging.getLogger(f"{_HOST}.small_objects")
    return logging.getLogger(f"{_OWN}.evaluation")


def log_once(sentences: Iterable[str], warnings: Collection[str] = ()) -> None:
    """Log what was decided about a data set, each sentence once in this process.

    A training evaluates many times, each time with a new evaluator.

    Args:
        sentences: what to log.
        warnings: those of them that are warnings.
    """
    for sentence in sentences:
        if sentence not in _told:
            _told.add(sentence)
            level = logging.WARNING if sentence in warnings else logging.INFO
            evaluation_logger().log(level, "%s", sentence)


def log_copypaste(task: str, figures: Mapping[str, float], names: Iterable[str]) -> None:
    """Log figures in the form of detectron2's summary, which leaves out names with a hyphen.

    Args:
        task: the key of the results.
        figures: percent, or counts, by name.
        names: which of them, in this order.
    """
    names = list(names)
    logger = evaluation_logger()
    logger.info("copypaste: Task: %s", task)
    logger.info("copypaste: %s", ",".join(names))
    logger.info("copypaste: %s", ",".join(f"{figures[name]:.4f}" for name in names))
