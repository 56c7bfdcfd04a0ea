"""Build, check and compare configs, and start a run's log."""

from __future__ import annotations

import argparse
import ast
import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import yaml

from d2_smallobj._host import announce_host
from d2_smallobj.config import add_smallobj_config, task_a_iterations
from d2_smallobj.config_rules import validate_config
from d2_smallobj.data import dataset_dicts, register_all
from d2_smallobj.engine.config_files import check_config_file, find_config
from d2_smallobj.engine.loss_log import explain
from d2_smallobj.modeling.detectron2_heads import add_project_configs
from d2_smallobj.utils.files import remove_leftovers
from d2_smallobj.utils.messages import listed, look_up_option
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

logger = logging.getLogger(__name__)

_ROOTS = ("MODEL", "INPUT.FORMAT", "DATASETS.TRAIN", "SEED", "SOLVER", "SMALLOBJ")
"""Keys that decide the weights that a run ends with."""

_WITHOUT_EFFECT = (
    "MODEL.WEIGHTS",  # the checkpoint's take their place
    *("MODEL.DEVICE", "SOLVER.CHECKPOINT_PERIOD", "SMALLOBJ.EVAL_TASK_A", "SMALLOBJ.METRIC_MODE"),
    *("SMALLOBJ.TEST", "SMALLOBJ.PICTURES", "SMALLOBJ.SUPERVISION.LOG_ACCURACY"),
)
"""Keys below the roots that change no weight."""

_CHANGEABLE = (
    # How the penalty uses the Fisher information and theta* that the checkpoint holds.
    *("SMALLOBJ.EWC.LAMBDA", "SMALLOBJ.EWC.STEP"),
    *("SMALLOBJ.EWC.ALPHA", "SMALLOBJ.EWC.NUM_IMAGES"),
    # Number formats, memory layouts and kernels.
    *("SOLVER.AMP", "SMALLOBJ.AMP_DTYPE", "SMALLOBJ.SPEED"),
)
"""Keys that may change in the middle of a run; the change is logged."""

_SECOND_TASK = ("SMALLOBJ.TASK_B", "SMALLOBJ.EWC")
"""Keys that may change until task B begins, so that one task A serves several second tasks."""

_MODEL = (
    *("MODEL", "INPUT.FORMAT", "SMALLOBJ.OUTPUT_STRIDE", "SMALLOBJ.ASPP_DILATIONS"),
    *("SMALLOBJ.MSC", "SMALLOBJ.STEM_POOL_CEIL", "SMALLOBJ.MOBILENET"),
)
"""Keys that decide the output of given weights."""


_RUN_FILE = re.compile(r"last_checkpoint|metrics\.json|results\.json|model_\w+\.pth")
"""Names of what a training leaves."""


