"""Scoring predictions in files: from folders to figures; no torch, no detectron2.

A scored run, in memory or as a folder (:func:`load_run`), is what statistics, comparisons and
reports work on.
"""

from d2_smallobj.scoring.inputs import Inputs
from d2_smallobj.scoring.pipeline import Settings, evaluate, prepare, score
from d2_smallobj.scoring.run_folder import load_run, load_runs, merge
from d2_smallobj.scoring.scored_run import ScoredRun, check_writable, save_run
from d2_smallobj.utils.messages import InputError

__all__ = [
    "InputError",
    "Inputs",
    "ScoredRun",
    "Settings",
    "check_writable",
    "evaluate",
    "load_run",
    "load_runs",
    "merge",
    "prepare",
    "save_run",
    "score",
]
