"""Train an image classifier on image labels, and write the activation maps of its images.

Both continue after a kill: training from its checkpoint, to the bit; the maps at the first that
is missing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from d2_smallobj.data.loaders import StreamDataset, StreamSampler
from d2_smallobj.data.mapper import read_image, to_tensor
from d2_smallobj.data.weak_images import WeakImage
from d2_smallobj.engine.checkpoint import SafeCheckpointer
from d2_smallobj.engine.weight_files import load_torch_file, save_torch_file
from d2_smallobj.modeling.image_classifier import ImageClassifier, build_classifier
from d2_smallobj.pseudo_labels.activations import (
    ClassifierOptions,
    normalized,
    write_classes,
    write_maps,
)
from d2_smallobj.utils.messages import Problems
from d2_smallobj.utils.opencv import cv2
from d2_smallobj.utils.parallel import progress_bar
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader

MOMENTUM, WEIGHT_DECAY, POWER = 0.9, 1e-4, 0.9
CLASSIFIER_FACTOR = 30.0
"""Factor on the learning rate of the new layer (docs/weak_labels.md)."""
TRAINING_STRIDE = 32
"""``SMALLOBJ.OUTPUT_STRIDE`` of training, whose maps are pooled anyway: half the time of 16.

The maps are computed at the config's own stride, where dilated convolutions read the same places.
"""
_CLIP_NORM = 5.0
_ZOOM = 1.5  # an image's longer side is drawn from 1 to 1.5 sides of the crop
_CHECKPOINT_PERIOD = 50


class ClassifierMapper:
    """Map an image to a random crop and its labels, by its position in the stream alone.

    Args:
        image_format: ``INPUT.FORMAT``.
        num_classes: C, background not counted.
        fill: values of pixels outside the image, per channel.
        options: crop and seed.
    """

    def __init__(
        self,
        image_format: str,
        num_classes: int,
        fill: Sequence[float],
        options: ClassifierOptions,
    ) -> None:
        self.image_format = image_format
        self.num_classes = num_classes
        self.fill = np.asarray(fill, np.float32)
        self.options = options

    def __call__(self, x: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return ``image`` float32 (3, crop, crop) in 0..255 and ``labels`` float32 (C,), 0 or 1.

        Raises:
            OSError: the image cannot be read; names it.
        """
        image = read_image(x["file_name"], self.image_format)
        rng = np.random.default_rng([self.options.seed, x["stream_position"]])
        crop = self.options.crop
        scale = crop * rng.uniform(1.0, _ZOOM) / max(image.shape[:2])
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        size = (width, height)
        image = cv2.resize(np.ascontiguousarray(image), size, interpolation=interpolation)
        top, left = (int(rng.integers(max(0, side - crop) + 1)) for side in (height, width))
        window = np.empty((crop, crop, 3), np.float32)
        window[:] = self.fill
        part = image[top : top + crop, left : left + crop]
        window[: part.shape[0], : part.shape[1]] = part
        tensor = to_tensor(window)
        if rng.random() < 0.5:
            tensor = tensor.flip(-1)
        labels = torch.zeros(self.num_classes)
        labels[[c - 1 for c in x["classes"]]] = 1.0
        return {"image": tensor, "labels": labels}


