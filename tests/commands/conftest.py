"""Commands, and the trainings that they start, without a start of Python each."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest


@pytest.fixture
def command(run_tool):
    """``command(script, *arguments)``: exit status, text on stdout, text on stderr."""

    def run(script, *arguments):
        done = run_tool(script.removesuffix(".py"), *arguments)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def runner(train_server, monkeypatch, demo_root):
    """Let the runs be forked children of the train server; notes each by folder."""
    from d2_smallobj.experiments import ablation

    started = []
    pending = []
    lock = threading.Lock()  # the server does one job at a time

    def run(command, *, stdout, stderr, env, check, timeout=None):
        assert command[0] == sys.executable
        assert env["OMP_NUM_THREADS"].isdigit()
        with lock:
            job = pending.pop(0) if pending else {}
            answer = train_server.ask(*command[1:], **job)
            started.append(command[-1].rsplit("/", 1)[-1])
        stdout.write((answer.stdout + answer.stderr).encode())
        if timeout is not None and answer.code == -9:
            raise subprocess.TimeoutExpired(command, timeout)
        return SimpleNamespace(returncode=answer.code)

    monkeypatch.setattr(ablation.subprocess, "run", run)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(demo_root))
    return SimpleNamespace(started=started, pending=pending)
