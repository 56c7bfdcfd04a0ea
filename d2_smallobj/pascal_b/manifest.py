"""Record what PASCAL-B was built from and how: manifest, account of all annotations, data card."""

from __future__ import annotations

import importlib.resources
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jinja2
import numpy as np

from d2_smallobj.annotations.classes import VOC_CLASS_NAMES
from d2_smallobj.metrics.records import COCO_SIZE_BINS
from d2_smallobj.pascal_b.candidates import AnnotationSources, Candidate, Outcome
from d2_smallobj.pascal_b.index import AnnotationIndex
from d2_smallobj.pascal_b.sampling import Sample
from d2_smallobj.pascal_b.screening import CLASSES_AND_SIZES
from d2_smallobj.statistics.balance import coefficient_of_variation, normalized_entropy
from d2_smallobj.utils.files import csv_text, read_json

FORMAT, MANIFEST_VERSION = "d2_smallobj PASCAL-B manifest", 1
MANIFEST_NAME = "manifest.json"
STATUSES = ("used", "void", "crowd", "background", "dropped")
_PACKAGES = ("d2_smallobj", "numpy", "scipy", "pycocotools", "opencv-python", "Pillow")
_RANDOM_DRAWS = 100
_KEYS = ("image_ids", "inputs", "screening", "outputs", "balance", "sampling", "accounting")
_COLUMNS = ("source", "category", "class", "annotations")
_CODES = {outcome: code for code, outcome in enumerate(Outcome)}

Manifest = dict[str, Any]
AccountRow = dict[str, Any]
"""``source``, ``category``, ``class`` ("" for background), ``annotations`` (their number) and
``outcomes`` (number by :class:`Outcome` value, zeros left out)."""


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest; ValueError if it is truncated, no manifest, or of another version."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: not a manifest of PASCAL-B")
    version = content.get("version")
    if version != MANIFEST_VERSION:
        raise ValueError(f"{path}: expected manifest version {MANIFEST_VERSION}, got {version!r}")
    missing = [key for key in _KEYS if key not in content]
    if missing:
        raise ValueError(f"{path}: the manifest lacks {missing}")
    ids = content["image_ids"]
    if not isinstance(ids, list) or not ids or any(type(one) is not int for one in ids):
        raise ValueError(f"{path}: 'image_ids' must be a list of integers, got {ids!r:.60}")
    return content


def describe_inputs(files: Sequence[AnnotationIndex]) -> list[dict[str, Any]]:
    """Describe the input files by kind and content."""
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
    """Check that the input files are those of the manifest at ``path``; ValueError names others."""
    wanted = {(entry["kind"], entry["sha256"]): entry["name"] for entry in manifest["inputs"]}
    given = {(file.kind, file.sha256): str(file.path) for file in files}
    groups = (("missing", wanted, given), ("not in the manifest", given, wanted))
    lines = [
        f"{label}: {name} ({kind}, SHA-256 {sha256})"
        for label, these, those in groups
        for (kind, sha256), name in these.items()
        if (kind, sha256) not in those
    ]
    if lines:
        listed = "\n  ".join(lines)
        raise ValueError(f"{path}: these are not the files of this manifest:\n  {listed}")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages on which the pixels of a set depend."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def describe_balance(counts: np.ndarray, sample: Sample, seed: int) -> dict[str, Any]:
    """Describe the balance of all fit images, of random samples of as many, and of the set.

    ``counts`` (images, 60) are the instances of all fit images by class and size.
    """
    rng = np.random.default_rng([seed, 1])
    number = len(sample.chosen)
    draws = [
        _balance_figures(counts[rng.choice(len(counts), number, replace=False)].sum(axis=0))
        for _ in range(_RANDOM_DRAWS)
    ]
    random: dict[str, Any] = {"draws": _RANDOM_DRAWS}
    for name in draws[0]:
        values = [draw[name] for draw in draws]
        random[name] = float(np.mean(values))
        random[f"{name}_std"] = float(np.std(values))
    return {
        "source": {"images": len(counts), **_balance_figures(sample.available)},
        "random": random,
        "achieved": {"images": number, **_balance_figures(sample.counts)},
    }


def _balance_figures(counts: np.ndarray) -> dict[str, float]:
    return {
        "normalized_entropy": normalized_entropy(counts),
        "coefficient_of_variation": coefficient_of_variation(counts),
    }


def describe_sampling(sample: Sample, requested: int, seed: int) -> dict[str, Any]:
    """Describe the choice of images: distance, bound, and every class and size."""
    columns = (sample.available, sample.target, sample.counts)
    cells = zip(CLASSES_AND_SIZES, *(column.tolist() for column in columns))
    return {
        "seed": seed,
        "requested_images": requested,
        "per_cell": sample.per_cell,
        "distance": sample.distance,
        "bound": sample.bound,
        "proven_optimal": sample.distance == sample.bound,
        "cells": [
            {"class": name, "size": size, **dict(zip(("available", "target", "chosen"), numbers))}
            for (name, size), *numbers in cells
        ],
    }


