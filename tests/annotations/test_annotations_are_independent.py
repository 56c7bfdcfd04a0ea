"""The annotation readers work where there is neither torch nor detectron2."""

from __future__ import annotations

import subprocess
import sys


def test_no_torch_and_no_detectron2(repository):
    modules = sorted(
        f"d2_smallobj.annotations.{path.stem}"
        for path in (repository / "d2_smallobj/annotations").glob("*.py")
        if path.stem != "__init__"
    )
    assert "d2_smallobj.annotations.coco" in modules
    program = (
        "import importlib, sys\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'detectron2', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
