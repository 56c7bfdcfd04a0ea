"""Data loaders for training and for inference, and the data sets that they read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import data as torchdata

from d2_smallobj._host import rebuild
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng

from .samplers import InferenceSampler


class _Rebuilt:
    """Pickles by way of d2_smallobj, for workers that do not know the embedded host yet."""

    def __reduce__(self) -> tuple:
        return rebuild, (type(self).__module__, type(self).__qualname__, self.__dict__)


class MapDataset(_Rebuilt, torchdata.Dataset):
    """A function applied to the elements of a list or a map-style data set."""

    def __init__(
        self, dataset: Sequence[Any] | torchdata.Dataset, map_func: Callable[[Any], Any]
    ) -> None:
        self._dataset = dataset
        self._map_func = map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        return self._map_func(self._dataset[idx])


class ToIterableDataset(_Rebuilt, torchdata.IterableDataset):
    """A map-style data set in the order of a sampler.

    Every loader worker runs the sampler and keeps its share: whole chunks of indices in turn.
    With the batch size as the chunk, the stream of batches is the same for every number of
    workers.
    """

    def __init__(self, dataset: torchdata.Dataset, sampler: Iterable[int], chunk_size: int) -> None:
        self._dataset = dataset
        self._sampler = sampler
        self._chunk_size = chunk_size

    def __iter__(self) -> Iterator[Any]:
        worker = torchdata.get_worker_info()
        for position, idx in enumerate(self._sampler):
            turn = position // self._chunk_size
            if worker is None or turn % worker.num_workers == worker.id:
                yield self._dataset[idx]


def build_detection_train_loader(
    dataset: Sequence[Any] | torchdata.Dataset,
    *,
    mapper: Callable[[Any], Any],
    sampler: torchdata.Sampler,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> torchdata.DataLoader:
    """Build the endless loader of a training; its batches are lists.

    ``total_batch_size`` counts the images of all processes, among which it must divide;
    ``num_workers`` are the loader processes of each. ``aspect_ratio_grouping`` must be False:
    True, detectron2's default, is not part of this host.
    """
    if aspect_ratio_grouping:
        raise ValueError("aspect_ratio_grouping: the embedded host has none; give False, got True")
    processes = get_world_size()
    if total_batch_size <= 0 or total_batch_size % processes:
        raise ValueError(
            f"total_batch_size must be a positive multiple of the {processes} processes, "
            f"got {total_batch_size}"
        )
    size = total_batch_size // processes
    return torchdata.DataLoader(
        ToIterableDataset(MapDataset(dataset, mapper), sampler, chunk_size=size),
        batch_size=size,
        drop_last=True,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator,
        worker_init_fn=worker_init_reset_seed,
        pin_memory=pin_memory,
    )


def build_detection_test_loader(
    dataset: Sequence[Any] | torchdata.Dataset,
    *,
    mapper: Callable[[Any], Any],
    batch_size: int = 1,
    num_workers: int = 0,
) -> torchdata.DataLoader:
    """Build the loader of an evaluation: every sample once, split among the processes."""
    return torchdata.DataLoader(
        MapDataset(dataset, mapper),
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset)),
        num_workers=num_workers,
        collate_fn=trivial_batch_collator,
    )


def trivial_batch_collator(batch: list) -> list:
    """Return the batch: a list of samples of different sizes cannot be stacked."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Give a loader worker its own seeds for torch, numpy and Python."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
