"""Logits softened by a spread: the forms of learned label uncertainty.

With a spread sigma, ``mu / sqrt(1 + pi sigma^2 / 8)`` is about the logit of the mean sigmoid of a
normal variable (mu, sigma) (MacKay's approximation). With more than two classes there are three
forms, which are one and the same for two:

- ``"per_class"``, the plain form (docs/method.md#label-uncertainty): each logit is divided by the
  root of its own class's sigma;
- ``"shared"``: all logits by that of one sigma;
- ``"object"``: only the logit of object against background, ``log sum_{c > 0} exp(mu_c) - mu_0``,
  by that of one sigma. A box says for certain which class its object has; what may be doubted is
  whether the object covers a pixel. The rest of the cross-entropy, of the class among objects,
  keeps its value; its gradient is divided by the same root.

With sigma -> infinity no gradient is left; the loss is log K in the first two forms, and log 2 and
the class's part in the third.

Shapes: N images, K classes (background included), C logits: K, or 1 in a binary task; S spreads:
C in the form ``"per_class"``, else 1; H, W map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FORMS = ("per_class", "shared", "object")
_FACTOR = math.sqrt(math.pi / 8)
_LARGEST = 1e37
"""Logits count as this at most, so that differences stay finite in float32."""


def soften(
    logits: Tensor, sigma: Tensor, doubtable: Tensor | None = None, form: str = "per_class"
) -> Tensor:
    """The logits that the loss sees.

    Args:
        logits: mu, (N, C, H, W), any float dtype.
        sigma: (N, S, H, W) >= 0.
        doubtable: bool (N, H, W); elsewhere sigma counts as 0. ``None``: everywhere.
        form: one of :data:`FORMS`.

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
        # As much as the label is doubted here, as little says it about the class; and sigma must
        # not grow because of the class, which is certain.
        belief = (1 / spread).detach()
        of_class = belief * of_class + ((1 - belief) * of_class).detach()
        return all_logits((any_object - background) / spread, of_class)


def all_logits(logits: Tensor, of_class: Tensor | None = None) -> Tensor:
    """(N, K, ...) logits; a single one is that of objects, whose background's is 0.

    Args:
        logits: (N, C, ...). The softmax of (0, mu) is the sigmoid of mu, so that both kinds of
            tasks go through one cross-entropy.
        of_class: (N, K - 1, ...), log probability of each class among objects, with one logit.
    """
    if logits.shape[1] > 1:
        return logits
    objects = logits if of_class is None else logits + of_class
    return torch.cat([torch.zeros_like(logits), objects], dim=1)


def sigma_offset(sigma: float) -> float:
    """The number whose softplus is ``sigma`` (> 0): the bias that a sigma branch starts with."""
    return sigma + math.log(-math.expm1(-sigma))
