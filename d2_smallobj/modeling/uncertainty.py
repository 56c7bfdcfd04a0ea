"""A segmentor whose head predicts a label uncertainty beside every logit.

The method: docs/method.md#label-uncertainty.

Shapes: N images, K classes (background included), C logits: K, or 1 in a binary task (K = 2);
S spreads: C in the form "per_class", else 1; H x W the padded batch, h x w a logit map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from d2_smallobj.losses.softening import all_logits, sigma_offset
from d2_smallobj.losses.uncertainty import UncertaintyCrossEntropy
from d2_smallobj.modeling.loss import build_size_weights
from d2_smallobj.modeling.segmentor import SizeBalancedSegmentor
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY


@dataclasses.dataclass(frozen=True)
class Observation:
    """What the loss saw in one training step, for logs and pictures; tensors without gradient.

    Attributes:
        image: the first image, float32 (3, H, W), normalised.
        labels: int64 (N, H', W'), as the boxes and masks say.
        used: int64 (N, H', W'), as the loss used them, after bootstrapping.
        true_labels: int64 (N, H', W'), the ignore label where unknown; ``None``: all unknown.
        doubtable: bool (N, H', W'), true inside boxes of box-labelled images.
        relabelled: bool (N, H', W'), true where the model's own label was taken.
        sigma: float32 (N, H', W'), the sigma that the threshold is compared with.
    """

    image: torch.Tensor
    labels: torch.Tensor
    used: torch.Tensor
    true_labels: torch.Tensor | None
    doubtable: torch.Tensor
    relabelled: torch.Tensor
    sigma: torch.Tensor


@META_ARCH_REGISTRY.register()
class UncertainSegmentor(SizeBalancedSegmentor):
    """Any backbone and head, with a sigma branch and a loss that uses it on box labels.

    The head makes S more channels than logits, from the same trunk; they are the raw spreads,
    ``sigma = softplus(raw + offset)``.

    Args:
        num_logits: C; the head's first channels. The others are the raw spreads.
        sigma_init: sigma where the branch answers 0, > 0.
        loss: an :class:`~d2_smallobj.losses.uncertainty.UncertaintyCrossEntropy`.
        **arguments: those of :class:`SizeBalancedSegmentor`.

    Attributes:
        watched: whether the next step leaves an :attr:`observation`.
        observation: of the last watched step.
    """

    @configurable
    def __init__(
        self,
        *,
        num_logits: int,
        sigma_init: float,
        loss: UncertaintyCrossEntropy,
        **arguments: Any,
    ) -> None:
        super().__init__(loss=loss, **arguments)
        self.num_logits = num_logits
        self.offset = sigma_offset(sigma_init)
        self.watched = False
        self.observation: Observation | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Map config keys to constructor arguments."""
        return {
            **super().from_config(with_sigma_channels(cfg)),
            "num_logits": num_logits(cfg),
            "sigma_init": cfg.SMALLOBJ.UNCERTAINTY.SIGMA_INIT,
            "loss": build_uncertainty_loss(cfg),
        }

    def training_losses(
        self, batched_inputs: Sequence[dict[str, Any]], images: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The losses of a training batch; its labels may be doubted where ``doubtable`` says so.

        Images without ``doubtable`` (H_i, W_i), the numbers of the boxes that labels come from,
        have certain labels.
        """
        labels = self._labels(batched_inputs)
        weights = self._size_weights(batched_inputs)
        doubtable = self._stack(batched_inputs, "doubtable", 0)
        if doubtable is None:
            doubtable = torch.zeros_like(labels, dtype=torch.bool)
        logits = self.logits(images)
        if self.watched:
            true_labels = self._stack(batched_inputs, "true_sem_seg", self.ignore_label)
            first = next(iter(logits.values()))
            self.observation = self._observe(images[0], first, labels, doubtable, true_labels)
        losses = {}
        for suffix, x in logits.items():
            mu, raw = self._split(x)
            losses[f"loss_sem_seg{suffix}"] = self.loss(
                mu, labels, weights, sigma_raw=raw, doubtable=doubtable
            )
        return losses

    def output(self, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores and doubt of one image.

        Returns:
            ``sem_seg``, (K, height, width) logits, and ``sigma``, float32 (height, width): the
            spread of the class predicted there, or what ``MEASURE`` says.
        """
        mu, raw = self._split(scores[None].float())
        logits = all_logits(mu)
        predicted = logits.argmax(dim=1)
        sigma = self.loss.doubt(F.softplus(raw), predicted, predicted)
        return {"sem_seg": logits[0], "sigma": sigma[0]}

    def _split(self, channels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and raw spreads, the initial one added."""
        mu, raw = channels[:, : self.num_logits], channels[:, self.num_logits :]
        return mu, raw + self.offset

    @torch.no_grad()
    def _observe(
        self,
        image: torch.Tensor,
        channels: torch.Tensor,
        labels: torch.Tensor,
        doubtable: torch.Tensor,
        true_labels: torch.Tensor | None,
    ) -> Observation:
        """Do what the loss does, and keep it."""
        mu, raw = self._split(channels.detach())
        mu, seen, sigma, inside = self.loss.aligned(mu, labels, raw, doubtable)
        used, changed = seen, torch.zeros_like(seen, dtype=torch.bool)
        if self.loss.bootstrapping:
            used, changed, _ = self.loss.bootstrap(mu, seen, sigma, inside)
        if true_labels is not None:
            _, true_labels, _, _ = self.loss.aligned(mu, true_labels, raw, doubtable)
        measured = self.loss.doubt(sigma, seen, self.loss.own_labels(mu, seen))
        return Observation(image, seen, used, true_labels, inside > 0, changed, measured)


def num_logits(cfg: CfgNode) -> int:
    """C: one logit for a binary task, else one for each class."""
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return 1 if classes == 2 else classes


def with_sigma_channels(cfg: CfgNode) -> CfgNode:
    """The config of a head with a sigma branch: one of C + S output channels instead of K.

    Every head whose ``layers`` ends in ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` channels will do: its
    last convolution is that of the logits and that of the spreads side by side.
    """
    logits = num_logits(cfg)
    spreads = logits if cfg.SMALLOBJ.UNCERTAINTY.FORM == "per_class" else 1
    wider = cfg.clone()
    wider.defrost()
    wider.MODEL.SEM_SEG_HEAD.NUM_CLASSES = logits + spreads
    return wider


def build_uncertainty_loss(cfg: CfgNode) -> UncertaintyCrossEntropy:
    """The loss from ``SMALLOBJ``, set to the loss of the task that a run starts with."""
    node = cfg.SMALLOBJ
    first = node.TASK_B if node.TASK_A.ITERS == 0 else node.TASK_A
    return UncertaintyCrossEntropy(
        threshold=node.UNCERTAINTY.BOOTSTRAP.THRESHOLD,
        form=node.UNCERTAINTY.FORM,
        measure=node.UNCERTAINTY.BOOTSTRAP.MEASURE,
        penalty=node.UNCERTAINTY.PENALTY,
        min_object=node.UNCERTAINTY.BOOTSTRAP.MIN_OBJECT,
        relabelled=node.UNCERTAINTY.BOOTSTRAP.RELABELLED,
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        resolution=node.LOSS_RESOLUTION,
        normalize=node.NORMALIZE,
        weights=build_size_weights(cfg),
        size_weighted=first.LOSS == "size_weighted",
    )
