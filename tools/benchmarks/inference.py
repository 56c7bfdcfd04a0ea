"""Time inference over a data set with the evaluator against the same run without it.

The yardstick is detectron2's inference_on_dataset with no evaluator: pictures in memory, one a
batch, through the model. With the evaluator it also takes the argmax on the device, copies the
uint8 labels, reads both ground-truth PNGs, matches, and computes the figures at the end: once all
in the loop, once with worker threads, as the trainer does. With a GPU the model is
DeepLabV2-ResNet101 and the threads may add 5 %; without one it is a small net, whose figures show
that the command works and no more. Weights are random, so the model's scores are computed and
discarded: the evaluator gets scores of predictions drawn beforehand, on the device.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from d2_smallobj.annotations.classes import VOC_CLASS_NAMES
from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.engine import build_config
from d2_smallobj.engine.trainer import EVALUATOR_WORKERS
from d2_smallobj.evaluation import SmallObjectEvaluator
from d2_smallobj.utils.cli import positive_int
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.modeling import build_model

from benchmarks import (
    CLASSES,
    FOLDERS,
    VOC_SIZE,
    VOID,
    Measurement,
    draw_folders,
    race,
    race_table,
    torch_machine,
)

TARGET = 1.05  # highest ratio to the yardstick with worker threads on a GPU
_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_DATASET = "benchmark_inference"
_Batches = Sequence[Sequence[dict[str, Any]]]
_MOST_DRAWN = 32  # their scores stay on the device, 16 MB each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    text = "a model of 21 classes; default: configs/Base-DeepLabV2-R101.yaml with a GPU, "
    text += "configs/Base-Demo.yaml without"
    parser.add_argument("--config-file", metavar="FILE", help=text)
    parser.add_argument("--images", type=positive_int, help="default: 300 with a GPU, 20 without")
    parser.add_argument("--workers", type=positive_int, default=EVALUATOR_WORKERS, help="threads")
    parser.add_argument("--rounds", type=positive_int, default=5, help="timings of each")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> Measurement:
    """Measure on the GPU, or where there is none on the CPU."""
    gpu = torch.cuda.is_available()
    images = args.images or (300 if gpu else 20)
    default = _CONFIGS / ("Base-DeepLabV2-R101.yaml" if gpu else "Base-Demo.yaml")
    config = args.config_file or str(default)
    model = build(config, args.seed)
    with tempfile.TemporaryDirectory(prefix="d2_smallobj_") as folder:
        batches = make_batches(folder, images, args.seed)
        rows = measure(_Replay(model, batches), batches, args.workers, args.rounds)
    given = {name: getattr(args, name) for name in ("workers", "rounds", "seed")}
    settings = {"config": Path(config).name, "images": images, **given}
    figures = {**torch_machine(), "settings": settings, "runs": rows}
    return Measurement(figures, _format(figures), _missed(rows, args.workers, gpu))


def build(config_file: str, seed: int) -> nn.Module:
    """Build the model of a config, which must have VOC's classes, with random weights."""
    cfg = build_config(config_file, ["MODEL.WEIGHTS", ""])
    if config_file == str(_CONFIGS / "Base-Demo.yaml"):
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    found = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if found != CLASSES:
        rule = f"MODEL.SEM_SEG_HEAD.NUM_CLASSES must be {CLASSES}, the number of VOC's classes"
        raise ValueError(f"{config_file}: {rule}, got {found}")
    torch.manual_seed(seed)
    return build_model(cfg).eval()


def make_batches(folder: str, images: int, seed: int) -> list[list[dict[str, Any]]]:
    """Batches of one VOC-sized noise picture each; ground truth and predictions in ``folder``.

    Beyond some number images share their files: their ids differ, so all are evaluated.
    """
    names = draw_folders(folder, images=min(images, _MOST_DRAWN), seed=seed)
    width, height = VOC_SIZE
    noise = torch.Generator().manual_seed(seed)
    size = (3, height, width)
    pictures = [torch.randint(0, 256, size, generator=noise).to(torch.uint8) for _ in names]
    batches = []
    keys = ("prediction", "sem_seg_file_name", "ins_seg_file_name")
    for number, (name, picture) in zip(range(images), itertools.cycle(zip(names, pictures))):
        files = {k: str(Path(folder, kind, f"{name}.png")) for k, kind in zip(keys, FOLDERS)}
        record = {"image": picture, "file_name": f"{number}.jpg", "image_id": str(number)}
        batches.append([{**record, **files}])
    return batches


def measure(
    model: nn.Module, batches: _Batches, workers: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Time whole runs: milliseconds per image, ratios to the run without evaluator."""
    metadata = MetadataCatalog.get(_DATASET)
    metadata.set(stuff_classes=list(VOC_CLASS_NAMES), ignore_label=VOID)
    try:
        inference_on_dataset(model, batches[:5], DatasetEvaluators([]))
        evaluators: dict[str, DatasetEvaluator] = {"no evaluator": DatasetEvaluators([])}
        for count in (0, workers):
            evaluator = SmallObjectEvaluator(_DATASET, distributed=False, num_workers=count)
            evaluators[_title(count)] = evaluator
        functions = {n: functools.partial(_evaluate, model, e) for n, e in evaluators.items()}
        return race([batches], functions, rounds, per=len(batches))
    finally:
        MetadataCatalog.pop(_DATASET)


class _Replay(nn.Module):
    """Runs a model, then answers with the scores of the predictions drawn for ``batches``."""

    def __init__(self, model: nn.Module, batches: _Batches) -> None:
        super().__init__()
        self.model = model
        classes = torch.arange(CLASSES, device=model.device)[:, None, None]
        self._scores: dict[str, torch.Tensor] = {}
        for path in {record["prediction"] for batch in batches for record in batch}:
            labels = torch.from_numpy(read_label_map(path).astype(np.int64)).to(model.device)
            self._scores[path] = (labels == classes).float()

    def forward(self, batch: Sequence[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        self.model(batch)
        return [{"sem_seg": self._scores[record["prediction"]]} for record in batch]


def _evaluate(model: nn.Module, evaluator: DatasetEvaluator, batches: _Batches) -> None:
    inference_on_dataset(model, batches, evaluator)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _title(workers: int) -> str:
    return f"evaluator, {workers} threads" if workers else "evaluator, all in the loop"


def _missed(rows: dict[str, dict[str, float]], workers: int, gpu: bool) -> list[str]:
    if not gpu:
        return [f"the target of {TARGET} × is one of a GPU, and there is none here"]
    ratio = rows[_title(workers)]["ratio"]
    text = f"with the evaluator a run takes {ratio:.3f} times that without it, not {TARGET}"
    return [text] if ratio > TARGET else []


def _format(figures: dict[str, Any]) -> str:
    """Format the figures as Markdown."""
    note = ""
    if figures["device"] == "CPU":
        note = "\n\nThere is no GPU: a small net on the CPU, which says nothing about a GPU."
    head = f"{figures['machine']}; {figures['device']}; {figures['settings']}{note}"
    return f"{head}\n\nPer image, figures included:\n\n{race_table(figures['runs'])}"
