"""Log the losses, and turn NaN losses, dead workers and full disks into errors with advice."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import signal
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import distributed as dist

from d2_smallobj.utils.files import atomic_write_text
from d2_smallobj.utils.messages import listed
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage

NAN_FILE = "nan_batch.json"
_KEPT_KEYS = ("file_name", "sem_seg_file_name", "stream_position")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of gloo and of NCCL.
_LOST_PROCESS = re.compile(
    r"Connection (?:closed|reset) by peer|Broken pipe|Socket closed|ncclRemoteError|"
    r"remote process exited|Application timeout caused pair closure"
)
_PATIENCE = 3.0  # seconds
_STEPS_WITHOUT_LABELS = 20
# PyTorch's messages, of its allocators and of CUDA's libraries.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator: (?:can't allocate|not enough) memory|_STATUS_ALLOC_FAILED"
)
# PyTorch's three messages about a loader worker that died.
_DEAD_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) "
    r"(?:is killed by signal: ([^.]*)|exited unexpectedly(?: with exit code (\d+))?)"
)


@dataclasses.dataclass(frozen=True)
class Step:
    """The losses and samples of one optimiser step."""

    iteration: int
    names: tuple[str, ...]  # of the losses
    values: torch.Tensor  # float32, one a name, on the device
    data_time: float  # seconds that this process waited for data
    samples: list[dict[str, Any]]  # of this process's images: files and position in the stream


class LossLog:
    """Puts the losses, averaged over the processes, into the event storage of the main process.

    Reading a loss makes the host wait for all work of the device, so ``period`` steps are read at
    once, after iterations whose successor is a multiple of it; each loss is still logged under its
    own iteration. ``output_dir`` gets ``nan_batch.json`` if a loss is not finite.
    """

    def __init__(self, period: int = 1, output_dir: str | None = None) -> None:
        self.period = period
        self.output_dir = output_dir
        self._steps: list[Step] = []
        self._before: Step | None = None
        self._zeros = 0  # steps from the first on without any loss; -1: there was one

    def add(
        self,
        iteration: int,
        losses: Mapping[str, torch.Tensor],
        data_time: float,
        samples: list[dict[str, Any]],
    ) -> None:
        """Keep the losses of a step (0-d tensors on one device), and flush if it is time."""
        names = tuple(losses)
        if self._steps and names != self._steps[0].names:
            self.flush()
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        self._steps.append(Step(iteration, names, values, data_time, samples))
        if (iteration + 1) % self.period == 0:
            self.flush()

    def flush(self) -> None:
        """Read, log and check the kept losses. All processes must call it together.

        Raises:
            FloatingPointError: on every process, if a loss of any is not finite; names the
                iteration, and the main process saves which files were in the batch.
            ValueError: on every process, if no label has counted since the start.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        storage = get_event_storage()
        befores = [self._before, *steps]
        self._before = steps[-1]
        for before, step, (times, means) in zip(befores, steps, _read(steps)):
            if not math.isfinite(sum(means)):
                _stop_for_loss(step, before, means, self.output_dir)
            self._check_labels(step, sum(means))
            now = storage.iter
            storage.iter = step.iteration
            _put(storage, step, times, means)
            storage.iter = now

    def _check_labels(self, step: Step, loss: float) -> None:
        """Refuse to go on when every loss from the start on was 0."""
        if loss or self._zeros < 0:
            self._zeros = -1
            return
        self._zeros += 1
        if self._zeros == _STEPS_WITHOUT_LABELS:
            names = [x["sem_seg_file_name"] for x in step.samples if "sem_seg_file_name" in x]
            which = f" (e.g. of {listed(names, 2)})" if names else ""
            raise ValueError(
                f"the loss of the first {self._zeros} iterations was 0: all labels{which} are the "
                "ignore label (MODEL.SEM_SEG_HEAD.IGNORE_VALUE), so that nothing can be learned "
                "from DATASETS.TRAIN"
            )


def samples_of(batch: Sequence[Any]) -> list[dict[str, Any]]:
    """Return files and stream positions of a batch's images; nothing for samples not dicts."""
    return [
        {key: x[key] for key in _KEPT_KEYS if key in x} for x in batch if isinstance(x, Mapping)
    ]


def _read(steps: Sequence[Step]) -> list[tuple[float, list[float]]]:
    """Read for every step the longest wait for data and the mean losses over the processes."""
    means = torch.stack([step.values for step in steps])
    times = torch.tensor([step.data_time for step in steps], device=means.device)
    if comm.get_world_size() > 1:
        dist.all_reduce(means)
        means /= comm.get_world_size()
        dist.all_reduce(times, op=dist.ReduceOp.MAX)
    return list(zip(times.tolist(), means.tolist()))


def _put(storage: EventStorage, step: Step, data_time: float, means: Sequence[float]) -> None:
    """Log one step under the names that detectron2 uses."""
    storage.put_scalar("rank_data_time", step.data_time)
    if not comm.is_main_process():
        return
    storage.put_scalar("data_time", data_time)
    storage.put_scalar("total_loss", sum(means))
    if len(means) > 1:
        storage.put_scalars(**dict(zip(step.names, means)))


