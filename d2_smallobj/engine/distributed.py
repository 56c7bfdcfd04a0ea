"""Train with several processes so that they learn what one process would.

``torchrun`` and SLURM's ``srun`` start every process themselves and tell each its rank in
environment variables; without them detectron2's ``launch`` starts the processes of this machine.

With N processes ``SOLVER.IMS_PER_BATCH`` is still the whole batch, the rates are not scaled (unless
``SOLVER.REFERENCE_WORLD_SIZE`` says so), each process takes every N-th image of the one stream, and
the loss is divided by the weights of the batch of all processes (``SMALLOBJ.GLOBAL_DIVISOR``). With
frozen or group norms, weights, Fisher information and penalty are then those of one process up to
rounding; BatchNorm takes its statistics per process (SyncBN: over all).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from detectron2.config import CfgNode
from detectron2.engine import create_ddp_model, launch
from detectron2.utils import comm

_TIMEOUT = timedelta(minutes=30)  # how long processes wait for each other, as in detectron2
_NO_MEETING = re.compile(r"Dist(?:Network|Store)Error: (.*)")
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST")


def check_batch_size(cfg: CfgNode, processes: int) -> None:
    """Refuse a batch of all processes that does not divide among them; name sizes that do."""
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch >= 1 and batch % processes == 0:
        return
    near = sorted({max(batch // processes, 1) * processes, (batch // processes + 1) * processes})
    hint = "" if batch < 1 else f"; take {' or '.join(map(str, near))}, or other processes"
    raise ValueError(
        f"SOLVER.IMS_PER_BATCH must be a positive multiple of the number of processes "
        f"({processes}), got {batch}{hint}"
    )


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model on its device in DDP when there are several processes."""
    if comm.get_world_size() == 1:
        return model
    # Gradients lie in the buckets that are sent: one copy of them less.
    arguments: dict[str, Any] = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
    device = next(model.parameters()).device
    # The model's own, where detectron2 takes the number of the process: two may share a GPU.
    arguments["device_ids"] = None if device.type == "cpu" else [device.index]
    return create_ddp_model(model, **arguments)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DDP."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, in place; they must call this together."""
    dist.all_reduce(tensor)
    return tensor


def synchronize_buffers(model: nn.Module) -> None:
    """Give all processes the main one's buffers (BatchNorm statistics differ between them)."""
    if comm.get_world_size() == 1:
        return
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def from_main_process(function: Callable[[], Any]) -> Any:
    """Call a function on the main process and give all its result, or its ValueError or OSError."""
    result = error = None
    if comm.is_main_process():
        try:
            result = function()
        except (ValueError, OSError) as raised:
            error = raised
    if comm.get_world_size() > 1:
        box = [(result, error)]
        dist.broadcast_object_list(box, src=0)
        result, error = box[0]
    if error is not None:
        raise error
    return result


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of this process among all of a training."""

    launcher: str  # that started it
    rank: int
    world_size: int
    local_rank: int  # on its machine, also the index of its GPU
    local_size: int  # processes on each machine
    url: str  # where they meet


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Read the place of this process from the variables of ``torchrun`` or ``srun``.

    None if neither started it, or if it is the only one; a ``ValueError`` names a variable that is
    missing or makes no sense.
    """
    place = None
    if "RANK" in environment and "WORLD_SIZE" in environment:
        place = _torchrun_place(environment)
    elif "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        # Set for the tasks of an srun only: the script of an sbatch job is one process.
        place = _slurm_place(environment)
    if place is None or place.world_size == 1:
        return None
    if place.world_size % place.local_size or place.local_rank >= place.local_size:
        raise ValueError(
            f"{place.launcher}: every machine must run the same number of processes, got "
            f"{place.world_size} in all, {place.local_size} here, of which this is number "
            f"{place.local_rank}"
        )
    if not 0 <= place.rank < place.world_size:
        raise ValueError(
            f"{place.launcher}: the rank must be in 0..{place.world_size - 1}, got {place.rank}"
        )
    return place


def _torchrun_place(environment: Mapping[str, str]) -> Place:
    _require(environment, "torchrun", _TORCHRUN)
    address = f"tcp://{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    return Place(
        launcher="torchrun",
        rank=_integer(environment, "RANK"),
        world_size=_integer(environment, "WORLD_SIZE"),
        local_rank=_integer(environment, "LOCAL_RANK"),
        local_size=_integer(environment, "LOCAL_WORLD_SIZE"),
        # torchrun's agent may hold the port already, for all to meet at.
        url="env://" if "TORCHELASTIC_RUN_ID" in environment else address,
    )


