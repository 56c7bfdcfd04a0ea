"""Hooks of a training: learning rates, pictures, label bootstrapping, and the seed."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import torch
from torch import nn

from d2_smallobj.data.loaders import StreamDataset, StreamSampler, dataset_dicts
from d2_smallobj.data.mapper import SemSegMapper
from d2_smallobj.data.supervision import apply_supervision
from d2_smallobj.engine.distributed import unwrap
from d2_smallobj.engine.prediction import grey_sigma, most_probable, rgb_image
from d2_smallobj.losses.size_weights import SizeWeights
from d2_smallobj.modeling.segmentor import build_size_weights
from d2_smallobj.modeling.uncertain_segmentor import Observation, UncertainSegmentor
from d2_smallobj.report.drawing import colour_labels, colour_weights
from d2_smallobj.utils.opencv import cv2
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger(__name__)

_MARGIN = 4  # white pixels between panels
LOG_PERIOD = 20
"""Iterations between two logs of label bootstrapping, as of detectron2's writers."""
BOOTSTRAP_PICTURE = "image, labels, labels used, sigma"


class IterationSeed(HookBase):
    """Seeds torch's random numbers before every iteration; a negative seed seeds nothing.

    Dropout and the like then draw the same after a kill as without one, on every process and
    device, and the checkpoint needs no generator state.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        """Seed for this iteration."""
        if self.seed >= 0:
            # A loader's iterator draws a number when it is made, in the first iteration of a run.
            _ = self.trainer._trainer._data_loader_iter
            torch.manual_seed(iteration_seed(self.seed, comm.get_rank(), self.trainer.iter))


def iteration_seed(seed: int, rank: int, iteration: int) -> int:
    """Return a seed in 0..2^63 - 1; neighbouring arguments give unrelated seeds."""
    low, high = np.random.SeedSequence([seed, rank, iteration]).generate_state(2)
    return int(high) % 2**31 << 32 | int(low)


def training_hooks(cfg: CfgNode, model: nn.Module) -> list[HookBase]:
    """List the hooks of this module that a run needs; those that log on the main process only."""
    hooks: list[HookBase] = []
    if isinstance(unwrap(model), UncertainSegmentor):
        hooks.append(BootstrapHook(cfg))
    if comm.is_main_process():
        hooks.append(GroupRates())
        if cfg.SMALLOBJ.PICTURES.PERIOD > 0:
            hooks.append(TrainingPictures(cfg))
    return hooks


def _is_due(trainer: Any, period: int) -> bool:
    """Tell whether an action every ``period`` iterations (0: never) and at the end is due now."""
    following = trainer.iter + 1
    return period > 0 and (following % period == 0 or following == trainer.max_iter)


class GroupRates(HookBase):
    """Logs the learning rates that differ from detectron2's ``lr`` as ``lr/<name of the group>``.

    ``lr`` is the rate of the group with the most parameters, the first of these.
    """

    def before_step(self) -> None:
        """Log the rates of this iteration."""
        groups = self.trainer.optimizer.param_groups
        rate = max(groups, key=lambda group: len(group["params"]))["initial_lr"]
        for number, group in enumerate(groups):
            if group["initial_lr"] == rate:
                continue
            name = f"lr/{group.get('name', number)}"
            self.trainer.storage.put_scalar(name, group["lr"], smoothing_hint=False)


class TrainingPictures(HookBase):
    """Shows the first training samples every ``PICTURES.PERIOD`` iterations and at the end.

    One row per sample: image, label map, size-weight map (even if the current task does not use
    it), prediction; the same augmented samples every time. Training is not touched: its stream,
    the global random generators and the model's state stay as they are.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.size_weights = build_size_weights(cfg)
        self._samples: list[dict[str, Any]] = []

    def after_step(self) -> None:
        """Draw, if it is time."""
        if not _is_due(self.trainer, self.cfg.SMALLOBJ.PICTURES.PERIOD):
            return
        count = self.cfg.SMALLOBJ.PICTURES.NUM_IMAGES
        self._samples = self._samples or first_samples(self.cfg, count)
        model = unwrap(self.trainer._trainer.model)
        rows = [
            sample_row(
                rgb_image(x["image"], self.cfg.INPUT.FORMAT),
                x["sem_seg"].numpy(),
                predict_sample(model, x),
                self.size_weights,
            )
            for x in self._samples
        ]
        width = rows[0].shape[1] // 4
        rows.append(weight_scale(width, self.size_weights.tau, before=2, after=1))
        sheet = torch.from_numpy(np.concatenate(rows)).permute(2, 0, 1)
        self.trainer.storage.put_image("image, label, size weights, prediction", sheet)


