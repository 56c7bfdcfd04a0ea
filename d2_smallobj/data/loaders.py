"""Data loaders of the two-task trainer, on detectron2's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from d2_smallobj.data.catalog import canonical_name
from d2_smallobj.data.mapper import SemSegMapper, images_per_step
from d2_smallobj.data.prefetch import DeviceLoader
from d2_smallobj.data.stream import StreamSampler
from d2_smallobj.data.supervision import SupervisedStream, apply_supervision, first_box_position
from d2_smallobj.utils.options import look_up_option
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)


def dataset_dicts(names: Iterable[str]) -> list[dict[str, Any]]:
    """The dicts of one or several data sets, concatenated.

    Args:
        names: registered names, or training sets with a folder of label maps; see
            :func:`d2_smallobj.data.catalog.canonical_name`.

    Raises:
        ValueError: for an unknown name (with the closest known one) or an empty data set.
        FileNotFoundError: for a data set whose files are missing; names them and the command
            that prepares them.
    """
    dicts: list[dict[str, Any]] = []
    for name in map(canonical_name, names):
        look_up_option("DATASETS", name, DatasetCatalog.list())
        part = DatasetCatalog.get(name)
        if not part:
            raise ValueError(f"data set {name!r} lists no image")
        dicts.extend(part)
    if not dicts:
        raise ValueError("DATASETS names no data set")
    return dicts


def build_train_loader(cfg: CfgNode, *, start_iter: int = 0) -> Iterable[list[dict[str, Any]]]:
    """Infinite loader of training batches.

    Args:
        cfg: the config; ``SOLVER.IMS_PER_BATCH`` is the batch over all processes.
        start_iter: the iteration that the first batch belongs to; the stream continues as if
            all earlier ones had been read.
    """
    dicts = apply_supervision(cfg, dataset_dicts(cfg.DATASETS.TRAIN))
    sampler = StreamSampler(
        len(dicts), seed=max(cfg.SEED, 0), start=start_iter * images_per_step(cfg)
    )
    return build_detection_train_loader(
        SupervisedStream(dicts, first_box_position(cfg, images_per_step(cfg))),
        mapper=SemSegMapper(cfg, True),
        sampler=sampler,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        # Not part of the interface of older hosts; a CPU has no use for it.
        **({"pin_memory": True} if _prefetches(cfg) else {}),
    )


def on_device(cfg: CfgNode, loader: Iterable[list[dict[str, Any]]]) -> Iterable[Any]:
    """The batches of a training loader, on a GPU before the model asks for them there."""
    return DeviceLoader(loader, torch.device(cfg.MODEL.DEVICE)) if _prefetches(cfg) else loader


def _prefetches(cfg: CfgNode) -> bool:
    return cfg.SMALLOBJ.SPEED.PREFETCH and cfg.MODEL.DEVICE.startswith("cuda")


def build_test_loader(cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
    """Loader over a test set, one image a batch, each process its own part.

    Raises:
        ValueError: the set is a training set with somebody's label maps.
    """
    if "@" in dataset_name:
        raise ValueError(f"{dataset_name!r} has pseudo labels: it is no set to evaluate on")
    return build_detection_test_loader(
        dataset_dicts([dataset_name]),
        mapper=SemSegMapper(cfg, False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
