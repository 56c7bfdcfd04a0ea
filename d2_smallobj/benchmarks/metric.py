"""Time the metric against a plain confusion matrix of the same images, in one process.

The yardstick is what mIoU alone costs: with uint8 maps in memory,

    valid = semantic != 255
    key = semantic[valid].astype(np.int64) * C + prediction[valid]
    np.bincount(key, minlength=C * C)

so masking void, computing the int64 key and counting are in it, and the checks of values are not.
Ours is Accumulator.update: checks, confusion matrix, components, one record per instance (all
sizes, outcomes) and false-positive blobs. Every round times all functions on an image in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.benchmarks import Measurement
from d2_smallobj.benchmarks.peers import peers
from d2_smallobj.benchmarks.scenes import (
    CLASSES,
    MOST_INSTANCES,
    VOC_SIZE,
    VOID,
    Maps,
    draw_maps,
)
from d2_smallobj.benchmarks.timing import machine, race, race_table, slope
from d2_smallobj.metrics import Accumulator
from d2_smallobj.utils.opencv import cv2

CROWDED_SIZE, CROWDED_INSTANCES = (1500, 1125), 36
TARGETS = {"VOC-like": 1.0, "crowded": 2.0}
"""Highest ratio of ours to the yardstick."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--images", type=int, default=60, help="VOC-like images")
    parser.add_argument("--crowded", type=int, default=8, help="crowded images")
    parser.add_argument("--rounds", type=int, default=9, help="timings of every image")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> Measurement:
    """Run everything, with one thread."""
    for name in ("images", "crowded", "rounds"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        figures = measure(args.images, args.crowded, args.rounds, args.seed)
    finally:
        cv2.setNumThreads(threads)
    missed = [
        f"{name} images take {figures[name]['ours']['ratio']:.2f} times the yardstick, not"
        f" {target:.1f}"
        for name, target in TARGETS.items()
        if figures[name]["ours"]["ratio"] > target
    ]
    return Measurement(figures, format_figures(figures), missed)


def measure(images: int, crowded: int, rounds: int, seed: int) -> dict[str, Any]:
    """Measure; times in milliseconds per image, ratios to the yardstick."""
    rng = np.random.default_rng(seed)
    counts = range(images)
    voc = [draw_maps(rng, *VOC_SIZE, int(rng.integers(1, MOST_INSTANCES + 1))) for _ in counts]
    crowds = [draw_maps(rng, *CROWDED_SIZE, CROWDED_INSTANCES, 12) for _ in range(crowded)]
    guess, truth = rng.integers(0, CLASSES, (2, *VOC_SIZE[::-1])).astype(np.uint8)
    return {
        "machine": machine(),
        "settings": {"images": images, "crowded": crowded, "rounds": rounds, "seed": seed},
        "VOC-like": race(voc, OURS, rounds),
        "crowded": race(crowds, OURS, rounds),
        "noise in every pixel (worst case)": race([(guess, truth, truth)], OURS, rounds),
        # By themselves: what they leave behind in caches and allocator would be charged to us.
        "peers": race(voc[:8], {"bincount": bincount, "ours": ours, **peers(voc[:8])}, rounds),
        "pixels": scaling_in_pixels(seed, rounds),
        "images": scaling_in_images(voc[:8], rounds),
    }


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


def scaling_in_pixels(seed: int, rounds: int) -> dict[str, Any]:
    """The same scene at rising resolution: an exponent of 1 is linear in pixels."""
    times, sizes = [], []
    for factor in (1, 2, 4):
        width, height = (factor * side for side in VOC_SIZE)
        maps = draw_maps(np.random.default_rng(seed), width, height, 5)
        times.append(race([maps], {"ours": ours}, rounds)["ours"]["quiet"])
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
    return {"sizes": counts, "ms": times, "exponent": slope(counts, times)}


def format_figures(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [f"{figures['machine']}; {figures['settings']}"]
    for name, rows in figures.items():
        if name in ("machine", "settings"):
            continue
        if "exponent" in rows:
            steps = ", ".join(f"{size}: {ms:.3g} ms" for size, ms in zip(rows["sizes"], rows["ms"]))
            lines += ["", f"Linear in {name}: exponent {rows['exponent']:.2f} ({steps})"]
            continue
        target = f", target {TARGETS[name]:.1f} × bincount" if name in TARGETS else ""
        lines += ["", f"{name}{target}", "", race_table(rows)]
    return "\n".join(lines)
