"""Cross-entropy with learned label uncertainty (Neven et al., arXiv 2110.05926).

The form is a reading of the abstract: docs/method.md#label-uncertainty.

Beside each logit mu the network predicts a spread sigma >= 0. On pixels whose label may be wrong,
those inside boxes, the loss sees ``mu / sqrt(1 + pi sigma^2 / 8)``: about the logit of the mean
sigmoid of a normal variable (mu, sigma) (MacKay's approximation). With sigma = 0 it is the plain
cross-entropy; the larger sigma, the less the label says.

The three forms of doing so with more than two classes: :mod:`d2_smallobj.losses.softening`.

Shapes: N images, K classes (background included), C logits: K, or 1 in a binary task; S spreads:
C in the form ``"per_class"``, else 1; H, W label map; h, w logit map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from d2_smallobj.losses.size_balanced import (
    SizeWeightedCrossEntropy,
    batch_size_weights,
    check_batch,
    resize_labels,
)
from d2_smallobj.losses.size_weights import SizeWeights
from d2_smallobj.losses.softening import FORMS, all_logits, soften
from d2_smallobj.utils.options import look_up_option

MEASURES = ("label", "own", "largest", "mean")
RELABELLED = ("certain", "doubted")


class UncertaintyCrossEntropy(SizeWeightedCrossEntropy):
    """Cross-entropy, size-weighted or not, with learned label uncertainty and bootstrapping.

    Without sigma it is its parent, so any head that calls ``loss(logits, labels)`` can hold it.

    Args:
        threshold: a box pixel whose sigma is larger takes the model's own label, in the unit of
            logits, > 0.
        form: one of :data:`FORMS`. With ``"object"`` the model's own label is the box's class or
            background, whichever side its logit of object against background is on; with the
            others it is the most probable class.
        measure: which sigma of a pixel is compared: that of its ``"label"``, that of the model's
            ``"own"`` label there, the ``"largest"``, or the ``"mean"`` over classes. With one
            sigma a pixel they are the same.
        penalty: weight, >= 0, of the mean sigma of doubted pixels, which is added to the loss. 0
            is the plain form; more makes doubt cost something where it explains nothing.
        min_object: while bootstrapping, a box in which the model itself sees an object on less
            than this share of the pixels, in [0, 1), keeps its labels, and they are certain: an
            object is there, and one that the model does not know yet must not be relabelled as
            background. 0: no such rule.
        relabelled: the model's own label is then ``"certain"`` (sigma counts as 0), or goes on
            being ``"doubted"``.
        ignore_label: as in the parent, like the next four.
        resolution: where the loss is taken.
        normalize: divisor of the summed loss.
        weights: the rule of size weights. All pixels of a box weigh as the box, also
            where labels change.
        size_weighted: initial value of the switch.

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
        measure: str = "own",
        penalty: float = 0.0,
        min_object: float = 0.0,
        relabelled: str = "certain",
        ignore_label: int = 255,
        resolution: str = "input",
        normalize: str = "weights",
        weights: SizeWeights | None = None,
        size_weighted: bool = False,
    ) -> None:
        super().__init__(
            ignore_label=ignore_label,
            resolution=resolution,
            normalize=normalize,
            weights=weights,
            size_weighted=size_weighted,
        )
        if not threshold > 0:
            raise ValueError(f"threshold must be > 0, got {threshold!r}")
        if not 0 <= penalty < math.inf:
            raise ValueError(f"penalty must be a finite number >= 0, got {penalty!r}")
        if not 0 <= min_object < 1:
            raise ValueError(f"min_object must be in [0, 1), got {min_object!r}")
        self.threshold, self.min_object = threshold, min_object
        self.form = look_up_option("form", form, FORMS)
        self.penalty = penalty
        self.measure = look_up_option("measure", measure, MEASURES)
        self.relabelled = look_up_option("relabelled", relabelled, RELABELLED)
        self.bootstrapping = False

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        size_weights: Tensor | Mapping[tuple[int, int], Tensor] | None = None,
        *,
        sigma_raw: Tensor | None = None,
        doubtable: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch.

        Args:
            logits: mu, (N, C, h, w), any float dtype.
            labels: int64 (N, H, W), 0..K-1 or ``ignore_label``.
            size_weights: of ``labels``; see the parent.
            sigma_raw: (N, S, h, w), any float dtype; sigma is its softplus. ``None``: no doubt.
            doubtable: (N, H, W), needed with ``sigma_raw``: bool, true where the label comes from
                a box; or int64, the number of that box in its image, 0 where the label is certain.
                With bool, all boxes of an image are one to ``min_object``.

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
        _check_doubt(shape, labels, sigma_raw, doubtable)
        logits, labels, sigma, doubtable = self.aligned(logits, labels, sigma_raw, doubtable)
        doubted = doubtable > 0
        if self.bootstrapping:
            size_weights = self._weights_of_boxes(labels, size_weights)
            labels, _, doubted = self.bootstrap(logits, labels, sigma, doubtable)
        softened = soften(logits, sigma, doubted, self.form)
        loss = super().forward(softened, labels, size_weights)
        if self.penalty == 0:
            return loss
        valid = labels != self.ignore_label
        spread = (sigma.mean(dim=1) * (doubted & valid)).sum() / valid.sum().clamp(min=1)
        return loss + self.penalty * spread

    def aligned(
        self, logits: Tensor, labels: Tensor, sigma_raw: Tensor, doubtable: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bring logits, labels, sigma and the map of boxes to the loss's resolution.

        Returns:
            logits float32 (N, C, H', W'), labels (N, H', W'), sigma float32 >= 0 (N, S, H', W'),
            doubtable (N, H', W').
        """
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
        self, logits: Tensor, labels: Tensor, sigma: Tensor, doubtable: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Relabel the box pixels that the model doubts with its own labels.

        Args:
            logits: (N, C, H, W).
            labels: int64 (N, H, W).
            sigma: (N, S, H, W).
            doubtable: bool or int64 (N, H, W), see :meth:`forward`.

        Returns:
            labels, int64 (N, H, W); where they were taken from the model, bool (N, H, W); and
            where sigma still counts, bool (N, H, W). Ignored pixels stay as they are.
        """
        own = self.own_labels(logits, labels)
        inside = (doubtable > 0) & (labels != self.ignore_label)
        kept = torch.zeros_like(inside)
        if self.min_object > 0:
            kept = inside & emptied(doubtable, inside, inside & (own == 0), self.min_object)
        changed = inside & ~kept & (self.doubt(sigma, labels, own) > self.threshold)
        certain = kept | changed if self.relabelled == "certain" else kept
        return torch.where(changed, own, labels), changed, inside & ~certain

    def _weights_of_boxes(
        self, labels: Tensor, size_weights: Tensor | Mapping[tuple[int, int], Tensor] | None
    ) -> Tensor | dict[tuple[int, int], Tensor] | None:
        """The size weights of labels before they are bootstrapped, for the labels after it.

        A box tells how large its object is; the pieces that relabelling leaves for a while would
        count most where the model is least sure. What becomes background keeps its box's weight:
        if only objects weighed more, the model would call everything in a small box object, and
        take that for its label.
        """
        size = (labels.shape[-2], labels.shape[-1])
        if isinstance(size_weights, Mapping):
            size_weights = size_weights.get(size)
        if size_weights is None and self.size_weighted:
            size_weights = batch_size_weights(labels, self.weights)
        if size_weights is None or self.resolution == "input":
            return size_weights
        return {size: size_weights}

    def own_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The model's own label of every pixel, int64 (N, H, W)."""
        scores = all_logits(logits)
        if self.form != "object":
            return scores.argmax(dim=1)
        labels = torch.where(labels != self.ignore_label, labels, 0)
        return torch.where(scores[:, 1:].logsumexp(dim=1) > scores[:, 0], labels, 0)

    def doubt(self, sigma: Tensor, labels: Tensor, own: Tensor) -> Tensor:
        """The sigma of every pixel that the threshold is compared with: (N, H, W).

        Args:
            sigma: (N, S, H, W).
            labels: int64 (N, H, W).
            own: int64 (N, H, W), the model's own labels.
        """
        if sigma.shape[1] == 1:
            return sigma[:, 0]
        if self.measure == "largest":
            return sigma.amax(dim=1)
        if self.measure == "mean":
            return sigma.mean(dim=1)
        classes = torch.where(labels != self.ignore_label, labels, 0)
        classes = classes if self.measure == "label" else own
        return sigma.gather(1, classes[:, None])[:, 0]

    def extra_repr(self) -> str:
        """The options, for ``print(model)``."""
        return (
            f"{super().extra_repr()}, threshold={self.threshold}, form={self.form!r}, "
            f"measure={self.measure!r}, penalty={self.penalty}, min_object={self.min_object}, "
            f"relabelled={self.relabelled!r}, bootstrapping={self.bootstrapping}"
        )


def emptied(doubtable: Tensor, inside: Tensor, lost: Tensor, least: float) -> Tensor:
    """Where the boxes are that would keep too little of their object: bool (N, H, W).

    Args:
        doubtable: bool or int64 (N, H, W), numbers of boxes, 0 outside.
        inside: bool (N, H, W), the pixels that count.
        lost: bool (N, H, W), those of them that would be background.
        least: share of a box's pixels that must stay.
    """
    number = doubtable.long()
    step = number.amax() + 1
    number = number + step * torch.arange(len(number), device=number.device)[:, None, None]
    pixels, gone = (
        torch.bincount(number[mask], minlength=int(step) * len(number)) for mask in (inside, lost)
    )
    return (pixels - gone < least * pixels)[number]


def _check_doubt(
    shape: tuple[int, ...], labels: Tensor, sigma_raw: Tensor, doubtable: Tensor | None
) -> None:
    """Check what the parent does not know of; ``shape`` is that of the spreads."""
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
