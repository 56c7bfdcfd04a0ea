"""Training: launching processes, trainers, hooks, defaults."""

# ruff: noqa: F401 (all names are for users)

from . import hooks
from .defaults import (
    DefaultTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from .launch import launch
from .train_loop import HookBase, SimpleTrainer, TrainerBase
