#!/usr/bin/env python
"""Time the metric against a plain confusion matrix of the same images, in one process.

The yardstick is what mIoU alone costs: with uint8 maps in memory,

    valid = semantic != 255
    key = semantic[valid].astype(np.int64) * C + prediction[valid]
    np.bincount(key, minlength=C * C)

so masking void, computing the int64 key and counting are in it, and the checks of values are not.
Ours is Accumulator.update: checks, confusion matrix, components, one record per instance (all
sizes, outcomes) and false-positive blobs. Every round times all functions on an image in turn.

Example:
    nice python tools/benchmark.py metric --json benchmark.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# Before numpy and OpenCV start their threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from d2_smallobj.metrics import Accumulator
from d2_smallobj.utils.files import atomic_write_text
from d2_smallobj.utils.opencv import cv2

CLASSES, VOID = 21, 255
VOC_SIZE, CROWDED_SIZE, CROWDED_INSTANCES = (500, 375), (1500, 1125), 36
TARGETS = {"VOC-like": 1.0, "crowded": 2.0}

Maps = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Prediction, semantic map and instance map, uint8 (H, W)."""


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["metric"])
    parser.add_argument("--images", type=int, default=60, help="VOC-like images")
    parser.add_argument("--crowded", type=int, default=8, help="crowded images")
    parser.add_argument("--rounds", type=int, default=9, help="timings of every image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the figures here, too")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 if a target of the yardstick is missed"
    )
    args = parser.parse_args()
    if min(args.images, args.crowded, args.rounds) < 1:
        parser.error("--images, --crowded and --rounds must be at least 1")
    cv2.setNumThreads(1)
    result = measure(args.images, args.crowded, args.rounds, args.seed)
    print(format_result(result))
    if args.json:
        atomic_write_text(args.json, json.dumps(result, indent=2) + "\n")
    missed = [name for name in TARGETS if result[name]["ours"]["ratio"] > TARGETS[name]]
    if args.check and missed:
        sys.exit(f"error: slower than its target of {TARGETS}: {', '.join(missed)}")


def measure(images: int, crowded: int, rounds: int, seed: int) -> dict[str, Any]:
    """Run everything; times in milliseconds per image, ratios to the yardstick."""
    rng = np.random.default_rng(seed)
    voc = [draw_maps(rng, *VOC_SIZE, int(rng.integers(1, 9))) for _ in range(images)]
    crowds = [draw_maps(rng, *CROWDED_SIZE, CROWDED_INSTANCES, 12) for _ in range(crowded)]
    noise = [tuple(rng.integers(0, CLASSES, (375, 500)).astype(np.uint8) for _ in range(2))]
    noise = [(guess, truth, truth) for guess, truth in noise]
    return {
        "machine": f"{platform.machine()}, Python {platform.python_version()}, "
        f"numpy {np.__version__}, OpenCV {cv2.__version__}",
        "settings": {"images": images, "crowded": crowded, "rounds": rounds, "seed": seed},
        "VOC-like": race(voc, OURS, rounds),
        "crowded": race(crowds, OURS, rounds),
        "noise in every pixel (worst case)": race(noise, OURS, rounds),
        # By themselves: what they leave behind in caches and allocator would be charged to us.
        "peers": race(voc[:8], {"bincount": bincount, "ours": ours, **peers(voc[:8])}, rounds),
        "pixels": scaling_in_pixels(seed, rounds),
        "images": scaling_in_images(voc[:8], rounds),
    }


def race(
    images: Sequence[Maps], functions: dict[str, Callable[[Maps], object]], rounds: int
) -> dict[str, dict[str, float]]:
    """Time functions on images in turn.

    Returns:
        For each function ``median`` of all timings, ``quiet``, the median over images of the
        best round (what a machine without other work would show), and the ratios ``ratio`` and
        ``quiet_ratio`` of these to the yardstick's.
    """
    times = {name: np.empty((rounds, len(images))) for name in functions}
    for turn in range(rounds):
        for number, maps in enumerate(images):
            for name, function in functions.items():
                begin = time.perf_counter()
                function(maps)
                times[name][turn, number] = 1e3 * (time.perf_counter() - begin)
    found = {
        name: {"median": float(np.median(t)), "quiet": float(np.median(t.min(axis=0)))}
        for name, t in times.items()
    }
    base = found["bincount"]
    for row in found.values():
        row["ratio"] = row["median"] / base["median"]
        row["quiet_ratio"] = row["quiet"] / base["quiet"]
    return found


def bincount(maps: Maps) -> np.ndarray:
    """The yardstick: see the top of the file."""
    prediction, semantic, _ = maps
    valid = semantic != VOID
    key = semantic[valid].astype(np.int64) * CLASSES + prediction[valid]
    return np.bincount(key, minlength=CLASSES * CLASSES).reshape(CLASSES, CLASSES)


def ours(maps: Maps, *, mode: str = "exact", annotated: bool = True) -> Accumulator:
    """mIoU and IA-mIoU of all sizes, of one image."""
    prediction, semantic, instances = maps
    accumulator = Accumulator(CLASSES, mode=mode)
    accumulator.update("image", prediction, semantic, instances if annotated else None)
    return accumulator


OURS: dict[str, Callable[[Maps], object]] = {
    "bincount": bincount,
    "ours": ours,
    "ours, components as instances": lambda maps: ours(maps, annotated=False),
    "ours, official": lambda maps: ours(maps, mode="official"),
}


