"""Size-weighted cross-entropy, the segmentation part of the size-balanced loss (paper, Eq. 4).

Shapes: N images, K classes, H, W label map, h, w logit map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from d2_smallobj.losses.size_weights import SizeWeights, check_ignore_label
from d2_smallobj.utils.messages import look_up_option

RESOLUTIONS = ("input", "logits")
NORMALIZATIONS = ("weights", "pixels")


def size_weighted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ignore_label: int = 255,
    normalize: str = "weights",
    global_divisor: bool = False,
) -> Tensor:
    """Weighted mean of ``-log p`` over the valid pixels of a batch (paper, Eq. 4).

    Args:
        logits: (N, K, H, W), any float dtype; taken to float32, under autocast as well.
        labels: int64 (N, H, W), 0..K-1 or ``ignore_label``. Values are checked on the CPU only:
            on a GPU the check would wait for the device, and PyTorch asserts there by itself.
        weights: (N, H, W) >= 0, or ``None`` for 1 everywhere, which is plain cross-entropy.
            Weights on ignored pixels are taken as 0.
        ignore_label: label of the pixels to leave out.
        normalize: ``"weights"`` divides by the sum of the weights (the authors' code);
            ``"pixels"`` by the number of valid pixels (Eq. 4 as printed).
        global_divisor: average that divisor over the processes of a distributed training. The mean
            of the processes' losses, and of their gradients, is then that of one process with all
            images, however many pixels of each are ignored. All processes must compute every loss
            together.

    Returns:
        float32 scalar. A batch without a valid pixel gives 0 with zero gradients, not NaN.

    Raises:
        ValueError: if a shape or dtype is wrong, ``normalize`` is unknown, or (CPU) a label is out
            of range.
    """
    look_up_option("normalize", normalize, NORMALIZATIONS)
    check_batch(logits, labels, ignore_label)
    if logits.shape[-2:] != labels.shape[-2:]:
        raise ValueError(
            f"logits and labels must have one size, got {tuple(logits.shape[-2:])} and "
            f"{tuple(labels.shape[-2:])}; resize one of them first"
        )
    check_weights(weights, labels)
    options: dict[str, Any] = {"normalize": normalize, "global_divisor": global_divisor}
    return _weighted_mean(logits, labels, weights, ignore_label=ignore_label, **options)


def _weighted_mean(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    *,
    ignore_label: int,
    normalize: str,
    global_divisor: bool,
    images: int = 0,
) -> Tensor:
    """:func:`size_weighted_cross_entropy` of checked arguments.

    With ``images`` > 0 the logits are of another size, and resized for that many images at once.
    """
    valid = labels != ignore_label
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        if weights is not None:
            weights = weights.float() * valid
        if images:
            loss = ResizedCrossEntropySum.apply(logits, labels, weights, ignore_label, images)
        else:
            loss = _weighted_sum(logits, labels, weights, ignore_label)
        divisor = (valid if weights is None or normalize == "pixels" else weights).sum()
        if global_divisor:
            # In double precision: pixels are counted exactly beyond float32's 2^24.
            divisor = mean_over_processes(divisor.double()).float()
        # Without a valid pixel the sum is 0, and any divisor but 0 keeps it so. torch.where
        # instead of a comparison in Python, which would wait for the device.
        return loss / torch.where(divisor > 0, divisor, torch.ones_like(divisor))


def _weighted_sum(
    logits: Tensor, labels: Tensor, weights: Tensor | None, ignore_label: int
) -> Tensor:
    """Sum of ``-log p``, weighted by (N, H, W) that are 0 on ignored pixels."""
    if weights is None:
        return F.cross_entropy(logits, labels, ignore_index=ignore_label, reduction="sum")
    loss = F.cross_entropy(logits, labels, ignore_index=ignore_label, reduction="none")
    return (weights * loss).sum()


class ResizedCrossEntropySum(torch.autograd.Function):
    """Sum of ``-log p`` over pixels, of logits that never exist at the labels' size all at once.

    ``apply(logits, labels, weights, ignore_label, images)`` resizes (bilinear) the logits
    (N, K, h, w) of ``images`` images, sums their loss and takes its gradient, then goes on to the
    next ones. Kept for the backward pass is that gradient alone, (N, K, h, w): memory is that of
    ``images`` images at (H, W), not of N, and nothing is computed twice. Differs from the plain
    way by rounding: images are summed one after the other, and the gradient is multiplied by what
    comes from above at the end. Can be differentiated once.

    ``labels`` are int64 (N, H, W); ``weights`` (N, H, W), 0 on ignored pixels, or ``None``.
    """

    @staticmethod
    def forward(  # type: ignore[override]  # the arguments have names here
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        ignore_label: int,
        images: int,
    ) -> Tensor:
        """Return the sum, 0-d."""
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = logits.new_zeros(())
        for start in range(0, len(logits), images):
            part = slice(start, start + images)
            with torch.set_grad_enabled(gradient is not None):
                x = logits[part].detach().requires_grad_(gradient is not None)
                large = _resize(x, labels.shape[-2:])
                shares = None if weights is None else weights[part]
                loss = _weighted_sum(large, labels[part], shares, ignore_label)
            del large
            if gradient is not None:
                gradient[part] = torch.autograd.grad(loss, x)[0]
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the logits."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0], None, None, None, None


def _resize(logits: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


class SizeWeightedCrossEntropy(nn.Module):
    """:func:`size_weighted_cross_entropy` with its options, for any semantic head.

    Args:
        ignore_label: see :func:`size_weighted_cross_entropy`.
        normalize: the same.
        global_divisor: the same.
        resolution: ``"input"``: logits are upsampled to the label map (bilinear,
            ``align_corners=False``), so that the smallest objects count. ``"logits"``: labels are
            resized to the logit map (:func:`resize_labels`) and weighed there, as the authors do
            for multi-scale training; objects under about the stride vanish.
        weights: the rule for weights that are computed here; ``None`` for the paper's.
        size_weighted: ``False`` gives plain cross-entropy, ``True`` the size-weighted one. The
            trainer sets the attribute from the iteration; it is not in the state dict.
        images_at_once: upsample the logits of that many images at once
            (:class:`ResizedCrossEntropySum`), >= 1; 0: of all.

    Raises:
        ValueError: if an option is unknown, ``images_at_once`` is below 0, or ``weights`` has
            another ignore label.
    """

    def __init__(
        self,
        *,
        ignore_label: int = 255,
        resolution: str = "input",
        normalize: str = "weights",
        weights: SizeWeights | None = None,
        size_weighted: bool = False,
        global_divisor: bool = False,
        images_at_once: int = 0,
    ) -> None:
        super().__init__()
        if images_at_once < 0:
            raise ValueError(f"images_at_once must be >= 0, got {images_at_once!r}")
        check_ignore_label(ignore_label)
        self.ignore_label = ignore_label
        self.resolution = look_up_option("resolution", resolution, RESOLUTIONS)
        self.normalize = look_up_option("normalize", normalize, NORMALIZATIONS)
        self.weights = SizeWeights(ignore_label=ignore_label) if weights is None else weights
        if self.weights.ignore_label != ignore_label:
            raise ValueError(
                f"weights.ignore_label must be the loss's ignore_label {ignore_label}, "
                f"got {self.weights.ignore_label}"
            )
        self.size_weighted = size_weighted
        self.global_divisor = global_divisor
        self.images_at_once = images_at_once

    def forward(self, logits: Tensor, labels: Tensor, size_weights: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch.

        Args:
            logits: (N, K, h, w), any float dtype.
            labels: int64 (N, H, W), 0..K-1 or ``ignore_label``.
            size_weights: float (N, H, W), for the ``resolution`` ``"logits"`` (N, h, w) made from
                :func:`resize_labels`; used if ``size_weighted``. ``None`` computes them here,
                which is slow on a GPU: labels travel to the CPU and the device waits.

        Returns:
            float32 scalar; 0 with zero gradients where every pixel is ignored.

        Raises:
            ValueError: see :func:`size_weighted_cross_entropy`.
        """
        check_batch(logits, labels, self.ignore_label)
        images = 0
        if self.resolution == "logits":
            labels = resize_labels(labels, tuple(logits.shape[-2:]))
        elif logits.shape[-2:] != labels.shape[-2:]:
            images = self.images_at_once
            if not images:
                # Widened first: interpolation between half-precision logits would round them.
                logits = _resize(logits.float(), labels.shape[-2:])
        if not self.size_weighted:
            size_weights = None
        elif size_weights is None:
            size_weights = batch_size_weights(labels, self.weights)
        check_weights(size_weights, labels)
        return _weighted_mean(
            logits,
            labels,
            size_weights,
            ignore_label=self.ignore_label,
            normalize=self.normalize,
            global_divisor=self.global_divisor,
            images=images,
        )

    def extra_repr(self) -> str:
        """The options, for ``print(model)``."""
        return (
            f"resolution={self.resolution!r}, normalize={self.normalize!r}, "
            f"size_weighted={self.size_weighted}, weights={self.weights}, "
            f"images_at_once={self.images_at_once}"
        )


def batch_size_weights(labels: Tensor, weights: SizeWeights) -> Tensor:
    """Weigh label maps (N, H, W) on the CPU, a GPU waits: float32 (N, H, W) on their device."""
    maps = labels.detach().cpu().numpy()
    result = torch.empty(labels.shape, dtype=torch.float32)
    for row, label_map in zip(result, maps):
        row.copy_(torch.from_numpy(weights(label_map)))
    return result.to(labels.device)


def resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize label maps (N, H, W) to (N, h, w) by the nearest pixel, centres aligned.

    Output pixel i takes input pixel ``floor((i + 1/2) * H / h)``, computed in integers: PyTorch's
    ``"nearest-exact"``, and at the recipe's sizes (321 to 41, 21, 31) PIL's NEAREST, the authors'.
    """
    height, width = labels.shape[-2:]
    rows = _nearest(height, size[0], labels.device)
    columns = _nearest(width, size[1], labels.device)
    return labels[:, rows[:, None], columns]


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Average a tensor without gradient over all processes, which must call it together."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    dist.all_reduce(tensor)
    return tensor / dist.get_world_size()


def _nearest(source: int, target: int, device: torch.device) -> Tensor:
    centres = torch.arange(target, device=device) * 2 + 1
    return centres.mul_(source).div_(2 * target, rounding_mode="floor")


def check_weights(weights: Tensor | None, labels: Tensor) -> None:
    """Check the shape of size weights."""
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(
            f"weights must have the labels' shape {tuple(labels.shape)}, got {tuple(weights.shape)}"
        )


def check_batch(logits: Tensor, labels: Tensor, ignore_label: int) -> None:
    """Check shapes and dtypes, and on the CPU the labels' values."""
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point of shape (N, K, h, w), "
            f"got {logits.dtype} of shape {tuple(logits.shape)}"
        )
    if labels.ndim != 3 or labels.dtype != torch.int64 or len(labels) != len(logits):
        raise ValueError(
            f"labels must be int64 of shape ({len(logits)}, H, W), "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if labels.device.type != "cpu":
        return
    classes = logits.shape[1]
    wrong = labels[((labels < 0) | (labels >= classes)) & (labels != ignore_label)]
    if wrong.numel():
        values = sorted(set(wrong.tolist()))[:5]
        raise ValueError(
            f"labels must be 0..{classes - 1} or the ignore label {ignore_label}, got "
            f"{', '.join(map(str, values))}; check the label files and the number of classes"
        )
