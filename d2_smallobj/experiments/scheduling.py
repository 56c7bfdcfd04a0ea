"""Run many processes, several at once, each with its share of the machine."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from d2_smallobj.utils.messages import itemized


@dataclasses.dataclass(frozen=True)
class Resources:
    """The share of the machine that one run gets.

    ``threads`` are those of each of its processes; ``devices`` its GPUs as ``CUDA_VISIBLE_DEVICES``
    names them, empty: as the machine has them.
    """

    threads: int
    devices: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """Return this process's environment, restricted to these resources."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.devices)
        return environment


@dataclasses.dataclass(frozen=True)
class Job:
    """Something to run.

    ``run`` is called with its resources, and raises RuntimeError, OSError or ValueError when it
    fails; ``after`` is the name of a job that must have succeeded before.
    """

    name: str
    run: Callable[[Resources], None]
    after: str | None = None


def visible_devices() -> list[str]:
    """List the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [name.strip() for name in named.split(",")][: torch.cuda.device_count()]


def divide_machine(
    jobs: int | None, *, num_gpus: int = 1, devices: Sequence[str] = ()
) -> list[Resources]:
    """Divide the machine among runs.

    Args:
        jobs: runs at once; None: one for every ``num_gpus`` GPUs, one where there is none. More
            than there are groups of GPUs share them.
        num_gpus: GPUs of one run, >= 1.
        devices: all GPUs.

    Raises:
        ValueError: if ``jobs`` or ``num_gpus`` is below 1, or one run needs more GPUs than there
            are.
    """
    for name, value in (("jobs", jobs), ("num-gpus", num_gpus)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be >= 1, got {value}")
    if devices and num_gpus > len(devices):
        raise ValueError(
            f"--num-gpus {num_gpus} for one run, but {len(devices)} GPU(s) can be used: "
            f"{', '.join(devices)}"
        )
    starts = range(0, len(devices) - num_gpus + 1, num_gpus) if devices else ()
    groups = [tuple(devices[start : start + num_gpus]) for start in starts] or [()]
    count = jobs or len(groups)
    threads = max(1, (os.cpu_count() or 1) // count)
    return [Resources(threads, groups[number % len(groups)]) for number in range(count)]


def run_jobs(
    jobs: Sequence[Job], shares: Sequence[Resources], *, progress: tqdm | None = None
) -> None:
    """Run all jobs in order, as many at once as there are shares of the machine.

    A failed job stops only those that come after it.

    Args:
        jobs: with unique names.
        shares: at least one.
        progress: updated by 1 for every job that succeeds.

    Raises:
        RuntimeError: after all jobs that can run; lists the failures.
    """
    waiting, free = list(jobs), list(shares)
    succeeded: set[str | None] = {None}
    failures: list[str] = []
    running: dict[concurrent.futures.Future, tuple[Job, Resources]] = {}
    with concurrent.futures.ThreadPoolExecutor(len(shares)) as pool:
        while True:
            ready = [job for job in waiting if job.after in succeeded][: len(free)]
            for job in ready:
                waiting.remove(job)
                share = free.pop(0)
                running[pool.submit(job.run, share)] = job, share
            if not running:
                break
            finished, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in finished:
                job, share = running.pop(future)
                free.append(share)
                try:
                    future.result()
                except (RuntimeError, OSError, ValueError) as error:
                    failures.append(str(error))
                    continue
                succeeded.add(job.name)
                if progress is not None:
                    progress.update()
    if failures:
        skipped = f"\n{len(waiting)} more depend on them" if waiting else ""
        raise RuntimeError(itemized("run(s) failed", failures) + skipped)
