"""Speed measurements: one module for each sub-command of ``tools/benchmark.py``.

A module has ``add_arguments(parser)`` and ``run(args) -> Measurement``; the command shows its
docstring as help. Modules are imported when they are run: ``metric`` and ``folder`` need no torch.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np

import d2_smallobj
from d2_smallobj.annotations.label_maps import encode_label_map, read_label_map
from d2_smallobj.metrics import InstanceTable
from d2_smallobj.metrics.records import PixelTable
from d2_smallobj.utils.opencv import cv2
from d2_smallobj.utils.tables import markdown_table

_Case = TypeVar("_Case")

BENCHMARKS = {
    "metric": "IA-mIoU of one image against a confusion matrix",
    "folder": "scoring folders of PNGs against decoding them",
    "inference": "what the evaluator adds to running a model over a data set",
    "train": "training steps of every loss against a plainly written one",
    "budget": "operations and bytes of a training step, and a GPU's least time for them",
    "lvis": "building PASCAL-B from annotation files as large as LVIS v1's",
}
"""Summary by name; the module is ``benchmarks.<name>``."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Figures of a benchmark for JSON, the same as Markdown, and sentences on missed targets."""

    figures: Mapping[str, Any]
    text: str
    missed: Sequence[str] = ()


def load(name: str) -> ModuleType:
    """Import the module of a benchmark; ``name`` is a key of :data:`BENCHMARKS`."""
    return importlib.import_module(f"{__name__}.{name}")


