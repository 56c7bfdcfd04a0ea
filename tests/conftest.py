"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import pathlib
import sys
from types import SimpleNamespace

import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parent))
if importlib.util.find_spec("torch"):
    from tiny_runs import assert_same, demo_root, tiny, train_server  # noqa: F401
else:  # the light core: what needs neither torch nor the host
    collect_ignore = ["benchmarks", "data", "engine", "evaluation", "experiments", "host", "losses"]
    collect_ignore += ["integrations", "modeling", "gpu"]
    single = "config parity readme real_voc_training recipe"
    collect_ignore += [f"test_{name}.py" for name in single.split()]
    trained = "ablation mixed_supervision predict train_net"
    collect_ignore += [f"commands/test_{name}.py" for name in trained.split()]
    collect_ignore += ["pseudo_labels/test_formats.py", "utils/test_safe_pickle.py"]

# Processes of pytest-xdist share the cores: threads inside them would only wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")
    text = "run the tests marked gpu on the CPU where there is no GPU, to rehearse them"
    parser.addoption("--gpu-on-cpu", action="store_true", help=text)


def pytest_collection_modifyitems(config, items):
    skip = pytest.mark.skip(reason="slow: give --run-slow to run it")
    on_gpu = [item for item in items if "gpu" in item.keywords]
    if on_gpu and not (config.getoption("--gpu-on-cpu") or _has_gpu()):
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU (--gpu-on-cpu rehearses it)"))
    for item in items:
        if "slow" in item.keywords and not config.getoption("--run-slow"):
            item.add_marker(skip)


def _has_gpu():
    import torch

    return torch.cuda.is_available()


def pytest_collection_finish():
    # What was imported stays: without this, the collector walks it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The root of the checkout: tests run its tools as a user does."""
    return _REPOSITORY


@pytest.fixture
def run_tool(monkeypatch, capfd):
    """Run a script of tools/ or datasets/ in this process: a fraction of a new one's time."""

    def run(name, *arguments):
        from d2_smallobj.utils.opencv import cv2

        tool, code = importlib.import_module(name), 0
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        threads = cv2.getNumThreads()
        try:
            tool.main()
        except SystemExit as stop:
            code = stop.code
        finally:
            cv2.setNumThreads(threads)
        out, error = capfd.readouterr()
        if isinstance(code, str):
            code, error = 1, f"{error}{code}\n"
        return SimpleNamespace(returncode=code, stdout=out, stderr=error)

    return run


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
