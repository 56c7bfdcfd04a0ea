"""Training: launching processes, trainers, hooks, defaults."""

from . import hooks
from .defaults import DefaultTrainer
from .launch import launch
from .setup import create_ddp_model, default_argument_parser, default_setup, default_writers
from .train_loop import HookBase, SimpleTrainer, TrainerBase

__all__ = [
    "DefaultTrainer",
    "HookBase",
    "SimpleTrainer",
    "TrainerBase",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "hooks",
    "launch",
]
