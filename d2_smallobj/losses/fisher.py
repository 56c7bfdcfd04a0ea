"""The two estimates of the diagonal Fisher information (docs/method.md#fisher-information).

Both square gradients of the *mean* negative log-likelihood over valid pixels, the loss of the
training. The online estimate squares the gradient of a batch: its raw size falls as batches grow,
and only its normalised form is used. The empirical one squares the gradient of every image. With
the likelihood summed over pixels it would be (number of pixels)² times as large: the penalty's
strength is meant for the mean.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from d2_smallobj.losses.ewc_penalty import (
    chunks,
    compiled_pass,
    state_dtype,
    trained_parameters,
)

Batch = TypeVar("Batch")
FISHER_ESTIMATORS = ("online", "empirical")

# Layers whose behaviour in training depends on the other images, or on chance: log p of one image
# is only defined with these as at inference.
_STOCHASTIC = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.modules.dropout._DropoutNd,
)


def update_online_(
    fisher: list[Tensor],
    gradients: Sequence[Tensor | None],
    *,
    alpha: float,
    scale: float,
    compiled: bool = False,
) -> Tensor:
    """Move the online estimate on by one batch: ``F <- alpha * g² + (1 - alpha) * F``, in place.

    ``gradients`` are g times ``scale``, ``None`` counts as zero. Returns, without waiting for the
    device, a 0-d bool tensor: true if they are finite. If not, ``fisher`` stays as it is: one
    infinity, from an overflow in half precision, would never leave it. ``compiled`` takes two
    passes (torch.compile), and rounds otherwise.
    """
    if compiled:
        known = [None if g is None else g.detach() for g in gradients]
        return compiled_pass(_online_pass)(fisher, known, alpha, alpha / (scale * scale))
    # Half-precision gradients are widened first: their squares would underflow.
    wide = [None if g is None else g.detach().to(f.dtype) for f, g in zip(fisher, gradients)]
    finite = _finite([g for g in wide if g is not None], fisher[0].device)
    factor = alpha / (scale * scale)
    keep = 1 - alpha * finite.double()
    for part in chunks(fisher):
        torch._foreach_mul_(fisher[part], keep.to(fisher[part.start].dtype))
        pairs = [(f, g) for f, g in zip(fisher[part], wide[part]) if g is not None]
        if pairs:
            targets, values = [f for f, _ in pairs], _zero_unless(finite, [g for _, g in pairs])
            torch._foreach_addcmul_(targets, values, values, factor)
    return finite


def _online_pass(
    fisher: list[Tensor], gradients: list[Tensor | None], alpha: float, factor: float
) -> Tensor:
    """What :func:`update_online_` does, as two expressions a tensor."""
    wide = [None if g is None else g.to(f.dtype) for f, g in zip(fisher, gradients)]
    sums = [g.square().sum().float() for g in wide if g is not None]
    finite = torch.ones((), dtype=torch.bool, device=fisher[0].device)
    if sums:
        finite = torch.isfinite(torch.stack(sums)).all()
    for f, g in zip(fisher, wide):
        updated = (1 - alpha) * f
        if g is not None:
            updated = updated + factor * g * g
        f.copy_(torch.where(finite, updated, f))
    return finite


def _zero_unless(condition: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the tensors, or zeros, by a 0-d bool on the device.

    The bits are multiplied by 1 or 0, as integers: 0 times NaN is NaN for floats only.
    """
    integers = {4: torch.int32, 8: torch.int64}
    bits = [tensor.view(integers[tensor.element_size()]) for tensor in tensors]
    kept = torch._foreach_mul(bits, condition.to(bits[0].dtype))
    return [bit.view(tensor.dtype) for bit, tensor in zip(kept, tensors)]


def normalize_min_max_(fisher: Sequence[Tensor]) -> None:
    """Bring every tensor to [0, 1] by itself, in place: ``(F - min) / (max - min + 1e-8)``.

    A tensor of one value becomes 0: it is not anchored.
    """
    for tensor in fisher:
        low, high = torch.aminmax(tensor)
        tensor.sub_(low).div_(high - low + 1e-8)