def describe_shortfalls(sampling: Mapping[str, Any]) -> list[str]:
    """Describe each class and size with fewer instances than wanted, fewest first."""
    wanted = sampling["per_cell"]
    short = [cell for cell in sampling["cells"] if cell["chosen"] < wanted]
    return [
        f"{cell['class']} {cell['size']}: {cell['chosen']}, {wanted - cell['chosen']} short "
        f"(all fit images together have {cell['available']}"
        + (")" if cell["available"] < wanted else "; more would cost other cells)")
        for cell in sorted(short, key=lambda cell: cell["chosen"])
    ]


def count_outcomes(
    sources: AnnotationSources,
    dropped: Mapping[int, Outcome],
    chosen: Sequence[tuple[Candidate, Sequence[Outcome]]],
) -> list[AccountRow]:
    """Count the outcomes of all annotations by category, LVIS's first, by name.

    ``dropped`` says why images are not in the set; ``chosen`` are the others, with the outcomes of
    their annotations. The rows sum to the annotations of the inputs.
    """
    totals: dict[tuple[str, str], np.ndarray] = {}
    classes: dict[tuple[str, str], str] = {}
    by_source: dict[int, list[tuple[int, int]]] = {}
    for candidate, outcomes in chosen:
        for piece, outcome in zip(candidate.pieces, outcomes):
            by_source.setdefault(piece.source, []).append((piece.row, _CODES[outcome]))
    ids = np.array(sorted(dropped), np.int64)
    reasons = np.array([_CODES[dropped[image_id]] for image_id in ids.tolist()], np.int64)
    for number, file in enumerate(sources.files):
        position = np.minimum(np.searchsorted(ids, file.image_ids), max(0, len(ids) - 1))
        codes = reasons[position] if len(ids) else np.zeros(len(file.image_ids), np.int64)
        for row, code in by_source.get(number, ()):
            codes[row] = code
        used, inverse = np.unique(file.category_ids, return_inverse=True)
        rules = [sources.rule(number, category) for category in used.tolist()]
        is_object = np.array([rule is not None for rule in rules], bool)
        codes = np.where(is_object[inverse], codes, _CODES[Outcome.BACKGROUND])
        shape = (len(used), len(_CODES))
        table = np.bincount(inverse * shape[1] + codes, minlength=shape[0] * shape[1])
        for category, rule, counts in zip(used.tolist(), rules, table.reshape(shape)):
            key = (file.kind, file.categories[category])
            classes[key] = VOC_CLASS_NAMES[rule.class_id] if rule else ""
            totals[key] = totals.get(key, 0) + counts
    return [
        {
            "source": key[0],
            "category": key[1],
            "class": classes[key],
            "annotations": int(totals[key].sum()),
            "outcomes": {o.value: int(n) for o, n in zip(Outcome, totals[key]) if n},
        }
        for key in sorted(totals, key=lambda key: (key[0] != "lvis", key[1]))
    ]


def _total_outcomes(rows: Sequence[AccountRow]) -> dict[str, int]:
    """Sum of the rows, by outcome, in the order of :class:`Outcome`."""
    sums = {o.value: sum(row["outcomes"].get(o.value, 0) for row in rows) for o in Outcome}
    return {outcome: count for outcome, count in sums.items() if count}


def format_account(rows: Sequence[AccountRow]) -> str:
    """Format the account as CSV, with a column for each outcome that occurs."""
    outcomes = list(_total_outcomes(rows))
    table = [
        [*(row[name] for name in _COLUMNS), *(row["outcomes"].get(name, 0) for name in outcomes)]
        for row in rows
    ]
    return csv_text([*_COLUMNS, *outcomes], table)


def format_card(manifest: Mapping[str, Any]) -> str:
    """Format the data card as Markdown; a rebuilt set has the same card."""
    cells = {(cell["class"], cell["size"]): cell for cell in manifest["sampling"]["cells"]}
    rows = manifest["accounting"]
    template = importlib.resources.files(__package__) / "data_card.md.j2"
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    chosen = {name: [cells[name, s]["chosen"] for s in COCO_SIZE_BINS] for name, _ in cells}
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        manifest,
        sizes=list(COCO_SIZE_BINS),
        statuses=list(STATUSES),
        chosen=[[name, *numbers] for name, numbers in chosen.items()],
        short=describe_shortfalls(manifest["sampling"]),
        outcomes=_total_outcomes(rows),
        categories=[
            [*(row[name] for name in _COLUMNS), *_count_statuses(row)]
            for row in rows
            if row["class"]
        ],
        background=[row for row in rows if not row["class"]],
        files=[[entry["name"], entry["kind"], entry["sha256"]] for entry in manifest["inputs"]],
    )


def _count_statuses(row: AccountRow) -> list[int]:
    """Annotations of a row by status."""
    counts = dict.fromkeys(STATUSES, 0)
    for outcome, count in row["outcomes"].items():
        counts[outcome.partition(":")[0]] += count
    return list(counts.values())
