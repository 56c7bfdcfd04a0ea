"""The switch from task A to task B (paper, section 4.2), as a detectron2 hook."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Callable

import torch
from torch import nn

from d2_smallobj.config import has_penalty, task_a_iterations
from d2_smallobj.engine.distributed import sum_over_processes, synchronize_buffers, unwrap
from d2_smallobj.engine.solver import build_schedule
from d2_smallobj.losses.ewc import ElasticWeightConsolidation
from d2_smallobj.losses.ewc_penalty import optimized_parameters
from d2_smallobj.losses.fisher import empirical_fisher
from d2_smallobj.losses.size_balanced import SizeWeightedCrossEntropy
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger(__name__)

TASK_A_CHECKPOINT = "model_task_a"


def build_ewc(
    cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer
) -> ElasticWeightConsolidation | None:
    """Build Fisher information and penalty, if any, for the parameters that ``optimizer`` moves."""
    if not has_penalty(cfg):
        return None
    node = cfg.SMALLOBJ.EWC
    return ElasticWeightConsolidation(
        optimized_parameters(unwrap(model).named_parameters(), optimizer),
        strength=node.LAMBDA,
        fisher=node.FISHER,
        alpha=node.ALPHA,
        compiled=cfg.SMALLOBJ.SPEED.COMPILE_EWC,
    )


class TaskSwitch(HookBase):
    """Sets the loss of the current task, and switches when task A ends.

    At the end of task A the state is saved as ``model_task_a.pth`` (so that other second tasks
    can start from it), task A is evaluated, the Fisher information is completed and the anchor
    theta* is taken. All of it follows from the iteration number and the checkpoint, so that a
    run killed at any moment resumes identically.

    ``evaluate`` is called with the task's name at the end of task A (None: no evaluation);
    ``fisher_batches`` makes the batches of one image each for the empirical estimate.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        evaluate: Callable[[str], Any] | None = None,
        fisher_batches: Callable[[], Iterable[list[dict[str, Any]]]],
    ) -> None:
        self.cfg = cfg
        self.task_a = task_a_iterations(cfg)
        self.evaluate = evaluate
        self.fisher_batches = fisher_batches
        self.has_task_b = self.task_a < cfg.SOLVER.MAX_ITER

    def before_train(self) -> None:
        """Log the schedule; refuse a size-weighted task if the model's loss cannot be."""
        node, rest = self.cfg.SMALLOBJ, self.cfg.SOLVER.MAX_ITER - self.task_a
        losses = {"SMALLOBJ.TASK_A.LOSS": node.TASK_A.LOSS} if self.task_a > 0 else {}
        if self.has_task_b:
            losses["SMALLOBJ.TASK_B.LOSS"] = node.TASK_B.LOSS
        check_switchable(unwrap(self.trainer._trainer.model), losses)
        first = f"{node.TASK_A.LOSS} for {self.task_a} iterations"
        if self.has_task_b:
            logger.info(f"Task A: {first}; task B: {node.TASK_B.LOSS} for {rest}")
        else:
            logger.info(f"One task: {first}")

    def before_step(self) -> None:
        """Set the task of this iteration; switch when task A has just ended."""
        in_task_b = self.trainer.iter >= self.task_a
        step = self.trainer._trainer
        if in_task_b and not step.in_task_b:
            self._start_task_b()
        step.in_task_b = in_task_b
        node = self.cfg.SMALLOBJ.TASK_B if in_task_b else self.cfg.SMALLOBJ.TASK_A
        set_loss(unwrap(step.model), node.LOSS)

    def after_step(self) -> None:
        """Save the state at the end of task A, after its last iteration."""
        if self.has_task_b and self.trainer.iter + 1 == self.task_a:
            self.trainer.checkpointer.save(TASK_A_CHECKPOINT)

    def _start_task_b(self) -> None:
        """Switch, or continue the task B of a resumed checkpoint."""
        ewc = self.trainer._trainer.ewc
        if self.trainer.iter > self.task_a:
            if ewc is None:
                return
            if not ewc.anchored:
                raise ValueError(
                    f"the checkpoint of iteration {self.trainer.iter} is inside task B (which "
                    f"starts at {self.task_a}) but holds no anchor of task A, so the EWC penalty "
                    "cannot continue; resume from one that this config wrote, or set "
                    "SMALLOBJ.EWC.LAMBDA 0"
                )
            self._check_stability(ewc)
            return
        if self.task_a > 0 and self.evaluate is not None:
            self.evaluate("A")
        message = f"Task B starts at iteration {self.trainer.iter}: {self.cfg.SMALLOBJ.TASK_B.LOSS}"
        if ewc is None:
            logger.info(f"{message}, no EWC penalty")
            return
        self._anchor(ewc)
        logger.info(
            f"{message} + EWC, lambda {ewc.strength:g}, {self.cfg.SMALLOBJ.EWC.FISHER} Fisher, "
            f"{self.cfg.SMALLOBJ.EWC.STEP} step"
        )

    def _anchor(self, ewc: ElasticWeightConsolidation) -> None:
        """Complete the Fisher information, take theta*, check that the penalty is stable."""
        if self.cfg.SMALLOBJ.EWC.FISHER == "empirical":
            ewc.set_fisher(self._empirical_fisher())
        elif self.task_a == 0:
            raise ValueError(
                "SMALLOBJ.EWC.FISHER is 'online', which is estimated during task A, but this run "
                "has no task A (SMALLOBJ.TASK_A.ITERS 0): set it to 'empirical', which needs the "
                "weights only, or SMALLOBJ.EWC.LAMBDA to 0"
            )
        tensors, weights = ewc.anchor()
        logger.info(f"EWC matched {tensors} parameter tensors ({weights:,} weights)")
        self._check_stability(ewc)

    def _check_stability(self, ewc: ElasticWeightConsolidation) -> None:
        """Refuse a gradient step that diverges at the highest rate to come (a warm-up's end)."""
        if self.cfg.SMALLOBJ.EWC.STEP != "gradient":
            return
        schedule = build_schedule(self.cfg)
        peak = max(schedule.at(i) for i in range(self.trainer.iter, self.cfg.SOLVER.MAX_ITER))
        groups = self.trainer._trainer.optimizer.param_groups
        at_peak = [{**group, "lr": group["initial_lr"] * peak} for group in groups]
        ewc.check_stability(torch.optim.SGD(at_peak, lr=0.0))

    def _empirical_fisher(self) -> dict[str, torch.Tensor]:
        """Estimate it over ``NUM_IMAGES`` images, shared among processes."""
        model = unwrap(self.trainer._trainer.model)
        count = self.cfg.SMALLOBJ.EWC.NUM_IMAGES
        logger.info(f"Estimating the empirical Fisher information on {count} training images")
        # It uses the running statistics, and the main process's are saved.
        synchronize_buffers(model)
        with plain_loss(model):
            return empirical_fisher(
                model,
                self.fisher_batches(),
                lambda batch: sum(model(batch).values()),
                optimized_parameters(model.named_parameters(), self.trainer._trainer.optimizer),
                reduce=sum_over_processes if comm.get_world_size() > 1 else None,
            )


