"""What TensorBoard shows of a training beside detectron2's scalars: rates and pictures."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from d2_smallobj.data.loaders import dataset_dicts
from d2_smallobj.data.mapper import SemSegMapper
from d2_smallobj.data.stream import StreamDataset, StreamSampler
from d2_smallobj.data.supervision import apply_supervision
from d2_smallobj.engine.prediction import most_probable, rgb_image
from d2_smallobj.engine.tasks import unwrap
from d2_smallobj.losses.size_weights import SizeWeights
from d2_smallobj.modeling.segmentor import build_size_weights
from d2_smallobj.report.drawing import colour_labels, colour_weights
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

_MARGIN = 4  # white pixels between panels


def monitoring_hooks(cfg: CfgNode) -> list[HookBase]:
    """The hooks of this module that a run needs: on the main process only, which writes."""
    if not comm.is_main_process():
        return []
    hooks: list[HookBase] = [GroupRates()]
    if cfg.SMALLOBJ.PICTURES.PERIOD > 0:
        hooks.append(TrainingPictures(cfg))
    return hooks


class GroupRates(HookBase):
    """Logs the learning rate of every parameter group as ``lr/<name of the group>``.

    detectron2's own scalar ``lr`` is that of one group.
    """

    def before_step(self) -> None:
        """Log the rates that this iteration uses."""
        for number, group in enumerate(self.trainer.optimizer.param_groups):
            name = f"lr/{group.get('name', number)}"
            self.trainer.storage.put_scalar(name, group["lr"], smoothing_hint=False)


class TrainingPictures(HookBase):
    """Shows the first training samples every ``PICTURES.PERIOD`` iterations and at the end.

    A row a sample: image, label map, size-weight map (whether or not the task that is on uses it),
    prediction; the same augmented samples every time, so that the predictions can be followed.
    Training is not touched: no sample is taken from its stream, no random number is drawn from a
    global generator, and the model's state stays as it is.

    Args:
        cfg: the config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.period = cfg.SMALLOBJ.PICTURES.PERIOD
        self.size_weights = build_size_weights(cfg)
        self._samples: list[dict[str, Any]] = []

    def after_step(self) -> None:
        """Draw, if it is time."""
        following = self.trainer.iter + 1
        if following % self.period and following != self.trainer.max_iter:
            return
        self._samples = self._samples or first_samples(
            self.cfg, self.cfg.SMALLOBJ.PICTURES.NUM_IMAGES
        )
        model = unwrap(self.trainer._trainer.model)
        rows = [self._row(x, predict_sample(model, x)) for x in self._samples]
        sheet = torch.from_numpy(np.concatenate(rows)).permute(2, 0, 1)
        self.trainer.storage.put_image("image, label, size weights, prediction", sheet)

    def _row(self, x: dict[str, Any], prediction: np.ndarray) -> np.ndarray:
        """The panels of one sample side by side: uint8 (H + margin, width, 3), RGB."""
        image = rgb_image(x["image"], self.cfg.INPUT.FORMAT)
        return sample_row(image, x["sem_seg"].numpy(), prediction, self.size_weights)


def first_samples(cfg: CfgNode, count: int) -> list[dict[str, Any]]:
    """The first samples of the training stream as training sees them, without its loader."""
    dataset = StreamDataset(apply_supervision(cfg, dataset_dicts(cfg.DATASETS.TRAIN)))
    sampler = StreamSampler(len(dataset), seed=max(cfg.SEED, 0))
    mapper = SemSegMapper(cfg, True)
    return [mapper(dataset[code]) for code in itertools.islice(sampler, count)]


def predict_sample(model: nn.Module, x: dict[str, Any]) -> np.ndarray:
    """The label map int64 (H, W) that a model in training predicts for a sample's image."""
    with _evaluating(model), torch.no_grad():
        return most_probable(model([{"image": x["image"]}])[0])


def sample_row(
    image: np.ndarray, labels: np.ndarray, prediction: np.ndarray, size_weights: SizeWeights
) -> np.ndarray:
    """Image, labels, size weights and prediction side by side, with white margins.

    Args:
        image: uint8 (H, W, 3), RGB.
        labels: integers (H, W).
        prediction: integers (H, W).
        size_weights: makes the weight map.

    Returns:
        uint8 (H + 4, 4 (W + 4), 3), RGB.
    """
    weights = colour_weights(size_weights(labels), size_weights.tau)
    panels: Sequence[np.ndarray] = (
        image,
        colour_labels(labels),
        weights,
        colour_labels(prediction),
    )
    margins = ((0, _MARGIN), (0, _MARGIN), (0, 0))
    return np.concatenate([np.pad(x, margins, constant_values=255) for x in panels], axis=1)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
