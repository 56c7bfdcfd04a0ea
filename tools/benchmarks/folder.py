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
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from d2_smallobj.annotations import image_files
from d2_smallobj.annotations.label_maps import read_labels
from d2_smallobj.scoring.inputs import Inputs
from d2_smallobj.scoring.pipeline import Settings, prepare, score
from d2_smallobj.scoring.scored_run import save_run
from d2_smallobj.utils.cli import positive_int
from d2_smallobj.utils.opencv import cv2

from benchmarks import FOLDERS, Measurement, draw_folders, machine, one_thread, race, race_table

TARGET = 1.3  # highest ratio of scoring to decoding with Pillow
_CHUNK = 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--images", type=positive_int, default=1449, help="default: VOC val's")
    parser.add_argument("--jobs", type=positive_int, nargs="+", default=[1, 2], help="processes")
    parser.add_argument("--rounds", type=positive_int, default=5, help="timings of each")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> Measurement:
    """Draw the PNGs in a temporary folder and measure for every number of processes."""
    figures: dict[str, Any] = {
        "machine": f"{machine()}, pixels unpacked by {image_files.zlib.__name__}",
        "settings": {"images": args.images, "rounds": args.rounds, "seed": args.seed},
    }
    with tempfile.TemporaryDirectory(prefix="d2_smallobj_") as folder:
        draw_folders(folder, images=args.images, seed=args.seed)
        for jobs in args.jobs:
            figures[f"jobs {jobs}"] = measure_folder(Path(folder), jobs, args.rounds)
    missed = [
        f"scoring takes {rows['score']['ratio']:.2f} times decoding with {name}, not {TARGET}"
        for name, rows in figures.items()
        if name.startswith("jobs") and rows["score"]["ratio"] > TARGET
    ]
    return Measurement(figures, _format(figures), missed)


def measure_folder(folder: Path, jobs: int, rounds: int) -> dict[str, dict[str, float]]:
    """Time scoring and decoders in seconds; ``pillow`` is the yardstick."""
    paths = [str(path) for kind in FOLDERS for path in sorted((folder / kind).glob("*.png"))]
    work: dict[str, Callable[[None], object]] = {}
    for name, decode in (("pillow", _pillow), ("opencv", _opencv), ("verifying", _verifying)):
        work[name] = lambda _, decode=decode: _decode_all(decode, paths, jobs)
    work["score"] = lambda _: _score(folder, jobs)
    with one_thread():
        rows = race([None], work, rounds)
    for row in rows.values():
        row["seconds"] = row.pop("median") / 1e3
        row["quiet"] /= 1e3
    return rows


def _score(folder: Path, jobs: int) -> None:
    inputs = Inputs(**{name: str(folder / name) for name in FOLDERS})
    scored = score(prepare(inputs, Settings(samples=0)), jobs=jobs)
    with tempfile.TemporaryDirectory() as output:
        save_run(output, scored)


def _decode_all(decode: Callable[[Sequence[str]], int], paths: Sequence[str], jobs: int) -> int:
    """Decode all files in so many processes; returns the number of pixels."""
    if jobs == 1:
        return decode(paths)
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context) as pool:
        return sum(pool.map(decode, chunks))


def _pillow(paths: Sequence[str]) -> int:
    return sum(np.asarray(Image.open(path)).size for path in paths)


def _opencv(paths: Sequence[str]) -> int:
    return sum(cv2.imread(path, cv2.IMREAD_UNCHANGED).shape[0] for path in paths)


def _verifying(paths: Sequence[str]) -> int:
    return sum(read_labels(path).size for path in paths)


def _format(figures: dict[str, Any]) -> str:
    """Format the figures as Markdown."""
    lines = [f"{figures['machine']}; {figures['settings']}"]
    names = {"pillow": "decoding, Pillow", "opencv": "decoding, OpenCV"}
    names["verifying"] = "decoding, checksums verified"
    names["score"] = f"scoring, target {TARGET} × Pillow"
    for title, rows in figures.items():
        if title.startswith("jobs"):
            shown = {t: {**rows[n], "median": rows[n]["seconds"]} for n, t in names.items()}
            lines += ["", title, "", race_table(shown, "s")]
    return "\n".join(lines)
