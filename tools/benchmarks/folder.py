"""Time the scoring of folders of PNGs against decoding these PNGs and nothing else.

The yardstick is `np.asarray(PIL.Image.open(path))` of every file: prediction, semantic map and
instance map of each image, decoded as everybody does it, in as many processes. Scoring is what
tools/evaluate.py does without intervals: listing the folders, checking all headers, decoding with
checksums verified, matching, writing the files of the run. It may take 1.3 times the yardstick.
Beside it our own decoder, which verifies, and OpenCV's, which paints palettes and so gives colours
instead of indices. Files are VOC-sized, in P mode, written by Pillow, and in the page cache. All
kinds of work take turns.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from d2_smallobj.annotations import png
from d2_smallobj.annotations.label_maps import read_labels
from d2_smallobj.scoring.inputs import Inputs
from d2_smallobj.scoring.pipeline import Settings, prepare, score
from d2_smallobj.scoring.run_folder import save_run
from d2_smallobj.utils.opencv import cv2

from benchmarks import Measurement
from benchmarks.scenes import FOLDERS, draw_folders
from benchmarks.timing import machine

TARGET = 1.3
"""Highest ratio of scoring to decoding with Pillow."""

_CHUNK = 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--images", type=int, default=1449, help="default: as many as VOC val")
    parser.add_argument(
        "--jobs", type=int, nargs="+", default=[1, 2], metavar="N", help="numbers of processes"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timings of each kind of work")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> Measurement:
    """Draw the PNGs in a temporary folder and measure for every number of processes."""
    for name, value in (("images", args.images), ("jobs", min(args.jobs)), ("rounds", args.rounds)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    figures: dict[str, Any] = {
        "machine": f"{machine()}, pixels unpacked by {png.zlib.__name__}",
        "settings": {"images": args.images, "rounds": args.rounds, "seed": args.seed},
    }
    with tempfile.TemporaryDirectory(prefix="d2_smallobj_") as folder:
        draw_folders(folder, images=args.images, seed=args.seed)
        for jobs in args.jobs:
            figures[f"jobs {jobs}"] = measure_folder(folder, jobs=jobs, rounds=args.rounds)
    missed = [
        f"scoring takes {rows['score']['ratio']:.2f} times decoding with {name}, not {TARGET}"
        for name, rows in figures.items()
        if name.startswith("jobs") and rows["score"]["ratio"] > TARGET
    ]
    return Measurement(figures, _format(figures), missed)


def measure_folder(
    folder: str | os.PathLike[str], *, jobs: int = 1, rounds: int = 5
) -> dict[str, dict[str, float]]:
    """Measure decoding and scoring.

    Args:
        folder: what :func:`.scenes.draw_folders` drew.
        jobs: number of processes, the same for all kinds of work.
        rounds: how often.

    Returns:
        For ``pillow``, ``opencv``, ``verifying`` (our decoder) and ``score`` the median
        ``seconds``, those of the best round, ``quiet``, and the ratios ``ratio`` and
        ``quiet_ratio`` of these to Pillow's.
    """
    folder = Path(folder)
    paths = [str(path) for kind in FOLDERS for path in sorted((folder / kind).glob("*.png"))]
    work: dict[str, Callable[[], object]] = {
        "pillow": lambda: _decode_all(_pillow, paths, jobs),
        "opencv": lambda: _decode_all(_opencv, paths, jobs),
        "verifying": lambda: _decode_all(_verifying, paths, jobs),
        "score": lambda: _score(folder, jobs),
    }
    taken: dict[str, list[float]] = {name: [] for name in work}
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for _ in range(rounds):
            for name, do in work.items():
                begin = time.perf_counter()
                do()
                taken[name].append(time.perf_counter() - begin)
    finally:
        cv2.setNumThreads(threads)
    base = taken["pillow"]
    return {
        name: {
            "seconds": statistics.median(laps),
            "ratio": statistics.median(laps) / statistics.median(base),
            "quiet": min(laps),
            "quiet_ratio": min(laps) / min(base),
        }
        for name, laps in taken.items()
    }


def _score(folder: Path, jobs: int) -> None:
    inputs = Inputs(**{name: str(folder / name) for name in FOLDERS})
    scored = score(prepare(inputs, Settings(samples=0)), jobs=jobs)
    with tempfile.TemporaryDirectory() as output:
        save_run(output, scored)


def _decode_all(decode: Callable[[Sequence[str]], int], paths: Sequence[str], jobs: int) -> int:
    """Decode all files in so many processes; the number of pixels."""
    if jobs == 1:
        return decode(paths)
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context) as pool:
        return sum(pool.map(decode, chunks))


def _pillow(paths: Sequence[str]) -> int:
    pixels = 0
    for path in paths:
        with Image.open(path) as image:
            pixels += np.asarray(image).size
    return pixels


def _opencv(paths: Sequence[str]) -> int:
    return sum(cv2.imread(path, cv2.IMREAD_UNCHANGED).shape[0] for path in paths)


def _verifying(paths: Sequence[str]) -> int:
    return sum(read_labels(path).size for path in paths)


def _format(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [f"{figures['machine']}; {figures['settings']}"]
    names = {
        "pillow": "decoding, Pillow",
        "opencv": "decoding, OpenCV",
        "verifying": "decoding, checksums verified",
        "score": f"scoring, target {TARGET} × Pillow",
    }
    for title, rows in figures.items():
        if not title.startswith("jobs"):
            continue
        lines += ["", f"{title}, seconds", "", "| what | median | × | best round | × |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {text} | {row['seconds']:.3f} | {row['ratio']:.2f}"
            f" | {row['quiet']:.3f} | {row['quiet_ratio']:.2f} |"
            for text, row in zip(names.values(), map(rows.__getitem__, names))
        ]
    return "\n".join(lines)
