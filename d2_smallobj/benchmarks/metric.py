"""Time the metric against a plain confusion matrix of the same images, in one process.

The yardstick is what mIoU alone costs: with uint8 maps in memory,

    valid = semantic != 255
    key = semantic[valid].astype(np.int64) * C + prediction[valid]
    np.bincount(key, minlength=C * C)

so masking void, computing the int64 key and counting are in it, and the checks of values are not.
Ours is one Accumulator that takes the same images, and everything that it does for them: checks,
confusion matrix, components, one record per instance (all sizes, outcomes) and false-positive
blobs. It matches several images at once, so all functions are timed on a dozen images in turn,
and times are per image; "match_image, one by one" is what a single image costs by itself.

Maps: drawn scenes ("VOC-like", "crowded"); predictions as ragged as a network's, in cells of 8 x 8
pixels ("ragged blocks") and from score maps at an eighth of the size ("ragged borders"), on the
images of --voc where it is given; noise in every pixel. "classes": the ragged borders declared as
150 and as 847 classes ("few"), and with their labels drawn from all of these ("spread"); the
yardstick there is ours with 21. --summary also times the figures of a data set as large as COCO's
validation set, with their intervals, by themselves in a process each.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.benchmarks import Measurement, summary_costs
from d2_smallobj.benchmarks.peers import peers
from d2_smallobj.benchmarks.ragged import (
    predict_blocks,
    predict_borders,
    read_voc,
    spread_classes,
    void_of,
)
from d2_smallobj.benchmarks.scenes import (
    CLASSES,
    MOST_INSTANCES,
    VOC_SIZE,
    VOID,
    Maps,
    draw_maps,
)
from d2_smallobj.benchmarks.timing import machine, race, race_table, slope
from d2_smallobj.metrics import Accumulator, match_image
from d2_smallobj.utils.opencv import cv2

# With one thread each, processor time is what functions take on a machine of their own.
_race = functools.partial(race, clock=time.process_time)

CROWDED_SIZE, CROWDED_INSTANCES = (1500, 1125), 36
RAGGED_IMAGES = 24
MANY_CLASSES = (150, 847)
NOISE = "noise in every pixel (worst case)"
ALONE = "match_image, one by one"
TOGETHER = 12
"""Images that are timed together."""
TARGETS: dict[str, dict[str, float]] = {
    "VOC-like": {"ours": 1.0},
    "crowded": {"ours": 2.0},
    "ragged blocks": {"ours": 1.0},
    "ragged borders": {"ours": 1.0},
    NOISE: {"ours": 20.0},
    "classes": {"150, few": 1.2, "150, spread": 1.2, "847, few": 1.5, "847, spread": 1.5},
}
"""Highest ratio to the yardstick, by maps and row."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--images", type=int, default=60, help="VOC-like images")
    parser.add_argument("--crowded", type=int, default=8, help="crowded images")
    parser.add_argument("--rounds", type=int, default=9, help="timings of every image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--voc", metavar="FOLDER", help="VOC2012 folder; default: drawn scenes")
    parser.add_argument("--summary", action="store_true", help="also time the summary (minutes)")


