"""The two-task trainer and what it is made of."""

from d2_smallobj.engine.checkpoint import SafeCheckpointer
from d2_smallobj.engine.setup import build_config, setup
from d2_smallobj.engine.tasks import TaskSwitch
from d2_smallobj.engine.trainer import TwoTaskTrainer

__all__ = ["SafeCheckpointer", "TaskSwitch", "TwoTaskTrainer", "build_config", "setup"]