def _stop_for_loss(
    step: Step, before: Step | None, means: Sequence[float], output_dir: str | None
) -> None:
    """End the training because of a loss that is not finite; all processes call this together.

    The main one writes what each process had in that step and in the one before, whose gradient is
    the cause where all samples have finite losses by themselves.
    """
    losses = dict(zip(step.names, map(_readable, means)))
    ranks = comm.gather({"rank": comm.get_rank(), "step": _record(step), "before": _record(before)})
    message = f"the loss is not finite at iteration={step.iteration}: {losses}"
    if output_dir is not None:
        path = os.path.join(output_dir, NAN_FILE)
        where = f"the files of its batch are listed in {path}"
        if comm.is_main_process():
            report = {"iteration": step.iteration, "losses": losses, "processes": ranks}
            try:
                atomic_write_text(path, json.dumps(report, indent=2, allow_nan=False))
            except OSError as error:  # a full disk must not hide the NaN
                where = f"the list of its files is lost: {error}"
        message += (
            f"; {where}. No checkpoint was written since: look at those files, lower "
            "SOLVER.BASE_LR, or under SOLVER.AMP use SMALLOBJ.AMP_DTYPE bfloat16; then --resume"
        )
    raise FloatingPointError(message)


def _record(step: Step | None) -> dict[str, Any] | None:
    """Convert a step to JSON's types."""
    if step is None:
        return None
    losses = dict(zip(step.names, map(_readable, step.values.tolist())))
    return {"iteration": step.iteration, "losses": losses, "samples": step.samples}


def _readable(value: float) -> float | str:
    """Write NaN as a string: JSON has none."""
    return value if math.isfinite(value) else str(value)


@contextlib.contextmanager
def explained_errors(output_dir: str) -> Iterator[None]:
    """Raise errors that say what happened where the library underneath does not.

    - A write that names no file (a writer's flush to a full disk) becomes an ``OSError`` that
      names ``output_dir``.
    - A loader worker that died becomes a ``ChildProcessError`` that names it and its signal.
    - A lost connection to another process becomes a ``ConnectionError``, after a while: that
      process, which knows more, is to be the first that reports.
    - A device whose memory is used up becomes a ``MemoryError`` that names the keys to lower.
    """
    try:
        yield
    except (OSError, EOFError, RuntimeError) as error:
        explained = explain(error, output_dir)
        if explained is None:
            raise
        if isinstance(explained, ConnectionError):
            time.sleep(_PATIENCE)
        raise explained from error


def explain(error: BaseException, output_dir: str = "") -> OSError | MemoryError | None:
    """Make the error that says what has happened; None where ``error`` says it, or is a defect."""
    if isinstance(error, torch.cuda.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return MemoryError(explain_memory(error))
    message = explain_dead_worker(error)
    if message is not None:
        return ChildProcessError(message)
    if isinstance(error, RuntimeError) and _LOST_PROCESS.search(str(error)):
        return ConnectionError(
            f"another process of this training has ended or was killed, see what it wrote "
            f"({_first_line(error)}). --resume continues from the last checkpoint"
        )
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS and output_dir not in str(error):
        return OSError(error.errno, f"could not write to {output_dir}: {error.strerror}")
    return None


def _first_line(error: BaseException) -> str:
    return f"{(str(error).splitlines() or [''])[0]:.200}"


def explain_memory(error: BaseException) -> str:
    """Say in one line which keys to lower; ``error`` tells that a device's memory is used up."""
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    more = f" (when {wanted.group(1)} more were wanted)" if wanted else ""
    return (
        f"memory is used up{more}: lower SOLVER.IMS_PER_BATCH and raise SMALLOBJ.ACCUMULATE by the "
        "same factor, which leaves the step as it is; SMALLOBJ.SPEED.LOSS_IMAGES 1, "
        "SOLVER.AMP.ENABLED True and a smaller SMALLOBJ.CROP_SIZE need less, too (in an "
        "evaluation: lower SMALLOBJ.TEST.SCALES). --resume continues the run"
    )


def explain_dead_worker(error: BaseException) -> str | None:
    """Describe an error that a loader worker's death has caused; None for other errors.

    PyTorch notices it by a signal, or because the connection for batches breaks.
    """
    found = _DEAD_WORKER.search(str(error))
    if found is not None:
        who, killed_by, code = found.groups()
        how = f"was killed by signal {_signal_name(killed_by)}" if killed_by else _ending(code)
    elif isinstance(error, (ConnectionError, EOFError)):
        dead = [worker for worker in _workers_behind(error) if worker.exitcode]
        if not dead:
            return None
        who, code = dead[0].pid, dead[0].exitcode
        how = f"was killed by signal {signal.Signals(-code).name}" if code < 0 else _ending(code)
    else:
        return None
    return (
        f"the data-loading worker with process id {who} {how}. The usual cause is that memory "
        "(see dmesg), or /dev/shm in a container, was used up: use fewer DATALOADER.NUM_WORKERS "
        "(0 shows an error of the loading itself). --resume continues the run"
    )


def _ending(code: object) -> str:
    return "ended unexpectedly" if code is None else f"ended with exit code {code}"


def _workers_behind(error: BaseException) -> list[Any]:
    """Return the workers of the loader in whose iteration an error was raised."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        workers = getattr(frame.f_locals.get("self"), "_workers", None)
        if isinstance(workers, list) and workers:
            for worker in workers:
                worker.join(timeout=0.1)  # or its exit code is not known yet
            return workers
    return []


def _signal_name(text: str) -> str:
    """Put the name of a signal, which people search for, before PyTorch's description of it."""
    for number in signal.Signals:
        if signal.strsignal(number) == text:
            return f"{number.name} ({text})"
    return text
