"""The data-set commands, run as a user does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.fixture
def run(repository, tmp_path):
    """Run a script of datasets/ in an empty folder; returns the finished process."""

    def run_script(name, *arguments, **environment):
        return subprocess.run(
            [sys.executable, str(repository / "datasets" / name), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run_script


TINY = ("--num-train", 3, "--num-val", 2, "--size", 96)


def test_demo_in_the_default_place(run, tmp_path):
    done = run("prepare_demo.py", *TINY, DETECTRON2_DATASETS=str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    assert "3 + 2 scenes at" in done.stdout
    assert (tmp_path / "data/smallobj_demo/demo.json").is_file()


def test_demo_with_other_options(run, tmp_path):
    root = tmp_path / "demo"
    assert run("prepare_demo.py", "--root", root, *TINY).returncode == 0
    refused = run("prepare_demo.py", "--root", root, *TINY, "--seed", 3)
    assert refused.returncode == 2
    assert "prepare_demo: " in refused.stderr
    assert "--force" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run("prepare_demo.py", "--root", root, *TINY, "--seed", 3, "--force").returncode == 0


def test_demo_with_a_wrong_option(run, tmp_path):
    done = run("prepare_demo.py", "--root", tmp_path / "demo", "--size", 8)
    assert done.returncode == 2
    assert done.stderr.strip() == "prepare_demo: size: must be in 64..1024, got 8"
