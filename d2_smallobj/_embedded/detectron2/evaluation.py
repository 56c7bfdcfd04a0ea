"""Running a model over a data set; printing results and checking them against expected ones."""

from __future__ import annotations

import datetime
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.utils.comm import get_world_size, is_main_process

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 5


class DatasetEvaluator:
    """Sees all inputs and outputs of an inference, then computes results."""

    def reset(self) -> None:
        """Forget what was seen."""

    def process(self, inputs: list, outputs: list) -> None:
        """Take in the inputs and the outputs of one batch."""

    def evaluate(self) -> dict[str, Any] | None:
        """Return {task: {metric: value}}; None is fine on other than the main process."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        self._evaluators = evaluators

    def reset(self) -> None:
        """Reset all."""
        for member in self._evaluators:
            member.reset()

    def process(self, inputs: list, outputs: list) -> None:
        """Hand a batch to all."""
        for member in self._evaluators:
            member.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        """Join all results; ``ValueError`` if two evaluators name the same task."""
        joined: dict[str, Any] = {}
        for member in self._evaluators:
            result = member.evaluate()
            if not is_main_process() or result is None:
                continue
            twice = joined.keys() & result.keys()
            if twice:
                raise ValueError(f"two evaluators have results of the same key: {sorted(twice)}")
            joined.update(result)
        return joined


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Any,
    evaluator: DatasetEvaluator | list[DatasetEvaluator],
) -> dict[str, Any]:
    """Run a model over a loader, in eval mode and without gradients, and evaluate.

    ``model`` may be any function of a batch. An empty dict is returned in place of None.
    """
    evaluator = DatasetEvaluators(evaluator) if isinstance(evaluator, list) else evaluator
    evaluator.reset()
    total = len(data_loader)
    logger.info("Inference on %d batches, %d processes", total, get_world_size())
    start = reported = time.perf_counter()
    mode = _eval_mode(model) if isinstance(model, nn.Module) else nullcontext()
    with mode, torch.no_grad():
        for done, inputs in enumerate(data_loader, start=1):
            evaluator.process(inputs, model(inputs))
            now = time.perf_counter()
            if now - reported >= _SECONDS_BETWEEN_LINES:
                reported = now
                left = datetime.timedelta(seconds=int((now - start) / done * (total - done)))
                logger.info("Inference done %d/%d, ETA %s", done, total, left)
    logger.info("Inference took %.1f s", time.perf_counter() - start)
    return evaluator.evaluate() or {}


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and back into its own, also after an exception."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def print_csv_format(results: Mapping[str, Mapping[str, float]]) -> None:
    """Log the metrics of every task in two lines to copy; names with "-" are left out."""
    for task, metrics in results.items():
        shown = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(shown))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in shown.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Mapping[str, float]]) -> bool:
    """Compare results with ``TEST.EXPECTED_RESULTS``: rows of task, metric, value, tolerance.

    Returns:
        True; a metric that is missing, not finite or off ends the process with status 1.
    """
    failed = False
    for task, metric, expected, tolerance in cfg.TEST.EXPECTED_RESULTS:
        actual = results.get(task, {}).get(metric, math.nan)
        if not abs(actual - expected) <= tolerance:
            logger.error("%s %s: %s ± %s wanted, got %s", task, metric, expected, tolerance, actual)
            failed = True
    if failed:
        sys.exit(1)
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested results with keys joined by "/"."""
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{k}": v for k, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat
