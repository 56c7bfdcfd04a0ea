"""datasets/prepare_demo.py."""

from __future__ import annotations

import os
import subprocess
import sys

TINY = ("--num-train", 3, "--num-val", 2, "--size", 96)


def test_as_a_user_runs_it(repository, tmp_path):
    done = subprocess.run(
        [sys.executable, repository / "datasets/prepare_demo.py", *map(str, TINY)],
        cwd=tmp_path,
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "3 + 2 scenes at" in done.stdout
    assert (tmp_path / "data/smallobj_demo/demo.json").is_file()


def test_other_options(command, tmp_path):
    options = ("prepare_demo.py", "--root", tmp_path / "demo", *TINY)
    assert command(*options)[0] == 0
    status, _, err = command(*options, "--seed", 3)
    assert status == 1
    assert "error: " in err
    assert "--force" in err
    assert command(*options, "--seed", 3, "--force")[0] == 0