def run(args: argparse.Namespace) -> Measurement:
    """Run everything, with one thread."""
    for name in ("images", "crowded", "rounds"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    # First, as a process starts with the peak memory of the one that starts it.
    summary = summary_costs.measure(args.seed) if args.summary else None
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        figures = measure(args.images, args.crowded, args.rounds, args.seed, args.voc)
    finally:
        cv2.setNumThreads(threads)
    missed = [
        f"{name}: {row} takes {figures[name][row]['ratio']:.2f} times the yardstick,"
        f" not {limit:.1f}"
        for name, limits in TARGETS.items()
        for row, limit in limits.items()
        if figures[name][row]["ratio"] > limit
    ]
    text = format_figures(figures)
    if summary is not None:
        figures["summary"] = summary.figures
        text += f"\n\n{summary.text}"
        missed += summary.missed
    return Measurement(figures, text, missed)


def measure(
    images: int, crowded: int, rounds: int, seed: int, voc: str | None = None
) -> dict[str, Any]:
    """Measure; times in milliseconds per image, ratios to the yardstick."""
    rng = np.random.default_rng(seed)
    drawn = [
        draw_maps(rng, *VOC_SIZE, int(rng.integers(1, MOST_INSTANCES + 1))) for _ in range(images)
    ]
    crowds = [draw_maps(rng, *CROWDED_SIZE, CROWDED_INSTANCES, 12) for _ in range(crowded)]
    guess, truth = rng.integers(0, CLASSES, (2, *VOC_SIZE[::-1])).astype(np.uint8)
    truths = read_voc(voc) if voc else [maps[1:] for maps in drawn[:RAGGED_IMAGES]]
    blocks, borders = (
        [(predict(rng, semantic), semantic, owner) for semantic, owner in truths]
        for predict in (predict_blocks, predict_borders)
    )
    settings = {"images": images, "crowded": crowded, "rounds": rounds, "seed": seed, "voc": voc}
    return {
        "machine": machine(),
        "settings": settings,
        "VOC-like": race_images(drawn, OURS, rounds),
        "crowded": race_images(crowds, OURS, rounds),
        "ragged blocks": race_images(blocks, RAGGED, rounds),
        "ragged borders": race_images(borders, RAGGED, rounds),
        # Longer than all the others together, and nothing like them in caches.
        NOISE: race_images([(guess, truth, truth)], OURS, min(rounds, 5)),
        "classes": race_classes(borders, seed, rounds),
        # By themselves: what they leave behind in caches and allocator would be charged to us.
        "peers": _race(drawn[:8], {**_ALONE, **peers(drawn[:8])}, rounds),
        "pixels": scaling_in_pixels(seed, rounds),
        "images": scaling_in_images(drawn[:8], rounds),
    }


def bincount(images: Sequence[Maps]) -> list[np.ndarray]:
    """The yardstick: see the top of the file."""
    return [_bincount(*maps) for maps in images]


def _bincount(prediction: np.ndarray, semantic: np.ndarray, _: np.ndarray) -> np.ndarray:
    valid = semantic != VOID
    key = semantic[valid].astype(np.int64) * CLASSES + prediction[valid]
    return np.bincount(key, minlength=CLASSES * CLASSES).reshape(CLASSES, CLASSES)


def ours(
    images: Sequence[Maps],
    *,
    classes: int = CLASSES,
    mode: str = "exact",
    annotated: bool = True,
) -> Accumulator:
    """mIoU and IA-mIoU of all sizes, of some images."""
    accumulator = Accumulator(classes, ignore_label=void_of(classes), mode=mode)
    for number, (prediction, semantic, instances) in enumerate(images):
        accumulator.update(number, prediction, semantic, instances if annotated else None)
    # What was read is matched now, at the latest.
    accumulator.confusion.sum()
    return accumulator


OURS: dict[str, Callable[[Sequence[Maps]], object]] = {
    "bincount": bincount,
    "ours": ours,
    "ours, components as instances": lambda images: ours(images, annotated=False),
    "ours, official": lambda images: ours(images, mode="official"),
}


RAGGED: dict[str, Callable[[Sequence[Maps]], object]] = {
    "bincount": bincount,
    "ours": ours,
    ALONE: lambda images: [match_image(*maps, num_classes=CLASSES) for maps in images],
}


_ALONE: dict[str, Callable[[Maps], object]] = {
    "bincount": lambda maps: bincount([maps]),
    ALONE: lambda maps: match_image(*maps, num_classes=CLASSES),
}


def race_images(
    images: Sequence[Maps],
    functions: Mapping[str, Callable[[Sequence[Maps]], object]],
    rounds: int,
) -> dict[str, dict[str, float]]:
    """Time functions on a dozen images at a time; times are per image."""
    number = max(1, len(images) // TOGETHER)
    cases = [images[place::number] for place in range(number)]
    rows = _race(cases, functions, rounds)
    for row in rows.values():
        row["median"] *= number / len(images)
        row["quiet"] *= number / len(images)
    return rows


def race_classes(images: Sequence[Maps], seed: int, rounds: int) -> dict[str, Any]:
    """The same regions as images of data sets with more and more classes."""
    rng = np.random.default_rng(seed)
    kinds = {f"{CLASSES}": (CLASSES, False)}
    for count in MANY_CLASSES:
        kinds |= {f"{count}, few": (count, False), f"{count}, spread": (count, True)}
    cases = {
        name: [spread_classes(maps, rng, count, spread=wide) for maps in images]
        for name, (count, wide) in kinds.items()
    }
    functions = {
        name: lambda case, name=name, count=count: ours(case[name], classes=count)
        for name, (count, _) in kinds.items()
    }
    rows = _race([cases], functions, rounds)
    for row in rows.values():
        row["median"] /= len(images)
        row["quiet"] /= len(images)
    return rows


def scaling_in_pixels(seed: int, rounds: int) -> dict[str, Any]:
    """The same scene at rising resolution: an exponent of 1 is linear in pixels."""
    times, sizes = [], []
    for factor in (1, 2, 4):
        width, height = (factor * side for side in VOC_SIZE)
        maps = draw_maps(np.random.default_rng(seed), width, height, 5)
        times.append(_race([[maps]], {"ours": ours}, rounds)["ours"]["quiet"])
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
            begin = time.process_time()
            evaluate(count)
            laps.append(1e3 * (time.process_time() - begin))
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
        limits = [f"{row} {limit:.1f} ×" for row, limit in TARGETS.get(name, {}).items()]
        target = f" (targets: {'; '.join(limits)})" if limits else ""
        lines += ["", f"{name}{target}", "", race_table(rows)]
    return "\n".join(lines)