def check_fisher(fisher: Mapping[str, Tensor]) -> None:
    """Refuse an estimate with negative or non-finite values; waits for the device once."""
    good = torch.stack([torch.isfinite(t).all() & (t >= 0).all() for t in fisher.values()])
    for (name, tensor), fine in zip(fisher.items(), good.tolist()):
        if not fine:
            low, high = torch.aminmax(tensor)
            raise ValueError(
                f"fisher: values of {name} must be finite and >= 0, got a range of "
                f"{low.item():g} to {high.item():g}"
            )


def empirical_fisher(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: Callable[[Batch], Tensor],
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Mean over images of the squared per-image gradient of log p, at the present weights.

    "Empirical" because log p is taken at the data set's labels, not at labels drawn from the
    model. Batch normalisation uses its running statistics and dropout is off meanwhile, so that an
    image's likelihood depends on that image alone; every other module keeps its mode
    (detectron2's models return losses in training mode only). Gradients, modes and buffers are
    left as they were.

    Args:
        model: the bare model; under DistributedDataParallel its ``.module``, whose gradients do
            not enter the reducer.
        batches: one image each. Read once, to the end: limit it to the K images wanted.
        loss_fn: batch of one image to its mean negative log-likelihood over the valid pixels (the
            plain cross-entropy), a scalar that depends on the parameters.
        named_parameters: those that do not require a gradient are left out.
        reduce: sums a tensor over processes and returns it (a mean over them works too). Applied
            to every sum of squares and to the image count, so the processes may hold different
            numbers of images.

    Returns:
        Plain parameter name to tensor >= 0, shaped as the parameter, float32 or wider.

    Raises:
        ValueError: if there is no image, a loss is not a scalar that depends on the parameters,
            or a gradient is not finite.
    """
    parameters = trained_parameters(named_parameters)
    sums = {name: torch.zeros_like(p, dtype=state_dtype(p)) for name, p in parameters.items()}
    images = 0
    with _per_image_mode(model), torch.enable_grad():
        for batch in batches:
            _add_squared_gradient(loss_fn(batch), parameters, sums, images)
            images += 1
    # A tensor on the parameters' device, so that one collective serves it and the sums.
    count = torch.tensor(float(images), device=next(iter(sums.values())).device)
    if reduce is not None:
        sums = {name: reduce(tensor) for name, tensor in sums.items()}
        count = reduce(count)
    if not count > 0:
        raise ValueError("batches must hold at least one image, got 0")
    return {name: tensor.div_(count.to(tensor.dtype)) for name, tensor in sums.items()}


def _add_squared_gradient(
    loss: Tensor, parameters: dict[str, nn.Parameter], sums: dict[str, Tensor], image: int
) -> None:
    """Add the squared gradient of one image's loss to ``sums``, leaving ``.grad`` alone."""
    is_scalar = isinstance(loss, Tensor) and loss.numel() == 1
    gradients: Sequence[Tensor | None] = ()
    if is_scalar and loss.requires_grad:
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    pairs = [(s, g.to(s.dtype)) for s, g in zip(sums.values(), gradients) if g is not None]
    if not pairs:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        got = "one that depends on none of them" if is_scalar else shape
        raise ValueError(
            "loss_fn must return a scalar tensor that depends on the parameters; for image "
            f"{image} got {got}"
        )
    targets, values = [s for s, _ in pairs], [g for _, g in pairs]
    if not _finite(values, values[0].device):
        raise ValueError(
            f"batches: the gradient of image {image} is not finite, its loss is {loss.item()}; "
            "check that image and its labels, and run without mixed precision"
        )
    torch._foreach_addcmul_(targets, values, values)


def _finite(gradients: list[Tensor], device: torch.device) -> Tensor:
    """0-d bool on ``device``: true if the squares of the gradients are finite."""
    if not gradients:
        return torch.ones((), dtype=torch.bool, device=device)
    # Euclidean norms, not maxima: an order of magnitude faster on the CPU, and infinite exactly
    # where squares are, too.
    norms = torch._foreach_norm(gradients, 2)
    return torch.isfinite(torch.stack([norm.float() for norm in norms])).all()


@contextlib.contextmanager
def _per_image_mode(model: nn.Module) -> Iterator[None]:
    """Run the stochastic layers as at inference; put modes and buffers back afterwards."""
    training = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        for module, _ in training:
            if isinstance(module, _STOCHASTIC):
                module.training = False
        yield
    finally:
        for module, mode in training:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
