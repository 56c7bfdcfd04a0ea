"""The usual training: command line, set-up, writers, and a trainer built from a config."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_smallobj import _host
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.evaluation import (
    DatasetEvaluator,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from detectron2.utils.logger import setup_logger

from . import hooks
from .train_loop import HookBase, SimpleTrainer, TrainerBase

logger = logging.getLogger(__name__)


def create_ddp_model(model: nn.Module, **kwargs: Any) -> nn.Module:
    """Wrap a model for several processes (on the CPU give ``device_ids=None``), not for one."""
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
    """Set up logging, keep the config in the output folder, seed, set cudnn and precision."""
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


class DefaultTrainer(TrainerBase):
    """A trainer built from a config.

    A subclass provides the class methods ``build_optimizer(cfg, model)``,
    ``build_lr_scheduler(cfg, optimizer)``, ``build_train_loader(cfg)``,
    ``build_test_loader(cfg, dataset_name)`` and ``build_evaluator(cfg, dataset_name)``.
    The iterations are run by ``self._trainer``, a :class:`SimpleTrainer`.

    Attributes:
        cfg: the config.
        scheduler: the schedule.
        checkpointer: saves the model and, under "trainer", this object's state.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        # This order of drawing random numbers is part of the interface: one seed, one training.
        bare = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, bare)
        loader = self.build_train_loader(cfg)
        model = create_ddp_model(bare, broadcast_buffers=False)
        self._trainer = SimpleTrainer(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        own = weakref.proxy(self)
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=own)
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @property
    def model(self) -> nn.Module:
        """The model that is trained, wrapped if there are several processes."""
        return self._trainer.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser."""
        return self._trainer.optimizer

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint of the output folder, or load ``MODEL.WEIGHTS``.

        Without a checkpoint, as without ``resume``, training starts at iteration 0.
        """
        resume = resume and self.checkpointer.has_checkpoint()
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume:
            self.start_iter = self.iter + 1  # the checkpoint names the iteration that was done

    def build_hooks(self) -> list[HookBase]:
        """Return timer, schedule, checkpointer, evaluation and writers, in this order."""
        main = comm.is_main_process()
        built: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if main:
            period = self.cfg.SOLVER.CHECKPOINT_PERIOD
            built.append(hooks.PeriodicCheckpointer(self.checkpointer, period))
        # After the checkpointer: what a failing evaluation ran on is then on disk.
        built.append(hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._test_and_keep_results))
        if main:
            # Last, so that the results of the evaluation are written too.
            built.append(hooks.PeriodicWriter(self.build_writers()))
        return built

    def _test_and_keep_results(self) -> dict[str, Any]:
        results = self._last_eval_results = self.test(self.cfg, self.model)
        return results

    def build_writers(self) -> list[EventWriter]:
        """Return the writers of metrics."""
        return default_writers(self.cfg.OUTPUT_DIR, max_iter=self.max_iter)

    def train(self) -> dict[str, Any] | None:
        """Train; return the last results if ``TEST.EXPECTED_RESULTS`` had to be verified."""
        super().train(self.start_iter, max_iter=self.max_iter)
        if not self.cfg.TEST.EXPECTED_RESULTS or not comm.is_main_process():
            return None
        results = self._last_eval_results
        verify_results(self.cfg, results)
        return results

    def run_step(self) -> None:
        """One iteration of the inner trainer."""
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of this loop and of the inner trainer."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._trainer.load_state_dict(state["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model."""
        model = build_model(cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluate a model on ``DATASETS.TEST``, with ``build_evaluator``'s evaluators or these.

        Returns the results of the test set, or {name: results} if there are several.
        """
        results: dict[str, Any] = {}
        for i, name in enumerate(cfg.DATASETS.TEST):
            loader = cls.build_test_loader(cfg, name)
            evaluator = cls.build_evaluator(cfg, name) if evaluators is None else evaluators[i]
            results[name] = inference_on_dataset(model, loader, evaluator)
            if comm.is_main_process():
                logger.info("Results on %s:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Return a config scaled from ``SOLVER.REFERENCE_WORLD_SIZE`` to ``num_workers`` processes.

        Batch and rate grow in proportion, iterations and periods shrink; the batch of each
        process stays. A reference of 0 changes nothing.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        if cfg.SOLVER.IMS_PER_BATCH % reference:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH must be a multiple of REFERENCE_WORLD_SIZE {reference}, "
                f"got {cfg.SOLVER.IMS_PER_BATCH}"
            )
        frozen, cfg = cfg.is_frozen(), cfg.clone()
        cfg.defrost()
        scale = num_workers / reference
        solver = cfg.SOLVER
        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
        solver.BASE_LR = solver.BASE_LR * scale
        solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
        for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
            solver[key] = round(solver[key] / scale)
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
        solver.REFERENCE_WORLD_SIZE = num_workers
        if frozen:
            cfg.freeze()
        return cfg
