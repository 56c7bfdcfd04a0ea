"""Fixtures of the host tests; importing d2_smallobj makes ``detectron2`` importable."""

import functools
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import d2_smallobj

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

# Tests are imported by path (--import-mode=importlib), so the helper is made known by name here.
sys.path.append(str(HERE))
import host_toy  # noqa: E402 (after the path is set)


@pytest.fixture(scope="session")
def run_python_in():
    """Run code in a new process; returns its stdout, or the stderr of one that must fail."""

    def run(folder, code, *, host=None, fails=False, path=(), arguments=()):
        environment = {k: v for k, v in os.environ.items() if k != "D2_SMALLOBJ_HOST"}
        if host is not None:
            environment["D2_SMALLOBJ_HOST"] = host
        search = [*map(str, path), str(HERE), str(REPOSITORY)]
        environment["PYTHONPATH"] = os.pathsep.join(search)
        environment["OMP_NUM_THREADS"] = "1"
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
            timeout=600,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    return run


@pytest.fixture
def run_python(run_python_in, tmp_path):
    """``run_python_in`` an empty folder."""
    return functools.partial(run_python_in, tmp_path)


@pytest.fixture
def toy_cfg(tmp_path):
    """A config for the net and the data of :mod:`host_toy`."""
    return host_toy.config(tmp_path / "output")


@pytest.fixture
def embedded_only():
    """Skip where a real detectron2 runs: the test is about the stand-in's own behaviour."""
    if d2_smallobj.host().name != "embedded":
        pytest.skip("about the embedded host")


@pytest.fixture
def captured():
    """Messages of the "detectron2" loggers, which do not propagate once they are set up."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("detectron2")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)
