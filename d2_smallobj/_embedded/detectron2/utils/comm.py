"""Communication between the processes of one training; all of it is a no-op for one process."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import distributed as dist

_local_group: dist.ProcessGroup | None = None


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _initialized() else 1


def get_rank() -> int:
    """Return the global rank of this process."""
    return dist.get_rank() if _initialized() else 0


def is_main_process() -> bool:
    """Return whether this is rank 0."""
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Create the groups of processes that share a machine; every process must call it."""
    global _local_group
    mine = get_rank() // num_workers_per_machine
    for machine in range(get_world_size() // num_workers_per_machine):
        first = machine * num_workers_per_machine
        # Every process takes part in the creation of every group, its own or not.
        group = dist.new_group(list(range(first, first + num_workers_per_machine)))
        if machine == mine:
            _local_group = group


def get_local_rank() -> int:
    """Return the rank of this process among those on its machine.

    Raises:
        RuntimeError: if there are several and ``create_local_process_group`` was not called.
    """
    if not _initialized():
        return 0
    if _local_group is None:
        raise RuntimeError("no group of this machine's processes: start them with launch()")
    return dist.get_rank(group=_local_group)


def synchronize() -> None:
    """Wait until every process has come here."""
    if get_world_size() > 1:
        on_gpu = dist.get_backend() == "nccl"
        dist.barrier(device_ids=[torch.cuda.current_device()] if on_gpu else None)


@functools.lru_cache(maxsize=1)
def _cpu_group() -> dist.ProcessGroup:
    # Objects travel over gloo, so that gathering results takes no GPU memory.
    return dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else dist.group.WORLD


def gather(data: Any, dst: int = 0) -> list[Any]:
    """Return the picklable ``data`` of every rank on rank ``dst``, an empty list elsewhere."""
    if get_world_size() == 1:
        return [data]
    gathered: list[Any] | None = [None] * get_world_size() if get_rank() == dst else None
    dist.gather_object(data, gathered, dst, group=_cpu_group())
    return gathered or []
