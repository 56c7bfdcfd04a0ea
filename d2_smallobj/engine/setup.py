"""From command-line arguments to a checked config and a running log."""

from __future__ import annotations

import argparse
import logging
import os

import torch
import yaml

from d2_smallobj._host import announce_host
from d2_smallobj.config import add_smallobj_config, validate_config
from d2_smallobj.data import dataset_dicts, register_all
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

logger = logging.getLogger(__name__)


def build_config(config_file: str = "", options: list[str] | tuple[str, ...] = ()) -> CfgNode:
    """The config of a file and of overriding options, checked.

    Args:
        config_file: YAML file; empty: detectron2's defaults with ours.
        options: ``KEY VALUE`` pairs, as at the end of the command line.

    Returns:
        The config, not frozen. ``MODEL.DEVICE`` is ``cpu`` where there is no GPU.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: for an unknown key or a value that breaks a rule; names it.
    """
    cfg = get_cfg()
    add_smallobj_config(cfg)
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"--config-file {config_file} does not exist")
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        except (KeyError, AssertionError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{config_file}: {_text(error)}") from error
    if len(options) % 2:
        raise ValueError(f"options come as KEY VALUE pairs, got {len(options)}: {list(options)}")
    try:
        cfg.merge_from_list(list(options))
    except (KeyError, AssertionError, ValueError) as error:
        raise ValueError(f"command-line options {list(options)}: {_text(error)}") from error
    validate_config(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def _text(error: Exception) -> str:
    """The message of an error; str(KeyError) would show its repr."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return str(error) or type(error).__name__


def setup(args: argparse.Namespace) -> CfgNode:
    """Config, data sets, output folder and log of one process; says which device is used."""
    cfg = build_config(args.config_file, args.opts)
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
