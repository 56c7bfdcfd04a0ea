"""Runs ``tools/train_net.py`` in forked children of one process that has imported torch.

A run of the tiny net takes a fraction of a second, the imports before it take seconds. A child can
be killed with SIGKILL like any process. Jobs and answers are JSON, one a line (``tiny_runs.py``).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import time
import traceback

import torch
import torch.multiprocessing as mp
import torch.utils.tensorboard
import yaml
from torch import distributed as dist

import d2_smallobj.plugin  # noqa: F401  (the imports are what this process is for)
from d2_smallobj.data import register_all
from d2_smallobj.utils import cli  # noqa: F401
from detectron2.engine import defaults
from detectron2.utils import comm


def strike(target: str, call: int, action: str, part: str = "") -> None:
    """Let the ``call``-th call of ``module:attribute`` with this ``part`` kill or fail."""
    module_name, _, path = target.partition(":")
    *parents, name = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module_name))
    original, calls = getattr(owner, name), 0

    def replacement(*args, **kwargs):
        nonlocal calls
        struck = any(part in str(argument) for argument in args) or not part
        calls += struck
        if struck and calls == call:
            if action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if action == "interrupt":
                raise KeyboardInterrupt
            full = OSError(28, "No space left on device")
            raise full if action == "full disk" else LookupError(action)
        return original(*args, **kwargs)

    setattr(owner, name, replacement)


def run(job: dict) -> int:
    """What a child does; returns its exit code."""
    os.environ.update(job.get("env", {}))
    if "DETECTRON2_DATASETS" in job.get("env", {}):
        register_all(os.environ["DETECTRON2_DATASETS"])
    if "fsize" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["fsize"], job["fsize"]))
    if "flush" in job:
        os.fsync = lambda descriptor: time.sleep(job["flush"])
    for target in job.get("strikes", []):
        strike(*target)
    if "spawn" in job:
        mp.start_processes = mp.start_processes.func
    if "group" in job:
        # As detectron2's launch does, but without spawning.
        where = {"init_method": f"file://{job['group']}", "rank": job["rank"]}
        dist.init_process_group("gloo", world_size=job["world"], **where)
        comm.create_local_process_group(job["world"])
    if "code" in job:
        exec(job["code"], {"job": job})
        return 0
    sys.argv = job["argv"]
    try:
        if sys.argv[0] == "-m":
            sys.argv.pop(0)
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as exit:
        if isinstance(exit.code, str):
            sys.stderr.write(f"{exit.code}\n")
            return 1
        return exit.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork(job: dict) -> int:
    """Start a child; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    with contextlib.suppress(BaseException):
        for number, key in ((1, "stdout"), (2, "stderr")):
            suffix = f".{job['rank']}" if job["rank"] else ""
            target = os.open(job[key] + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, number)
        code = run(job)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def files(folder: str, prefix: str) -> set[str]:
    """Names of a folder's files with a prefix; none while there is no folder."""
    with contextlib.suppress(FileNotFoundError):
        return {name for name in os.listdir(folder) if name.startswith(prefix)}
    return set()


def kill_at_file(pids: list[int], before: set[str], folder: str, prefix: str, number: int) -> None:
    """Kill all processes when the ``number``-th new file with a prefix appears in a folder."""
    seen: set[str] = set()
    while len(seen) < number:
        seen |= files(folder, prefix) - before
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return  # one has ended before
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def answer(message: dict) -> None:
    """Send one line."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def serve() -> None:
    """Answer jobs until stdin ends."""
    torch.set_num_threads(1)
    if yaml.__with_libyaml__:  # reads and writes configs ten times as fast
        yaml.SafeLoader, yaml.SafeDumper = yaml.CSafeLoader, yaml.CSafeDumper
    # A killed process loses nothing that it has written: only a power failure does.
    os.fsync = lambda descriptor: None
    # detectron2's launch would import everything again in spawned processes.
    mp.start_processes = functools.partial(mp.start_processes, start_method="fork")
    # torch imports its compiler when the first optimiser is made, which takes seconds.
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    # The real host's report on the environment runs compilers to ask for their versions.
    if hasattr(defaults, "collect_env_info"):
        defaults.collect_env_info = str
    # The collector of a child need not walk, and so copy, what this process has imported.
    gc.freeze()
    answer({"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        world = job.get("world", 1)
        watch = job.get("kill_at_file")
        before = files(*watch[:2]) if watch else set()
        pids = [fork({**job, "rank": rank}) for rank in range(world)]
        if watch:
            kill_at_file(pids, before, *watch)
        if job.get("kill_after") is not None:
            time.sleep(job["kill_after"])
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        codes = [0] * world
        for _ in pids:
            pid, status = os.wait()
            codes[pids.index(pid)] = os.waitstatus_to_exitcode(status)
            if status:
                # The others would wait for the failed one until a timeout.
                for other in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(other, signal.SIGKILL)
        seconds = time.perf_counter() - start
        answer({"code": codes[0], "codes": codes, "seconds": seconds})


if __name__ == "__main__":
    serve()
