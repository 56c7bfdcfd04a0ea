"""Random numbers of an iteration that do not depend on what ran before it."""

from __future__ import annotations

import numpy as np
import torch

from detectron2.engine import HookBase
from detectron2.utils import comm


class IterationSeed(HookBase):
    """Seeds torch's random numbers before every iteration.

    Dropout and the like then draw what they would have drawn had the run never been killed, on
    every process and device, without a generator's state in the checkpoint (which is written by
    the main process alone, and for a number of devices that may change).

    Args:
        seed: of the run; negative: nothing is seeded, as detectron2 leaves it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        """Seed for this iteration."""
        if self.seed >= 0:
            # A loader's iterator draws a number when it is made, in the first iteration of a run.
            _ = self.trainer._trainer._data_loader_iter
            torch.manual_seed(iteration_seed(self.seed, comm.get_rank(), self.trainer.iter))


def iteration_seed(seed: int, rank: int, iteration: int) -> int:
    """A seed in 0..2^63 - 1; neighbouring arguments give unrelated ones."""
    low, high = np.random.SeedSequence([seed, rank, iteration]).generate_state(2)
    return int(high) % 2**31 << 32 | int(low)
