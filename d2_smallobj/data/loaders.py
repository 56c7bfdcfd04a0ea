"""Training and test loaders: a stream of images that continues from any position.

Position p is the p-th image that training sees, counted over all processes. It decides image,
order and augmentation, so that a resumed run continues with the sample that the killed one would
have seen next, for any number of loader workers, and N processes see together what one sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from d2_smallobj.data.catalog import canonical_name, registered
from d2_smallobj.data.mapper import SemSegMapper, images_per_step
from d2_smallobj.data.supervision import apply_supervision
from d2_smallobj.utils.messages import look_up_option
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.samplers import TrainingSampler


def dataset_dicts(names: Iterable[str]) -> list[dict[str, Any]]:
    """List the dicts of one or several data sets, concatenated.

    Args:
        names: as :func:`d2_smallobj.data.catalog.canonical_name` takes them.

    Raises:
        ValueError: a name is unknown (the message has the closest one), or a data set is empty.
        FileNotFoundError: files are missing; names them and the command that prepares them.
    """
    dicts: list[dict[str, Any]] = []
    for name in map(canonical_name, names):
        part = DatasetCatalog.get(look_up_option("DATASETS", name, DatasetCatalog.list()))
        if not part:
            raise ValueError(f"data set {name!r} lists no image")
        dicts.extend(part)
    if not dicts:
        raise ValueError("DATASETS names no data set")
    return dicts


def build_train_loader(cfg: CfgNode, *, start_iter: int = 0) -> Iterable[list[dict[str, Any]]]:
    """Build the infinite loader of training batches.

    Args:
        cfg: the config; ``SOLVER.IMS_PER_BATCH`` is the batch over all processes.
        start_iter: iteration of the first batch; the stream continues as if all earlier ones had
            been read.
    """
    dicts = apply_supervision(cfg, dataset_dicts(cfg.DATASETS.TRAIN))
    images = images_per_step(cfg)
    boxes_from = round(cfg.SMALLOBJ.SUPERVISION.BOXES_FROM * cfg.SOLVER.MAX_ITER) * images
    return build_detection_train_loader(
        StreamDataset(dicts, boxes_from),
        mapper=SemSegMapper(cfg, True),
        sampler=StreamSampler(len(dicts), seed=max(cfg.SEED, 0), start=start_iter * images),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        # Older detectron2 versions lack this argument; a CPU has no use for it.
        **({"pin_memory": True} if _prefetches(cfg) else {}),
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
    """Build the loader of a test set: one image a batch, each process its own part.

    Raises:
        ValueError: the data set is a training set with a folder of label maps.
    """
    spec = registered().get(canonical_name(dataset_name))
    if spec is not None and spec.weak:
        raise ValueError(f"{dataset_name!r} has pseudo labels: it is no set to evaluate on")
    return build_detection_test_loader(
        dataset_dicts([dataset_name]),
        mapper=SemSegMapper(cfg, False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


class StreamSampler(TrainingSampler):
    """Draw images in detectron2's training order, from any position on.

    Yields ``position * size + index``, from which :class:`StreamDataset` gets both back:
    detectron2's loaders pass only integers on. All processes need the same seed.
    """

    def __init__(self, size: int, *, seed: int, start: int = 0) -> None:
        super().__init__(size, shuffle=True, seed=seed)
        self._start = start

    def __iter__(self) -> Iterator[int]:
        first = self._start + self._rank
        order = itertools.islice(self._infinite_indices(), first, None, self._world_size)
        for position, index in zip(itertools.count(first, self._world_size), order):
            yield position * self._size + int(index)


class StreamDataset(Dataset):
    """Dataset dicts with their position in the stream (key ``stream_position``).

    Before position ``boxes_from``, images flagged ``boxes`` are replaced by images with masks; the
    order of the others stays, and position alone decides what is read.
    """

    def __init__(self, dicts: Sequence[dict[str, Any]], boxes_from: int = 0) -> None:
        self.dicts = dicts
        self.boxes_from = boxes_from
        self.masks = [x for x in dicts if x.get("supervision") != "boxes"]
        if boxes_from > 0 and not self.masks:
            raise ValueError(
                "SMALLOBJ.SUPERVISION.BOXES_FROM is above 0, but no training image has a mask to "
                "begin with; set it to 0"
            )

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, code: int) -> dict[str, Any]:
        position, index = divmod(int(code), len(self.dicts))
        x = self.dicts[index]
        if position < self.boxes_from and x.get("supervision") == "boxes":
            # Another one in every epoch, so that all masks are used alike.
            epoch = position // len(self.dicts)
            x = self.masks[(index + epoch) % len(self.masks)]
        return {**x, "stream_position": position}


# ---- Batches on the device ---------------------------------------------------------------------


def on_device(cfg: CfgNode, loader: Iterable[list[dict[str, Any]]]) -> Iterable[Any]:
    """Let a training loader copy its batches to a GPU ahead of the step that uses them."""
    return DeviceLoader(loader, torch.device(cfg.MODEL.DEVICE)) if _prefetches(cfg) else loader


def _prefetches(cfg: CfgNode) -> bool:
    return cfg.SMALLOBJ.SPEED.PREFETCH and cfg.MODEL.DEVICE.startswith("cuda")


class DeviceLoader:
    """A loader whose batches, of tensors in pinned memory, arrive on the device.

    While the GPU works on one step, the batch of the next is copied on a CUDA stream of its own.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device) -> None:
        self.loader = loader
        self.device = device

    def __iter__(self) -> Iterator[Any]:
        """Yield the loader's batches, their tensors on the device."""
        if self.device.type != "cuda":
            yield from map(self._copy, self.loader)
            return
        copying = torch.cuda.Stream(self.device)
        for batch in self.loader:
            with torch.cuda.stream(copying):
                moved = self._copy(batch)
            torch.cuda.current_stream(self.device).wait_stream(copying)
            # Else the next copy could reuse their memory while the step still reads it.
            map_tensors(lambda x: x.record_stream(torch.cuda.current_stream(self.device)), moved)
            yield moved

    def _copy(self, batch: Any) -> Any:
        """Copy a batch to the device; the host does not wait."""
        return map_tensors(lambda x: x.to(self.device, non_blocking=True), batch)


def map_tensors(function: Callable[[torch.Tensor], Any], data: Any) -> Any:
    """Apply a function to the tensors in nested dicts, lists and tuples."""
    if isinstance(data, torch.Tensor):
        return function(data)
    if isinstance(data, Mapping):
        return {key: map_tensors(function, value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(map_tensors(function, value) for value in data)
    return data
