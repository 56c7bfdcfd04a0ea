"""Meta-architecture: any backbone, any head with ``layers``, the size-balanced loss, MSC.

Shapes: N images, K classes (background included), H x W the padded batch, h x w a logit map.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from d2_smallobj.losses.size_balanced import SizeWeightedCrossEntropy
from d2_smallobj.losses.size_weights import SizeWeights
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_model, build_sem_seg_head
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class SizeBalancedSegmentor(nn.Module):
    """Semantic segmentation with a loss of its own; a loss that the head holds is not used.

    Args:
        backbone: detectron2 backbone.
        sem_seg_head: any detectron2 head that has ``layers(features) -> logits (N, K, h, w)``
            (``DeepLabV2Head``, ``SemSegFPNHead``, ``DeepLabV3PlusHead``).
        loss: called as ``loss(logits, labels, size_weights)``, returns a scalar.
        pixel_mean: per channel, in the order of ``INPUT.FORMAT``.
        pixel_std: per channel.
        ignore_label: label of pixels without a class; also pads labels of smaller images.
        msc_scales: multi-scale factors beside 1 (MSC, docs/method.md#recipe); empty: one scale.
    """

    sem_seg_head: Any  # has layers(features), which nn.Module does not declare
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        loss: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        ignore_label: int = 255,
        msc_scales: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if not callable(getattr(sem_seg_head, "layers", None)):
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NAME: {type(sem_seg_head).__name__} has no method "
                "`layers(features)` that returns logits; SizeBalancedSegmentor needs one"
            )
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.loss = loss
        self.ignore_label = ignore_label
        self.msc_scales = tuple(msc_scales)
        self._compiled: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Map config keys to constructor arguments."""
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "loss": SizeWeightedCrossEntropy(**loss_options(cfg)),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "msc_scales": cfg.SMALLOBJ.MSC.SCALES if cfg.SMALLOBJ.MSC.ENABLED else (),
        }

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: Sequence[dict[str, Any]]
    ) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        """Losses in training, predictions otherwise.

        Args:
            batched_inputs: dataset dicts with ``image`` (3, H_i, W_i); in training also
                ``sem_seg`` (H_i, W_i) int64 and, when the mapper made it, ``size_weights``
                (H_i, W_i) float32 or ``logit_size_weights``, by size; optionally ``height`` and
                ``width`` of the wanted output.

        Returns:
            A dict of scalar losses, or one ``{"sem_seg": (K, height, width) logits}`` an image.
        """
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = self._pad([(x - self.pixel_mean) / self.pixel_std for x in images], 0.0)
        if self.training:
            return self.training_losses(batched_inputs, images.tensor)
        outputs = []
        scores = self.upsampled_scores(images.tensor)
        for score, x, size in zip(scores, batched_inputs, images.image_sizes):
            height, width = x.get("height", size[0]), x.get("width", size[1])
            outputs.append(self.output(sem_seg_postprocess(score, size, height, width)))
        return outputs

    def training_losses(
        self, batched_inputs: Sequence[dict[str, Any]], images: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One loss per logit map of a training batch, and its normalised images (N, 3, H, W)."""
        labels, weights = self._labels(batched_inputs), self._size_weights(batched_inputs)
        return {
            f"loss_sem_seg{suffix}": self.loss(x, labels, weights_for(x, weights))
            for suffix, x in self.logits(images).items()
        }

    def output(self, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        """The prediction of one image from its :meth:`upsampled_scores` at its own size."""
        return {"sem_seg": scores}

    def logits(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logit maps of normalised images (N, 3, H, W).

        Returns:
            ``{"": (N, K, h, w)}`` without MSC. With MSC one entry a scale, each at the
            resolution of its own scale, and ``"_max"``, the pixel-wise maximum of all of them
            at the resolution of scale 1; suffixes name the losses.
        """
        compiled = self._compiled if self.training else None
        network = self._network if compiled is None else compiled
        full = network(images)
        if not self.msc_scales:
            return {"": full}
        maps, at_full_size = {"_1": full}, [full]
        for scale in self.msc_scales:
            x = network(_rescale(images, scale))
            maps[f"_{scale:g}"] = x
            at_full_size.append(resized(x, full.shape[-2:]))
        maps["_max"] = torch.stack(at_full_size).amax(dim=0)
        return maps

    def _network(self, images: torch.Tensor) -> torch.Tensor:
        return self.sem_seg_head.layers(self.backbone(images))

    def compile_training(self, mode: str) -> None:
        """Let training run backbone and head by ``torch.compile`` in this mode.

        The maximum over scales stays outside: its gradient goes to the elements that equal it, of
        which compiled code, computing them anew with other rounding, finds none.
        """
        self._compiled = torch.compile(self._network, mode=mode, dynamic=False)

    def upsampled_scores(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, K, H, W) of images (N, 3, H, W); the maximum map under MSC."""
        logits = list(self.logits(images).values())[-1]
        return resized(logits.float(), images.shape[-2:])

    def _labels(self, batched_inputs: Sequence[dict[str, Any]]) -> torch.Tensor:
        """The label maps of a training batch, int64 (N, H, W)."""
        if "sem_seg" not in batched_inputs[0]:
            raise ValueError(
                "training needs labels: the key 'sem_seg' is not in the batch, which holds "
                f"{sorted(batched_inputs[0])}; map it with a training mapper"
            )
        maps = [x["sem_seg"].to(self.device) for x in batched_inputs]
        return self._pad(maps, self.ignore_label).tensor

    def _size_weights(
        self, batched_inputs: Sequence[dict[str, Any]]
    ) -> torch.Tensor | dict[tuple[int, int], torch.Tensor] | None:
        """The mapper's weights for the loss: (N, H, W), or by logit size (h, w): (N, h, w)."""
        if "logit_size_weights" not in batched_inputs[0]:
            return self._stack(batched_inputs, "size_weights", 0.0)
        maps = [x["logit_size_weights"] for x in batched_inputs]
        return {size: torch.stack([m[size].to(self.device) for m in maps]) for size in maps[0]}

    def _stack(
        self, batched_inputs: Sequence[dict[str, Any]], key: str, pad_value: float
    ) -> torch.Tensor | None:
        """Pad and stack one field of the batch; None when the mapper did not make it."""
        if key not in batched_inputs[0]:
            return None
        return self._pad([x[key].to(self.device) for x in batched_inputs], pad_value).tensor

    def _pad(self, tensors: list[torch.Tensor], pad_value: float) -> ImageList:
        """Pad to one size that the backbone takes."""
        backbone = self.backbone
        return ImageList.from_tensors(
            tensors, backbone.size_divisibility, pad_value, backbone.padding_constraints
        )


def _rescale(images: torch.Tensor, scale: float) -> torch.Tensor:
    """Images of ``scale`` times the size, rounded down, at least one pixel."""
    # Output pixel i is sampled at (i + 1/2) / scale, as in the released code; given the size alone,
    # a side of 321 halved to 160 would be sampled at steps of 321 / 160.
    if all(side * scale >= 1 for side in images.shape[-2:]):
        return F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
    return resized(images, [max(1, math.floor(side * scale)) for side in images.shape[-2:]])


def resized(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Maps or images (N, C, H, W) at another size, bilinear."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def weights_for(
    logits: torch.Tensor, size_weights: torch.Tensor | dict[tuple[int, int], torch.Tensor] | None
) -> torch.Tensor | None:
    """The size weights of one logit map; None: the loss computes them."""
    if isinstance(size_weights, dict):
        height, width = logits.shape[-2:]
        return size_weights.get((height, width))
    return size_weights


def build_size_weights(cfg: CfgNode) -> SizeWeights:
    """Build the rule of size weights (paper, Eq. 3) from ``SMALLOBJ``."""
    node = cfg.SMALLOBJ
    return SizeWeights(
        tau=node.TAU,
        total=node.TOTAL,
        compat=node.COMPONENT_SIZE,
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
    )


def loss_options(cfg: CfgNode) -> dict[str, Any]:
    """Options of :class:`SizeWeightedCrossEntropy`, set to the task that a run starts with."""
    node = cfg.SMALLOBJ
    first = node.TASK_B if node.TASK_A.ITERS == 0 else node.TASK_A
    return {
        "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "resolution": node.LOSS_RESOLUTION,
        "normalize": node.NORMALIZE,
        "weights": build_size_weights(cfg),
        "size_weighted": first.LOSS == "size_weighted",
        "global_divisor": node.GLOBAL_DIVISOR,
        "images_at_once": node.SPEED.LOSS_IMAGES,
    }


def brings_a_loss(cfg: CfgNode) -> bool:
    """True if the meta-architecture has a loss, so that the head needs none."""
    architecture = dict(META_ARCH_REGISTRY).get(cfg.MODEL.META_ARCHITECTURE, nn.Module)
    return isinstance(architecture, type) and issubclass(architecture, SizeBalancedSegmentor)


class LogitSizes(NamedTuple):
    """Sizes of the padded batch and of its logit maps, each once; no maps where none are known."""

    padded: tuple[int, int]
    maps: tuple[tuple[int, int], ...]


_known_sizes: dict[str, LogitSizes] = {}


def logit_sizes(cfg: CfgNode) -> LogitSizes:
    """Find the sizes that a training crop leads to by running the model without memory.

    No maps are found for architectures other than ``SizeBalancedSegmentor``.
    """
    key = cfg.dump()
    if key not in _known_sizes:
        _known_sizes[key] = _find_sizes(cfg)
    return _known_sizes[key]


def _find_sizes(cfg: CfgNode) -> LogitSizes:
    height, width = cfg.SMALLOBJ.CROP_SIZE
    shapes_only = cfg.clone()
    shapes_only.defrost()
    shapes_only.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"):
            model = build_model(shapes_only).eval()
        # Not on that device by default: padding computes with sizes in tensors.
        with torch.no_grad():
            images = model._pad([torch.empty(3, height, width, device="meta")], 0.0).tensor
            logits = model.logits(images)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        logger.info(f"Size weights are computed in the training step, which is slower ({error})")
        return LogitSizes((height, width), ())
    maps = dict.fromkeys(tuple(x.shape[-2:]) for x in logits.values())
    return LogitSizes(tuple(images.shape[-2:]), tuple(maps))
