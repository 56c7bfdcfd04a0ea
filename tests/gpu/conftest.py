"""What the tests on a GPU share: the device, exact float32, and trainers of the tiny net.

Every test compares the device with the CPU, where the same code is tested in full. With
``--gpu-on-cpu`` the device is the CPU too: a rehearsal of the tests themselves.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from d2_smallobj.engine import TwoTaskTrainer, build_config
from detectron2.utils.env import seed_all_rng


@pytest.fixture(scope="session")
def device():
    """Name of the device under test."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _true_float32():
    """TF32 off: it would hide differences of float32 behind ten bits of mantissa."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before):
        backend.allow_tf32 = allowed


@pytest.fixture
def make_trainer(demo_root, registration, tiny, tmp_path):
    """Function from config overrides to a trainer, on the CPU if they say nothing else."""
    registration(demo_root)
    numbers = itertools.count()

    def make(*overrides, folder=None, resume=False, config=tiny.config_file, base=tiny.options):
        folder = folder or tmp_path / f"run{next(numbers)}"
        folder.mkdir(parents=True, exist_ok=True)
        options = tiny.as_options(base, *overrides, {"OUTPUT_DIR": folder})
        cfg = build_config(config, options)
        cfg.freeze()
        seed_all_rng(0)
        trainer = TwoTaskTrainer(cfg)
        trainer.resume_or_load(resume=resume)
        return trainer

    return make
