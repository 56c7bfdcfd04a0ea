"""``tools/gpu_check.sh``: wrong usage, and one part of it on whatever device there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def gpu_check(repository, *arguments):
    command = ["bash", str(repository / "tools" / "gpu_check.sh"), *map(str, arguments)]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("0",), "error: SECONDS must be an integer >= 1, got '0'"),
        (("soon",), "error: SECONDS must be an integer >= 1, got 'soon'"),
        (
            ("9", "x"),
            "error: PART must be tests, train, inference, budget or ablation, got 'x'",
        ),
    ],
)
def test_wrong_usage(repository, tmp_path, arguments, told):
    done = gpu_check(repository, tmp_path / "results", *arguments)
    assert (done.returncode, done.stderr.strip()) == (2, told)
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_one_part(repository, tmp_path):
    done = gpu_check(repository, tmp_path, 60, "budget")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["parts"]["budget"]["code"] == 0
    assert found["parts"]["budget"]["figures"]["steps"]["CE"] > 0
    assert "## budget: passed after" in (tmp_path / "summary.md").read_text()
