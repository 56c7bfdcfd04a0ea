"""Multi-label image classifier and its class activation maps, on the backbone of any config.

B. Zhou et al.: Learning Deep Features for Discriminative Localization, CVPR 2016; multi-scale and
flipped maps as in IRN (J. Ahn et al., CVPR 2019).

Legend: N images, C object classes (without background), K classes of one image, H x W its size,
h x w a feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from d2_smallobj.modeling.segmentor import resized
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

STRIDE = 4
"""Activation maps are stored at this fraction of the image's size."""


class ImageClassifier(nn.Module):
    """Backbone, 1x1 convolution without bias, global average pooling.

    Pooling comes last, so that the same convolution gives the activation of a class at every
    position; the logit of a class is the mean of its activations.

    Args:
        backbone: detectron2 backbone.
        feature: name of the feature map that is classified.
        num_classes: C.
        pixel_mean: per channel, in the order of ``INPUT.FORMAT``.
        pixel_std: per channel.
    """

    backbone: Any  # a detectron2 backbone, more than nn.Module declares
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(
        self,
        backbone: Any,
        feature: str,
        num_classes: int,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature = feature
        channels = backbone.output_shape()[feature].channels
        self.classifier = nn.Conv2d(channels, num_classes, 1, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.01)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) of images (N, 3, H, W) in 0..255."""
        return self.activations(images).mean(dim=(2, 3))

    def activations(self, images: torch.Tensor) -> torch.Tensor:
        """Activation of every class at every position: (N, C, h, w), of any sign."""
        normal = (images - self.pixel_mean) / self.pixel_std
        return self.classifier(self.backbone(normal)[self.feature])

    @torch.no_grad()
    def activation_maps(
        self, image: torch.Tensor, classes: Sequence[int], scales: Sequence[float]
    ) -> np.ndarray:
        """Sum the positive activations of some classes over scales and mirrored copies.

        Args:
            image: (3, H, W) in 0..255.
            classes: K class numbers, counted from 1.
            scales: factors on the size of the image, each > 0.

        Returns:
            float32 (K, ceil(H / 4), ceil(W / 4)) >= 0, not normalised.
        """
        image = image.to(self.pixel_mean.device)
        height, width = image.shape[-2:]
        size = (-(-height // STRIDE), -(-width // STRIDE))
        chosen = torch.tensor([c - 1 for c in classes], dtype=torch.long, device=image.device)
        total = torch.zeros((len(classes), *size), device=image.device)
        step = max(1, self.backbone.size_divisibility)
        for scale in scales if len(classes) else ():
            # Backbones with lateral connections need sides that their strides divide.
            sides = [max(1, round(side * scale / step)) * step for side in (height, width)]
            view = resized(image[None], sides)
            found = F.relu(self.activations(torch.cat([view, view.flip(-1)]))[:, chosen])
            total += resized(found[:1] + found[1:].flip(-1), size)[0]
        return total.cpu().numpy()


def build_classifier(cfg: CfgNode, num_classes: int) -> ImageClassifier:
    """Build the classifier on a config's backbone, on the last of its head's features.

    Reads ``MODEL.BACKBONE`` and what belongs to it, ``MODEL.SEM_SEG_HEAD.IN_FEATURES``,
    ``MODEL.PIXEL_*`` and ``MODEL.DEVICE``; ``num_classes`` is C.

    Raises:
        ValueError: the backbone does not return the feature.
    """
    backbone = build_backbone(cfg)
    feature = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES[-1]
    if feature not in backbone.output_shape():
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES ends in {feature!r}, but the backbone returns "
            f"{', '.join(backbone.output_shape())}"
        )
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    model = ImageClassifier(backbone, feature, num_classes, pixel_mean=mean, pixel_std=std)
    return model.to(cfg.MODEL.DEVICE)
