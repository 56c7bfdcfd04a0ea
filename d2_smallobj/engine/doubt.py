"""Online bootstrapping as a detectron2 hook: its switch, its figures, its pictures.

The method: docs/method.md#label-uncertainty.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.engine.prediction import output_path, rgb_image
from d2_smallobj.engine.tasks import unwrap
from d2_smallobj.modeling.uncertain_segmentor import Observation, UncertainSegmentor
from d2_smallobj.report.drawing import colour_labels
from d2_smallobj.utils.files import atomic_write
from d2_smallobj.utils.opencv import cv2
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger(__name__)

LOG_PERIOD = 20
"""Iterations between two figures: that of detectron2's writers."""
PICTURE = "image, labels, labels used, sigma"


def bootstrap_start(cfg: CfgNode) -> int:
    """The first iteration that changes labels."""
    return round(cfg.SMALLOBJ.UNCERTAINTY.BOOTSTRAP.WARMUP * cfg.SOLVER.MAX_ITER)


def doubt_hooks(cfg: CfgNode, model: nn.Module) -> list[HookBase]:
    """The hook, if the model is one that doubts its labels."""
    return [BootstrapHook(cfg)] if isinstance(unwrap(model), UncertainSegmentor) else []


class BootstrapHook(HookBase):
    """Begins to change box labels when the warm-up is over, and tells how that goes.

    The switch follows from the iteration, so that a resumed run does the same. Every
    :data:`LOG_PERIOD` iterations the scalars of :func:`doubt_figures` are logged, with the prefix
    ``doubt/``, and every ``SMALLOBJ.PICTURES.PERIOD`` and at the end a picture for TensorBoard: of
    the main process, which writes them, and its share of the batch.

    Args:
        cfg: the config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.start = bootstrap_start(cfg)
        self.picture_period = cfg.SMALLOBJ.PICTURES.PERIOD
        self.mean = cfg.MODEL.PIXEL_MEAN
        self.std = cfg.MODEL.PIXEL_STD
        self.format = cfg.INPUT.FORMAT

    def before_step(self) -> None:
        """Set the switch for this iteration, and whether it is watched."""
        model = unwrap(self.trainer._trainer.model)
        if self.trainer.iter == self.start < self.trainer.max_iter:
            logger.info(
                f"Bootstrapping starts at iteration {self.start}: box pixels with sigma > "
                f"{model.loss.threshold:g} take the model's own label"
            )
        model.loss.bootstrapping = self.trainer.iter >= self.start
        watched = self._due(LOG_PERIOD) or self._due(self.picture_period)
        model.watched = watched and comm.is_main_process()

    def after_step(self) -> None:
        """Log what the step left."""
        model = unwrap(self.trainer._trainer.model)
        seen, model.observation, model.watched = model.observation, None, False
        if seen is None:
            return
        for name, value in doubt_figures(seen, model.ignore_label).items():
            self.trainer.storage.put_scalar(f"doubt/{name}", value, smoothing_hint=False)
        if self._due(self.picture_period):
            picture = doubt_picture(seen, self.mean, self.std, self.format)
            self.trainer.storage.put_image(PICTURE, torch.from_numpy(picture))

    def _due(self, period: int) -> bool:
        """Whether what happens every ``period`` iterations (0: never) and last happens now."""
        following = self.trainer.iter + 1
        return period > 0 and (following % period == 0 or following == self.trainer.max_iter)


def doubt_figures(seen: Observation, ignore_label: int) -> dict[str, float]:
    """Figures of one step; those without any pixel to rest on are left out.

    Args:
        seen: what the loss saw.
        ignore_label: label of pixels that do not count.

    Returns:
        In percent of the pixels inside boxes: ``relabelled``, those with the model's own label;
        ``changed``, those of them for which that is another one than the box's. In percent of the
        pixels inside boxes whose true label is known: ``box_accuracy``, those whose box label is
        true; ``accuracy``, those whose label is true as the loss used it. ``relabelled_accuracy``:
        the share of relabelled pixels whose new label is true. And ``sigma``, the mean inside
        boxes.
    """
    inside = seen.doubtable & (seen.labels != ignore_label)
    if not inside.any():
        return {}
    changed = seen.used != seen.labels
    figures = {
        "relabelled": 100 * seen.relabelled[inside].double().mean().item(),
        "changed": 100 * changed[inside].double().mean().item(),
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
            right = labels[pixels] == seen.true_labels[pixels]
            figures[name] = 100 * right.double().mean().item()
    return figures


def doubt_picture(
    seen: Observation, mean: list[float], std: list[float], image_format: str
) -> np.ndarray:
    """The first image of a step beside its labels, the labels used, and sigma.

    Args:
        seen: what the loss saw.
        mean: per channel, that was subtracted.
        std: per channel, that was divided by.
        image_format: order of the channels, ``"BGR"`` or ``"RGB"``.

    Returns:
        uint8 (3, H', 4 W'), RGB. Sigma is grey as :func:`grey_sigma` draws it, and black outside
        boxes, where it has no say.
    """
    height, width = seen.labels.shape[1:]
    channels = [torch.tensor(x, dtype=torch.float32).view(-1, 1, 1) for x in (std, mean)]
    image = rgb_image(seen.image.cpu() * channels[0] + channels[1], image_format)
    labels, used = (colour_labels(x[0].cpu().numpy()) for x in (seen.labels, seen.used))
    grey = grey_sigma(torch.where(seen.doubtable[0], seen.sigma[0], 0))
    panels = [cv2.resize(image, (width, height)), labels, used, np.stack([grey] * 3, axis=2)]
    return np.ascontiguousarray(np.concatenate(panels, axis=1).transpose(2, 0, 1))


def grey_sigma(sigma: torch.Tensor) -> np.ndarray:
    """Sigma (H, W) as uint8: ``255 sigma / (1 + sigma)``, the same grey in every picture."""
    return (255 * (sigma / (1 + sigma))).round().byte().cpu().numpy()


class SigmaWriter:
    """Writes ``<folder>/<name>.npy``, sigma as float16 (H, W), and ``<name>.png``, its grey.

    A writer of :mod:`d2_smallobj.engine.prediction`.

    Args:
        folder: where to write; made when missing.
        model: what predicts.

    Raises:
        ValueError: if the model predicts no sigma.
    """

    def __init__(self, folder: str | os.PathLike[str], model: nn.Module) -> None:
        if not isinstance(model, UncertainSegmentor):
            raise ValueError(
                f"--uncertainty: a {type(model).__name__} predicts no sigma; set "
                "MODEL.META_ARCHITECTURE UncertainSegmentor and train it"
            )
        self.folder = Path(folder)

    def __call__(self, name: str, output: Mapping[str, Any], x: Mapping[str, Any]) -> None:
        """Write the sigma of one image."""
        sigma = output["sigma"]
        with atomic_write(output_path(self.folder, name, ".npy")) as file:
            largest = torch.finfo(torch.float16).max
            np.save(file, sigma.clamp(max=largest).half().cpu().numpy(), allow_pickle=False)
        write_label_map(output_path(self.folder, name, ".png"), grey_sigma(sigma), palette=False)
