"""Arithmetic of the EWC penalty ``λ Σ F (θ - θ*)²`` and the largest stable λ (paper, Eq. 5).

The penalty's functions take lists of tensors of one length: ``parameters`` (θ), ``anchor`` (θ*)
and ``fisher`` (F >= 0), tensor by tensor of one shape and memory format. They handle the tensors
in runs of bounded size (:func:`~.parameters.chunks`) and never wait for the device.

The limit (docs/method.md#stability): on the penalty alone, whose curvature is ``h = 2 λ F``, the
heavy-ball step ``v <- m v + h (θ - θ*); θ <- θ - lr v`` contracts while ``lr h < 2 (1 + m)``,
Nesterov's while ``lr h < 2 (1 + m) / (1 + 2 m)`` (Jury conditions of the two-by-two iteration).
The loss adds its own curvature to h, so the limit is necessary, not sufficient.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from d2_smallobj.losses.parameters import chunks, plain_name


def differentiable_penalty(
    parameters: Sequence[Tensor], anchor: Sequence[Tensor], fisher: Sequence[Tensor]
) -> Tensor:
    """Return ``Σ F (θ - θ*)²`` with its autograd graph, a float32 scalar."""
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
    """Return ``Σ F (θ - θ*)²`` without a graph, a float32 scalar, and add its gradient.

    ``add_gradient * F (θ - θ*)`` is added to every ``.grad`` (created where missing); ``None``
    leaves them alone.
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
    """Set θ to ``(θ + c F θ*) / (1 + c F)`` in place, c >= 0 being the factor of each tensor.

    That minimises ``F (θ' - θ*)² c / 2 + (θ' - θ)² / 2``: an implicit Euler step of the penalty
    with ``c = 2 λ lr``.
    """
    for part in chunks(anchor):
        # θ + c F (θ* - θ) / (1 + c F), not the quotient as printed: θ = θ* stays put exactly.
        pull = torch._foreach_sub(anchor[part], parameters[part])
        torch._foreach_mul_(pull, fisher[part])
        divisor = torch._foreach_mul(fisher[part], factors[part])
        torch._foreach_add_(divisor, 1.0)
        torch._foreach_addcdiv_(parameters[part], pull, divisor, factors[part])


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """Values that decide the largest stable λ of one optimiser group.

    Attributes:
        name: for messages, e.g. ``"group 0 (backbone.stem.conv1.weight and 103 more)"``.
        learning_rate: the largest rate the group has from now on, >= 0.
        parameters: plain names of its parameters that the penalty knows.
        momentum: in [0, 1).
        nesterov: whether momentum is Nesterov's.
    """

    name: str
    learning_rate: float
    parameters: tuple[str, ...]
    momentum: float = 0.0
    nesterov: bool = False


def optimizer_groups(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.Tensor]]
) -> list[ParameterGroup]:
    """Describe the groups of an SGD optimiser that hold penalised parameters, at present rates.

    Raises:
        ValueError: if a parameter is in no group.
        TypeError: if a group has no ``momentum``: the bound is SGD's.
    """
    name_of = {id(parameter): plain_name(name) for name, parameter in named_parameters}
    groups = []
    for index, group in enumerate(optimizer.param_groups):
        names = tuple(name_of.pop(id(p)) for p in group["params"] if id(p) in name_of)
        if not names:
            continue
        if "momentum" not in group:
            raise TypeError(
                f"optimizer must be SGD, whose stability bound is known, got "
                f"{type(optimizer).__name__}; use the proximal step, which needs no bound"
            )
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        groups.append(
            ParameterGroup(
                name=f"group {index} ({names[0]}{more})",
                learning_rate=float(group["lr"]),
                parameters=names,
                momentum=float(group["momentum"]),
                nesterov=bool(group.get("nesterov", False)),
            )
        )
    if name_of:
        some = ", ".join(sorted(name_of.values())[:3])
        raise ValueError(
            f"optimizer does not move {len(name_of)} of the penalised parameters ({some}, ...); "
            "build the penalty from optimized_parameters(model.named_parameters(), optimizer)"
        )
    return groups


def rate_limit(momentum: float, *, nesterov: bool = False) -> float:
    """Return the value that ``lr * curvature`` must stay below.

    Raises:
        ValueError: if ``momentum`` is not in [0, 1).
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
    return 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)


def strength_limit(group: ParameterGroup, max_fisher: Mapping[str, float]) -> float:
    """Return the λ that a group's penalty must stay below: ``(1 + momentum) / (lr max F)``.

    It is infinite if no parameter of the group both moves and is held.

    Raises:
        ValueError: if the group's rate or momentum is out of its range.
    """
    limit = rate_limit(group.momentum, nesterov=group.nesterov)
    rate = group.learning_rate
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"learning rate of {group.name} must be finite and >= 0, got {rate!r}")
    curvature = 2 * rate * max((max_fisher[name] for name in group.parameters), default=0.0)
    return limit / curvature if curvature > 0 else math.inf


def check_strength(
    strength: float, groups: Iterable[ParameterGroup], max_fisher: Mapping[str, float]
) -> None:
    """Refuse a λ (``strength``) at which SGD would diverge: ``lr 2λ max F >= 2 (1 + momentum)``.

    Raises:
        ValueError: naming the first such group, its rate, its largest Fisher value and the
            largest λ that all groups allow.
    """
    groups = list(groups)
    limits = [strength_limit(group, max_fisher) for group in groups]
    for group, limit in zip(groups, limits):
        if strength >= limit:
            largest = max(max_fisher[name] for name in group.parameters)
            raise ValueError(
                f"strength {strength:g} makes the penalty unstable in {group.name}: learning rate "
                f"{group.learning_rate:g} and max F {largest:g} give lr * 2 * strength * max F = "
                f"{2 * group.learning_rate * strength * largest:g}, which must stay below "
                f"{rate_limit(group.momentum, nesterov=group.nesterov):g} at momentum "
                f"{group.momentum:g}. Use a strength below {min(limits):g}, a smaller rate, or the "
                "proximal step, which is stable for every strength"
            )
