"""The arithmetic of the penalty ``λ Σ F (θ - θ*)²`` on lists of tensors (paper, Eq. 5).

Every function takes ``parameters`` (θ), ``anchor`` (θ*) and ``fisher`` (F): lists of one length,
tensor by tensor of one shape and memory format; F >= 0. They handle the tensors in bounded runs
(:func:`~.parameters.chunks`), each with a few operations for the whole run instead of some for
every tensor, and never wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d2_smallobj.losses.parameters import chunks


def differentiable_penalty(
    parameters: Sequence[Tensor], anchor: Sequence[Tensor], fisher: Sequence[Tensor]
) -> Tensor:
    """``Σ F (θ - θ*)²`` with its autograd graph, float32 scalar."""
    triples = zip(parameters, anchor, fisher)
    return torch.stack([(f * (p - a) ** 2).sum().float() for p, a, f in triples]).sum()


@torch.no_grad()
def penalty(
    parameters: Sequence[Tensor],
    anchor: Sequence[Tensor],
    fisher: Sequence[Tensor],
    *,
    add_gradient: float | None = None,
) -> Tensor:
    """``Σ F (θ - θ*)²`` without a graph, and on the way its gradient.

    Args:
        parameters: θ.
        anchor: θ*.
        fisher: F.
        add_gradient: adds ``add_gradient * F (θ - θ*)`` to every ``.grad`` (created where
            missing); ``None`` leaves them alone.

    Returns:
        float32 scalar.
    """
    terms = []
    for part in chunks(anchor):
        moved = parameters[part]
        difference = torch._foreach_sub(moved, anchor[part])
        if add_gradient is not None:
            for parameter in moved:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in moved]
            torch._foreach_addcmul_(gradients, difference, fisher[part], add_gradient)
        # Squared in place: fresh memory costs a CPU more than the arithmetic.
        torch._foreach_mul_(difference, difference)
        torch._foreach_mul_(difference, fisher[part])
        # Summed as one vector: PyTorch's sum is pairwise, its norms of lists lose digits on a CPU.
        terms.append(torch.cat([_elements(d) for d in difference]).sum().float())
    return torch.stack(terms).sum()


def _elements(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor as they lie in memory; ``flatten`` copies channels-last."""
    return tensor.as_strided((tensor.numel(),), (1,))


@torch.no_grad()
def proximal_step_(
    parameters: Sequence[Tensor],
    anchor: Sequence[Tensor],
    fisher: Sequence[Tensor],
    factors: list[float],
) -> None:
    """Set θ to ``(θ + c F θ*) / (1 + c F)`` in place.

    That is the minimiser of ``F (θ' - θ*)² c / 2 + (θ' - θ)² / 2``: an implicit Euler step of the
    penalty with ``c = 2 λ lr``.

    Args:
        parameters: θ.
        anchor: θ*.
        fisher: F.
        factors: c >= 0, one per tensor, as a list.
    """
    for part in chunks(anchor):
        # θ + c F (θ* - θ) / (1 + c F), not the quotient as printed: θ = θ* stays put exactly.
        pull = torch._foreach_sub(anchor[part], parameters[part])
        torch._foreach_mul_(pull, fisher[part])
        divisor = torch._foreach_mul(fisher[part], factors[part])
        torch._foreach_add_(divisor, 1.0)
        torch._foreach_addcdiv_(parameters[part], pull, divisor, factors[part])
