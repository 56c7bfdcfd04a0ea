"""What things cost: one module for each sub-command of ``tools/benchmark.py``.

A module has

- ``add_arguments(parser)``: adds its options to an ``argparse.ArgumentParser``;
- ``run(args) -> Measurement``: measures. Errors for the user are ValueError or OSError.

Its docstring says what exactly is timed against what; the command shows it as help. ``--json`` and
``--check`` are the command's own. Modules are imported when they are run: ``metric`` and
``folder`` need no torch.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

BENCHMARKS = {
    "metric": "IA-mIoU of one image against a confusion matrix",
    "folder": "scoring folders of PNGs against decoding them",
    "inference": "what the evaluator adds to running a model over a data set",
    "train": "training steps of every loss against a plainly written one",
    "lvis": "building PASCAL-B from annotation files as large as LVIS v1's",
}
"""Summary by name; the module is ``benchmarks.<name>``."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a benchmark found.

    Attributes:
        figures: settings, times and ratios, to be written as JSON.
        text: the same for reading, in Markdown.
        missed: targets that were missed, a sentence each.
    """

    figures: Mapping[str, Any]
    text: str
    missed: Sequence[str] = ()


def load(name: str) -> ModuleType:
    """Import the module of a benchmark; ``name`` is a key of :data:`BENCHMARKS`."""
    return importlib.import_module(f"{__name__}.{name}")