def build_config(config_file: str = "", options: list[str] | tuple[str, ...] = ()) -> CfgNode:
    """Build and check the config of a file and of overriding options.

    Args:
        config_file: YAML file, or the name of a config that comes with the package; empty:
            detectron2's defaults with ours.
        options: ``KEY VALUE`` pairs, as at the end of the command line. Integers may stand for
            decimals, here and in the file.

    Returns:
        The config, not frozen. ``MODEL.DEVICE`` is ``cpu`` where there is no GPU.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: for an unknown key or an illegal value; names it.
    """
    if config_file:
        config_file = find_config(config_file)
        check_config_file(config_file)
    cfg = get_cfg()
    add_smallobj_config(cfg)
    add_project_configs(cfg, config_file, options)
    if config_file:
        with _named_errors(config_file):
            tree = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)
            with _integers_for_decimals(cfg, flatten(tree)):
                cfg.merge_from_file(config_file, allow_unsafe=False)
    if len(options) % 2:
        raise ValueError(f"options come as KEY VALUE pairs, got {len(options)}: {list(options)}")
    given = zip(options[::2], map(_literal, options[1::2]))
    source = f"command-line options {list(options)}"
    with _named_errors(source), _integers_for_decimals(cfg, given):
        cfg.merge_from_list(list(options))
    validate_config(cfg)
    if cfg.MODEL.META_ARCHITECTURE != get_cfg().MODEL.META_ARCHITECTURE:
        check_architecture(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


@contextlib.contextmanager
def _named_errors(source: str) -> Iterator[None]:
    """Turn what yacs and YAML raise into a ``ValueError`` that names the source."""
    try:
        yield
    except (KeyError, AssertionError, ValueError, yaml.YAMLError) as error:
        # str(KeyError) would show the message's repr.
        told = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        # yacs shows a whole node, where one is expected, line by line.
        told = re.sub(r"(?s) with values \(.*\n.*\)(?= for config key)", "", told)
        raise ValueError(f"{source}: {told or type(error).__name__}") from error


def check_architecture(cfg: CfgNode) -> None:
    """Refuse an unregistered meta-architecture, for which detectron2 raises a ``KeyError``.

    Raises:
        ValueError: names the registered ones and the closest.
    """
    registered = sorted(name for name, _ in META_ARCH_REGISTRY)
    look_up_option("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, registered)


@contextlib.contextmanager
def _integers_for_decimals(cfg: CfgNode, given: Iterable[tuple[str, Any]]) -> Iterator[None]:
    """Let integers among ``given`` dotted keys and values replace decimals; yacs refuses that."""
    places = []
    for key, value in given:
        *path, leaf = str(key).split(".")
        node: Any = cfg
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if type(value) is int and isinstance(node, dict) and type(node.get(leaf)) is float:
            node[leaf] = 0  # yacs lets an integer replace an integer
            places.append((node, leaf))
    yield
    for node, leaf in places:
        node[leaf] = float(node[leaf])


def _literal(text: str) -> Any:
    """Read an option's text as yacs does."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def setup(args: argparse.Namespace) -> CfgNode:
    """Prepare config, data sets, output folder and log of one process; log the device."""
    if args.config_file:
        args.config_file = find_config(args.config_file)
    cfg = build_config(args.config_file, args.opts)
    check_architecture(cfg)
    cfg.freeze()
    register_all()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="d2_smallobj")
    for name in ("detectron2", "fvcore", "d2_smallobj"):
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                handler.addFilter(_is_for_the_console)
    announce_host()
    if cfg.MODEL.DEVICE == "cpu":
        logger.info("No GPU is used: everything runs on the CPU")
    return cfg


def _is_for_the_console(record: logging.LogRecord) -> bool:
    """Leave the traceback of an error that the last line explains to the log file."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return True
    # Not above: importing it sets what only commands may set.
    from d2_smallobj.utils.cli import user_message

    return user_message(error) is None and explain(error) is None


def check_unused(folder: str) -> None:
    """Refuse a folder that holds a run, whose files those of a new one would be mixed with.

    Raises:
        ValueError: names the files, and the two ways out.
    """
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = [name for name in names if _RUN_FILE.fullmatch(name)]
    # A run that failed before its first log leaves an empty one.
    if found == ["metrics.json"] and not os.path.getsize(os.path.join(folder, *found)):
        return
    if found:
        raise ValueError(
            f"{folder} holds a begun or finished run ({listed(found, 3)}): choose another "
            "OUTPUT_DIR, or give --resume to continue that run"
        )


def make_writable(folder: str) -> None:
    """Make the output folder of a run, and remove what killed runs have left half written there.

    Raises:
        OSError: if nothing can be written there; names it.
    """
    remove_leftovers(folder, r"last_checkpoint|\w+\.json|model_\w+\.pth")
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        text = f"OUTPUT_DIR {folder} cannot be written to: {error.strerror}"
        raise OSError(error.errno, text) from error


def check_datasets(cfg: CfgNode, eval_only: bool = False) -> None:
    """List every data set of a run, so that a missing one is reported before it starts.

    The demo scenes are made here when they do not exist yet.

    Raises:
        ValueError: for an unknown or empty data set.
        FileNotFoundError: names the missing paths and the command that prepares them.
    """
    if not eval_only:
        dataset_dicts(cfg.DATASETS.TRAIN)
    if cfg.DATASETS.TEST:
        dataset_dicts(cfg.DATASETS.TEST)


def fingerprint(cfg: CfgNode) -> dict[str, Any]:
    """Select the values of a config that decide the weights a run ends with, for checkpoints.

    Returns:
        Dotted key to a value that ``torch.load(weights_only=True)`` reads.
    """
    return {
        key: value
        for key, value in flatten(cfg)
        if _below(key, _ROOTS) and not _below(key, _WITHOUT_EFFECT)
    }


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a config with their dotted keys; sequences as lists."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)


def check_resumable(checkpoint: Mapping[str, Any], cfg: CfgNode | None, path: str) -> None:
    """Refuse to continue weights alone, or another run's checkpoint than that of ``cfg``.

    ``path`` is for messages. The checkpoint may have no :func:`fingerprint`.

    Raises:
        ValueError: listing every key that differs, with both values.
    """
    trainer = checkpoint.get("trainer")
    if not isinstance(trainer, Mapping) or "iteration" not in trainer:
        raise ValueError(
            f"{path} holds weights, but not the state of a training run: it cannot be "
            "resumed. Give it as MODEL.WEIGHTS without --resume"
        )
    iteration, ewc = trainer["iteration"], checkpoint.get("ewc", {})
    if type(iteration) is not int or iteration < 0 or not isinstance(ewc, Mapping):
        raise ValueError(
            f"{path} cannot be resumed: its iteration must be an integer >= 0, its 'ewc' a dict, "
            f"got {iteration!r:.60} and a {type(ewc).__name__}"
        )
    if cfg is None:
        return
    task_a = task_a_iterations(cfg)
    anchored = bool(ewc.get("anchored"))
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
    if iteration >= cfg.SOLVER.MAX_ITER:
        raise ValueError(
            f"{path} cannot be resumed: its last iteration is {iteration}, this run's are 0 to "
            f"{cfg.SOLVER.MAX_ITER - 1} (SOLVER.MAX_ITER)"
        )
    if changes:
        logger.warning(f"{path}: the run continues with {'; '.join(changes.values())}")


def warn_of_other_model(checkpoint: Mapping[str, Any], cfg: CfgNode, path: str) -> None:
    """Log the keys that give the weights another model or input than in their training."""
    changes = config_changes(checkpoint, cfg)
    different = [text for key, text in changes.items() if _below(key, _MODEL)]
    if different:
        logger.warning(f"{path} was trained with another model or input: {'; '.join(different)}")


def config_changes(checkpoint: Mapping[str, Any], cfg: CfgNode) -> dict[str, str]:
    """Describe each key that a checkpoint and a config know, with different values."""
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