def race(
    cases: Sequence[_Case],
    functions: Mapping[str, Callable[[_Case], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    per: int = 1,
) -> dict[str, dict[str, float]]:
    """Time functions on cases, in turn, so that a busy machine slows all of them alike.

    Returns for each function ``median`` of all timings in milliseconds, ``quiet``, the median over
    cases of the best round (as on a machine without other work), and ``ratio`` and ``quiet_ratio``
    of these to the first function's, the yardstick. Of a case's ``per`` parts, one counts.
    """
    times = {name: np.empty((rounds, len(cases))) for name in functions}
    for turn in range(rounds):
        for number, case in enumerate(cases):
            for name, function in functions.items():
                begin = clock()
                function(case)
                times[name][turn, number] = 1e3 * (clock() - begin) / per
    found = {
        name: {"median": float(np.median(t)), "quiet": float(np.median(t.min(axis=0)))}
        for name, t in times.items()
    }
    base = found[next(iter(functions))]
    for row in found.values():
        row["ratio"] = row["median"] / base["median"]
        row["quiet_ratio"] = row["quiet"] / base["quiet"]
    return found


def in_process(function: Callable[..., _Case], *arguments: object) -> _Case:
    """Call a function in a fresh process of its own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let OpenCV use one thread."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def race_table(rows: Mapping[str, Mapping[str, float]], unit: str = "ms") -> str:
    """Format the result of :func:`race` as a Markdown table."""
    columns = {"median": (f"median {unit}", ".3f"), "ratio": ("×", ".2f")}
    columns |= {"quiet": (f"best-round {unit}", ".3f"), "quiet_ratio": ("×", ".2f")}
    return table(rows, "what", columns)


def table(
    rows: Mapping[str, Mapping[str, float]], what: str, columns: Mapping[str, tuple[str, str]]
) -> str:
    """Format rows as a Markdown table; columns are a title and a format by key."""
    cells = [
        [name, *(format(row[k], f) if k in row else "" for k, (_, f) in columns.items())]
        for name, row in rows.items()
    ]
    return markdown_table([what, *(title for title, _ in columns.values())], cells)


def machine() -> str:
    """Describe processor and library versions."""
    python = f"{platform.machine()}, Python {platform.python_version()}"
    return f"{python}, numpy {np.__version__}, OpenCV {cv2.__version__}"


def torch_machine() -> dict[str, str]:
    """Describe the machine with torch, the host and the device that is used."""
    import torch

    host = d2_smallobj.host()
    text = f"{machine()}, torch {torch.__version__}, {host.name} host {host.version}"
    gpu = torch.cuda.is_available()
    return {"machine": text, "device": torch.cuda.get_device_name() if gpu else "CPU"}


CLASSES, VOID = 21, 255
VOC_SIZE = (500, 375)  # width, height
MOST_INSTANCES = 8
FOLDERS = ("predictions", "semantic", "instances")
Maps = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Prediction, semantic map and instance map, uint8 (H, W)."""
_IMAGE_AREA = 640 * 480


def draw_maps(
    rng: np.random.Generator, width: int, height: int, instances: int, kinds: int = 3
) -> Maps:
    """Draw an image as VOC annotates it, and a prediction with the usual errors.

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
        outline = _outline(rng, radius)
        mask = cv2.fillPoly(np.zeros_like(owner), [_rounded(outline + centre)], 1)
        ring = cv2.dilate(mask, border) > 0
        semantic[ring], owner[ring] = VOID, VOID
        semantic[mask > 0], owner[mask > 0] = kind, number
        guess = outline * rng.uniform(0.8, 1.2) + centre + rng.normal(0, 0.05 * radius + 2, 2)
        fate = rng.random()
        if fate > 0.1:
            label = int(rng.integers(1, CLASSES)) if fate < 0.2 else kind
            cv2.fillPoly(prediction, [_rounded(guess)], label)
    for _ in range(rng.integers(0, 4)):
        centre = _rounded(rng.uniform(0, 1, 2) * (width, height)).tolist()
        cv2.circle(prediction, centre, int(rng.integers(2, 15)), int(rng.choice(classes)), -1)
    return prediction, semantic, owner


def draw_folders(
    folder: str | os.PathLike[str], *, images: int, size: tuple[int, int] = VOC_SIZE, seed: int = 0
) -> list[str]:
    """Draw images with 1 to 8 instances as PNGs in each of :data:`FOLDERS`; returns their names."""
    for kind in FOLDERS:
        Path(folder, kind).mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}" for number in range(images)]
    for number, name in enumerate(names):
        rng = np.random.default_rng([seed, number])
        maps = draw_maps(rng, *size, int(rng.integers(1, MOST_INSTANCES + 1)))
        for kind, labels in zip(FOLDERS, maps):
            Path(folder, kind, f"{name}.png").write_bytes(encode_label_map(labels))
    return names


def _outline(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Corners (32, 2) of a wavy closed curve around the origin."""
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    distance = np.ones_like(angle)
    for wave in range(1, 5):
        phase = rng.uniform(0, 2 * np.pi)
        distance += rng.normal(0, 0.25 / wave) * np.cos(wave * angle + phase)
    distance = np.maximum(distance, 0.3) * radius
    stretch = rng.uniform(0.6, 1.5)
    return np.stack([np.cos(angle) * distance, np.sin(angle) * distance * stretch], axis=1)


def _rounded(points: np.ndarray) -> np.ndarray:
    """Points as OpenCV draws them."""
    return np.round(points).astype(np.int32)


STRIDE = 8
WIDE_VOID = 65535  # where the classes leave 255 no room


def read_voc(folder: str | os.PathLike[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read semantic and instance maps, uint8 (H, W), of a ``VOC2012`` folder, sorted by name."""
    root = Path(folder)
    files = sorted((root / "SegmentationObject").glob("*.png"))
    if not files:
        expected = "SegmentationObject/*.png in a VOC2012 folder"
        raise ValueError(f"--voc: expected {expected}, got {root}")
    return [(read_label_map(root / "SegmentationClass" / f.name), read_label_map(f)) for f in files]


def predict_blocks(rng: np.random.Generator, semantic: np.ndarray) -> np.ndarray:
    """Predict in whole cells of 8 x 8 pixels, as labels enlarged to the nearest pixel are.

    Cells hold the truth at their centre. One in sixteen is another class of the image or one that
    it has not; and smooth noise cuts holes into objects and makes some up. Returns uint8 (H, W).
    """
    cells = _cells(semantic)
    present = np.append(np.unique(cells), rng.integers(0, CLASSES, 2)).astype(np.uint8)
    flipped = rng.random(cells.shape) < 1 / 16
    cells = np.where(flipped, rng.choice(present, cells.shape), cells)
    waves = rng.normal(size=(7, 9)).astype(np.float32)
    waves = cv2.resize(waves, cells.shape[::-1], interpolation=cv2.INTER_CUBIC)
    cells = np.where(waves > 1.1, rng.choice(present), cells)
    height, width = semantic.shape
    return np.ascontiguousarray(cells.repeat(STRIDE, 0).repeat(STRIDE, 1)[:height, :width])


def predict_borders(rng: np.random.Generator, semantic: np.ndarray) -> np.ndarray:
    """Predict the largest of noisy score maps, enlarged bilinearly, as most networks do."""
    cells = _cells(semantic)
    height, width = semantic.shape
    best = np.full((height, width), -np.inf, np.float32)
    winner = np.zeros((height, width), np.uint8)
    for category in range(CLASSES):
        score = cv2.GaussianBlur((cells == category).astype(np.float32), (0, 0), 1.0)
        score += rng.normal(0, 0.3, cells.shape).astype(np.float32)
        large = (cells.shape[1] * STRIDE, cells.shape[0] * STRIDE)
        score = cv2.resize(score, large, interpolation=cv2.INTER_LINEAR)[:height, :width]
        higher = score > best
        best[higher], winner[higher] = score[higher], category
    return winner


def spread_classes(maps: Maps, rng: np.random.Generator, classes: int, *, spread: bool) -> Maps:
    """Give an image to a data set of more classes, its regions as they are.

    Labels are kept, or with ``spread`` drawn from all classes (0 stays 0). Beyond 255 classes,
    prediction and semantic map become uint16, void :data:`WIDE_VOID`.
    """
    names = np.arange(256, dtype=np.uint8 if classes <= VOID else np.uint16)
    if spread:
        names[1:CLASSES] = rng.choice(np.arange(1, classes), CLASSES - 1, replace=False)
    names[VOID] = void_of(classes)
    prediction, semantic, instances = maps
    return names[prediction], names[semantic], instances.copy()


def void_of(classes: int) -> int:
    """Ignore label of a data set of that many classes."""
    return VOID if classes <= VOID else WIDE_VOID


def _cells(semantic: np.ndarray) -> np.ndarray:
    """Labels (h, w) of the truth at the centre of each cell, void as background."""
    cells = np.pad(semantic, ((0, -semantic.shape[0] % STRIDE), (0, -semantic.shape[1] % STRIDE)))
    cells = cells[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    return np.where(cells == VOID, 0, cells)


class MadeUpRun(NamedTuple):
    """The part of a scored run that the statistics use."""

    table: InstanceTable
    pixels: PixelTable
    images: list[str]


def make_run(images: int, instances: int, classes: int, seed: int) -> MadeUpRun:
    """Make up a scored data set whose class 0 is stuff and in every image.

    Every image has one to five classes of things, frequent ones (Zipf's law) more often; its
    prediction has one more that is not there.
    """
    rng = np.random.default_rng(seed)
    ids = np.array([f"{number:012d}" for number in range(images)])
    share = 1 / np.arange(1, classes)
    kinds = rng.choice(np.arange(1, classes), (images, 6), p=share / share.sum())
    width = rng.integers(1, 6, images)
    owner = np.concatenate([np.arange(images), rng.integers(0, images, instances - images)])
    category = kinds[owner, rng.integers(0, width[owner])]
    area = np.exp(rng.uniform(np.log(20), np.log(60_000), instances)).astype(np.int64)
    ground = rng.integers(50_000, _IMAGE_AREA, images)
    nothing = np.zeros(images, np.int64)
    area = np.concatenate([ground, area])
    intersection = (area * rng.random(len(area))).astype(np.int64)
    found = (intersection > 0).astype(np.int64)
    charged = found * (intersection + 0.3 * area * rng.random(len(area)))
    table = InstanceTable(
        image_id=ids[np.concatenate([np.arange(images), owner])],
        instance_id=np.concatenate([nothing, np.arange(1, instances + 1)]),
        category_id=np.concatenate([nothing, category]),
        **{"area": area, "pixels": area, "intersection": intersection, "charged": charged},
        **{"components": found, "shared": np.zeros(len(area), np.int64)},
        image_area=np.full(len(area), _IMAGE_AREA),
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
