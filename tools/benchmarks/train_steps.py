"""The training steps that ``benchmark.py train`` measures, and their parts, on synthetic crops.

Shapes: N images a batch, H, W the crop.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from d2_smallobj.data.loaders import on_device
from d2_smallobj.engine import build_config
from d2_smallobj.engine.loss_log import LossLog
from d2_smallobj.engine.solver import build_optimizer, compile_step, prepare_model
from d2_smallobj.engine.step import TaskStepTrainer
from d2_smallobj.engine.tasks import build_ewc, set_loss
from d2_smallobj.engine.trainer import amp_dtype
from d2_smallobj.losses.size_balanced import resize_labels
from d2_smallobj.losses.size_weights import SizeWeights, size_weights
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from benchmarks import MOST_INSTANCES, VOID, draw_maps, race

FISHER = "CE with online Fisher"
LOSSES = ("CE", FISHER, "L_SW", "L_SB")
PLAIN = (  # options of a step without anything that makes it faster
    *("SMALLOBJ.SPEED.FOLD_FROZEN_BN", "False", "SMALLOBJ.SPEED.MEMORY_FORMAT", "contiguous"),
    *("SMALLOBJ.SPEED.PREFETCH", "False"),
)
_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "Base-DeepLabV2-R101.yaml"
_BATCHES = 4
_NEVER = 10**9  # losses are read between the timings, not in them
_MOST_OVERFLOWS = 24  # float16's first scales may be too large, and are halved in turn
_DAMPING = 0.2
_RATE = 1e-6  # so low that untrained weights stay sane


@dataclasses.dataclass(frozen=True)
class Problem:
    """The size of net, crop and batch."""

    depth: int
    width: int  # channels of the first stage; 256 in DeepLabV2, and all others in proportion
    crop: int
    batch: int
    seed: int = 0

    def config(self, options: Sequence[str] = ()) -> CfgNode:
        """DeepLabV2's recipe at this size, in two tasks with an online Fisher."""
        if self.width < 32 or self.width % 32:
            raise ValueError(f"--width must be a multiple of 32, got {self.width}")
        narrow = str(self.width // 4)
        size = ["MODEL.RESNETS.STEM_OUT_CHANNELS", narrow, "MODEL.RESNETS.WIDTH_PER_GROUP", narrow]
        size += ["MODEL.RESNETS.RES2_OUT_CHANNELS", str(self.width), "MODEL.WEIGHTS", ""]
        size += ["MODEL.RESNETS.DEPTH", str(self.depth), "SOLVER.BASE_LR", str(_RATE)]
        size += ["SMALLOBJ.CROP_SIZE", f"[{self.crop}, {self.crop}]", "SMALLOBJ.TASK_A.ITERS", "1"]
        return build_config(str(_CONFIG), [*size, *options])

    def batches(self) -> list[list[dict[str, Any]]]:
        """Make batches of noise with VOC-like label maps, as loader workers return them."""
        rng = np.random.default_rng(self.seed)
        return [[self._sample(rng) for _ in range(self.batch)] for _ in range(_BATCHES)]

    def _sample(self, rng: np.random.Generator) -> dict[str, Any]:
        objects = int(rng.integers(1, MOST_INSTANCES + 1))
        _, labels, _ = draw_maps(rng, self.crop, self.crop, objects)
        image = rng.uniform(0, 255, (3, self.crop, self.crop)).astype(np.float32)
        sample = {"image": image, "sem_seg": labels.astype(np.int64)}
        sample["size_weights"] = size_weights(labels)
        tensors = {key: torch.from_numpy(value) for key, value in sample.items()}
        pin = torch.cuda.is_available()
        return {key: value.pin_memory() if pin else value for key, value in tensors.items()}


def build_net(
    problem: Problem, batch: Sequence[dict[str, Any]], options: Sequence[str]
) -> tuple[CfgNode, nn.Module]:
    """Build the net of the recipe with random weights, in training mode.

    ``batch`` gives the frozen norms their statistics: with those of an untrained net values would
    explode. Residual branches are damped, as training does. Weights do not depend on the options.
    """
    cfg = problem.config(options)
    torch.manual_seed(problem.seed)
    model = build_model(cfg)

    def normalise(norm: FrozenBatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3)))

    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(normalise) for norm in norms]
    with torch.no_grad():
        model.eval()(batch)
    for hook in hooks:
        hook.remove()
    for block in model.modules():
        if isinstance(block, CNNBlockBase) and hasattr(block, "shortcut"):
            last = block.conv3 if hasattr(block, "conv3") else block.conv2
            last.norm.weight.fill_(_DAMPING)
    return cfg, prepare_model(cfg, model.train())


