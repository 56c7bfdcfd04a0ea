"""Cross-entropy with learned label uncertainty (Neven et al., arXiv 2110.05926).

Beside each logit mu the network predicts a spread sigma >= 0. On pixels whose label may be wrong,
those inside boxes, the loss takes ``mu / sqrt(1 + pi sigma^2 / 8)``: about the logit of the mean
sigmoid of a normal variable (mu, sigma) (MacKay's approximation). With sigma = 0 it is the plain
cross-entropy; the larger sigma, the less the label counts. It is our reading of the abstract
(docs/method.md#label-uncertainty).

The two forms, the same for two classes:

- ``"per_class"``, the plain form: each logit is divided by the root of its own class's sigma;
- ``"object"``: only the logit of object against background, ``log sum_{c > 0} exp(mu_c) - mu_0``,
  is divided, by the root of one sigma. A box says for certain which class its object has, and only
  not which pixels the object covers. The rest of the cross-entropy, of the class among objects,
  keeps its value; its gradient is divided by the same root.

With sigma -> infinity no gradient is left; the loss is log K in the first form, and log 2 plus the
class's part in the second.

Shapes: N images, K classes (background included), C logits: K, or 1 in a binary task; S spreads:
C in the form ``"per_class"``, else 1; H, W label map; h, w logit map.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from d2_smallobj.losses.size_balanced import (
    SizeWeightedCrossEntropy,
    batch_size_weights,
    check_batch,
    resize_labels,
)
from d2_smallobj.utils.messages import look_up_option

SIGMA_FORMS = ("per_class", "object")
_FACTOR = math.sqrt(math.pi / 8)
_LARGEST = 1e37
"""Larger logits count as this, so that differences stay finite in float32."""


class UncertaintyCrossEntropy(SizeWeightedCrossEntropy):
    """Cross-entropy, size-weighted or not, with learned label uncertainty and bootstrapping.

    Without sigma it is its parent, so any head that calls ``loss(logits, labels)`` can hold it.

    Args:
        threshold: while bootstrapping, a box pixel takes the model's own label if that label's
            sigma is larger; in the unit of logits, > 0.
        form: one of :data:`SIGMA_FORMS`. With ``"object"`` the model's own label is the box's
            class or background, by the sign of its logit of object against background; with
            ``"per_class"`` it is the most probable class.
        min_object: while bootstrapping, a box in which the model sees an object on less than this
            share of the pixels, in [0, 1), keeps its labels, and they are certain: an object is
            there, and one that the model does not know yet must not be relabelled as background.
            0: no such rule.
        **options: those of the parent. All pixels of a box weigh as the box, also where labels
            change.

    Attributes:
        bootstrapping: whether labels are changed; the trainer sets it when the warm-up is over.

    Raises:
        ValueError: if an option is unknown or a number out of its range.
    """

    def __init__(
        self,
        *,
        threshold: float = 1.0,
        form: str = "per_class",
        min_object: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not threshold > 0:
            raise ValueError(f"threshold must be > 0, got {threshold!r}")
        if not 0 <= min_object < 1:
            raise ValueError(f"min_object must be in [0, 1), got {min_object!r}")
        self.threshold, self.min_object = threshold, min_object
        self.form = look_up_option("form", form, SIGMA_FORMS)
        self.bootstrapping = False

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        size_weights: Tensor | None = None,
        *,
        sigma_raw: Tensor | None = None,
        doubtable: Tensor | None = None,
        box_classes: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch.

        Args:
            logits: mu, (N, C, h, w), any float dtype.
            labels: int64 (N, H, W), 0..K-1 or ``ignore_label``.
            size_weights: of ``labels``; see the parent.
            sigma_raw: (N, S, h, w), any float dtype; sigma is its softplus. ``None``: all labels
                are certain.
            doubtable: (N, H, W), needed with ``sigma_raw``: bool, true where the label comes from
                a box; or int64, the number of that box in its image, 0 where the label is certain.
                With bool, all boxes of an image are one to ``min_object``.
            box_classes: int64 (N, H, W), bit c - 1 for each class c whose box covers the pixel.
                While bootstrapping, a box pixel with several takes the most probable of them.

        Returns:
            float32 scalar; 0 with zero gradients where every pixel is ignored.

        Raises:
            ValueError: a shape or dtype is wrong; see also the parent.
        """
        if sigma_raw is None:
            return super().forward(all_logits(logits), labels, size_weights)
        check_batch(all_logits(logits), labels, self.ignore_label)
        spreads = logits.shape[1] if self.form == "per_class" else 1
        shape = (len(logits), spreads, *logits.shape[2:])
        _check_sigma(shape, labels, sigma_raw, doubtable)
        assert doubtable is not None
        logits, labels, sigma, doubtable = self.aligned(logits, labels, sigma_raw, doubtable)
        uncertain = doubtable > 0
        if self.bootstrapping:
            # Weights of the boxes, not of what relabelling leaves of them: those pieces would count
            # most where the model is least sure. Pixels that become background keep the weight, or
            # the model would learn to call everything in a small box object.
            if size_weights is None and self.size_weighted:
                size_weights = batch_size_weights(labels, self.weights)
            labels, _, uncertain = self.bootstrap(logits, labels, sigma, doubtable, box_classes)
        return super().forward(soften(logits, sigma, uncertain, self.form), labels, size_weights)

    def aligned(
        self, logits: Tensor, labels: Tensor, sigma_raw: Tensor, doubtable: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bring logits (float32), labels, sigma >= 0 (float32) and boxes to the loss's size."""
        logits, sigma_raw = logits.float(), sigma_raw.float()
        size = tuple(logits.shape[-2:])
        if self.resolution == "logits":
            labels, doubtable = resize_labels(labels, size), resize_labels(doubtable, size)
        elif size != labels.shape[-2:]:
            logits, sigma_raw = (
                F.interpolate(x, labels.shape[-2:], mode="bilinear", align_corners=False)
                for x in (logits, sigma_raw)
            )
        return logits, labels, F.softplus(sigma_raw), doubtable

    @torch.no_grad()
    def bootstrap(
        self,
        logits: Tensor,
        labels: Tensor,
        sigma: Tensor,
        doubtable: Tensor,
        box_classes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Relabel the box pixels of large sigma with the model's own labels, which are certain.

        A box pixel of several classes (``box_classes``) first takes the most probable of them.
        Returns labels, int64 (N, H, W); where they were taken from the model, bool (N, H, W); and
        where sigma still counts, bool (N, H, W). Ignored pixels stay as they are.
        """
        labels = self.choose_classes(logits, labels, doubtable, box_classes)
        own = self.own_labels(logits, labels)
        inside = (doubtable > 0) & (labels != self.ignore_label)
        kept = torch.zeros_like(inside)
        if self.min_object > 0:
            kept = inside & _emptied(doubtable, inside, inside & (own == 0), self.min_object)
        changed = inside & ~kept & (self.sigma_of(sigma, own) > self.threshold)
        return torch.where(changed, own, labels), changed, inside & ~kept & ~changed

    @torch.no_grad()
    def choose_classes(
        self, logits: Tensor, labels: Tensor, doubtable: Tensor, box_classes: Tensor | None
    ) -> Tensor:
        """Give box pixels of several classes the most probable of them; returns the labels."""
        if box_classes is None:
            return labels
        if box_classes.shape != labels.shape:
            box_classes = resize_labels(box_classes, tuple(labels.shape[-2:]))
        scores = all_logits(logits)[:, 1:]
        bits = torch.arange(scores.shape[1], device=labels.device)[:, None, None]
        covered = (box_classes[:, None] >> bits) & 1 > 0
        best = scores.masked_fill(~covered, -math.inf).argmax(dim=1) + 1
        several = (covered.sum(dim=1) > 1) & (doubtable > 0) & (labels != self.ignore_label)
        return torch.where(several, best, labels)

    def own_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The model's own label of every pixel, int64 (N, H, W)."""
        scores = all_logits(logits)
        if self.form != "object":
            return scores.argmax(dim=1)
        labels = torch.where(labels != self.ignore_label, labels, 0)
        return torch.where(scores[:, 1:].logsumexp(dim=1) > scores[:, 0], labels, 0)

    def sigma_of(self, sigma: Tensor, classes: Tensor) -> Tensor:
        """The sigma (N, H, W) of the class int64 (N, H, W) of every pixel, from (N, S, H, W)."""
        return sigma[:, 0] if sigma.shape[1] == 1 else sigma.gather(1, classes[:, None])[:, 0]

    def extra_repr(self) -> str:
        """The options, for ``print(model)``."""
        return (
            f"{super().extra_repr()}, threshold={self.threshold}, form={self.form!r}, "
            f"min_object={self.min_object}, bootstrapping={self.bootstrapping}"
        )


def soften(
    logits: Tensor, sigma: Tensor, doubtable: Tensor | None = None, form: str = "per_class"
) -> Tensor:
    """Divide logits by what their sigma says.

    Args:
        logits: mu, (N, C, H, W), any float dtype.
        sigma: (N, S, H, W) >= 0.
        doubtable: bool (N, H, W); elsewhere sigma counts as 0. ``None``: everywhere.
        form: one of :data:`SIGMA_FORMS`.

    Returns:
        float32 (N, K, H, W). Their softmax is that of the logits wherever sigma counts as 0.
    """
    with torch.autocast(logits.device.type, enabled=False):
        # hypot, because the square of a large sigma would overflow and its gradient be NaN.
        spread = torch.hypot(torch.ones((), device=sigma.device), _FACTOR * sigma.float())
        if doubtable is not None:
            spread = torch.where(doubtable[:, None], spread, 1.0)
        mu = logits.float().clamp(-_LARGEST, _LARGEST)
        if form != "object":
            return all_logits(mu / spread)
        mu = all_logits(mu)
        background, objects = mu[:, :1], mu[:, 1:]
        any_object = objects.logsumexp(dim=1, keepdim=True)
        of_class = objects - any_object
        # The less the label counts here, the less it says about the class; and sigma must not
        # grow because of the class, which is certain.
        belief = (1 / spread).detach()
        of_class = belief * of_class + ((1 - belief) * of_class).detach()
        return all_logits((any_object - background) / spread, of_class)


def all_logits(logits: Tensor, of_class: Tensor | None = None) -> Tensor:
    """Return (N, K, ...) logits; a single one is that of objects, whose background's is 0.

    ``of_class`` (N, K - 1, ...) is the log probability of each class among objects.
    """
    if logits.shape[1] > 1:
        return logits
    objects = logits if of_class is None else logits + of_class
    return torch.cat([torch.zeros_like(logits), objects], dim=1)


def sigma_offset(sigma: float) -> float:
    """The number whose softplus is ``sigma`` (> 0): the bias that a sigma branch starts with."""
    return sigma + math.log(-math.expm1(-sigma))


def _emptied(doubtable: Tensor, inside: Tensor, lost: Tensor, least: float) -> Tensor:
    """The pixels of boxes of which less than the share ``least`` is not ``lost``: bool (N, H, W).

    Only the pixels ``inside`` count; ``lost`` are those of them that would be background.
    """
    number = doubtable.long()
    step = number.amax() + 1
    number = number + step * torch.arange(len(number), device=number.device)[:, None, None]
    pixels, gone = (
        torch.bincount(number[mask], minlength=int(step) * len(number)) for mask in (inside, lost)
    )
    return (pixels - gone < least * pixels)[number]


def _check_sigma(
    shape: tuple[int, ...], labels: Tensor, sigma_raw: Tensor, doubtable: Tensor | None
) -> None:
    """Check the tensors of label uncertainty; ``shape`` is that of the spreads."""
    if not sigma_raw.is_floating_point() or sigma_raw.shape != shape:
        raise ValueError(
            f"sigma_raw must be floating point of shape {shape}, got {sigma_raw.dtype} of shape "
            f"{tuple(sigma_raw.shape)}"
        )
    kinds = (torch.bool, torch.int64)
    if doubtable is None or doubtable.dtype not in kinds or doubtable.shape != labels.shape:
        got = doubtable if doubtable is None else (doubtable.dtype, tuple(doubtable.shape))
        raise ValueError(
            f"doubtable must be bool or int64 of the labels' shape {tuple(labels.shape)}, above 0 "
            f"on pixels labelled by a box, got {got}"
        )
