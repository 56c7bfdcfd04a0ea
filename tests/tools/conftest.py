"""The tools' tests run the tiny net of the engine's tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# Tests are imported by path (--import-mode=importlib), so this is, too.
_PATH = Path(__file__).resolve().parents[1] / "engine" / "conftest.py"
_spec = importlib.util.spec_from_file_location("tiny_runs", _PATH)
tiny_runs = sys.modules["tiny_runs"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_runs)

demo_root = tiny_runs.demo_root
train_server = tiny_runs.train_server
tiny = tiny_runs.tiny
assert_same = tiny_runs.assert_same
