"""Time the metric against a plain confusion matrix of the same images, in one process.

The yardstick is what mIoU alone costs: with uint8 maps in memory,

    valid = semantic != 255
    key = semantic[valid].astype(np.int64) * C + prediction[valid]
    np.bincount(key, minlength=C * C)

so masking void, computing the int64 key and counting are in it, and the checks of values are not.
Ours is an Accumulator that is given all images and then asked for its confusion matrix, so that
none is left unmatched: checks, confusion matrix, components, one record per instance (all sizes,
outcomes) and false-positive blobs. Times are per image. Every round times all functions on all
images, with one thread and in processor time, so that a busy machine does not count against the
longer of two.

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
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from d2_smallobj.metrics import Accumulator, match_image
from d2_smallobj.metrics.summary import summarize
from d2_smallobj.statistics.intervals import bootstrap
from d2_smallobj.utils.cli import positive_int

from benchmarks import (
    CLASSES,
    MOST_INSTANCES,
    VOC_SIZE,
    VOID,
    Maps,
    Measurement,
    draw_maps,
    in_process,
    machine,
    make_run,
    one_thread,
    predict_blocks,
    predict_borders,
    race,
    race_table,
    read_voc,
    spread_classes,
    table,
    void_of,
)

CROWDED_SIZE, CROWDED_INSTANCES = (1500, 1125), 36
RAGGED_IMAGES = 24
MANY_CLASSES = (150, 847)
NOISE = "noise in every pixel (worst case)"
# A single call pays numpy's cost per call for one image only: shown, without a target.
ALONE = "match_image, one image a call"
TARGETS: dict[str, dict[str, float]] = {
    "VOC-like": {"ours": 1.0},
    "crowded": {"ours": 2.0},
    "ragged blocks": {"ours": 1.0},
    "ragged borders": {"ours": 1.0},
    NOISE: {"ours": 20.0},
    "classes": {"150, few": 1.2, "150, spread": 1.2, "847, few": 1.5, "847, spread": 1.5},
}
"""Highest ratio to the yardstick, by maps and row."""
SUMMARY_CLASSES = (81, 150, 847)
SUMMARY_TARGETS = {81: {"seconds": 60.0, "MiB": 2048.0}}
"""Most seconds and mebibytes, by number of classes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--images", type=positive_int, default=60, help="VOC-like images")
    parser.add_argument("--crowded", type=positive_int, default=8, help="crowded images")
    parser.add_argument("--rounds", type=positive_int, default=9, help="timings of every image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--voc", metavar="FOLDER", help="VOC2012 folder; default: drawn scenes")
    parser.add_argument("--summary", action="store_true", help="also time the summary (minutes)")


def run(args: argparse.Namespace) -> Measurement:
    """Run everything, with one thread."""
    # First, as a process starts with the peak memory of the one that starts it.
    summary = measure_summary(args.seed) if args.summary else None
    with one_thread():
        figures = measure(args.images, args.crowded, args.rounds, args.seed, args.voc)
    missed = []
    for name, limits in TARGETS.items():
        for row, limit in limits.items():
            ratio = figures[name][row]["ratio"]
            if ratio > limit:
                took = f"takes {ratio:.2f} times the yardstick, not {limit:.1f}"
                missed.append(f"{name}: {row} {took}")
    text = _format(figures)
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
        **{"machine": machine(), "settings": settings},
        "VOC-like": race_images(drawn, OURS, rounds),
        "crowded": race_images(crowds, OURS, rounds),
        "ragged blocks": race_images(blocks, RAGGED, rounds),
        "ragged borders": race_images(borders, RAGGED, rounds),
        # Longer than all the others together, and nothing like them in caches.
        NOISE: race_images([(guess, truth, truth)], OURS, min(rounds, 5)),
        "classes": race_classes(borders, seed, rounds),
        "pixels": scaling_in_pixels(seed, rounds),
        "images": scaling_in_images(drawn[:8], rounds),
    }


def race_images(
    images: Sequence[Any], functions: Mapping[str, Callable[[Any], object]], rounds: int
) -> dict[str, dict[str, float]]:
    """Time functions of all images, the first one the yardstick; processor time per image."""
    return race([images], functions, rounds, time.process_time, per=len(images))


def count_labels(maps: Maps) -> np.ndarray:
    """Compute the confusion matrix of an image; see the top of the file."""
    prediction, semantic, _ = maps
    valid = semantic != VOID
    key = semantic[valid].astype(np.int64) * CLASSES + prediction[valid]
    return np.bincount(key, minlength=CLASSES * CLASSES).reshape(CLASSES, CLASSES)


def ours(
    images: Iterable[Maps], *, classes: int = CLASSES, mode: str = "exact", annotated: bool = True
) -> Accumulator:
    """Compute mIoU and IA-mIoU of all sizes, except the final figures."""
    accumulator = Accumulator(classes, ignore_label=void_of(classes), mode=mode)
    for number, (prediction, semantic, instances) in enumerate(images):
        accumulator.update(number, prediction, semantic, instances if annotated else None)
    # Images wait to be matched together until something is asked for.
    _ = accumulator.confusion
    return accumulator


