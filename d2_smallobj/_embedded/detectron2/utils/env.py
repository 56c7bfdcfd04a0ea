"""Seeds."""

from __future__ import annotations

import logging
import os
import random

import numpy as np
import torch


def seed_all_rng(seed: int | None = None) -> None:
    """Seed torch, numpy and Python; ``None`` draws a seed from the system and logs it."""
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big") % 2**31
        logging.getLogger(__name__).info("No seed was given: %d is used", seed)
    for generator in (np.random.seed, torch.manual_seed, random.seed):
        generator(seed)
