"""Time the building of PASCAL-B from annotation files as large as LVIS v1's training set.

100,000 images, 1.27 million annotations and the real 1,203 categories with their published counts
(lvis_v1_categories.csv: lvis_v1_train_cat_info.json of facebookresearch/Detic, Apache-2.0), with
COCO annotations of the same images. The rest is made up: outlines of 34 corners on average (a
gigabyte of text, as LVIS's), sizes by class, LVIS's lists of absent and partly labelled categories,
COCO's own outlines of the same objects, objects that LVIS does not label, crowd regions. Everything
from opening the files to the finished folder of 1,137 images is
timed, pictures left out; drawing the files is not. Memory is the sum of all processes' peaks, at
whatever time each has its own. It may take 5 minutes and 6 GiB.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from d2_smallobj.pascal_b import IMAGES, BuildOptions, BuildPaths, build_pascal_b
from d2_smallobj.utils.cli import positive_int

from benchmarks import Measurement, in_process, machine, table
from benchmarks.lvis_files import COCO_NAME, LVIS_NAME, draw_annotation_files

SECONDS, GIBIBYTES = 300.0, 6.0
"""Most that a build may take."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--images", type=positive_int, default=100_000, help="of the files")
    parser.add_argument("--num-images", type=positive_int, default=IMAGES, help="of the set")
    parser.add_argument("--jobs", type=positive_int, default=2, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    text = "keep the annotation files here, and use those that exist"
    parser.add_argument("--folder", metavar="DIR", help=text)


def run(args: argparse.Namespace) -> Measurement:
    """Draw the files and build the set."""
    with contextlib.ExitStack() as stack:
        folder = args.folder or stack.enter_context(tempfile.TemporaryDirectory())
        paths = tuple(Path(folder, name) for name in (LVIS_NAME, COCO_NAME))
        if not all(path.exists() for path in paths):
            Path(folder).mkdir(parents=True, exist_ok=True)
            draw_annotation_files(Path(folder), images=args.images, seed=args.seed, progress=True)
        figures = measure(*paths, number=args.num_images, jobs=args.jobs, seed=args.seed)
    seconds, peak = figures["seconds"], figures["peak_gib"]
    missed = [f"it takes {seconds:.0f} s, not {SECONDS:.0f}"] * (seconds > SECONDS)
    missed += [f"it takes {peak:.1f} GiB, not {GIBIBYTES:.0f}"] * (peak > GIBIBYTES)
    settings = {"images": args.images, "jobs": args.jobs, "seed": args.seed}
    figures = {"machine": machine(), "settings": settings, **figures}
    return Measurement(figures, _format(figures), missed)


def measure(lvis: Path, coco: Path, *, number: int, jobs: int, seed: int) -> dict[str, Any]:
    """Build a set of ``number`` images in a process of its own; figures of :func:`_build`."""
    with tempfile.TemporaryDirectory(dir=lvis.parent) as folder:
        paths = BuildPaths([lvis], [coco], Path(folder, "pascal_b"), jobs=jobs, progress=True)
        return in_process(_build, paths, BuildOptions(number=number, seed=seed))


def _build(paths: BuildPaths, options: BuildOptions) -> dict[str, Any]:
    """Build, and measure time and memory; runs in a fresh process."""
    begin = time.perf_counter()
    with _peak_memory() as gibibytes:
        manifest = build_pascal_b(paths, options).manifest
    seconds = time.perf_counter() - begin
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    sampling = {k: v for k, v in manifest["sampling"].items() if k != "cells"}
    columns = ("kind", "bytes", "images", "annotations")
    return {
        "seconds": seconds,
        "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in usages),
        "peak_gib": gibibytes(),
        "load_average": os.getloadavg()[0],
        "input": [{key: entry[key] for key in columns} for entry in manifest["inputs"]],
        "instances": manifest["outputs"]["instances"],
        "sampling": sampling,
        "balance": manifest["balance"],
    }


@contextlib.contextmanager
def _peak_memory() -> Iterator[Callable[[], float]]:
    """Give the sum of the peaks, in GiB, of this process and its children, each at its own time.

    getrusage would count what the parent held when a child was started, so the children's peaks
    are read from /proc while they run, where there is one.
    """
    children: dict[int, int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            for child in multiprocessing.active_children():
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{child.pid}/status").read_text()
                    found = re.search(r"VmHWM:\s+(\d+) kB", status)
                    if found:
                        children[child.pid] = int(found[1])

    def gibibytes() -> float:
        unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux, bytes on macOS
        own = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return (own + 1024 * sum(children.values())) / 2**30

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield gibibytes
    finally:
        done.set()
        thread.join()


def _format(figures: Mapping[str, Any]) -> str:
    """Format the figures as Markdown."""
    balance, sampling = figures["balance"], figures["sampling"]
    lines = [f"{figures['machine']}; {figures['settings']['jobs']} processes", ""]
    for entry in figures["input"]:
        counts = f"{entry['images']:,} images, {entry['annotations']:,} annotations"
        lines.append(f"{entry['kind']}: {counts}, {entry['bytes'] / 1e9:.2f} GB")
    lines += [
        "",
        f"{figures['seconds']:.0f} s (limit {SECONDS:.0f}), {figures['cpu_seconds']:.0f} s of CPU, "
        f"load average {figures['load_average']:.1f}; at most {figures['peak_gib']:.2f} GiB "
        f"(limit {GIBIBYTES:.0f})",
        f"{balance['achieved']['images']} images, {figures['instances']} instances; distance to "
        f"the target of {sampling['per_cell']} per cell: {sampling['distance']}, bound "
        f"{sampling['bound']}",
        "",
    ]
    rows = {f"all {balance['source']['images']:,} fit images": balance["source"]}
    rows[f"as many at random, mean of {balance['random']['draws']}"] = balance["random"]
    rows["the set"] = balance["achieved"]
    columns = {"normalized_entropy": ("normalised entropy", ".3f")}
    columns["coefficient_of_variation"] = ("coefficient of variation", ".3f")
    return "\n".join([*lines, table(rows, "instances over class × size", columns)])
