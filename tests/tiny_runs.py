"""A tiny net on tiny scenes, in this process or as ``tools/train_net.py`` in another.

Its fixtures are those of ``tests/conftest.py``; torch is imported by the tests that need it only.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent
TRAIN_NET = REPOSITORY / "tools" / "train_net.py"
CONFIG = REPOSITORY / "configs" / "demo_sbce.yaml"

if yaml.__with_libyaml__:  # reads and writes configs ten times as fast
    yaml.SafeLoader, yaml.SafeDumper = yaml.CSafeLoader, yaml.CSafeDumper

# Iterations 0..3 are task A, 4..7 task B; checkpoints after 2, 3 (task A's), 5 and 7.
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.OUT_FEATURES": "['res2']",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": "['res2']",
    "SMALLOBJ.ASPP_DILATIONS": "[1]",
    "SMALLOBJ.CROP_SIZE": "[48, 48]",
    "SMALLOBJ.TASK_A.ITERS": 4,
    "SMALLOBJ.EWC.NUM_IMAGES": 4,
    "SMALLOBJ.EWC.STEP": "gradient",
    "SMALLOBJ.EWC.LAMBDA": 1.0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.MAX_ITER": 8,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "DATALOADER.NUM_WORKERS": 0,
}
ONLINE = {"SMALLOBJ.EWC.FISHER": "online"}
EMPIRICAL = {"SMALLOBJ.EWC.FISHER": "empirical"}


def as_options(*overrides):
    """Dicts of config keys as the list that a command line ends with."""
    merged = {key: value for options in overrides for key, value in options.items()}
    return [str(part) for pair in merged.items() for part in pair]


def saved(folder, name="model_final"):
    """The contents of a checkpoint."""
    import torch

    return torch.load(folder / f"{name}.pth", weights_only=True)


def metrics_rows(folder):
    """The lines of a run's metrics.json."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def events_of(folder):
    """What TensorBoard reads of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory):
    """A data sets' root with a dozen small scenes."""
    from d2_smallobj.demo.dataset import make_demo

    root = tmp_path_factory.mktemp("data")
    make_demo(root / "smallobj_demo", num_train=12, num_val=4, size=64)
    return root


@pytest.fixture(scope="session")
def tiny():
    """The options of the tiny net, and the paths to run it."""
    kinds = {"options": TINY, "ONLINE": ONLINE, "EMPIRICAL": EMPIRICAL}
    paths = {"config_file": str(CONFIG), "repository": REPOSITORY}
    return SimpleNamespace(**kinds, **paths, as_options=as_options)


class TrainServer:
    """Client of ``train_server.py``."""

    def __init__(self, demo_root, folder):
        self.folder = folder
        self.numbers = itertools.count()
        search = filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
        changes = {"OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(demo_root)}
        changes["PYTHONPATH"] = os.pathsep.join(search)
        command = [sys.executable, str(HERE / "engine" / "train_server.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = {**os.environ, **changes}
        self.process = subprocess.Popen(command, **pipes, env=environment, cwd=folder)
        assert json.loads(self.process.stdout.readline())["ready"]

    def ask(self, *argv, **job):
        """Run one job to its end; see ``train_server.run`` for the job's keys."""
        number = next(self.numbers)
        out, err = (self.folder / f"{number}.{kind}" for kind in ("stdout", "stderr"))
        job = {"argv": [str(a) for a in argv], "stdout": str(out), "stderr": str(err), **job}
        if job.get("world", 1) > 1:
            job["group"] = str(self.folder / f"{number}.group")
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        stderr = err.read_text()
        error = (stderr.strip().splitlines() or [""])[-1]
        return SimpleNamespace(**answer, stdout=out.read_text(), stderr=stderr, error=error)

    def train(self, output, *overrides, arguments=(), config=CONFIG, **job):
        """``tools/train_net.py`` with the tiny options."""
        options = as_options(TINY, *overrides, {"OUTPUT_DIR": output})
        return self.ask(TRAIN_NET, "--config-file", config, *arguments, *options, **job)

    def finish(self, output, *overrides, **options):
        """:meth:`train`, which must end well."""
        answer = self.train(output, *overrides, **options)
        assert answer.codes == [0] * options.get("world", 1), answer.stderr
        return answer

    def code(self, code, **job):
        """Run code with ``job`` in its namespace (``job["rank"]`` among several processes)."""
        return self.ask(code=code, **job)

    def close(self):
        """End the server."""
        self.process.stdin.close()
        self.process.wait(timeout=30)


@pytest.fixture(scope="session")
def train_server(demo_root, tmp_path_factory):
    """Runs ``tools/train_net.py`` in processes that can be killed."""
    server = TrainServer(demo_root, tmp_path_factory.mktemp("train_server"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def assert_same():
    """Function that compares nested containers of tensors bit by bit."""
    import numpy as np
    import torch

    def compare(a, b, where=""):
        assert type(a) is type(b), where
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), where
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=where)
        elif isinstance(a, dict):
            assert list(a) == list(b), where
            for key in a:
                compare(a[key], b[key], f"{where}/{key}")
        elif isinstance(a, (list, tuple)):
            compare(dict(enumerate(a)), dict(enumerate(b)), where)
        else:
            assert a == b or (a != a and b != b), where

    return compare
