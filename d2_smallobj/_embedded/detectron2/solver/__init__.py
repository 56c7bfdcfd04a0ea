"""Gradient clipping, and learning rates as multiples of their initial values."""

from .lr_scheduler import LRMultiplier

__all__ = ["LRMultiplier"]
