"""Limit of the penalty's strength, above which SGD diverges (docs/method.md#stability).

On the penalty ``λ F (θ - θ*)²`` alone, whose curvature is ``h = 2 λ F``, the heavy-ball step
``v <- m v + h (θ - θ*); θ <- θ - lr v`` contracts while ``lr h < 2 (1 + m)``; Nesterov's while
``lr h < 2 (1 + m) / (1 + 2 m)`` (both from the Jury conditions of the two-by-two iteration).
The curvature of the loss itself adds to h, so the bound is necessary, not sufficient.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import torch

from d2_smallobj.losses.parameters import plain_name


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """What the stability of one optimiser group depends on.

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
    """Describe an SGD optimiser's groups by the names of the parameters in them.

    Args:
        optimizer: ``torch.optim.SGD`` or a subclass.
        named_parameters: the parameters that the penalty knows.

    Returns:
        One entry per group that holds at least one of them, at its present rate.

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
    """The value that ``lr * curvature`` must stay below.

    Args:
        momentum: in [0, 1).
        nesterov: whether momentum is Nesterov's.

    Raises:
        ValueError: if ``momentum`` is out of its range.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
    return 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)


def strength_limit(group: ParameterGroup, max_fisher: Mapping[str, float]) -> float:
    """The λ that a group's penalty must stay below; infinite where nothing can oscillate.

    Args:
        group: the optimiser group.
        max_fisher: plain parameter name to its largest Fisher value.

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
    """Refuse a λ at which plain SGD would diverge: ``lr * 2λ * max F >= 2 (1 + momentum)``.

    Args:
        strength: λ.
        groups: the optimiser's groups.
        max_fisher: plain parameter name to its largest Fisher value.

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
