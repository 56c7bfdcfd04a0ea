"""What other packages offer, where they are installed; all of them give mIoU only."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.scenes import CLASSES, VOID, Maps


def peers(images: Sequence[Maps]) -> dict[str, Callable[[Maps], object]]:
    """Functions of one image, by what they are; ``images`` are those that will be given."""
    found = {}
    if importlib.util.find_spec("torchmetrics"):
        found["torchmetrics MeanIoU (mean over images)"] = _torchmetrics_mean_iou()
    try:
        from detectron2.evaluation import SemSegEvaluator  # The embedded host has none.
    except ImportError:
        return found
    found["detectron2 SemSegEvaluator from logits"] = _detectron2_evaluator(SemSegEvaluator, images)
    return found


def _torchmetrics_mean_iou() -> Callable[[Maps], object]:
    """Updates of torchmetrics' metric, the conversion to its int64 tensors included."""
    import torch
    from torchmetrics.segmentation import MeanIoU

    torch.set_num_threads(1)
    metric = MeanIoU(num_classes=CLASSES, input_format="index")

    def update(maps: Maps) -> None:
        # It knows no ignore label: void becomes background.
        truth = torch.from_numpy(np.where(maps[1] == VOID, 0, maps[1]).astype(np.int64))
        metric.update(torch.from_numpy(maps[0].astype(np.int64))[None], truth[None])

    return update


def _detectron2_evaluator(
    evaluator: Callable[..., Any], images: Sequence[Maps]
) -> Callable[[Maps], object]:
    """process() of detectron2's own evaluator, its argmax included, reading of files not."""
    import torch

    from detectron2.data import DatasetCatalog, MetadataCatalog

    torch.set_num_threads(1)
    records = [{"file_name": str(n), "sem_seg_file_name": str(n)} for n in range(len(images))]
    DatasetCatalog.register("benchmark", lambda: records)
    names = [f"class {number}" for number in range(CLASSES)]
    MetadataCatalog.get("benchmark").set(stuff_classes=names, ignore_label=VOID)

    def read(name: str, dtype: type = int) -> np.ndarray:
        return images[int(name)][1].astype(dtype)

    instance = evaluator("benchmark", distributed=False, sem_seg_loading_fn=read)
    instance.reset()
    classes = np.arange(CLASSES, dtype=np.uint8)[:, None, None]
    jobs = {
        id(maps[0]): (record, torch.from_numpy((maps[0] == classes).astype(np.float32)))
        for record, maps in zip(records, images)
    }

    def process(maps: Maps) -> None:
        record, logits = jobs[id(maps[0])]
        instance.process([record], [{"sem_seg": logits}])

    return process
