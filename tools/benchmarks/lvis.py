"""Time the building of PASCAL-B from annotation files as large as LVIS v1's training set.

100,000 images, 1.27 million annotations and the real 1,203 categories with their published counts
(lvis_v1_categories.csv: lvis_v1_train_cat_info.json of facebookresearch/Detic, Apache-2.0), with
COCO annotations of the same images. The rest is made up: outlines of 34 corners on average (a
gigabyte of text, as LVIS's), sizes by class, LVIS's lists of absent and partly labelled categories,
COCO's own outlines of the same objects, objects that LVIS does not label, crowd regions. Everything
timed, pictures left out; drawing the files is not. Memory is the sum of all processes' peaks, at
whatever time each has its own. It may take 5 minutes and 6 GiB.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import json
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from d2_smallobj.annotations.classes import COCO_CLASS_NAMES
from d2_smallobj.pascal_b import IMAGES, BuildOptions, BuildPaths, build_pascal_b
from d2_smallobj.pascal_b.index import COCO_RULES, CORE, LVIS_RULES, UNCERTAIN
from d2_smallobj.utils.cli import positive_int

from benchmarks import Measurement, in_process, machine, table

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


LVIS_NAME, COCO_NAME = "lvis_v1_like.json", "coco_2017_like.json"
_SIZES = ((480, 640), (640, 480), (427, 640), (375, 500), (640, 640))
_SIZE_SHARES = (0.45, 0.15, 0.25, 0.1, 0.05)
# By VOC class: median side of an object in pixels, and objects per image that COCO labels and LVIS
# does not; of COCO's order, which is what makes some class × size cells rare.
_SIDES = (110, 65, 45, 45, 32, 150, 38, 200, 60, 70, 190, 140, 110, 120, 75, 55, 55, 170, 220, 80)
_RATES = (
    *(0.02, 0.05, 0.05, 0.07, 0.18, 0.04, 0.4, 0.02, 0.3, 0.03),
    *(0.12, 0.03, 0.03, 0.05, 2.2, 0.07, 0.03, 0.03, 0.02, 0.03),
)
_OTHER_SIDE, _OTHER_OBJECTS = 45, 2.5
_OUTLINES = 512
_LARGEST_SIDE = 640
_CHUNK = 1 << 15


@dataclasses.dataclass(frozen=True)
class Objects:
    """Objects to be written as A annotations, sorted by image."""

    image: np.ndarray  # int64 (A,), position
    category: np.ndarray  # int64 (A,), id
    crowd: np.ndarray  # bool (A,)
    shape: np.ndarray  # int64 (A,), number of the outline
    centre: np.ndarray  # float64 (A, 2), x and y in pixels
    radius: np.ndarray  # float64 (A,), pixels

    def __getitem__(self, chosen: np.ndarray | slice) -> Objects:
        return Objects(*(getattr(self, f.name)[chosen] for f in dataclasses.fields(self)))


def published_counts() -> list[tuple[str, int, int]]:
    """Name, number of images and number of instances of LVIS v1's categories, in id order."""
    text = Path(__file__).with_name("lvis_v1_categories.csv").read_text(encoding="utf-8")
    _, *rows = csv.reader(text.splitlines())
    return [(name, int(images), int(instances)) for name, images, instances in rows]


def draw_annotation_files(
    folder: Path, *, images: int = 100_000, seed: int = 0, progress: bool = False
) -> tuple[Path, Path]:
    """Write an LVIS file and a COCO file; the categories' counts shrink with ``images``."""
    rng = np.random.default_rng(seed)
    counts = published_counts()
    size = np.array(_SIZES)[rng.choice(len(_SIZES), images, p=_SIZE_SHARES)]
    lvis = _draw_lvis(rng, counts, size, min(1.0, images / 100_000))
    partial = _partly_labelled(rng, lvis)
    # Categories that LVIS verified to be absent from an image.
    last = len(counts) + 1
    absent = [rng.integers(1, last, int(rng.integers(4, 14))).tolist() for _ in range(images)]
    entries = _images(rng, size)
    coco = _draw_coco(rng, counts, lvis, size, absent, partial)
    shapes = _draw_outlines(rng)
    categories = [{"id": n, "name": name} for n, (name, _, _) in enumerate(counts, start=1)]
    found = {image: set() for image in range(images)}
    for image, category in zip(lvis.image.tolist(), lvis.category.tolist()):
        found[image].add(category)
    federated = []
    for n, entry in enumerate(entries):
        checked = {"neg_category_ids": sorted(set(absent[n]) - found[n])}
        checked["not_exhaustive_category_ids"] = sorted(partial.get(n, ()))
        federated.append({**entry, **checked})
    coco_categories = [{"id": n, "name": name} for n, name in enumerate(COCO_CLASS_NAMES[1:], 1)]
    ids = np.array([entry["id"] for entry in entries])
    paths = folder / LVIS_NAME, folder / COCO_NAME
    contents = (federated, categories, lvis), (entries, coco_categories, coco)
    for path, (listed, names, objects) in zip(paths, contents):
        with open(path, "wb") as file:
            file.write(b'{"images": %s,\n"categories": ' % json.dumps(listed).encode())
            file.write(json.dumps(names).encode() + b',\n"annotations": [\n')
            _write_objects(file, objects, shapes, ids, size, path.name if progress else None)
            file.write(b"]}\n")
    return paths


