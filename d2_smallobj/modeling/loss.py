"""The size-balanced loss as a component that any head or meta-architecture can be given."""

from __future__ import annotations

from d2_smallobj.losses.size_balanced import SizeWeightedCrossEntropy
from d2_smallobj.losses.size_weights import SizeWeights
from detectron2.config import CfgNode


def build_size_weights(cfg: CfgNode) -> SizeWeights:
    """The size-weight map's options (paper, Eq. 3) from ``SMALLOBJ``."""
    node = cfg.SMALLOBJ
    return SizeWeights(
        tau=node.TAU,
        total=node.TOTAL,
        compat=node.COMPONENT_SIZE,
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
    )


def build_loss(cfg: CfgNode) -> SizeWeightedCrossEntropy:
    """The loss from ``SMALLOBJ``, set to the loss of the task that a run starts with."""
    node = cfg.SMALLOBJ
    first = node.TASK_B if node.TASK_A.ITERS == 0 else node.TASK_A
    return SizeWeightedCrossEntropy(
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        resolution=node.LOSS_RESOLUTION,
        normalize=node.NORMALIZE,
        weights=build_size_weights(cfg),
        size_weighted=first.LOSS == "size_weighted",
    )
