"""Data loaders for training and for inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import data as torchdata

from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng

from .common import MapDataset, ToIterableDataset
from .samplers import InferenceSampler


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

    Args:
        dataset: the samples.
        mapper: function from a sample to the model's input.
        sampler: order of the samples.
        total_batch_size: batch over all processes.
        aspect_ratio_grouping: must be False; True, detectron2's default, is not part of this host.
        num_workers: loader processes of each training process.
        pin_memory: copy the tensors to page-locked memory.

    Raises:
        ValueError: if the batch does not divide among the processes, or images are to be grouped.
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