def first_samples(cfg: CfgNode, count: int) -> list[dict[str, Any]]:
    """Make the first samples of the training stream as training sees them, without its loader."""
    dataset = StreamDataset(apply_supervision(cfg, dataset_dicts(cfg.DATASETS.TRAIN)))
    sampler = StreamSampler(len(dataset), seed=max(cfg.SEED, 0))
    mapper = SemSegMapper(cfg, True)
    return [mapper(dataset[code]) for code in itertools.islice(sampler, count)]


def predict_sample(model: nn.Module, x: dict[str, Any]) -> np.ndarray:
    """Predict the label map int64 (H, W) of a sample with a model that is in training."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return most_probable(model([{"image": x["image"]}])[0])
    finally:
        for module, training in modes:
            module.training = training


def sample_row(
    image: np.ndarray, labels: np.ndarray, prediction: np.ndarray, size_weights: SizeWeights
) -> np.ndarray:
    """Put image, labels, size weights and prediction side by side, with white margins.

    Maps are (H, W); images are uint8 RGB, ``image`` (H, W, 3) and the result (H + 4, 4 (W + 4), 3).
    """
    weights = colour_weights(size_weights(labels), size_weights.tau)
    panels = (image, colour_labels(labels), weights, colour_labels(prediction))
    margins = ((0, _MARGIN), (0, _MARGIN), (0, 0))
    return np.concatenate([np.pad(x, margins, constant_values=255) for x in panels], axis=1)


def weight_scale(width: int, largest: float, *, before: int, after: int) -> np.ndarray:
    """Draw the colours of weights from 0 to ``largest``, with their numbers, below its panel.

    Uint8 (H, (before + 1 + after) width, 3), white to the left and to the right of the panel.
    """
    bar = colour_weights(np.linspace(0, largest, width - _MARGIN)[None].repeat(8, axis=0), largest)
    numbers = np.full((12, width - _MARGIN, 3), 255, np.uint8)
    for value in (0, 1, largest):
        text, font = f"{value:g}", (cv2.FONT_HERSHEY_SIMPLEX, 0.33)
        (size, _), _ = cv2.getTextSize(text, *font, 1)
        left = round(value / largest * numbers.shape[1] - size / 2)
        at = min(max(left, 0), numbers.shape[1] - size), 10
        cv2.putText(numbers, text, at, *font, (0, 0, 0), 1, cv2.LINE_AA)
    panel = np.concatenate([bar, numbers])
    sides = ((0, 0), (before * width, after * width + _MARGIN), (0, 0))
    return np.pad(panel, sides, constant_values=255)


class BootstrapHook(HookBase):
    """Starts to relabel box pixels after the warm-up, and logs figures and pictures of it.

    The method: docs/method.md#label-uncertainty. Figures are logged every :data:`LOG_PERIOD`
    iterations with the prefix ``doubt/``; pictures are of the main process's share of the batch.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.start = round(cfg.SMALLOBJ.UNCERTAINTY.BOOTSTRAP.WARMUP * cfg.SOLVER.MAX_ITER)
        self.picture_period = cfg.SMALLOBJ.PICTURES.PERIOD

    def before_step(self) -> None:
        """Set whether the loss of this iteration relabels, and whether it is observed."""
        model = self._model()
        if self.trainer.iter == self.start < self.trainer.max_iter:
            logger.info(
                f"Bootstrapping starts at iteration {self.start}: box pixels with sigma > "
                f"{model.loss.threshold:g} take the model's own label"
            )
        model.loss.bootstrapping = self.trainer.iter >= self.start
        due = _is_due(self.trainer, LOG_PERIOD) or _is_due(self.trainer, self.picture_period)
        model.watched = due and comm.is_main_process()

    def after_step(self) -> None:
        """Log the observation of the step."""
        model = self._model()
        seen, model.observation, model.watched = model.observation, None, False
        if seen is None:
            return
        for name, value in bootstrap_figures(seen, model.ignore_label).items():
            self.trainer.storage.put_scalar(f"doubt/{name}", value, smoothing_hint=False)
        if _is_due(self.trainer, self.picture_period):
            node = self.cfg.MODEL
            picture = bootstrap_picture(
                seen, node.PIXEL_MEAN, node.PIXEL_STD, self.cfg.INPUT.FORMAT
            )
            self.trainer.storage.put_image(BOOTSTRAP_PICTURE, torch.from_numpy(picture))

    def _model(self) -> UncertainSegmentor:
        model = unwrap(self.trainer._trainer.model)
        assert isinstance(model, UncertainSegmentor)
        return model


