"""Time and memory of the figures of a large data set, intervals included.

The tables are made up, no pixel is looked at: as many images as COCO's validation set of 2014, as
many instances, classes as unevenly spread. Each number of classes has a process to itself, so that
the peak memory is its own.

Shapes: N images; R records; C classes.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import resource
import time
from typing import NamedTuple

import numpy as np

from d2_smallobj.metrics import InstanceTable
from d2_smallobj.metrics.records import PixelTable
from d2_smallobj.metrics.summary import summarize
from d2_smallobj.statistics.intervals import bootstrap

from benchmarks import Measurement

IMAGES, INSTANCES, SAMPLES = 40_000, 300_000, 1000
IMAGE_AREA = 640 * 480
CLASSES = (81, 150, 847)
TARGETS = {81: {"seconds": 60.0, "MiB": 2048.0}}
"""Most seconds and mebibytes, by number of classes."""


class MadeUpRun(NamedTuple):
    """What the statistics ask of a scored run."""

    table: InstanceTable
    pixels: PixelTable
    images: list[str]


def measure(
    seed: int, images: int = IMAGES, instances: int = INSTANCES, samples: int = SAMPLES
) -> Measurement:
    """Summarise made-up data sets with 81, 150 and 847 classes."""
    figures = {}
    for classes in CLASSES:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            job = pool.submit(run_alone, images, instances, classes, samples, seed)
            figures[str(classes)] = job.result()
    missed = [
        f"summary of {classes} classes takes {figures[str(classes)][unit]:.0f} {unit},"
        f" not {limit:.0f}"
        for classes, limits in TARGETS.items()
        for unit, limit in limits.items()
        if figures[str(classes)][unit] > limit
    ]
    lines = [
        f"Summary of {images} images with {instances} instances, {samples} resamples"
        " (targets: 81 classes 60 s, 2048 MiB)",
        "",
        "| classes | seconds | of these without intervals | peak MiB | with the tables only |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {classes} | {row['seconds']:.1f} | {row['plain seconds']:.1f} | {row['MiB']:.0f}"
        f" | {row['MiB before']:.0f} |"
        for classes, row in figures.items()
    ]
    return Measurement(figures, "\n".join(lines), missed)


def run_alone(
    images: int, instances: int, classes: int, samples: int, seed: int
) -> dict[str, float]:
    """Summarise one made-up data set; the peak memory is that of the whole process.

    Returns:
        ``seconds`` for figures and intervals, ``plain seconds`` for the figures alone, ``MiB`` of
        memory at the peak and ``MiB before`` with nothing but the tables.
    """
    names = [f"class {number}" for number in range(classes)]
    run = make_run(images, instances, classes, seed)
    before = _peak()
    begin = time.perf_counter()
    summarize(run.table, run.pixels, names, images=images)
    plain = time.perf_counter() - begin
    bootstrap(run, class_names=names, samples=samples, seed=seed)
    return {
        "seconds": time.perf_counter() - begin,
        "plain seconds": plain,
        "MiB": _peak(),
        "MiB before": before,
    }


def make_run(images: int, instances: int, classes: int, seed: int) -> MadeUpRun:
    """Make up a scored data set whose class 0 is in every image and stuff.

    Every image has one to five kinds of things, frequent kinds (Zipf's law) more often; its
    prediction has one more that is not there.

    Returns:
        R = ``instances`` + N records, one row of pixels for each image and class, N image ids.
    """
    rng = np.random.default_rng(seed)
    ids = np.array([f"{number:012d}" for number in range(images)])
    share = 1 / np.arange(1, classes)
    kinds = rng.choice(np.arange(1, classes), (images, 6), p=share / share.sum())
    width = rng.integers(1, 6, images)
    owner = np.concatenate([np.arange(images), rng.integers(0, images, instances - images)])
    category = kinds[owner, rng.integers(0, width[owner])]
    area = np.exp(rng.uniform(np.log(20), np.log(60_000), instances)).astype(np.int64)
    ground = rng.integers(50_000, IMAGE_AREA, images)
    table = _records(
        ids[np.concatenate([np.arange(images), owner])],
        np.concatenate([np.zeros(images, np.int64), category]),
        np.concatenate([np.zeros(images, np.int64), np.arange(1, instances + 1)]),
        np.concatenate([ground, area]),
        rng,
    )
    wrong = kinds[np.arange(images), 5] + classes * np.arange(images)
    keys = np.concatenate([classes * np.arange(images), classes * owner + category])
    places, rows = np.unique(np.append(keys, wrong), return_inverse=True)
    truth, hit = np.zeros((2, len(places)), np.int64)
    np.add.at(truth, rows[: len(keys)], table.area)
    np.add.at(hit, rows[: len(keys)], table.intersection)
    guess = hit + rng.integers(1, 2000, len(places))
    pixels = PixelTable(ids[places // classes], places % classes, hit, truth, guess)
    return MadeUpRun(table, pixels, ids.tolist())


def _records(
    image: np.ndarray,
    category: np.ndarray,
    identity: np.ndarray,
    area: np.ndarray,
    rng: np.random.Generator,
) -> InstanceTable:
    """Records whose IoU is anything between 0 and 1."""
    hit = (area * rng.random(len(area))).astype(np.int64)
    found = (hit > 0).astype(np.int64)
    return InstanceTable(
        image_id=image,
        instance_id=identity,
        category_id=category,
        area=area,
        pixels=area,
        intersection=hit,
        charged=found * (hit + 0.3 * area * rng.random(len(area))),
        components=found,
        shared=np.zeros(len(area), np.int64),
        image_area=np.full(len(area), IMAGE_AREA),
    )


def _peak() -> float:
    """Peak memory of this process so far, in MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
