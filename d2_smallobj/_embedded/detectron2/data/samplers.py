"""Samplers: an endless stream for training, every index once for inference."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from detectron2.utils import comm


class TrainingSampler(Sampler):
    """An endless stream of shuffled epochs; rank r of n takes every n-th index, from the r-th.

    ``size`` is that of the data set; ``seed`` must be equal on all ranks.
    """

    def __init__(self, size: int, shuffle: bool = True, *, seed: int) -> None:
        if size <= 0:
            raise ValueError(f"size: a TrainingSampler needs a positive number, got {size}")
        self._size = size
        self._shuffle = shuffle
        self._seed = seed
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


class InferenceSampler(Sampler):
    """Every index exactly once: contiguous shares, the first ranks one longer where it must be."""

    def __init__(self, size: int) -> None:
        rank = comm.get_rank()
        share, longer = divmod(size, comm.get_world_size())
        begin = rank * share + min(rank, longer)
        self._indices = range(begin, begin + share + (rank < longer))

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)
