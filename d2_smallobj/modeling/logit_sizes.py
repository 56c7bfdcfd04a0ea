"""The sizes of the logit maps that a model makes of a training crop, without computing any."""

from __future__ import annotations

import dataclasses
import logging

import torch

from detectron2.config import CfgNode
from detectron2.modeling import build_model

logger = logging.getLogger(__name__)

_known: dict[str, LogitSizes] = {}


@dataclasses.dataclass(frozen=True)
class LogitSizes:
    """What becomes of a training crop.

    Attributes:
        padded: (H, W) of the batch, padded at the bottom and the right.
        maps: (h, w) of the logit maps, each once; empty where they cannot be known beforehand.
    """

    padded: tuple[int, int]
    maps: tuple[tuple[int, int], ...]


def logit_sizes(cfg: CfgNode) -> LogitSizes:
    """Run the model of a config on tensors without memory.

    Args:
        cfg: the config; its meta-architecture should be ``SizeBalancedSegmentor`` or derived.

    Returns:
        No maps for other architectures, and where an operation needs real tensors.
    """
    key = cfg.dump()
    if key not in _known:
        _known[key] = _find(cfg)
    return _known[key]


def _find(cfg: CfgNode) -> LogitSizes:
    height, width = cfg.SMALLOBJ.CROP_SIZE
    shapes_only = cfg.clone()
    shapes_only.defrost()
    shapes_only.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"):
            model = build_model(shapes_only).eval()
        with torch.no_grad():
            # Not on that device by default: padding computes with sizes in tensors.
            crop = torch.empty(3, height, width, device="meta")
            images = model._pad([crop], 0.0).tensor
            logits = model.logits(images)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        logger.info(f"Size weights are made during the step, which slows it down ({error})")
        return LogitSizes((height, width), ())
    maps = dict.fromkeys(tuple(x.shape[-2:]) for x in logits.values())
    return LogitSizes(tuple(images.shape[-2:]), tuple(maps))
