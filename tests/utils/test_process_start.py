"""What every command sets before it imports torch."""

from __future__ import annotations

import ast
import os
import runpy
import warnings

import pytest

from d2_smallobj.utils import cli


def test_threads_wait_without_work_and_torch_keeps_its_plans_to_itself(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with warnings.catch_warnings(record=True) as told:
        runpy.run_path(cli.__file__)
        for module in ("torch.jit._script", "detectron2.engine.defaults", "torchmetrics", "mine"):
            warnings.warn_explicit("will go", FutureWarning, f"{module}.py", 1, module=module)
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert [str(warning.filename) for warning in told] == ["torchmetrics.py", "mine.py"]
    # The user's own choice stays.
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with warnings.catch_warnings():
        runpy.run_path(cli.__file__)
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize("name", ["train_net", "run_experiments"])
def test_commands_that_run_nets_import_it_before_torch(repository, name):
    source = (repository / "d2_smallobj" / "commands" / f"{name}.py").read_text("utf-8")
    imported = [n.module for n in ast.parse(source).body if isinstance(n, ast.ImportFrom)]
    assert "d2_smallobj.utils.cli" in imported
    assert not [n for n in imported if n.startswith(("torch", "detectron2", "d2_smallobj.engine"))]
