"""What can go wrong in a training that is nobody's defect, said so that a person can act."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import signal
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from d2_smallobj.utils.files import atomic_write_text
from detectron2.utils import comm

if TYPE_CHECKING:
    from d2_smallobj.engine.loss_log import Step

NAN_FILE = "nan_batch.json"
SMALLEST_SCALE = 2.0**-24
"""Loss scale of float16 below which no scale will help; a run starts at 2^16."""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What PyTorch says of a loader worker that died, in its three forms.
_DEAD_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) "
    r"(?:is killed by signal: ([^.]*)|exited unexpectedly(?: with exit code (\d+))?)"
)


def stop_for_loss(
    step: Step, before: Step | None, means: Sequence[float], output_dir: str | None
) -> None:
    """End the training because of a loss that is not finite.

    All processes must call it together. The main one writes ``nan_batch.json``: the iteration,
    its mean losses, and of every process the losses and samples of that step and of the one
    before, whose gradient is the cause where the losses of all samples are fine by themselves.

    Args:
        step: the step of this process.
        before: the step before it.
        means: the losses, averaged over the processes.
        output_dir: where to write; None: nowhere.

    Raises:
        FloatingPointError: always; names the iteration, the losses and the file.
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
            except OSError as error:  # a full disk must not hide what happened
                where = f"the files of its batch are lost: {error}"
        message += (
            f"; {where}. No checkpoint was written since: look at those files, lower "
            "SOLVER.BASE_LR, or under SOLVER.AMP use SMALLOBJ.AMP_DTYPE bfloat16; then --resume"
        )
    raise FloatingPointError(message)


def _record(step: Step | None) -> dict[str, Any] | None:
    """A step in JSON's types."""
    if step is None:
        return None
    losses = dict(zip(step.names, map(_readable, step.values.tolist())))
    return {"iteration": step.iteration, "losses": losses, "samples": step.samples}


def _readable(value: float) -> float | str:
    """JSON has no NaN."""
    return value if math.isfinite(value) else str(value)


def check_loss_scale(scale: float, iteration: int) -> None:
    """Refuse to go on where float16 overflows whatever the loss is scaled by.

    A single overflow is no fault: that step is left out and the scale halved.

    Args:
        scale: of the gradient scaler.
        iteration: for the message.

    Raises:
        FloatingPointError: if the scale has fallen below :data:`SMALLEST_SCALE`.
    """
    if scale < SMALLEST_SCALE:
        raise FloatingPointError(
            f"float16 gradients overflow in every step up to iteration={iteration} (the loss scale "
            f"has fallen to {scale:g}), so nothing is learned: use SMALLOBJ.AMP_DTYPE bfloat16, or "
            "SOLVER.AMP.ENABLED False"
        )


@contextlib.contextmanager
def named_faults(output_dir: str) -> Iterator[None]:
    """Say what happened where the library underneath does not.

    - A write that names no file (a writer's flush to a full disk) becomes an ``OSError`` that
      names the folder.
    - A loader worker that died becomes a ``ChildProcessError`` that names it and its signal.

    Args:
        output_dir: the run's folder.
    """
    try:
        yield
    except (OSError, EOFError, RuntimeError) as error:
        message = dead_worker(error)
        if message is not None:
            raise ChildProcessError(message) from error
        number = getattr(error, "errno", None)
        if number not in _DISK_ERRORS or output_dir in str(error):
            raise
        raise OSError(number, f"could not write to {output_dir}: {error.strerror}") from error


def dead_worker(error: BaseException) -> str | None:
    """What to tell of an error that a loader worker's death has caused; None for others.

    PyTorch notices it in one of two ways: it is told by a signal, or the connection breaks over
    which it fetches a batch.
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
        f"the data-loading worker with process id {who} {how}. Mostly the memory was used up (see "
        "dmesg), in a container also /dev/shm: use fewer DATALOADER.NUM_WORKERS (0 shows an error "
        "of the loading itself). The run continues with --resume"
    )


def _ending(code: object) -> str:
    return "ended unexpectedly" if code is None else f"ended with exit code {code}"


def _workers_behind(error: BaseException) -> list[Any]:
    """The worker processes of the loader in whose iteration an error was raised."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        workers = getattr(frame.f_locals.get("self"), "_workers", None)
        if isinstance(workers, list) and workers:
            for worker in workers:
                worker.join(timeout=0.1)  # or its exit code is not known yet
            return workers
    return []


def _signal_name(text: str) -> str:
    """PyTorch gives the signal's description; its name is what people look for."""
    for number in signal.Signals:
        if signal.strsignal(number) == text:
            return f"{number.name} ({text})"
    return text
