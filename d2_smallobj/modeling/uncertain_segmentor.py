"""A segmentor whose head predicts a label uncertainty beside every logit.

The method: docs/method.md#label-uncertainty.

Shapes: N images, K classes (background included), C logits: K, or 1 in a binary task (K = 2);
S spreads: C in the form "per_class", else 1; H x W the padded batch, h x w a logit map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from d2_smallobj.losses.uncertainty import UncertaintyCrossEntropy, all_logits, sigma_offset
from d2_smallobj.modeling.segmentor import SizeBalancedSegmentor, loss_options, weights_for
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY


class Observation(NamedTuple):
    """Labels and sigma of one training step, for logs and pictures; tensors without gradient.

    ``image`` is the first one, normalised, (3, H, W); the others are (N, H', W'): ``labels`` of
    boxes and masks, labels ``used`` after bootstrapping, ``true_labels`` where known, the masks
    ``doubtable`` (inside boxes) and ``relabelled``, and ``sigma`` of the model's own label.
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
        **arguments: those of :class:`SizeBalancedSegmentor`; ``loss`` must be an
            :class:`~d2_smallobj.losses.uncertainty.UncertaintyCrossEntropy`.

    Attributes:
        watched: if true, the next step leaves an :attr:`observation`.
        observation: of the last watched step.
    """

    loss: UncertaintyCrossEntropy

    @configurable
    def __init__(self, *, num_logits: int, sigma_init: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.num_logits = num_logits
        self.offset = sigma_offset(sigma_init)
        self.watched = False
        self.observation: Observation | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Map config keys to constructor arguments."""
        node = cfg.SMALLOBJ.UNCERTAINTY
        return {
            **super().from_config(with_sigma_channels(cfg)),
            "num_logits": num_logits(cfg),
            "sigma_init": node.SIGMA_INIT,
            "loss": UncertaintyCrossEntropy(
                threshold=node.BOOTSTRAP.THRESHOLD,
                form=node.FORM,
                min_object=node.BOOTSTRAP.MIN_OBJECT,
                **loss_options(cfg),
            ),
        }

    def training_losses(
        self, batched_inputs: Sequence[dict[str, Any]], images: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Compute the losses; without ``doubtable`` (H_i, W_i), box numbers, labels are certain."""
        labels, weights = self._labels(batched_inputs), self._size_weights(batched_inputs)
        doubtable = self._stack(batched_inputs, "doubtable", 0)
        if doubtable is None:
            doubtable = torch.zeros_like(labels, dtype=torch.bool)
        box_classes = self._stack(batched_inputs, "box_classes", 0)
        logits = self.logits(images)
        if self.watched:
            true_labels = self._stack(batched_inputs, "true_sem_seg", self.ignore_label)
            first = next(iter(logits.values()))
            self.observation = self._observe(
                images[0], first, labels, doubtable, box_classes, true_labels
            )
        losses = {}
        for suffix, x in logits.items():
            mu, raw = self._split(x)
            options = {"sigma_raw": raw, "doubtable": doubtable, "box_classes": box_classes}
            losses[f"loss_sem_seg{suffix}"] = self.loss(
                mu, labels, weights_for(x, weights), **options
            )
        return losses

    def output(self, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``sem_seg``, logits (K, height, width), and the predicted class's ``sigma``."""
        mu, raw = self._split(scores[None].float())
        logits = all_logits(mu)
        sigma = self.loss.sigma_of(F.softplus(raw), logits.argmax(dim=1))
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
        box_classes: torch.Tensor | None,
        true_labels: torch.Tensor | None,
    ) -> Observation:
        """Repeat what the loss does, and keep labels and sigma."""
        mu, raw = self._split(channels.detach())
        mu, seen, sigma, inside = self.loss.aligned(mu, labels, raw, doubtable)
        used, changed = seen, torch.zeros_like(seen, dtype=torch.bool)
        if self.loss.bootstrapping:
            used, changed, _ = self.loss.bootstrap(mu, seen, sigma, inside, box_classes)
        if true_labels is not None:
            _, true_labels, _, _ = self.loss.aligned(mu, true_labels, raw, doubtable)
        own_sigma = self.loss.sigma_of(sigma, self.loss.own_labels(mu, seen))
        return Observation(image, seen, used, true_labels, inside > 0, changed, own_sigma)


def num_logits(cfg: CfgNode) -> int:
    """C: one logit for a binary task, else one for each class."""
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return 1 if classes == 2 else classes


def with_sigma_channels(cfg: CfgNode) -> CfgNode:
    """Return a config whose head has C + S output channels, logits and then spreads, not K."""
    logits = num_logits(cfg)
    spreads = logits if cfg.SMALLOBJ.UNCERTAINTY.FORM == "per_class" else 1
    wider = cfg.clone()
    wider.defrost()
    wider.MODEL.SEM_SEG_HEAD.NUM_CLASSES = logits + spreads
    return wider
