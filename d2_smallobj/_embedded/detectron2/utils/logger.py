"""Logging to the console and to ``log.txt``."""

from __future__ import annotations

import functools
import logging
import os
import sys
from typing import IO


@functools.cache  # a second call must not add a second handler
def setup_logger(
    output: str | None = None, distributed_rank: int = 0, *, name: str = "detectron2"
) -> logging.Logger:
    """Send a logger to stdout (rank 0) and to a file (``.rank<N>`` appended on other ranks).

    Args:
        output: folder that gets ``log.txt``; None or empty: no file.
        distributed_rank: rank of this process.
        name: the logger.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    streams: list[IO[str]] = []
    if distributed_rank == 0:
        streams.append(sys.stdout)
    if output:
        suffix = f".rank{distributed_rank}" if distributed_rank else ""
        streams.append(_log_stream(os.path.join(output, f"log.txt{suffix}")))
    form = logging.Formatter("[%(asctime)s %(name)s] %(levelname)s: %(message)s", "%m/%d %H:%M:%S")
    for stream in streams:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(form)
        logger.addHandler(handler)
    return logger


@functools.cache  # loggers that share a file share the stream
def _log_stream(path: str) -> IO[str]:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return open(path, "a", encoding="utf-8")
