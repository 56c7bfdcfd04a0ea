"""Starting the processes of a training."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing as mp

from d2_smallobj import _host
from detectron2.utils import comm

_TIMEOUT = timedelta(minutes=30)  # how long processes wait for each other


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
) -> None:
    """Run ``main_func(*args)`` in this process, or in several that form one process group.

    Call it on each of the machines. The processes have one GPU each where there are GPUs (nccl),
    else they share the CPU (gloo); they meet at ``dist_url``, ``tcp://host:port`` or, on one
    machine, "auto": a free port.
    """
    if num_machines * num_gpus_per_machine <= 1:
        main_func(*args)
        return
    if dist_url is None or (dist_url == "auto" and num_machines > 1):
        raise ValueError(
            f"dist_url: {num_machines} machine(s) need 'tcp://host:port' (or 'auto' on one), "
            f"got {dist_url!r}"
        )
    gpus = torch.cuda.device_count()
    if 0 < gpus < num_gpus_per_machine:
        raise ValueError(
            f"num_gpus_per_machine: this machine has {gpus} GPU(s), got {num_gpus_per_machine}"
        )
    if dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    group = (num_machines, num_gpus_per_machine, machine_rank, dist_url)
    # Spawned processes unpickle their target before importing anything of ours: see call_in_child.
    mp.start_processes(
        _host.call_in_child,
        nprocs=num_gpus_per_machine,
        args=(f"{__name__}:{_worker.__name__}", main_func, args, *group),
        daemon=False,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _worker(
    local_rank: int,
    main_func: Callable[..., Any],
    args: tuple,
    machines: int,
    processes: int,
    machine_rank: int,
    dist_url: str,
) -> None:
    """Join the process group and run the function; ``processes`` is their number per machine."""
    on_gpu = torch.cuda.is_available()
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=dist_url,
        world_size=machines * processes,
        rank=machine_rank * processes + local_rank,
        timeout=_TIMEOUT,
    )
    comm.create_local_process_group(processes)
    if on_gpu:
        torch.cuda.set_device(local_rank)
    comm.synchronize()
    main_func(*args)
    # A process that ends with gloo's threads running aborts now and then on a busy machine.
    if dist.is_initialized():
        dist.destroy_process_group()