def _draw_lvis(
    rng: np.random.Generator, counts: Sequence[tuple[str, int, int]], size: np.ndarray, share: float
) -> Objects:
    """Draw LVIS's objects: each category with its published numbers of images and instances."""
    images, categories, sides = [], [], []
    for category, (name, in_images, instances) in enumerate(counts, start=1):
        in_images, instances = round(in_images * share), round(instances * share)
        if not in_images:
            continue
        chosen = rng.choice(len(size), min(in_images, len(size)), replace=False)
        # Some images hold many: a flock, a shelf of bottles.
        weight = rng.lognormal(0, 1.2, len(chosen))
        extra = rng.multinomial(max(0, instances - len(chosen)), weight / weight.sum())
        images.append(np.repeat(chosen, 1 + extra))
        categories.append(np.full(len(images[-1]), category))
        rule = LVIS_RULES.get(name)
        side = _SIDES[rule.class_id - 1] if rule else _OTHER_SIDE
        sides.append(side / np.repeat(1 + extra, 1 + extra) ** 0.25)
    return _place(rng, *(np.concatenate(part) for part in (images, categories, sides)), size)


def _place(
    rng: np.random.Generator,
    image: np.ndarray,
    category: np.ndarray,
    side: np.ndarray,
    size: np.ndarray,
    crowd: np.ndarray | None = None,
) -> Objects:
    """Place objects at random in their images, of log-normal size around a median side."""
    order = np.argsort(image, kind="stable")
    count = len(order)
    height, width = size[image[order]].T
    radius = side[order] / np.sqrt(np.pi) * rng.lognormal(0, 0.75, count)
    radius = np.clip(radius, 2, 0.48 * np.minimum(height, width))
    room = np.stack([width, height], 1) - 2 * radius[:, None]
    centre = radius[:, None] + rng.random((count, 2)) * room
    crowds = np.zeros(count, bool) if crowd is None else crowd[order]
    shapes = rng.integers(0, _OUTLINES, count)
    return Objects(image[order], category[order], crowds, shapes, centre, radius)


def _partly_labelled(rng: np.random.Generator, lvis: Objects) -> dict[int, list[int]]:
    """Choose categories by image that LVIS labels in part: half of those with many objects."""
    keys, number = np.unique(lvis.image * 2000 + lvis.category, return_counts=True)
    partial: dict[int, list[int]] = {}
    for key in keys[(number > 12) & (rng.random(len(keys)) < 0.5)].tolist():
        partial.setdefault(key // 2000, []).append(key % 2000)
    return partial


def _images(rng: np.random.Generator, size: np.ndarray) -> list[dict[str, Any]]:
    """Make the entries of the images; one in twenty is of COCO's val2017."""
    ids = rng.choice(np.arange(1, 600_000), len(size), replace=False)
    split = np.where(rng.random(len(size)) < 0.05, "val2017", "train2017")
    url = "http://images.cocodataset.org/{}/{:012d}.jpg"
    return [
        {"id": n, "height": h, "width": w, "coco_url": url.format(s, n), "license": 1}
        for n, (h, w), s in zip(ids.tolist(), size.tolist(), split.tolist())
    ]


def _draw_coco(
    rng: np.random.Generator,
    counts: Sequence[tuple[str, int, int]],
    lvis: Objects,
    size: np.ndarray,
    absent: Sequence[Sequence[int]],
    partial: dict[int, list[int]],
) -> Objects:
    """Draw COCO's objects: most of LVIS's of the 20 classes, outlined anew; others; crowds."""
    rules = [None, *(LVIS_RULES.get(name) for name, _, _ in counts)]
    to_class = np.array([rule.class_id if rule else 0 for rule in rules])
    certain = np.array([rule is not None and rule.role not in UNCERTAIN for rule in rules])
    coco_id = {rule.class_id: COCO_CLASS_NAMES.index(name) for name, rule in COCO_RULES.items()}
    lookup = np.array([coco_id.get(c, 0) for c in range(21)])

    known = lvis[certain[lvis.category] & (rng.random(len(lvis.image)) < 0.95)]
    count = len(known.image)
    noise = rng.normal(0, 0.03, (count, 2)) * known.radius[:, None]
    centre, radius = known.centre + noise, known.radius * rng.lognormal(0, 0.04, count)
    category = lookup[to_class[known.category]]
    parts = [dataclasses.replace(known, category=category, centre=centre, radius=radius)]
    # Objects of classes that LVIS verified to be absent are rare.
    own = {n: r.class_id for n, r in enumerate(rules) if r and r.role == CORE}
    looked_for = np.zeros((len(size), 21), bool)
    for image, categories in enumerate(absent):
        looked_for[image, [own[c] for c in categories if c in own]] = True
    looked_for[lvis.image, to_class[lvis.category]] = True
    for class_id, (side, rate) in enumerate(zip(_SIDES, _RATES), start=1):
        keep = np.where(looked_for[:, class_id], 0.02, 1.0)
        image = np.repeat(np.arange(len(size)), rng.poisson(rate * keep))
        category = np.full(len(image), lookup[class_id])
        parts.append(_place(rng, image, category, np.full(len(image), float(side)), size))
    others = [n for n in range(1, 81) if n not in set(coco_id.values())]
    image = np.repeat(np.arange(len(size)), rng.poisson(_OTHER_OBJECTS, len(size)))
    category = rng.choice(others, len(image))
    parts.append(_place(rng, image, category, np.full(len(image), float(_OTHER_SIDE)), size))
    crowded = [(n, lookup[to_class[c]]) for n, cs in partial.items() for c in cs if certain[c]]
    image, category = np.array(crowded, np.int64).reshape(-1, 2).T
    side = np.full(len(image), 120.0)
    parts.append(_place(rng, image, category, side, size, np.ones(len(image), bool)))
    names = (f.name for f in dataclasses.fields(Objects))
    together = Objects(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))
    return together[np.argsort(together.image, kind="stable")]