def _switchable(model: nn.Module) -> list[SizeWeightedCrossEntropy]:
    return [module for module in model.modules() if isinstance(module, SizeWeightedCrossEntropy)]


def set_loss(model: nn.Module, name: str) -> None:
    """Let every size-weighted cross-entropy in ``model`` compute the loss called ``name``."""
    for module in _switchable(model):
        module.size_weighted = name == "size_weighted"


def check_switchable(model: nn.Module, losses: Mapping[str, str]) -> None:
    """Refuse a size-weighted loss, in ``losses`` by config key, of a model that has none."""
    keys = [key for key, name in losses.items() if name == "size_weighted"]
    if keys and not _switchable(model):
        raise ValueError(
            f"{keys[0]} is 'size_weighted', but no SizeWeightedCrossEntropy is in the model "
            f"({type(model).__name__}): use MODEL.META_ARCHITECTURE SizeBalancedSegmentor, or "
            "give the head such a loss"
        )


@contextlib.contextmanager
def plain_loss(model: nn.Module) -> Iterator[None]:
    """Make the model's losses plain cross-entropy (the log-likelihood) inside the block.

    Each process divides by its own weights: they may have different numbers of images.
    """
    before = [(x, x.size_weighted, x.global_divisor) for x in _switchable(model)]
    for module, _, _ in before:
        module.size_weighted, module.global_divisor = False, False
    try:
        yield
    finally:
        for module, size_weighted, global_divisor in before:
            module.size_weighted, module.global_divisor = size_weighted, global_divisor