def peers(images: Sequence[Maps]) -> dict[str, Callable[[Maps], object]]:
    """What other packages offer, of those that are installed; all of them give mIoU only."""
    found = {}
    if importlib.util.find_spec("torchmetrics"):
        found["torchmetrics MeanIoU (mean over images)"] = torchmetrics_mean_iou()
    try:
        from detectron2.evaluation import SemSegEvaluator  # The embedded host has none.
    except ImportError:
        return found
    found["detectron2 SemSegEvaluator from logits"] = detectron2_evaluator(SemSegEvaluator, images)
    return found


def torchmetrics_mean_iou() -> Callable[[Maps], object]:
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


def detectron2_evaluator(
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

    def load(name: str, dtype: type = int) -> np.ndarray:
        return images[int(name)][1].astype(dtype)

    instance = evaluator("benchmark", distributed=False, sem_seg_loading_fn=load)
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


def scaling_in_pixels(seed: int, rounds: int) -> dict[str, Any]:
    """The same scene at rising resolution: an exponent of 1 is linear in pixels."""
    times, sizes = [], []
    for factor in (1, 2, 4):
        width, height = (factor * side for side in VOC_SIZE)
        maps = draw_maps(np.random.default_rng(seed), width, height, 5)
        times.append(race([maps], {"bincount": ours}, rounds)["bincount"]["quiet"])
        sizes.append(width * height)
    return {"sizes": sizes, "ms": times, "exponent": slope(sizes, times)}


def scaling_in_images(images: Sequence[Maps], rounds: int) -> dict[str, Any]:
    """One accumulator over more and more images, figures included: 1 is linear in images."""
    names = ["background", *(f"class {number}" for number in range(1, CLASSES))]

    def evaluate(count: int) -> None:
        accumulator = Accumulator(CLASSES)
        for number in range(count):
            accumulator.update(number, *images[number % len(images)])
        accumulator.summarize(names)

    counts, times = [250, 500, 1000], []
    for count in counts:
        laps = []
        for _ in range(min(rounds, 3)):
            begin = time.perf_counter()
            evaluate(count)
            laps.append(1e3 * (time.perf_counter() - begin))
        times.append(min(laps))
    return {"images": counts, "ms": times, "exponent": slope(counts, times)}


def slope(sizes: Iterable[float], times: Iterable[float]) -> float:
    """Exponent of the power law through the points, by least squares of the logarithms."""
    return float(np.polyfit(np.log(list(sizes)), np.log(list(times)), 1)[0])


def draw_maps(
    rng: np.random.Generator, width: int, height: int, instances: int, kinds: int = 3
) -> Maps:
    """Draw an image as VOC annotates it, and a prediction with the usual faults.

    Rounded shapes of log-uniform size, each on those before it and within a void border as wide
    as VOC's; at most ``kinds`` classes. Predicted shapes are displaced, too large or too small;
    one in ten is missed and one in ten mistaken for another class; up to three blobs are made up.
    """
    prediction, semantic, owner = np.zeros((3, height, width), np.uint8)
    side = min(width, height)
    classes = rng.integers(1, CLASSES, kinds)
    largest = 0.4 * side if instances < 20 else 0.15 * side
    radii = np.sort(np.exp(rng.uniform(np.log(8 * side / 375), np.log(largest), instances)))[::-1]
    border = np.ones((5, 5), np.uint8)
    for number, radius in enumerate(radii, start=1):
        kind, centre = int(rng.choice(classes)), rng.uniform(0, 1, 2) * (width, height)
        outline = draw_outline(rng, radius)
        mask = cv2.fillPoly(np.zeros_like(owner), [rounded(outline + centre)], 1)
        ring = cv2.dilate(mask, border) > 0
        semantic[ring], owner[ring] = VOID, VOID
        semantic[mask > 0], owner[mask > 0] = kind, number
        guess = outline * rng.uniform(0.8, 1.2) + centre + rng.normal(0, 0.05 * radius + 2, 2)
        fate = rng.random()
        if fate > 0.1:
            label = int(rng.integers(1, CLASSES)) if fate < 0.2 else kind
            cv2.fillPoly(prediction, [rounded(guess)], label)
    for _ in range(rng.integers(0, 4)):
        centre = rounded(rng.uniform(0, 1, 2) * (width, height)).tolist()
        cv2.circle(prediction, centre, int(rng.integers(2, 15)), int(rng.choice(classes)), -1)
    return prediction, semantic, owner


def draw_outline(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Corners (32, 2) of a wavy closed curve around the origin."""
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    distance = np.ones_like(angle)
    for wave in range(1, 5):
        phase = rng.uniform(0, 2 * np.pi)
        distance += rng.normal(0, 0.25 / wave) * np.cos(wave * angle + phase)
    distance = np.maximum(distance, 0.3) * radius
    stretch = rng.uniform(0.6, 1.5)
    return np.stack([np.cos(angle) * distance, np.sin(angle) * distance * stretch], axis=1)


def rounded(points: np.ndarray) -> np.ndarray:
    """Points as OpenCV draws them."""
    return np.round(points).astype(np.int32)


def format_result(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [f"{result['machine']}; {result['settings']}"]
    for name, rows in result.items():
        if name in ("machine", "settings"):
            continue
        if "exponent" in rows:
            steps = ", ".join(f"{size}: {ms:.3g} ms" for size, ms in zip(*list(rows.values())[:2]))
            lines += ["", f"Linear in {name}: exponent {rows['exponent']:.2f} ({steps})"]
            continue
        target = f", target {TARGETS[name]:.1f} × bincount" if name in TARGETS else ""
        lines += ["", f"{name}{target}", "", "| what | median ms | × | best-round ms | × |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {what} | {row['median']:.3f} | {row['ratio']:.2f}"
            f" | {row['quiet']:.3f} | {row['quiet_ratio']:.2f} |"
            for what, row in rows.items()
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
