"""Whether a checkpoint belongs to the run that resumes from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from d2_smallobj.config import task_a_iterations
from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

_ROOTS = ("MODEL", "INPUT.FORMAT", "DATASETS.TRAIN", "SEED", "SOLVER", "SMALLOBJ")
"""What decides the weights that a run ends with."""

_WITHOUT_EFFECT = (
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",  # the checkpoint's take their place
    "SOLVER.CHECKPOINT_PERIOD",
    "SMALLOBJ.EVAL_TASK_A",
    "SMALLOBJ.METRIC_MODE",
    "SMALLOBJ.TEST",
    "SMALLOBJ.PICTURES",
    "SMALLOBJ.SUPERVISION.LOG_ACCURACY",
)
"""Keys below the roots that change no weight."""

_CHANGEABLE = (
    # How the penalty acts on the Fisher information and theta* that the checkpoint holds.
    *("SMALLOBJ.EWC.LAMBDA", "SMALLOBJ.EWC.STEP"),
    *("SMALLOBJ.EWC.ALPHA", "SMALLOBJ.EWC.NUM_IMAGES"),
    # Number formats, memory layouts and kernels.
    *("SOLVER.AMP", "SMALLOBJ.AMP_DTYPE", "SMALLOBJ.SPEED"),
)
"""Keys that may change in the middle of a run; it is logged."""

_SECOND_TASK = ("SMALLOBJ.TASK_B", "SMALLOBJ.EWC")
"""Keys that may change until task B begins, so that one task A serves several second tasks."""

_MODEL = ("MODEL", "INPUT.FORMAT", "SMALLOBJ.OUTPUT_STRIDE", "SMALLOBJ.ASPP_DILATIONS")
_MODEL += ("SMALLOBJ.MSC", "SMALLOBJ.STEM_POOL_CEIL")
"""What decides the output of given weights."""


def fingerprint(cfg: CfgNode) -> dict[str, Any]:
    """The part of a config that a checkpoint keeps: what decides the weights a run ends with.

    Returns:
        Dotted key to a value that ``torch.load(weights_only=True)`` reads.
    """
    return {
        key: value
        for key, value in flatten(cfg)
        if _below(key, _ROOTS) and not _below(key, _WITHOUT_EFFECT)
    }


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config with their dotted keys; sequences as lists."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def check_resumable(checkpoint: Mapping[str, Any], cfg: CfgNode, path: str) -> None:
    """Refuse to continue another run's checkpoint.

    Args:
        checkpoint: as saved by :class:`~.checkpoint.SafeCheckpointer`; one without a
            fingerprint is compared in what it does hold.
        cfg: of the run that resumes.
        path: the checkpoint's, for messages.

    Raises:
        ValueError: listing every key that differs, with both values.
    """
    task_a = task_a_iterations(cfg)
    iteration = checkpoint["trainer"]["iteration"]
    anchored = bool(checkpoint.get("ewc", {}).get("anchored"))
    changes = config_changes(checkpoint, cfg)
    in_task_b = anchored or iteration >= task_a
    allowed = _CHANGEABLE if in_task_b else (*_CHANGEABLE, *_SECOND_TASK)
    refused = [text for key, text in changes.items() if not _below(key, allowed)]
    if anchored and iteration < task_a and not refused:
        refused = [f"SMALLOBJ.TASK_A.ITERS at most {iteration} there, {task_a} now"]
    if refused:
        raise ValueError(
            f"{path} was written by another config: {'; '.join(refused)}. Resume with the config "
            "that wrote it, or start a new run from its weights (MODEL.WEIGHTS, another "
            "OUTPUT_DIR, no --resume)"
        )
    if changes:
        logger.warning(f"{path}: the run goes on with {'; '.join(changes.values())}")


def warn_of_other_model(checkpoint: Mapping[str, Any], cfg: CfgNode, path: str) -> None:
    """Say which keys give the weights another model, or other input, than they were trained on."""
    changes = config_changes(checkpoint, cfg)
    different = [text for key, text in changes.items() if _below(key, _MODEL)]
    if different:
        logger.warning(f"{path} was trained with another model or input: {'; '.join(different)}")


def config_changes(checkpoint: Mapping[str, Any], cfg: CfgNode) -> dict[str, str]:
    """Keys whose value differs between a checkpoint and a config, with both in words.

    A key that either does not know (another version, another host) says nothing.
    """
    saved = checkpoint.get("config", {})
    return {
        key: f"{key} {saved[key]!r} there, {value!r} now"
        for key, value in fingerprint(cfg).items()
        if key in saved and saved[key] != value
    }


def _below(key: str, roots: tuple[str, ...]) -> bool:
    return any(key == root or key.startswith(f"{root}.") for root in roots)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
