"""Trained parameters under names that do not depend on what wraps the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

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
    """Keep the parameters that require a gradient, by plain name, in the given order.

    Raises:
        ValueError: if two parameters get one name, one parameter has two names, or none is left.
    """
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
    """Order named tensors as the parameters, on their devices.

    Args:
        argument: name of ``given``, for messages.
        given: parameter name (a wrapper's is fine) to tensor.
        parameters: plain name to parameter.
        copy: always copy, rather than only where device, dtype or memory format differ.

    Returns:
        One tensor per parameter, in :func:`state_dtype` and the parameter's memory format.

    Raises:
        ValueError: if a name is missing or unknown, or a shape differs.
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


def match_rates(
    names: Sequence[str], learning_rates: Mapping[str, float] | Sequence[float]
) -> list[float]:
    """Return one learning rate per plain name.

    Args:
        names: plain parameter names.
        learning_rates: by parameter name (others may be there too), or in the order of ``names``.

    Raises:
        ValueError: if a rate is missing, negative or not finite, or a sequence has another length.
    """
    if isinstance(learning_rates, Mapping):
        given = {plain_name(name): rate for name, rate in learning_rates.items()}
        missing = [name for name in names if name not in given]
        if missing:
            raise ValueError(
                f"learning_rates: none for {missing[:3]} ({len(missing)} of {len(names)} names)"
            )
        rates = [given[name] for name in names]
    else:
        rates = list(learning_rates)
        if len(rates) != len(names):
            raise ValueError(f"learning_rates must have {len(names)} entries, got {len(rates)}")
    for name, rate in zip(names, rates):
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(f"learning_rates: {name} must be finite and >= 0, got {rate!r}")
    return [float(rate) for rate in rates]


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
