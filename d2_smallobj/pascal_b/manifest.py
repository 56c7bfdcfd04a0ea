"""The manifest: what PASCAL-B was built from and how, and all that is needed to build it again."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from d2_smallobj.annotations.class_names import VOC_CLASS_NAMES
from d2_smallobj.metrics.sizes import COCO_SIZE_BINS
from d2_smallobj.pascal_b.index import AnnotationIndex
from d2_smallobj.pascal_b.sampling import Sample
from d2_smallobj.statistics.balance import coefficient_of_variation, normalized_entropy

FORMAT, VERSION = "d2_smallobj PASCAL-B manifest", 1
MANIFEST_NAME = "manifest.json"
_PACKAGES = ("d2_smallobj", "numpy", "scipy", "pycocotools", "opencv-python", "Pillow")
_RANDOM_DRAWS = 100
_KEYS = ("image_ids", "inputs", "screening", "outputs", "balance", "sampling", "accounting")

Manifest = dict[str, Any]


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no manifest, or of another version.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: truncated or malformed JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: not a manifest of PASCAL-B")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path}: manifest version {content.get('version')!r}; this code reads {VERSION}"
        )
    lacking = [key for key in _KEYS if key not in content]
    if lacking:
        raise ValueError(f"{path}: the manifest lacks {lacking}")
    ids = content["image_ids"]
    if not isinstance(ids, list) or not ids or any(type(one) is not int for one in ids):
        raise ValueError(f"{path}: 'image_ids' must be a list of integers, got {ids!r:.60}")
    return content


def format_manifest(manifest: Mapping[str, Any]) -> str:
    """The manifest as text."""
    return json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"


def describe_inputs(files: Sequence[AnnotationIndex]) -> list[dict[str, Any]]:
    """The input files, by kind and content."""
    return [
        {
            "kind": file.kind,
            "name": file.path.name,
            "bytes": file.size,
            "sha256": file.sha256,
            "images": len(file.images),
            "annotations": len(file.annotation_ids),
        }
        for file in files
    ]


def check_inputs(
    manifest: Mapping[str, Any], files: Sequence[AnnotationIndex], path: str | os.PathLike[str]
) -> None:
    """Check that the input files are those of a manifest.

    Args:
        manifest: the manifest.
        files: the input files.
        path: where the manifest was read, for the message.

    Raises:
        ValueError: one is missing, other, or too many; names them with their hashes.
    """
    wanted = {(entry["kind"], entry["sha256"]): entry["name"] for entry in manifest["inputs"]}
    given = {(file.kind, file.sha256): str(file.path) for file in files}
    lines = [
        *(
            f"missing: {name} ({key[0]}, SHA-256 {key[1]})"
            for key, name in wanted.items()
            if key not in given
        ),
        *(
            f"not of it: {name} ({key[0]}, SHA-256 {key[1]})"
            for key, name in given.items()
            if key not in wanted
        ),
    ]
    if lines:
        raise ValueError(
            f"{path}: these are not the files of this manifest:\n  " + "\n  ".join(lines)
        )


def versions() -> dict[str, str]:
    """Versions of what takes part; the same seed gives the same set with the same versions."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def balance_figures(counts: np.ndarray) -> dict[str, float]:
    """The balance of a table of counts as two numbers."""
    return {
        "normalized_entropy": normalized_entropy(counts),
        "coefficient_of_variation": coefficient_of_variation(counts),
    }


def describe_balance(counts: np.ndarray, sample: Sample, seed: int) -> dict[str, Any]:
    """Balance of all fit images, of random samples of as many images, and of the set.

    Args:
        counts: integers (images, cells) of all fit images.
        sample: the choice among them.
        seed: of the random samples.
    """
    rng = np.random.default_rng([seed, 1])
    number = len(sample.chosen)
    draws = [
        balance_figures(counts[rng.choice(len(counts), number, replace=False)].sum(axis=0))
        for _ in range(_RANDOM_DRAWS)
    ]
    random: dict[str, Any] = {"draws": _RANDOM_DRAWS}
    for name in draws[0]:
        values = [draw[name] for draw in draws]
        random[name] = float(np.mean(values))
        random[f"{name}_std"] = float(np.std(values))
    return {
        "source": {"images": len(counts), **balance_figures(sample.available)},
        "random": random,
        "achieved": {"images": number, **balance_figures(sample.counts)},
    }


def describe_sampling(sample: Sample, requested: int, seed: int) -> dict[str, Any]:
    """The choice of images: objective, bound, and every cell."""
    return {
        "seed": seed,
        "requested_images": requested,
        "per_cell": sample.per_cell,
        "distance": sample.distance,
        "bound": sample.bound,
        "proven_optimal": sample.distance == sample.bound,
        "cells": [
            {"class": name, "size": size, **values} for (name, size), values in _cells(sample)
        ],
    }


def short_cells(sampling: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells with fewer instances than wanted of every cell, fewest first."""
    short = [cell for cell in sampling["cells"] if cell["chosen"] < sampling["per_cell"]]
    return sorted(short, key=lambda cell: cell["chosen"])


def _cells(sample: Sample) -> list[tuple[tuple[str, str], dict[str, int]]]:
    """Class and size of every cell, with its numbers."""
    names = [(name, size) for name in VOC_CLASS_NAMES[1:] for size in COCO_SIZE_BINS]
    return [
        (key, {"available": int(a), "target": int(t), "chosen": int(n)})
        for key, a, t, n in zip(names, sample.available, sample.target, sample.counts)
    ]