def _slurm_place(environment: Mapping[str, str]) -> Place:
    _require(environment, "SLURM", _SLURM)
    world_size = _integer(environment, "SLURM_STEP_NUM_TASKS")
    # Jobs that share a machine meet at ports of their own.
    job, step = (int(environment.get(f"SLURM_{x}_ID", "0") or 0) for x in ("JOB", "STEP"))
    port = environment.get("MASTER_PORT", 20000 + (7 * job + step) % 20000)
    host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", str(world_size))
    found = re.fullmatch(r"(\d+)(?:\(x\d+\))?", tasks)  # "4" or "4(x2)"
    if found is None:
        raise ValueError(
            f"SLURM_STEP_TASKS_PER_NODE must be one number for all machines, got {tasks!r}: ask "
            "for --ntasks-per-node"
        )
    return Place(
        launcher="SLURM",
        rank=_integer(environment, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_integer(environment, "SLURM_LOCALID"),
        local_size=int(found.group(1)),
        url=f"tcp://{host}:{port}",
    )


def first_host(nodes: str) -> str:
    """Return the first name of SLURM's node list: ``gpu007`` of ``gpu[007-009,012],cpu1``."""
    found = re.match(r"([^\[\],]+)(?:\[(\w+)[\w,-]*\])?([^\[\],]*)(?:,|$)", nodes)
    name = "".join(part or "" for part in found.groups()) if found else ""
    if not name:
        raise ValueError(f"SLURM_STEP_NODELIST must be a list of machines, got {nodes!r}")
    return name


def _require(environment: Mapping[str, str], launcher: str, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in environment]
    if missing:
        raise ValueError(
            f"{launcher} sets {', '.join(names)}, of which {', '.join(missing)} is missing: start "
            "all processes with it, or unset the others"
        )


def _integer(environment: Mapping[str, str], name: str) -> int:
    if not environment[name].isdecimal():
        raise ValueError(f"{name} must be an integer >= 0, got {environment[name]!r}")
    return int(environment[name])


def run(
    main: Callable[[argparse.Namespace], Any],
    arguments: argparse.Namespace,
    check: Callable[[int], Any],
) -> None:
    """Call ``main(arguments)`` in every process of a training.

    Args:
        main: importable function.
        arguments: of ``detectron2.engine.default_argument_parser``. Their numbers of GPUs and
            machines count where neither torchrun nor SLURM has started the processes; with SLURM
            they win, for one task a machine.
        check: called with the number of processes, once and before anything else.

    Raises:
        ValueError: if both torchrun and the arguments ask for processes.
    """
    asked = arguments.num_gpus * arguments.num_machines
    place = find_place(os.environ)
    if place is not None and place.launcher == "torchrun" and asked > 1:
        raise ValueError(
            f"torchrun has started {place.world_size} processes: leave out --num-gpus and "
            f"--num-machines, got {arguments.num_gpus} and {arguments.num_machines}"
        )
    if place is not None and asked <= 1:
        with joined(place):
            _main_process_first(lambda: check(place.world_size))
            main(arguments)
        return
    check(asked)
    # The error below says it.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        launch(
            _run_and_leave,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(main, arguments),
        )
    except ProcessExitedException as error:
        raise ChildProcessError(
            f"{error}, and the others were ended. The usual cause is that memory (see dmesg) was "
            "used up. --resume continues from the last checkpoint"
        ) from error
    except ProcessRaisedException as error:
        found = _NO_MEETING.search(str(error))
        if found is None:
            raise
        raise _no_meeting(arguments.dist_url, found[1]) from error


def _no_meeting(url: str, reason: str) -> ConnectionError:
    return ConnectionError(f"the processes cannot meet at {url}: {reason:.300}")


def _run_and_leave(
    main: Callable[[argparse.Namespace], Any], arguments: argparse.Namespace
) -> None:
    main(arguments)
    # detectron2's launch does not leave the group, and a process that ends while gloo's threads
    # run sometimes aborts.
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def joined(place: Place) -> Iterator[None]:
    """Be one of several processes inside the block: nccl with GPUs, gloo without."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 < gpus <= place.local_rank:
        raise ValueError(
            f"{place.launcher} has started {place.local_size} processes on this machine, which "
            f"needs as many GPUs, got {gpus}"
        )
    if gpus:
        torch.cuda.set_device(place.local_rank)
    try:
        dist.init_process_group(
            "nccl" if gpus else "gloo",
            init_method=place.url,
            world_size=place.world_size,
            rank=place.rank,
            timeout=_TIMEOUT,
        )
    except RuntimeError as error:
        raise _no_meeting(place.url, str(error).partition("\n")[0]) from error
    comm.create_local_process_group(place.local_size)
    comm.synchronize()
    yield
    # Not after an error: the others may be waiting for this process elsewhere.
    comm.synchronize()
    dist.destroy_process_group()


def _main_process_first(check: Callable[[], Any]) -> None:
    """Let the main process check for all; where it fails, the others exit silently."""
    failed = [comm.is_main_process()]
    try:
        if comm.is_main_process():
            check()
            failed = [False]
    finally:
        dist.broadcast_object_list(failed, src=0)
    if failed[0]:
        sys.exit(1)