class PlainSteps:
    """The recipe's cross-entropy step as it is usually written: float32, no option of ours.

    The net's layers are the same; loss, optimiser groups and loop are stated here anew.
    """

    def __init__(self, problem: Problem, batches: Sequence[list[dict[str, Any]]]) -> None:
        _, self.model = build_net(problem, batches[0], PLAIN)
        self.device = self.model.device
        self.data = itertools.cycle(batches)
        head = self.model.sem_seg_head.aspp
        body = [p for p in self.model.backbone.parameters() if p.requires_grad]
        groups = [
            {"params": body, "lr": _RATE},
            {"params": [layer.weight for layer in head], "lr": 10 * _RATE},
            {"params": [layer.bias for layer in head], "lr": 20 * _RATE, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=_RATE, momentum=0.9, weight_decay=5e-4)

    def run(self, count: int) -> None:
        """Run some steps."""
        for _ in range(count):
            batch = next(self.data)
            images = torch.stack([x["image"] for x in batch]).to(self.device)
            labels = torch.stack([x["sem_seg"] for x in batch]).to(self.device)
            features = self.model.backbone(images - self.model.pixel_mean)["res5"]
            logits = sum(layer(features) for layer in self.model.sem_seg_head.aspp)
            logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
            loss = F.cross_entropy(logits, labels, ignore_index=VOID)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()

    def persistent(self) -> Iterator[torch.Tensor]:
        """The tensors that stay between steps."""
        yield from _persistent(self.model, self.optimizer)


class OurSteps:
    """Steps of :class:`~d2_smallobj.engine.step.TaskStepTrainer` with each of the losses."""

    def __init__(
        self, problem: Problem, batches: Sequence[list[dict[str, Any]]], options: Sequence[str] = ()
    ) -> None:
        self.cfg, self.model = build_net(problem, batches[0], options)
        compile_step(self.cfg, self.model)
        self.optimizer = build_optimizer(self.cfg, self.model)
        self.loss = LOSSES[0]
        data = on_device(self.cfg, self._data(batches))
        options = {"amp_dtype": amp_dtype(self.cfg), "loss_log": LossLog(_NEVER)}
        self.trainer = TaskStepTrainer(self.model, data, self.optimizer, **options)
        #: Fisher and penalty by the loss that uses them.
        self.ewc = {FISHER: build_ewc(self.cfg, self.model, self.optimizer)}
        fisher = self.ewc[FISHER].fisher.values()
        for _ in range(_MOST_OVERFLOWS):
            self.run(FISHER, 1)
            if not all((values == 1).all() for values in fisher):  # it began with ones
                break
        anchored = build_ewc(self.cfg, self.model, self.optimizer)
        anchored.load_state_dict(self.ewc[FISHER].state_dict())
        anchored.anchor()
        self.ewc["L_SB"] = anchored

    def run(self, loss: str, count: int) -> None:
        """Run some steps with one of :data:`LOSSES`."""
        self.loss = loss
        step = self.trainer
        step.in_task_b = not loss.startswith("CE")
        step.ewc = self.ewc.get(loss)
        set_loss(self.model, "size_weighted" if step.in_task_b else "cross_entropy")
        with EventStorage():
            for step.iter in range(count):
                step.run_step()

    def read_losses(self) -> list[float]:
        """Total losses of the steps since the last call; waits for the device."""
        with EventStorage() as storage:
            self.trainer.loss_log.flush()
            return [value for value, _ in storage.history("total_loss").values()]

    def persistent(self, loss: str) -> Iterator[torch.Tensor]:
        """The tensors that stay between steps with a loss."""
        yield from _persistent(self.model, self.optimizer)
        if loss in self.ewc:
            yield from (*self.ewc[loss].fisher.values(), *self.ewc[loss].anchor_values.values())

    def _data(self, batches: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
        for batch in itertools.cycle(batches):
            keys = ("image", "sem_seg", *["size_weights"] * self.loss.startswith("L"))
            yield [{key: x[key] for key in keys} for x in batch]


def _persistent(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    yield from (*model.parameters(), *model.buffers())
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Memory of tensors in bytes, shared storages counted once."""
    storages = (x.untyped_storage() for x in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Peak memory of tensors in bytes while ``work`` ran, beyond that before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate((size for _, size in changes), initial=0))


def clock(device: torch.device) -> Callable[[], float]:
    """Choose the clock: on a CPU the time of this process alone."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_penalty(steps: OurSteps, rounds: int) -> dict[str, Any]:
    """Time the penalty's value and gradient, analytic and by autograd, against the SGD step."""
    ewc, device = steps.ewc["L_SB"], steps.model.device
    trained = [p for p in steps.model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)

    def autograd() -> None:
        triples = zip(trained, ewc.anchor_values.values(), ewc.fisher.values())
        (ewc.strength * sum((f * (p - a) ** 2).sum() for p, a, f in triples)).backward()

    work = {
        "SGD step": steps.optimizer.step,
        "analytic": ewc.add_gradient_,
        "autograd": autograd,
        "Fisher recorded": steps.ewc[FISHER].record_gradients,
        "proximal step": lambda: ewc.proximal_step_(dict.fromkeys(ewc.names, 0.0)),
    }

    timed = {name: lambda _, run=run: (run(), wait(device)) for name, run in work.items()}
    times = race([None], timed, rounds, clock(device))
    ms = {name: row["median"] for name, row in times.items()}
    held = num_bytes((*ewc.fisher.values(), *ewc.anchor_values.values()))
    copies = held / num_bytes(trained)
    return {"ms": ms, "to_autograd": ms["analytic"] / ms["autograd"], "copies": copies}


def measure_weights(batches: Sequence[Any], rounds: int) -> dict[str, float]:
    """Milliseconds an image for the size-weight maps of a crop, in one loader worker."""
    rule = SizeWeights()
    labels = [x["sem_seg"] for batch in batches for x in batch]
    side = labels[0].shape[-1]
    # Of the recipe's multi-scale losses: stride 8, scales 1, 1/2, 3/4 and the maximum.
    sizes = [(-(-side * part // 32),) * 2 for part in (4, 2, 3, 4)]

    def on_logits(x: torch.Tensor) -> list[np.ndarray]:
        return [rule(resize_labels(x[None], size)[0].numpy()) for size in sizes]

    work = {"input": lambda x: rule(x.numpy()), "logits": on_logits}
    rows = race(labels, work, rounds, time.process_time)
    return {name: row["median"] for name, row in rows.items()}