def bootstrap_figures(seen: Observation, ignore_label: int) -> dict[str, float]:
    """Measure the labels of one step; figures without any pixel are left out.

    Returns:
        In percent of the pixels inside boxes: ``relabelled``, those with the model's own label;
        ``changed``, those of them for which that is another one than the box's. In percent of
        those whose true label is known: ``box_accuracy`` of the box labels; ``accuracy`` of the
        labels that the loss used; ``relabelled_accuracy`` of these, on relabelled pixels. And
        ``sigma``, the mean inside boxes.
    """
    inside = seen.doubtable & (seen.labels != ignore_label)
    if not inside.any():
        return {}
    changed = seen.used != seen.labels
    figures = {
        "relabelled": _percent(seen.relabelled[inside]),
        "changed": _percent(changed[inside]),
        "sigma": seen.sigma[inside].mean().item(),
    }
    if seen.true_labels is None:
        return figures
    known = inside & (seen.true_labels != ignore_label)
    for name, labels, pixels in (
        ("box_accuracy", seen.labels, known),
        ("accuracy", seen.used, known),
        ("relabelled_accuracy", seen.used, known & seen.relabelled),
    ):
        if pixels.any():
            figures[name] = _percent(labels[pixels] == seen.true_labels[pixels])
    return figures


def _percent(flags: torch.Tensor) -> float:
    return 100 * flags.double().mean().item()


def bootstrap_picture(
    seen: Observation, mean: list[float], std: list[float], image_format: str
) -> np.ndarray:
    """Draw the first image of a step beside its labels, the labels used, and sigma.

    ``mean`` and ``std`` are those that the image was normalised with. The result is uint8
    (3, H', 4 W'), RGB; sigma is black outside boxes, where it has no effect.
    """
    height, width = seen.labels.shape[1:]
    channels = [torch.tensor(x, dtype=torch.float32).view(-1, 1, 1) for x in (std, mean)]
    image = rgb_image(seen.image.cpu() * channels[0] + channels[1], image_format)
    labels, used = (colour_labels(x[0].cpu().numpy()) for x in (seen.labels, seen.used))
    grey = grey_sigma(torch.where(seen.doubtable[0], seen.sigma[0], 0))
    panels = [cv2.resize(image, (width, height)), labels, used, np.stack([grey] * 3, axis=2)]
    return np.ascontiguousarray(np.concatenate(panels, axis=1).transpose(2, 0, 1))
