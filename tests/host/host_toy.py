"""A registered net, data and trainer, small enough for a second of training on the CPU."""

import json

import numpy as np
import torch
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import nn

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.solver import LRMultiplier
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils.events import JSONWriter

NAME = "host_toy"
SIZE = 12


def samples():
    return [{"index": i, "width": 8, "height": 6 + i % 4} for i in range(SIZE)]


def mapper(sample):
    """Return a random image whose label is its index; consumes torch's and numpy's generators."""
    image = torch.rand(3, 8, 8) + float(np.random.rand())
    return {"image": image, "label": torch.tensor([float(sample["index"])])}


@META_ARCH_REGISTRY.register()
class HostToyNet(nn.Module):
    """One convolution and a linear layer that guess the index."""

    def __init__(self, cfg):
        super().__init__()
        self.conv = Conv2d(3, 4, 3, bias=False, norm=get_norm("BN", 4))
        self.linear = nn.Linear(4, 1)
        self.register_buffer("pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN), persistent=False)

    def forward(self, batch):
        images = torch.stack([x["image"] for x in batch])
        guesses = self.linear(self.conv(images).relu().mean((2, 3)))
        if not self.training:
            return [{"guess": guess} for guess in guesses]
        labels = torch.stack([x["label"] for x in batch])
        loss = (guesses - labels).square().mean()
        return {"loss_square": loss, "loss_half": 0.5 * loss}


class HostToyEvaluator(DatasetEvaluator):
    """Counts what it sees."""

    def reset(self):
        self.seen = 0

    def process(self, inputs, outputs):
        assert len(inputs) == len(outputs)
        self.seen += len(inputs)

    def evaluate(self):
        return {"toy": {"seen": float(self.seen)}}


class HostToyTrainer(DefaultTrainer):
    """DefaultTrainer with all that a subclass provides."""

    @classmethod
    def build_optimizer(cls, cfg, model):
        kind = maybe_add_gradient_clipping(cfg, torch.optim.SGD)
        return kind(model.parameters(), lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        schedule = PolynomialDecayParamScheduler(1.0, 0.9)
        return LRMultiplier(optimizer, schedule, cfg.SOLVER.MAX_ITER)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(
            samples(),
            mapper=mapper,
            sampler=TrainingSampler(SIZE, seed=max(cfg.SEED, 0)),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            aspect_ratio_grouping=False,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(
            samples(), mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
        )

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return HostToyEvaluator()


class EveryIteration(HostToyTrainer):
    """Writes metrics after every iteration, unsmoothed."""

    def build_writers(self):
        return [JSONWriter(f"{self.cfg.OUTPUT_DIR}/metrics.json", window_size=1)]

    def build_hooks(self):
        ret = super().build_hooks()
        ret[-1]._period = 1
        return ret


def metrics(folder):
    """The rows that a trainer has written."""
    with open(f"{folder}/metrics.json") as stream:
        return [json.loads(line) for line in stream]


def config(output):
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "HostToyNet"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.CHECKPOINT_PERIOD = 4, 4
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR = 8, 0.001
    cfg.OUTPUT_DIR, cfg.SEED = str(output), 3
    return cfg
