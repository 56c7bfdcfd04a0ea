"""Parameters of the EWC penalty ``λ Σ F (θ - θ*)²``, its arithmetic, and the largest stable λ.

Paper, Eq. 5. Parameters have names that do not depend on what wraps the model. The arithmetic
takes lists of tensors of one length: ``parameters`` (θ), ``anchor`` (θ*) and ``fisher`` (F >= 0),
of the same shapes and memory formats; it never waits for the device.

The limit (docs/method.md#stability): on the penalty alone, whose curvature is ``h = 2 λ F``, the
heavy-ball step ``v <- m v + h (θ - θ*); θ <- θ - lr v`` contracts while ``lr h < 2 (1 + m)``,
Nesterov's while ``lr h < 2 (1 + m) / (1 + 2 m)`` (Jury conditions of the two-by-two iteration).
The loss adds its own curvature to h, so the limit is necessary, not sufficient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

# Elements handled at once by the passes over all parameters, which bounds their scratch memory: few
# enough for a CPU's cache; on a GPU enough that launching kernels costs nothing beside them.
_CHUNK = 1 << 20
_GPU_CHUNK = 1 << 24


def plain_name(name: str) -> str:
    """Name a parameter as the bare model does: without leading ``module.`` and any ``_orig_mod.``.

    DistributedDataParallel adds the one and ``torch.compile`` the other. Without this an anchor
    taken from a wrapped model never matches the bare one (the authors' penalty is then always 0).
    """
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def trained_parameters(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
) -> dict[str, nn.Parameter]:
    """Keep the parameters that require a gradient, by plain name; refuse one that comes twice."""
    kept: dict[str, nn.Parameter] = {}
    name_of: dict[int, str] = {}
    for full_name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        name = plain_name(full_name)
        if name in kept:
            raise ValueError(f"named_parameters: two parameters are called {name!r}")
        if id(parameter) in name_of:
            raise ValueError(
                f"named_parameters: {name_of[id(parameter)]!r} and {name!r} are one parameter; "
                "give it once"
            )
        kept[name] = parameter
        name_of[id(parameter)] = name
    if not kept:
        raise ValueError("named_parameters holds no parameter that requires a gradient, got 0")
    return kept


def optimized_parameters(
    named_parameters: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> list[tuple[str, nn.Parameter]]:
    """Keep the named parameters that are in one of the optimiser's groups."""
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, parameter) for name, parameter in named_parameters if id(parameter) in moved]


def match_tensors(
    argument: str,
    given: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    *,
    copy: bool = True,
) -> list[Tensor]:
    """Order named tensors as the parameters, in their memory format and :func:`state_dtype`.

    ``argument`` is the name of ``given``, for messages; ``copy`` copies always, rather than only
    where device, dtype or memory format differ.
    """
    given = {plain_name(name): tensor for name, tensor in given.items()}
    missing = [name for name in parameters if name not in given]
    unknown = [name for name in given if name not in parameters]
    if missing or unknown:
        raise ValueError(
            f"{argument}: names do not match the model's {len(parameters)} trained tensors; "
            f"missing {missing[:3]} ({len(missing)}), unknown {unknown[:3]} ({len(unknown)})"
        )
    matched = []
    for name, parameter in parameters.items():
        tensor = given[name].detach()
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"{argument}: {name} must have shape {tuple(parameter.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
        matched.append(_as_state(tensor, parameter, copy=copy))
    return matched


def _as_state(tensor: Tensor, parameter: nn.Parameter, *, copy: bool) -> Tensor:
    """``tensor`` with the parameter's device and memory format, in :func:`state_dtype`."""
    wanted = torch.empty_like(parameter, dtype=state_dtype(parameter), device="meta")
    same = tensor.device == parameter.device and tensor.dtype == wanted.dtype
    if same and not copy and tensor.stride() == wanted.stride():
        return tensor
    # PyTorch handles lists of tensors at once only where their memory formats agree.
    return torch.empty_like(parameter, dtype=wanted.dtype).copy_(tensor).detach()


def match_rates(names: Sequence[str], learning_rates: Mapping[str, float]) -> list[float]:
    """Return one rate >= 0 per plain name."""
    given = {plain_name(name): float(rate) for name, rate in learning_rates.items()}
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(
            f"learning_rates: none for {missing[:3]} ({len(missing)} of {len(names)} names)"
        )
    for name in names:
        if not (math.isfinite(given[name]) and given[name] >= 0):
            raise ValueError(f"learning_rates: {name} must be finite and >= 0, got {given[name]!r}")
    return [given[name] for name in names]


def state_dtype(parameter: Tensor) -> torch.dtype:
    """The dtype that Fisher and anchor of a parameter are kept in: float32 at least."""
    return torch.promote_types(parameter.dtype, torch.float32)


