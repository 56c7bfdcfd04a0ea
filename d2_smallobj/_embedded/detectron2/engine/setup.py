"""Set-up of a training: processes, command line, logging, writers."""

from __future__ import annotations

import argparse
import logging
import os
import platform
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_smallobj import _host
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from detectron2.utils.logger import setup_logger


def create_ddp_model(model: nn.Module, **kwargs: Any) -> nn.Module:
    """Wrap a model for several processes; return it unchanged for one.

    Args:
        model: the model, on its device.
        **kwargs: further arguments of ``DistributedDataParallel``; on the CPU ``device_ids=None``.
    """
    if comm.get_world_size() == 1:
        return model
    kwargs.setdefault("device_ids", [comm.get_local_rank()])
    return DistributedDataParallel(model, **kwargs)


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with the usual arguments of a training."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(epilog=epilog, formatter_class=raw)
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="YAML file of the config")
    add("--resume", action="store_true", help="continue from OUTPUT_DIR's last checkpoint")
    add("--eval-only", action="store_true", help="evaluate, do not train")
    add("--num-gpus", type=int, default=1, help="processes on each machine")
    add("--num-machines", type=int, default=1, help="machines")
    add("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    # One port for each user: a process left behind then shows, as a port in use.
    user = os.getuid() if hasattr(os, "getuid") else 1
    url = f"tcp://127.0.0.1:{2**15 + 2**14 + user % 2**14}"
    add("--dist-url", default=url, help="where the processes meet; 'auto': any free port")
    rest = argparse.REMAINDER
    add("opts", default=None, nargs=rest, help="KEY VALUE pairs that override the config, last")
    return parser


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set up logging, keep the config in the output folder, seed, set cudnn and precision.

    Args:
        cfg: the config.
        args: the command line.
    """
    rank = comm.get_rank()
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    for name in ("fvcore", "detectron2"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    log = logging.getLogger("detectron2")
    log.info("Rank: %d. World size: %d", rank, comm.get_world_size())
    versions = (_host.host(), platform.python_version(), torch.__version__)
    log.info("Host %s, Python %s, torch %s", *versions)
    log.info("Arguments: %s", args)
    if comm.is_main_process():
        path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(cfg.dump())
        log.info("Config, also in %s:\n%s", path, cfg.dump())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
        torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"


def default_writers(output_dir: str, max_iter: int) -> list[EventWriter]:
    """Return writers to the log, to ``metrics.json`` and to TensorBoard."""
    os.makedirs(output_dir, exist_ok=True)
    metrics = os.path.join(output_dir, "metrics.json")
    return [CommonMetricPrinter(max_iter), JSONWriter(metrics), TensorboardXWriter(output_dir)]
