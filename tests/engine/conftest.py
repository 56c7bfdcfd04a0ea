"""Trainers of the tiny net in this process."""

from __future__ import annotations

import functools
import itertools
import json
import logging

import pytest

from d2_smallobj.engine import TwoTaskTrainer, build_config
from detectron2.utils.env import seed_all_rng


@pytest.fixture
def datasets(demo_root, registration):
    """The data sets registered below the small root, for one test."""
    registration(demo_root)
    return demo_root


@pytest.fixture
def make_config(datasets, tiny, tmp_path):
    """Function from config overrides to a checked, frozen config of the tiny run."""
    numbers = itertools.count()

    def make(*overrides, folder=None):
        folder = folder or tmp_path / f"run{next(numbers)}"
        folder.mkdir(parents=True, exist_ok=True)
        cfg = build_config(
            tiny.config_file, tiny.as_options(tiny.options, *overrides, {"OUTPUT_DIR": folder})
        )
        cfg.freeze()
        return cfg

    return make


@pytest.fixture
def make_trainer(make_config):
    """Function from config overrides to a trainer in this process, weights loaded."""

    def make(*overrides, folder=None, resume=False, cls=TwoTaskTrainer):
        cfg = make_config(*overrides, folder=folder)
        seed_all_rng(0)
        trainer = cls(cfg)
        trainer.resume_or_load(resume=resume)
        return trainer

    return make


@pytest.fixture(scope="session")
def undisturbed(train_server, tmp_path_factory):
    """Function from options to the folder of a run that nobody disturbed, and its seconds."""

    @functools.cache
    def run(options):
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        return folder, train_server.finish(folder, json.loads(options)).seconds

    return lambda options: run(json.dumps(options))


@pytest.fixture
def log(caplog):
    """The plugin's log, whatever another test has set its loggers to."""
    logger = logging.getLogger("d2_smallobj")
    level = logger.level
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)