def train_classifier(
    cfg: CfgNode,
    images: Sequence[WeakImage],
    num_classes: int,
    options: ClassifierOptions,
    path: Path,
    settings: dict[str, Any],
) -> ImageClassifier:
    """Train on image labels alone, or continue, and return the net in evaluation mode.

    Args:
        cfg: the config: backbone, ``MODEL.WEIGHTS`` and ``DATALOADER.NUM_WORKERS``.
        images: with their classes.
        num_classes: C, background not counted.
        options: see :class:`ClassifierOptions`.
        path: the checkpoint, which is continued if it has the same ``settings``; training starts
            anew if it has others.
        settings: what the weights depend on, plain values.

    Raises:
        ValueError: the weights do not fit the backbone, or the checkpoint is damaged.
        OSError: an image cannot be read.
        FloatingPointError: the loss is not finite.
    """
    torch.manual_seed(options.seed)
    coarse = cfg.clone()
    coarse.defrost()
    coarse.SMALLOBJ.OUTPUT_STRIDE = max(TRAINING_STRIDE, cfg.SMALLOBJ.OUTPUT_STRIDE)
    model = build_classifier(coarse, num_classes)
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in model.backbone.parameters() if p.requires_grad], "factor": 1.0},
            {"params": list(model.classifier.parameters()), "factor": CLASSIFIER_FACTOR},
        ],
        lr=options.learning_rate,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )
    last, start = options.steps(len(images)), 0
    saved = load_torch_file(os.fspath(path)) if path.is_file() else {}
    if saved.get("settings") == settings:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["iteration"]
    elif cfg.MODEL.WEIGHTS:
        SafeCheckpointer(model, cfg=cfg).load(cfg.MODEL.WEIGHTS, checkpointables=[])

    def save(iteration: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        save_torch_file(path, {**state, "iteration": iteration, "settings": settings})

    model.train()
    # Without a step to do, no worker is started.
    batches = _loader(cfg, model, images, options, start) if start < last else ()
    with progress_bar(total=last, initial=start, desc="classifier", unit="step") as bar:
        for iteration, batch in zip(range(start, last), batches):
            for group in optimizer.param_groups:
                decay = (1 - iteration / last) ** POWER
                group["lr"] = options.learning_rate * group["factor"] * decay
            loss = _step(model, batch, optimizer)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the classifier's loss is {loss} at iteration {iteration}: give a smaller "
                    f"--learning-rate than {options.learning_rate:g}"
                )
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
            if (iteration + 1) % _CHECKPOINT_PERIOD == 0 or iteration + 1 == last:
                save(iteration + 1)
    finished = build_classifier(cfg, num_classes)
    finished.load_state_dict(model.state_dict())
    return finished.eval()


def _step(
    model: ImageClassifier, batch: list[dict[str, torch.Tensor]], optimizer: torch.optim.Optimizer
) -> float:
    """One step of SGD; returns the loss."""
    device = model.pixel_mean.device
    images, labels = (torch.stack([x[key] for x in batch]).to(device) for key in batch[0])
    loss = F.multilabel_soft_margin_loss(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
    optimizer.step()
    return loss.item()


def _loader(
    cfg: CfgNode,
    model: ImageClassifier,
    images: Sequence[WeakImage],
    options: ClassifierOptions,
    start: int,
) -> Iterable[list[dict[str, torch.Tensor]]]:
    """Batches from a step on."""
    num_classes = model.classifier.out_channels
    dicts = [{"file_name": x.file_name, "classes": x.classes} for x in images]
    return build_detection_train_loader(
        StreamDataset(dicts),
        mapper=ClassifierMapper(cfg.INPUT.FORMAT, num_classes, cfg.MODEL.PIXEL_MEAN, options),
        sampler=StreamSampler(len(dicts), seed=options.seed, start=start * options.batch_size),
        total_batch_size=options.batch_size,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def write_activations(
    model: ImageClassifier,
    images: Sequence[WeakImage],
    folder: Path,
    *,
    image_format: str,
    scales: Sequence[float],
) -> int:
    """Write the activation maps of every image's classes (:mod:`.pseudo_labels.activations`).

    Maps that exist are kept.

    Args:
        model: in evaluation mode.
        images: with their classes.
        folder: where ``<stem>.npy`` and ``classes.json`` go.
        image_format: ``INPUT.FORMAT``.
        scales: factors on the size of the images.

    Returns:
        The number of maps that were written.

    Raises:
        InputError: images cannot be read; all others are written.
    """
    write_classes(folder, {image.stem: image.classes for image in images})
    problems, written = Problems(), 0
    for image in progress_bar(images, desc="activation maps", unit="image"):
        path = folder / f"{image.stem}.npy"
        if path.is_file():
            continue
        try:
            pixels = read_image(image.file_name, image_format)
        except OSError as error:
            problems.add("image(s) that cannot be read", str(error))
            continue
        maps = model.activation_maps(to_tensor(pixels), image.classes, scales)
        write_maps(path, normalized(maps))
        written += 1
    problems.raise_if_any()
    return written
