"""Fixtures shared by all tests."""

from __future__ import annotations

import pathlib

import pytest

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