def _draw_outlines(rng: np.random.Generator) -> list[np.ndarray]:
    """Draw wavy closed curves of radius 1 around the origin: float64 (corners, 2) each."""
    shapes = []
    for corners in rng.integers(10, 59, _OUTLINES):
        angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        waves = [rng.normal(0, 0.12 / k) * np.cos(k * angle + rng.uniform(0, 6)) for k in (1, 2, 3)]
        distance = np.clip(1 + sum(waves), 0.5, 1.0)
        stretch = rng.uniform(0.6, 1.0)
        shapes.append(np.stack([np.cos(angle) * distance, np.sin(angle) * distance * stretch], 1))
    return shapes


def _write_objects(
    file: BinaryIO,
    objects: Objects,
    shapes: Sequence[np.ndarray],
    ids: np.ndarray,
    size: np.ndarray,
    name: str | None,
) -> None:
    """Write the entries of ``annotations``, ids from 1; ``name`` is for a progress bar."""
    total = len(objects.image)
    # Hundredths of a pixel as text, made once.
    texts = np.array([f"{n / 100:.2f}" for n in range(100 * _LARGEST_SIDE + 1)], object)
    for first in tqdm(range(0, total, _CHUNK), desc=name, unit="chunk", disable=name is None):
        part = objects[slice(first, first + _CHUNK)]
        lines = _lines(part, first, shapes, texts, ids, size)
        end = ",\n" if first + _CHUNK < total else "\n"
        file.write((",\n".join(lines) + end).encode())


def _lines(
    objects: Objects,
    first: int,
    shapes: Sequence[np.ndarray],
    texts: np.ndarray,
    ids: np.ndarray,
    size: np.ndarray,
) -> Iterator[str]:
    """Write some annotations as text; ids start at ``first`` + 1."""
    corners = [shapes[n] for n in objects.shape.tolist()]
    length = np.array([len(shape) for shape in corners])
    at = np.repeat(np.arange(len(length)), length)
    points = np.concatenate(corners) * objects.radius[at, None] + objects.centre[at]
    points = np.clip(points, 0, size[objects.image[at]][:, ::-1])
    numbers = texts[np.round(points * 100).astype(np.int64)].reshape(-1).tolist()
    ends = (2 * np.cumsum(length)).tolist()
    for n, (end, count) in enumerate(zip(ends, length.tolist())):
        image, radius = int(objects.image[n]), float(objects.radius[n])
        segmentation = f"[[{', '.join(numbers[end - 2 * count : end])}]]"
        if objects.crowd[n]:
            height, width = size[image].tolist()
            segmentation = json.dumps(_crowd(height, width, int(radius), objects.centre[n]))
        x, y = (objects.centre[n] - radius).tolist()
        yield (
            f'{{"id": {first + n + 1}, "image_id": {ids[image]}, "category_id": '
            f'{objects.category[n]}, "iscrowd": {int(objects.crowd[n])}, "area": '
            f'{3.14 * radius * radius:.2f}, "bbox": [{x:.2f}, {y:.2f}, {2 * radius:.2f}, '
            f'{2 * radius:.2f}], "segmentation": {segmentation}}}'
        )


def _crowd(height: int, width: int, radius: int, centre: np.ndarray) -> dict[str, Any]:
    """Encode a square as run lengths."""
    mask = np.zeros((width, height), bool)
    x, y = (int(value) for value in centre)
    mask[max(0, x - radius) : x + radius, max(0, y - radius) : y + radius] = True
    edges = np.flatnonzero(np.diff(mask.ravel()))
    runs = np.diff(np.concatenate([[0], edges + 1, [mask.size]])).tolist()
    # The first run is one of background.
    return {"size": [height, width], "counts": [0, *runs] if mask[0, 0] else runs}
