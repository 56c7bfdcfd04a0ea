"""The two-task trainer: detectron2's DefaultTrainer with a task switch (paper, section 4.2)."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import re
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from d2_smallobj.config import task_a_iterations
from d2_smallobj.config_rules import validate_config
from d2_smallobj.data.loaders import build_test_loader, build_train_loader, on_device
from d2_smallobj.engine.checkpoint import SafeCheckpointer
from d2_smallobj.engine.distributed import check_batch_size, distribute, synchronize_buffers
from d2_smallobj.engine.hooks import IterationSeed, training_hooks
from d2_smallobj.engine.loss_log import LossLog, explained_errors
from d2_smallobj.engine.solver import (
    build_lr_scheduler,
    build_optimizer,
    compile_step,
    prepare_model,
    varied_sizes,
)
from d2_smallobj.engine.step import TaskStepTrainer
from d2_smallobj.engine.tasks import TaskSwitch, build_ewc
from d2_smallobj.evaluation import TASK, SmallObjectEvaluator, folder_name
from d2_smallobj.modeling.inference import build_inference
from d2_smallobj.utils.files import atomic_write_text, read_json
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

logger = logging.getLogger(__name__)

HEADLINE = ("mIoU", "IA-mIoU", "IA-mIoU_fg", "IA-mIoU_S", "IA-mIoU_M", "IA-mIoU_L")
"""The figures of the tables of a run."""
_CONSTANT = re.compile(r"(?:images|instances)(?:[_-]|$)")
EVALUATOR_WORKERS = 2
"""Threads of a process that read ground truth and match while the model runs on."""


class TwoTaskTrainer(DefaultTrainer):
    """Cross-entropy first (task A), then the size-balanced loss (task B), in one run.

    Everything that a resumed run needs is in the checkpoint: weights, optimiser, schedule,
    Fisher information and theta* (key ``ewc``), and the iteration, from which the task and the
    position in the training data follow.

    Args:
        cfg: a config with ``add_smallobj_config``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer.__init__: the inner trainer and the checkpointer that it makes are
        # fixed there, and the hooks would hold on to them.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        validate_config(cfg)
        check_batch_size(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        compile_step(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        ewc = build_ewc(cfg, model, optimizer)
        self._trainer = TaskStepTrainer(
            distribute(model),
            on_device(cfg, data_loader),
            optimizer,
            accumulate=cfg.SMALLOBJ.ACCUMULATE,
            amp_dtype=amp_dtype(cfg),
            ewc=ewc,
            proximal=cfg.SMALLOBJ.EWC.STEP == "proximal",
            loss_log=LossLog(cfg.SMALLOBJ.SPEED.LOSS_PERIOD, cfg.OUTPUT_DIR),
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(
            self._trainer.model, cfg.OUTPUT_DIR, cfg=cfg, trainer=weakref.proxy(self)
        )
        if ewc is not None:
            self.checkpointer.add_checkpointable("ewc", ewc)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._results: dict[str, Any] = {}
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint, data position included, or load the weights."""
        super().resume_or_load(resume=resume)
        if self.start_iter > 0:
            if os.path.isfile(self._results_path):
                self._results = read_json(self._results_path)
            loader = build_train_loader(self.cfg, start_iter=self.start_iter)
            self._trainer.replace_data_loader(on_device(self.cfg, loader))
            logger.info(f"Resumed at iteration {self.start_iter}, data position included")
        elif self.cfg.MODEL.WEIGHTS:
            logger.info(f"Initial weights: {self.cfg.MODEL.WEIGHTS}")
        else:
            logger.warning("Initial weights: random (MODEL.WEIGHTS is empty)")
            if self.cfg.MODEL.RESNETS.NORM == "FrozenBN":
                logger.warning(
                    "MODEL.RESNETS.NORM is FrozenBN, which normalises nothing without pretrained "
                    "weights: expect the loss to explode; give MODEL.WEIGHTS, or NORM BN"
                )

    def train(self) -> OrderedDict | None:
        """Run both tasks and log a table; return the main process's last results."""
        try:
            with explained_errors(self.cfg.OUTPUT_DIR):
                super().train()
        except KeyboardInterrupt:
            if comm.is_main_process():
                self._say_where_to_go_on()
            raise
        results = getattr(self, "_last_eval_results", None)
        if comm.is_main_process() and results:
            has_task_b = task_a_iterations(self.cfg) < self.cfg.SOLVER.MAX_ITER
            self._note_results("B" if has_task_b else "A", results)
            rows = [
                [f"task {task}", dataset, *(figures.get(name, math.nan) for name in HEADLINE)]
                for task, by_dataset in sorted(self._results.items())
                for dataset, figures in by_dataset.items()
            ]
            names = ["", "data set", *HEADLINE]
            table = tabulate(rows, headers=names, floatfmt=".2f", tablefmt="github")
            logger.info(f"Results (percent):\n{table}")
        return results

    def _say_where_to_go_on(self) -> None:
        last = "no checkpoint was written yet"
        if self.checkpointer.has_checkpoint():
            path = self.checkpointer.get_checkpoint_file()
            last = f"the last checkpoint is {path}, where --resume goes on"
        logger.warning(f"Interrupted at iteration {self.iter}; {last}")

    def after_train(self) -> None:
        """Call the hooks; a full disk there must not hide the error that ended the training."""
        error_before = sys.exc_info()[1]
        try:
            super().after_train()
        except OSError as error:
            if error_before is None:
                raise
            logger.error(f"At the end of the failed training: {error}")

    def after_step(self) -> None:
        """Check the kept losses if a checkpoint or an evaluation follows, then call the hooks."""
        following = self.iter + 1
        periods = (self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.TEST.EVAL_PERIOD)
        ends = (task_a_iterations(self.cfg), self.max_iter)
        if following in ends or any(period and following % period == 0 for period in periods):
            self._trainer.loss_log.flush()
        super().after_step()

    def build_hooks(self) -> list[HookBase]:
        """Build detectron2's hooks, and ours before the writers."""
        period = self.cfg.TEST.EVAL_PERIOD
        hooks = [
            EvalHook(period, self._evaluate) if isinstance(hook, EvalHook) else hook
            for hook in super().build_hooks()
        ]
        switch = TaskSwitch(
            self.cfg,
            evaluate=self.evaluate_task if self.cfg.SMALLOBJ.EVAL_TASK_A else None,
            fisher_batches=self.fisher_batches,
        )
        # On the main process the last hook is the writer, which must see what ours log.
        place = len(hooks) - comm.is_main_process()
        # The seed comes after the switch, which may evaluate.
        others = training_hooks(self.cfg, self._trainer.model)
        hooks[place:place] = [switch, *others, IterationSeed(self.cfg.SEED)]
        return hooks

    def evaluate_task(self, task: str) -> None:
        """Evaluate now and write the results under the task's name to ``results.json``."""
        logger.info(f"Evaluating at the end of task {task}")
        results = self.test(self.cfg, self._trainer.model)
        if comm.is_main_process():
            self._note_results(task, results)
            self.storage.put_scalars(smoothing_hint=False, **curves(results))
        comm.synchronize()

    def _evaluate(self) -> dict[str, float]:
        """Evaluate; return what the writers show."""
        self._last_eval_results = self.test(self.cfg, self._trainer.model)
        return curves(self._last_eval_results or {})

    def _note_results(self, task: str, results: dict[str, Any]) -> None:
        if len(self.cfg.DATASETS.TEST) == 1:  # detectron2 flattens the results of a single set
            results = {self.cfg.DATASETS.TEST[0]: results}
        self._results[task] = {name: dict(result[TASK]) for name, result in results.items()}
        atomic_write_text(self._results_path, json.dumps(self._results, indent=2))

    @property
    def _results_path(self) -> str:
        return os.path.join(self.cfg.OUTPUT_DIR, "results.json")

    def fisher_batches(self) -> Iterable[list[dict[str, Any]]]:
        """Yield this process's share of the first ``EWC.NUM_IMAGES`` samples, one a batch."""
        cfg = self.cfg.clone()
        cfg.defrost()
        world_size = comm.get_world_size()
        cfg.SOLVER.IMS_PER_BATCH = world_size
        cfg.SMALLOBJ.ACCUMULATE = 1
        count = len(range(comm.get_rank(), cfg.SMALLOBJ.EWC.NUM_IMAGES, world_size))
        return itertools.islice(build_train_loader(cfg), count)

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Scale to another number of processes as detectron2 does, and task A like the run."""
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if scaled is cfg or cfg.SMALLOBJ.TASK_A.ITERS <= 0:
            return scaled
        frozen, ratio = scaled.is_frozen(), scaled.SOLVER.MAX_ITER / cfg.SOLVER.MAX_ITER
        scaled.defrost()
        scaled.SMALLOBJ.TASK_A.ITERS = round(cfg.SMALLOBJ.TASK_A.ITERS * ratio)
        if frozen:
            scaled.freeze()
        return scaled

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model and speed it up as ``SMALLOBJ.SPEED`` says."""
        return prepare_model(cfg, super().build_model(cfg))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build SGD over the recipe's parameter groups."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Build the poly schedule."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """Build the training stream from its beginning."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """Build the loader of a test set: one image a batch, full size."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Build the evaluator, which writes to :func:`inference_folder`."""
        return SmallObjectEvaluator(
            dataset_name,
            output_dir=inference_folder(cfg.OUTPUT_DIR, dataset_name),
            mode=cfg.SMALLOBJ.METRIC_MODE,
            num_workers=EVALUATOR_WORKERS,
            per_class=cfg.SMALLOBJ.TEST.PER_CLASS,
        )

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> OrderedDict:
        """Evaluate on every set of ``DATASETS.TEST`` as ``SMALLOBJ.TEST`` says."""
        synchronize_buffers(model)  # all processes evaluate the same weights
        with varied_sizes():
            return super().test(cfg, build_inference(cfg, model), evaluators)


def curves(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten results to ``{"small_objects/mIoU": percent}``, without counts of the data set."""
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat |= curves(value, f"{prefix}{name}/")
        elif not _CONSTANT.match(name):
            flat[prefix + name] = value
    return flat


def inference_folder(output_dir: str | os.PathLike[str], dataset_name: str) -> str:
    """Return where a training's evaluations of a data set are: a name with paths is one folder."""
    name = folder_name(dataset_name) if "/" in dataset_name else dataset_name
    return os.path.join(output_dir, "inference", name)


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Return the autocast type of ``SOLVER.AMP``; None without mixed precision."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if cfg.MODEL.DEVICE == "cpu" or cfg.SMALLOBJ.AMP_DTYPE == "bfloat16":
        return torch.bfloat16
    return torch.float16