RAGGED: dict[str, Callable[[Sequence[Maps]], object]] = {
    "bincount": lambda images: [count_labels(maps) for maps in images],
    "ours": ours,
    ALONE: lambda images: [match_image(*maps, num_classes=CLASSES) for maps in images],
}
OURS: dict[str, Callable[[Sequence[Maps]], object]] = {
    **RAGGED,
    "ours, components as instances": functools.partial(ours, annotated=False),
    "ours, official": functools.partial(ours, mode="official"),
}


def race_classes(images: Sequence[Maps], seed: int, rounds: int) -> dict[str, Any]:
    """Time the same regions, ten times each, as images of data sets with more classes."""
    rng = np.random.default_rng(seed)
    kinds = {f"{CLASSES}": (CLASSES, False)}
    for count in MANY_CLASSES:
        kinds |= {f"{count}, few": (count, False), f"{count}, spread": (count, True)}
    functions = {}
    for name, (count, wide) in kinds.items():
        held = [spread_classes(maps, rng, count, spread=wide) for maps in images]
        functions[name] = lambda _, held=held, count=count: ours(10 * held, classes=count)
    return race_images(10 * list(images), functions, rounds)


def scaling_in_pixels(seed: int, rounds: int) -> dict[str, Any]:
    """Time the same scene at rising resolution: an exponent of 1 is linear in pixels."""
    times, sizes = [], []
    for factor in (1, 2, 4):
        width, height = (factor * side for side in VOC_SIZE)
        maps = draw_maps(np.random.default_rng(seed), width, height, 5)
        times.append(race_images([maps], {"ours": ours}, rounds)["ours"]["quiet"])
        sizes.append(width * height)
    return {"sizes": sizes, "ms": times, "exponent": slope(sizes, times)}


def scaling_in_images(images: Sequence[Maps], rounds: int) -> dict[str, Any]:
    """Time one accumulator over more and more images, figures included: 1 is linear in images."""
    names = ["background", *(f"class {number}" for number in range(1, CLASSES))]

    def evaluate(count: int) -> None:
        accumulator = Accumulator(CLASSES)
        for number in range(count):
            accumulator.update(number, *images[number % len(images)])
        accumulator.summarize(names)

    counts, work = [250, 500, 1000], {"ours": evaluate}
    rows = [race([count], work, min(rounds, 3), time.process_time)["ours"] for count in counts]
    times = [row["quiet"] for row in rows]
    return {"sizes": counts, "ms": times, "exponent": slope(counts, times)}


def slope(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Fit the exponent of a power law."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def _format(figures: Mapping[str, Any]) -> str:
    """Format the figures as Markdown."""
    lines = [f"{figures['machine']}; {figures['settings']}"]
    for name in ("VOC-like", "crowded", "ragged blocks", "ragged borders", NOISE, "classes"):
        limits = [f"{row} {limit:.1f} ×" for row, limit in TARGETS.get(name, {}).items()]
        target = f" (targets: {'; '.join(limits)})" if limits else ""
        lines += ["", f"{name}{target}", "", race_table(figures[name])]
    for name in ("pixels", "images"):
        rows = figures[name]
        steps = ", ".join(f"{size}: {ms:.3g} ms" for size, ms in zip(rows["sizes"], rows["ms"]))
        lines += ["", f"Linear in {name}: exponent {rows['exponent']:.2f} ({steps})"]
    return "\n".join(lines)


def measure_summary(
    seed: int, images: int = 40_000, instances: int = 300_000, samples: int = 1000
) -> Measurement:
    """Summarise made-up data sets with 81, 150 and 847 classes."""
    figures = {
        str(classes): in_process(_summarize_alone, images, instances, classes, samples, seed)
        for classes in SUMMARY_CLASSES
    }
    missed = []
    for classes, limits in SUMMARY_TARGETS.items():
        for unit, limit in limits.items():
            took = figures[str(classes)][unit]
            if took > limit:
                what = f"summary of {classes} classes"
                missed.append(f"{what} takes {took:.0f} {unit}, not {limit:.0f}")
    columns = {"seconds": ("seconds", ".1f")}
    columns["plain seconds"] = ("of these without intervals", ".1f")
    columns |= {"MiB": ("peak MiB", ".0f"), "MiB before": ("with the tables only", ".0f")}
    title = f"Summary of {images} images with {instances} instances, {samples} resamples"
    title += " (targets: 81 classes 60 s, 2048 MiB)"
    return Measurement(figures, f"{title}\n\n{table(figures, 'classes', columns)}", missed)


def _summarize_alone(
    images: int, instances: int, classes: int, samples: int, seed: int
) -> dict[str, float]:
    """Summarise one made-up data set: with and without intervals, with the process's memory."""
    names = [f"class {number}" for number in range(classes)]
    run = make_run(images, instances, classes, seed)
    before = _peak()
    begin = time.perf_counter()
    summarize(run.table, run.pixels, names, images=images)
    plain = time.perf_counter() - begin
    bootstrap(run, class_names=names, samples=samples, seed=seed)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "plain seconds": plain, "MiB": _peak(), "MiB before": before}


def _peak() -> float:
    """Peak memory of this process so far, in MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
