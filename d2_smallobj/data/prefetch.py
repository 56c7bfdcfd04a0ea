"""Moving batches to a GPU while it computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch


class DeviceLoader:
    """A loader whose batches arrive on the device.

    The host runs ahead of a GPU. So a batch that it takes while the GPU still works on the step
    before is copied, from page-locked memory and on a stream of its own, beside that work.

    Args:
        loader: batches of any nesting of dicts, lists and tensors; pin their memory, or the host
            waits for every copy.
        device: where they go.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device) -> None:
        self.loader = loader
        self.device = device

    def __iter__(self) -> Iterator[Any]:
        """Yield the loader's batches, their tensors on the device."""
        if self.device.type != "cuda":
            for batch in self.loader:
                yield to_device(batch, self.device)
            return
        copying = torch.cuda.Stream(self.device)
        for batch in self.loader:
            with torch.cuda.stream(copying):
                moved = to_device(batch, self.device)
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(copying)
            for tensor in tensors_of(moved):
                # Or its memory would be free for the next copy while the step still reads it.
                tensor.record_stream(computing)
            yield moved


def to_device(data: Any, device: torch.device) -> Any:
    """Copy the tensors in nested dicts, lists and tuples to a device; the host does not wait."""
    if isinstance(data, torch.Tensor):
        return data.to(device, non_blocking=True)
    if isinstance(data, Mapping):
        return {key: to_device(value, device) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(to_device(value, device) for value in data)
    return data


def tensors_of(data: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested dicts, lists and tuples."""
    if isinstance(data, torch.Tensor):
        yield data
        return
    inside = data.values() if isinstance(data, Mapping) else data
    for value in inside if isinstance(data, (Mapping, list, tuple)) else ():
        yield from tensors_of(value)
