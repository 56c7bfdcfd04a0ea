"""The metric runs without torch and without detectron2."""

from __future__ import annotations

import doctest
import subprocess
import sys

from d2_smallobj.metrics import accumulator

SCRIPT = """
import sys
import numpy as np
from d2_smallobj.metrics import Accumulator
labels = np.array([[0, 1, 1], [2, 0, 255]], np.uint8)
accumulator = Accumulator(3)
accumulator.update("a", np.minimum(labels, 2), labels)
assert accumulator.summarize(["background", "a", "b"])["IA-mIoU"] == 100.0
print(sorted(name for name in ("torch", "detectron2", "pycocotools") if name in sys.modules))
"""


def test_neither_torch_nor_detectron2_is_imported(repository):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=repository, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(accumulator)
    assert (result.failed, result.attempted > 2) == (0, True)
