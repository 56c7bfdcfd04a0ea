"""How long a folder takes to score, against decoding its PNGs and nothing else.

Legend: H, W height and width of an image.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from d2_smallobj.annotations.label_maps import encode_label_map
from d2_smallobj.scoring.inputs import Inputs
from d2_smallobj.scoring.label_files import read_labels
from d2_smallobj.scoring.pipeline import Settings, prepare, score
from d2_smallobj.scoring.run_files import save_run
from d2_smallobj.utils.opencv import cv2

FOLDERS = ("predictions", "semantic", "instances")
_CLASSES = 21
_CHUNK = 32


def measure_folder(
    *,
    images: int = 1449,
    shape: tuple[int, int] = (375, 500),
    jobs: int = 1,
    repeats: int = 3,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
) -> dict[str, float]:
    """Measure scoring a folder of PNGs, everything from the check to the files written.

    The three kinds of work take turns, ``repeats`` times, so that a busy machine slows all of
    them; medians are given. Bootstrap intervals are left out: they do not depend on pixels.

    Args:
        images: number of images; each has a prediction, a semantic and an instance map.
        shape: (H, W); VOC's are about 375 x 500.
        jobs: number of processes, the same for all.
        repeats: how often.
        seed: of the maps.
        folder: holds the PNGs in folders :data:`FOLDERS`, drawn there if they are missing;
            default: a temporary folder.

    Returns:
        Seconds: ``pillow`` (``np.asarray(Image.open(path))`` of all PNGs), ``decode`` (our
        verifying reader), ``score``; and ``score_to_pillow``, ``score_to_decode``, the ratios
        of medians.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            return measure_folder(
                images=images, shape=shape, jobs=jobs, repeats=repeats, seed=seed, folder=made
            )
    folder = Path(folder)
    draw_folder(folder, images=images, shape=shape, seed=seed)
    paths = [str(path) for name in FOLDERS for path in sorted((folder / name).glob("*.png"))]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    work: dict[str, Callable[[], object]] = {
        "pillow": lambda: _decode_all(_pillow, paths, jobs),
        "decode": lambda: _decode_all(_ours, paths, jobs),
        "score": lambda: _score(folder, jobs),
    }
    taken: dict[str, list[float]] = {name: [] for name in work}
    try:
        for _ in range(repeats):
            for name, do in work.items():
                begin = time.perf_counter()
                do()
                taken[name].append(time.perf_counter() - begin)
    finally:
        cv2.setNumThreads(threads)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    ratios = {f"score_to_{name}": seconds["score"] / seconds[name] for name in ("pillow", "decode")}
    return {**seconds, **ratios}


def draw_folder(
    folder: str | os.PathLike[str],
    *,
    images: int,
    shape: tuple[int, int] = (375, 500),
    seed: int = 0,
) -> None:
    """Draw VOC-like maps: 1 to 8 ellipses of 1 to 3 classes with 255 borders, and predictions.

    Args:
        folder: gets the folders :data:`FOLDERS`; maps that are there already are kept.
        images: number of images.
        shape: (H, W).
        seed: the maps follow from it.
    """
    for name in FOLDERS:
        Path(folder, name).mkdir(parents=True, exist_ok=True)
    for number in range(images):
        paths = [Path(folder, name, f"{number:05d}.png") for name in FOLDERS]
        if not all(path.exists() for path in paths):
            for path, labels in zip(paths, _draw(np.random.default_rng([seed, number]), shape)):
                path.write_bytes(encode_label_map(labels))


def _draw(
    rng: np.random.Generator, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction, semantic and instance map of one image, uint8 (H, W)."""
    prediction, semantic, instances = (np.zeros(shape, np.uint8) for _ in range(3))
    classes = rng.integers(1, _CLASSES, 3)
    for number in range(1, int(rng.integers(1, 9)) + 1):
        label = int(rng.choice(classes))
        centre = (int(rng.integers(shape[1])), int(rng.integers(shape[0])))
        size = np.exp(rng.uniform(np.log(5), np.log(max(6, shape[0] // 3)), 2)).astype(int)
        angle = float(rng.uniform(0, 180))
        for canvas, value in ((semantic, label), (instances, number)):
            for colour, thickness in ((value, -1), (255, 4)):
                cv2.ellipse(canvas, centre, size.tolist(), angle, 0, 360, colour, thickness)
        # Off by some pixels, sometimes missed, sometimes of another class.
        if rng.random() < 0.85:
            near = (np.array(centre) + rng.integers(-4, 5, 2)).tolist()
            wide = np.maximum(size + rng.integers(-4, 5, 2), 2).tolist()
            guess = label if rng.random() < 0.9 else int(rng.integers(1, _CLASSES))
            cv2.ellipse(prediction, near, wide, angle, 0, 360, guess, -1)
    return prediction, semantic, instances


def _score(folder: Path, jobs: int) -> None:
    inputs = Inputs(
        predictions=str(folder / "predictions"),
        semantic=str(folder / "semantic"),
        instances=str(folder / "instances"),
    )
    run = score(prepare(inputs, Settings(samples=0)), jobs=jobs)
    with tempfile.TemporaryDirectory() as output:
        save_run(output, run)


def _decode_all(decode: Callable[[Sequence[str]], int], paths: Sequence[str], jobs: int) -> int:
    """Decode all files in so many processes; the number of pixels."""
    if jobs == 1:
        return decode(paths)
    chunks = [paths[start : start + 3 * _CHUNK] for start in range(0, len(paths), 3 * _CHUNK)]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context) as pool:
        return sum(pool.map(decode, chunks))


def _pillow(paths: Sequence[str]) -> int:
    pixels = 0
    for path in paths:
        with Image.open(path) as image:
            pixels += np.asarray(image).size
    return pixels


def _ours(paths: Sequence[str]) -> int:
    return sum(read_labels(path).size for path in paths)
