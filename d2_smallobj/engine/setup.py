"""From command-line arguments to a checked config and a running log."""

from __future__ import annotations

import argparse
import ast
import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import yaml

from d2_smallobj._host import announce_host
from d2_smallobj.config import add_smallobj_config, validate_config
from d2_smallobj.data import dataset_dicts, register_all
from d2_smallobj.engine.fingerprint import flatten
from d2_smallobj.modeling.detectron2_heads import add_project_configs
from d2_smallobj.utils.options import look_up_option
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

logger = logging.getLogger(__name__)


def build_config(config_file: str = "", options: list[str] | tuple[str, ...] = ()) -> CfgNode:
    """The config of a file and of overriding options, checked.

    Args:
        config_file: YAML file; empty: detectron2's defaults with ours.
        options: ``KEY VALUE`` pairs, as at the end of the command line. Integers may stand for
            decimals, here and in the file.

    Returns:
        The config, not frozen. ``MODEL.DEVICE`` is ``cpu`` where there is no GPU.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: for an unknown key or a value that breaks a rule; names it.
    """
    cfg = get_cfg()
    add_smallobj_config(cfg)
    add_project_configs(cfg, config_file, options)
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"--config-file {config_file} does not exist")
        try:
            with _integers_for_decimals(cfg, flatten(_read(config_file))):
                cfg.merge_from_file(config_file, allow_unsafe=False)
        except (KeyError, AssertionError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{config_file}: {_text(error)}") from error
    if len(options) % 2:
        raise ValueError(f"options come as KEY VALUE pairs, got {len(options)}: {list(options)}")
    try:
        with _integers_for_decimals(cfg, zip(options[::2], map(_literal, options[1::2]))):
            cfg.merge_from_list(list(options))
    except (KeyError, AssertionError, ValueError) as error:
        raise ValueError(f"command-line options {list(options)}: {_text(error)}") from error
    validate_config(cfg)
    if cfg.MODEL.META_ARCHITECTURE != get_cfg().MODEL.META_ARCHITECTURE:
        check_architecture(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def check_architecture(cfg: CfgNode) -> None:
    """Refuse a meta-architecture that nothing registers, which detectron2 calls a ``KeyError``.

    Raises:
        ValueError: names the registered ones and the closest.
    """
    registered = sorted(name for name, _ in META_ARCH_REGISTRY)
    look_up_option("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, registered)


@contextlib.contextmanager
def _integers_for_decimals(cfg: CfgNode, given: Iterable[tuple[str, Any]]) -> Iterator[None]:
    """Let the integers among the values to be merged stand for decimals, which yacs refuses.

    Args:
        cfg: the config that they are merged into inside the block.
        given: dotted keys and values.
    """
    places = []
    for key, value in given:
        *path, leaf = str(key).split(".")
        node: Any = cfg
        for part in path:
            node = node.get(part) if isinstance(node, Mapping) else None
        if type(value) is int and isinstance(node, Mapping) and type(node.get(leaf)) is float:
            node[leaf] = 0  # an integer may take an integer's place
            places.append((node, leaf))
    yield
    for node, leaf in places:
        node[leaf] = float(node[leaf])


def _read(config_file: str) -> Mapping[str, Any]:
    """What a config file and its bases say; nothing of one that is not a tree of keys."""
    tree = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)
    return tree if isinstance(tree, Mapping) else {}


def _literal(text: str) -> Any:
    """The value that yacs reads from an option's text."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def _text(error: Exception) -> str:
    """The message of an error; str(KeyError) would show its repr."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return str(error) or type(error).__name__


def setup(args: argparse.Namespace) -> CfgNode:
    """Config, data sets, output folder and log of one process; says which device is used."""
    cfg = build_config(args.config_file, args.opts)
    check_architecture(cfg)
    cfg.freeze()
    register_all()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="d2_smallobj")
    announce_host()
    if cfg.MODEL.DEVICE == "cpu":
        logger.info("No GPU is used: everything runs on the CPU")
    return cfg


def check_datasets(cfg: CfgNode, eval_only: bool = False) -> None:
    """List every data set of a run once, so that a missing one is reported before it starts.

    The demo scenes are made here when they do not exist yet.

    Raises:
        ValueError: for an unknown or empty data set.
        FileNotFoundError: names the missing paths and the command that prepares them.
    """
    if not eval_only:
        dataset_dicts(cfg.DATASETS.TRAIN)
    if cfg.DATASETS.TEST:
        dataset_dicts(cfg.DATASETS.TEST)
