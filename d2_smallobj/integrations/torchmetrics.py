"""mIoU and IA-mIoU as a ``torchmetrics.Metric``; needs the extra ``torchmetrics``.

Shapes: B images of a batch; H, W height and width; C number of classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from d2_smallobj.metrics import (
    COCO_SIZE_BINS,
    Accumulator,
    BlobTable,
    ImageMatch,
    InstanceTable,
    PixelTable,
    match_image,
)
from d2_smallobj.metrics.summary import WORST_PERCENT, check_worst
from d2_smallobj.utils.installation import explained_imports

with explained_imports():
    from torchmetrics import Metric


class InstanceAwareIoU(Metric):
    """All figures of :func:`d2_smallobj.metrics.summary.summarize` over a data set.

    The matching runs on the CPU, in :func:`d2_smallobj.metrics.matching.match_image`, so that
    the numbers are those of the evaluator and of ``tools/evaluate.py``, to the last bit and for
    any number of processes. One int64 tensor per image is kept and synchronised; its length
    grows with the image's instances, not with its pixels.

    Unlike torchmetrics' own MeanIoU, mIoU is that of the data set, not a mean over images.

    Args:
        num_classes: C.
        class_names: C distinct names; default: their numbers.
        stuff: ids of the classes whose pixels are no objects: ``(0,)``, the background, by
            default; ``()`` for none.
        ignore_label: semantic value that is left out.
        void_instance: value of instance pixels that are left out; ``None``: there are none.
        mode: ``"exact"`` or ``"official"``.
        size_bins: exclusive upper bounds by bin name; see
            :class:`d2_smallobj.metrics.records.SizeBins`.
        worst: share of the worst images, in percent, for the figures with ``@``.
        **kwargs: those of ``torchmetrics.Metric``.

    Raises:
        ValueError: if an option is unknown, or if C and ``class_names`` do not fit together.

    Example:
        >>> truth = torch.tensor([[[0, 0, 1, 1]]])
        >>> metric = InstanceAwareIoU(num_classes=2)
        >>> metric.update(torch.tensor([[[0, 0, 0, 1]]]), truth, image_ids=["a"])
        >>> round(metric.compute()["IA-mIoU_fg"].item(), 6)
        50.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    messages: Any  # a list of tensors; inside sync_context() one tensor

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        *,
        stuff: Collection[int] = (0,),
        ignore_label: int = 255,
        void_instance: int | None = 255,
        mode: str = "exact",
        size_bins: Mapping[str, float] = COCO_SIZE_BINS,
        worst: int = WORST_PERCENT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # Wrong options are errors now, not at the first image.
        self._options = Accumulator(
            num_classes,
            stuff=stuff,
            ignore_label=ignore_label,
            void_instance=void_instance,
            mode=mode,
        ).settings
        self.worst = check_worst(worst)
        self.class_names = names = [str(name) for name in (class_names or range(num_classes))]
        if len(names) != num_classes:
            raise ValueError(f"class_names must be {num_classes} names, got {len(names)}: {names}")
        self.size_bins = size_bins
        self._unnamed = 0
        self.add_state("messages", default=[], dist_reduce_fx="cat")

    def update(
        self,
        preds: torch.Tensor,
        target: torch.Tensor,
        instances: torch.Tensor | None = None,
        image_ids: Sequence[str | int] | None = None,
    ) -> None:
        """Add a batch; nothing of it is added if an image is refused.

        Args:
            preds: (B, C, H, W) scores of any kind (the largest wins), or (B, H, W) integer
                labels; on any device.
            target: (B, H, W) integer labels.
            instances: (B, H, W) instance ids, 0 = none, ``void_instance`` = void; ``None``: the
                components of ``target`` are the instances.
            image_ids: B names that no other image of the data set has. Without them images are
                numbered, and an image that a padding sampler repeats cannot be told from a new
                one: it counts twice.

        Raises:
            TypeError: if a map is not of integers.
            ValueError: if shapes do not fit, or a map is malformed.
        """
        labels = _to_labels(preds, self._options["num_classes"])
        if image_ids is None:
            image_ids = [self._next_name() for _ in labels]
        batches = {"target": target, "image_ids": image_ids}
        if instances is not None:
            batches["instances"] = instances
        for name, batch in batches.items():
            if len(batch) != len(labels):
                raise ValueError(f"{name} must have {len(labels)} entries, got {len(batch)}")
        masks = [None] * len(labels) if instances is None else instances.cpu().numpy()
        found = [
            _encode(str(name), match_image(*maps, **self._options))
            for name, *maps in zip(image_ids, labels, target.cpu().numpy(), masks)
        ]
        self.messages += [torch.from_numpy(message).to(self.device) for message in found]

    def accumulator(self) -> Accumulator:
        """Collect the records and counts of this process.

        Inside ``with metric.sync_context():`` those of all processes.

        Raises:
            ValueError: if an image was given twice.
        """
        accumulator = Accumulator(**self._options)
        messages = self.messages if isinstance(self.messages, list) else [self.messages]
        for message in messages:
            rest = message.cpu().numpy()
            while len(rest):
                image_id, match, rest = _decode(rest, self._options["num_classes"])
                accumulator.add(image_id, match)
        return accumulator

    def compute(self) -> dict[str, torch.Tensor]:
        """Compute the figures over all processes.

        Returns:
            float64 scalars on the CPU, in percent, NaN where undefined; names and order as
            :func:`d2_smallobj.metrics.summary.summarize`.

        Raises:
            ValueError: if two processes, or two batches, gave the same image.
        """
        figures = self.accumulator().summarize(
            self.class_names, size_bins=self.size_bins, worst=self.worst
        )
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes; see ``torchmetrics.Metric.sync``."""
        # torchmetrics would send floats for a process without an image, and the others integers.
        if not len(self.messages):
            self.messages = [torch.zeros(0, dtype=torch.int64, device=self.device)]
        super().sync(*args, **kwargs)

    def _next_name(self) -> str:
        self._unnamed += 1
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        return f"{rank}-{self._unnamed}"


def _to_labels(preds: torch.Tensor, num_classes: int) -> np.ndarray:
    """Scores (B, C, H, W) or labels (B, H, W) to labels (B, H, W)."""
    if preds.ndim == 3 and not preds.is_floating_point() and preds.dtype != torch.bool:
        return preds.cpu().numpy()
    if preds.ndim != 4 or preds.shape[1] != num_classes:
        raise ValueError(
            f"preds must be (B, {num_classes}, H, W) scores or (B, H, W) integer labels,"
            f" got {preds.dtype} of shape {tuple(preds.shape)}"
        )
    # As argmax, the first of equal scores; on a CPU three times as fast.
    labels = preds.max(dim=1).indices
    # Narrowed before it leaves the device: an eighth of the bytes to copy.
    return labels.to(torch.uint8 if num_classes <= 256 else torch.int32).cpu().numpy()


_TABLES = {"pixels": PixelTable, "table": InstanceTable, "blobs": BlobTable}


def _columns(kind: type[InstanceTable | BlobTable | PixelTable]) -> list[str]:
    return [name for name in kind.names() if name != "image_id"]


def _encode(image_id: str, match: ImageMatch) -> np.ndarray:
    """One image as int64 numbers: lengths, name, confusion entries, and its tables."""
    name = np.frombuffer(image_id.encode(), np.uint8)
    tables = [getattr(match, attribute) for attribute in _TABLES]
    lengths = [len(name), len(match.entries), *map(len, tables)]
    parts = [lengths, name, *match.entries.T]
    for table in tables:
        # The bits of the one float column travel as an integer.
        parts += [getattr(table, column).view(np.int64) for column in _columns(type(table))]
    return np.concatenate([np.asarray(part, np.int64) for part in parts])


def _decode(message: np.ndarray, num_classes: int) -> tuple[str, ImageMatch, np.ndarray]:
    """Read the first image of a stream: its name, its match, and the stream after it."""
    letters, entries, *rows = message[: 2 + len(_TABLES)].tolist()
    sizes = [2 + len(_TABLES), letters, entries, entries, entries]
    for kind, length in zip(_TABLES.values(), rows):
        sizes += [length] * len(_columns(kind))
    _, name, truth, predicted, count, *parts, rest = np.split(message, np.cumsum(sizes))
    image_id = bytes(name.astype(np.uint8)).decode()
    tables = {}
    for (attribute, kind), length in zip(_TABLES.items(), rows):
        columns = {column: parts.pop(0) for column in _columns(kind)}
        if "charged" in columns:
            columns["charged"] = columns["charged"].view(np.float64)
        tables[attribute] = kind(image_id=np.full(length, image_id), **columns)
    entries = np.stack([truth, predicted, count], axis=1)
    return image_id, ImageMatch(num_classes, entries, **tables), rest