def chunks(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Cut a list of tensors into runs of bounded size, of one tensor at least."""
    limit = _GPU_CHUNK if len(tensors) and tensors[0].is_cuda else _CHUNK
    start, elements = 0, 0
    for index, tensor in enumerate(tensors):
        if index > start and elements + tensor.numel() > limit:
            yield slice(start, index)
            start, elements = index, 0
        elements += tensor.numel()
    if start < len(tensors):
        yield slice(start, len(tensors))


@torch.no_grad()
def penalty(
    parameters: list[Tensor],
    anchor: list[Tensor],
    fisher: list[Tensor],
    *,
    add_gradient: float | None = None,
    compiled: bool = False,
) -> Tensor:
    """Return ``Σ F (θ - θ*)²`` without a graph, a float32 scalar, and add its gradient.

    ``add_gradient * F (θ - θ*)`` is added to every ``.grad`` (created where missing); ``None``
    leaves them alone. ``compiled`` reads every tensor once (torch.compile); it rounds otherwise.
    """
    if compiled:
        gradients = None if add_gradient is None else [_gradient(p) for p in parameters]
        run = compiled_pass(_penalty_pass)
        return run(parameters, gradients, anchor, fisher, add_gradient or 0.0)
    terms = []
    for part in chunks(anchor):
        moved = parameters[part]
        difference = torch._foreach_sub(moved, anchor[part])
        if add_gradient is not None:
            gradients = [_gradient(parameter) for parameter in moved]
            torch._foreach_addcmul_(gradients, difference, fisher[part], add_gradient)
        # Squared in place: fresh memory costs a CPU more than the arithmetic.
        torch._foreach_mul_(difference, difference)
        torch._foreach_mul_(difference, fisher[part])
        # Summed as one vector: PyTorch's sum is pairwise, its norms of lists lose digits on a CPU.
        terms.append(torch.cat([_elements(d) for d in difference]).sum().float())
    return torch.stack(terms).sum()


def _gradient(parameter: Tensor) -> Tensor:
    """The ``.grad`` of a parameter, made where it is missing."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


@functools.cache
def compiled_pass(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a pass over all parameters, whose shapes stay the same, on its first call."""
    return torch.compile(function, dynamic=False)


def _penalty_pass(
    parameters: list[Tensor],
    gradients: list[Tensor] | None,
    anchor: list[Tensor],
    fisher: list[Tensor],
    factor: float,
) -> Tensor:
    """What :func:`penalty` does, as one expression a tensor."""
    terms = []
    for index, (parameter, centre, f) in enumerate(zip(parameters, anchor, fisher)):
        moved = parameter - centre
        pull = f * moved
        if gradients is not None:
            gradients[index].add_(pull, alpha=factor)
        terms.append((pull * moved).sum().float())
    return torch.stack(terms).sum()


def _elements(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor as they lie in memory; ``flatten`` copies channels-last."""
    return tensor.as_strided((tensor.numel(),), (1,))


@torch.no_grad()
def proximal_step_(
    parameters: list[Tensor],
    anchor: list[Tensor],
    fisher: list[Tensor],
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


def rate_limit(momentum: float, *, nesterov: bool = False) -> float:
    """Return the value that ``lr * curvature`` must stay below; ``momentum`` is in [0, 1)."""
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
    return 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)


def check_strength(
    strength: float,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    max_fisher: Mapping[str, float],
) -> None:
    """Refuse a λ (``strength``) at which SGD would diverge: ``lr 2λ max F >= 2 (1 + momentum)``.

    ``parameters`` are the penalised ones; the optimiser must move them all.
    """
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    limits: list[float] = []
    unstable: list[str] = []
    for index, group in enumerate(optimizer.param_groups):
        names = [name_of.pop(id(p)) for p in group["params"] if id(p) in name_of]
        if not names:
            continue
        if "momentum" not in group:
            raise TypeError(
                f"optimizer must be SGD, whose stability bound is known, got "
                f"{type(optimizer).__name__}; use the proximal step, which needs no bound"
            )
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        where = f"group {index} ({names[0]}{more})"
        rate, momentum = float(group["lr"]), float(group["momentum"])
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(f"learning rate of {where} must be finite and >= 0, got {rate!r}")
        bound = rate_limit(momentum, nesterov=bool(group["nesterov"]))
        largest = max(max_fisher[name] for name in names)
        # No limit where no parameter of the group both moves and is held.
        limits.append(bound / (2 * rate * largest) if rate * largest > 0 else math.inf)
        if strength >= limits[-1]:
            unstable.append(
                f"strength {strength:g} makes the penalty unstable in {where}: learning rate "
                f"{rate:g} and max F {largest:g} give lr * 2 * strength * max F = "
                f"{2 * rate * strength * largest:g}, which must stay below {bound:g} at momentum "
                f"{momentum:g}"
            )
    if name_of:
        some = ", ".join(sorted(name_of.values())[:3])
        raise ValueError(
            f"optimizer does not move {len(name_of)} of the penalised parameters ({some}, ...); "
            "build the penalty from optimized_parameters(model.named_parameters(), optimizer)"
        )
    if unstable:
        raise ValueError(
            f"{unstable[0]}. Use a strength below {min(limits):g}, a smaller rate, or the "
            "proximal step, which is stable for every strength"
        )
