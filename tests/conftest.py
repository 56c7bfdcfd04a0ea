"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parent))
from tiny_runs import assert_same, demo_root, tiny, train_server  # noqa: F401

# Processes of pytest-xdist share the cores: threads inside them would only wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--run-slow"):
        return
    skip = pytest.mark.skip(reason="slow: give --run-slow to run it")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The root of the checkout: tests run its tools as a user does."""
    return _REPOSITORY


@pytest.fixture(scope="session")
def realdata() -> pathlib.Path:
    """The small real VOC, COCO and LVIS pieces; absent on a user's machine."""
    folder = _REPOSITORY.parent / "shared" / "realdata"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture
def registration():
    """Lets a test register data sets below another root; then all is as before."""
    catalog = pytest.importorskip("d2_smallobj.data.catalog")
    before = dict(catalog._state)
    catalog._state.update(explicit=False)
    yield catalog.register_all
    catalog._state.update(explicit=False)
    if before["root"] is not None:
        catalog.register_all(before["root"])
        catalog._state.update(before)
