"""The same predictions scored under every convention of the metric.

The predictions are a model's, or the ground truth with errors that models make. Legend: H, W height
and width of a map.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from d2_smallobj.metrics import Accumulator
from d2_smallobj.report.labelled_images import IGNORE, LabelledImage
from d2_smallobj.utils.files import write_csv
from d2_smallobj.utils.opencv import cv2
from d2_smallobj.utils.tables import markdown_table, number

CONVENTIONS: Mapping[str, str] = {
    "exact": "the default",
    "official": "the authors' code: shares cut to integers, components as filled contours",
    "no background": "IA-mIoU_fg: the background is no class",
    "void dropped first": "predictions on ignored pixels dropped before components are found",
    "components": "no instance maps: the components of the semantic maps are the instances",
}
"""Conventions and their meaning."""

Predictor = Callable[[str, np.ndarray, np.ndarray], np.ndarray]
"""``(image_id, semantic, instances) -> prediction``, all maps (H, W)."""


@dataclasses.dataclass(frozen=True)
class ConventionRow:
    """Figures of one set of predictions under every convention.

    Attributes:
        name: of the predictions.
        figures: percent, by convention, then by figure (``mIoU``, ``IA-mIoU``, ``IA-mIoU_S``).
        instances: number of foreground instances.
        differing: number of those whose IoU differs between ``official`` and ``exact`` mode.
        largest: largest such difference, in percent.
    """

    name: str
    figures: Mapping[str, Mapping[str, float]]
    instances: int
    differing: int
    largest: float


def shifted(labels: np.ndarray, instances: np.ndarray, pixels: int) -> np.ndarray:
    """The ground truth moved down and right; background fills the gap."""
    moved = np.zeros_like(labels)
    moved[pixels:, pixels:] = labels[:-pixels, :-pixels]
    return moved


def eroded(labels: np.ndarray, instances: np.ndarray, pixels: int) -> np.ndarray:
    """Every instance without its border."""
    kept = np.zeros_like(labels)
    for identity in np.unique(instances[(instances != 0) & (instances != IGNORE)]):
        mask = cv2.erode((instances == identity).astype(np.uint8), _disc(pixels))
        kept[mask > 0] = labels[mask > 0]
    return kept


def dilated(labels: np.ndarray, instances: np.ndarray, pixels: int) -> np.ndarray:
    """Every class grown over void and background: close instances merge."""
    return _grow(labels, lambda mask: cv2.dilate(mask, _disc(pixels)))


def merged(labels: np.ndarray, instances: np.ndarray, pixels: int) -> np.ndarray:
    """Every class closed: gaps of up to twice this width between its parts are filled."""

    def close(mask: np.ndarray) -> np.ndarray:
        room = cv2.copyMakeBorder(mask, pixels, pixels, pixels, pixels, cv2.BORDER_CONSTANT)
        closed = cv2.morphologyEx(room, cv2.MORPH_CLOSE, _disc(pixels))
        return closed[pixels:-pixels, pixels:-pixels]

    return _grow(labels, close)


def perturbed(
    change: Callable[[np.ndarray, np.ndarray, int], np.ndarray], pixels: int
) -> Predictor:
    """Predict the ground truth, changed: labels without void, instances and pixels to labels."""

    def predict(image_id: str, semantic: np.ndarray, instances: np.ndarray) -> np.ndarray:
        return change(np.where(semantic == IGNORE, 0, semantic), instances, pixels)

    return predict


PERTURBATIONS: Mapping[str, Predictor] = {
    "shifted by 5 px": perturbed(shifted, 5),
    "eroded by 3 px": perturbed(eroded, 3),
    "grown by 5 px": perturbed(dilated, 5),
    "merged over 30 px": perturbed(merged, 15),
}
"""Perturbed ground truth, used as predictions."""


def compare_conventions(
    images: Sequence[LabelledImage], predictors: Mapping[str, Predictor], class_names: Sequence[str]
) -> list[ConventionRow]:
    """Score every set of predictions under every convention of :data:`CONVENTIONS`."""
    return [_score(name, images, predict, class_names) for name, predict in predictors.items()]


def convention_table(rows: Sequence[ConventionRow]) -> str:
    """Lay out two Markdown tables: figures by convention, and changes by official mode."""
    figures = [
        [
            row.name,
            f"{row.figures['exact']['mIoU']:.1f}",
            *(
                f"{row.figures[key]['IA-mIoU']:.2f} / {row.figures[key]['IA-mIoU_S']:.2f}"
                for key in CONVENTIONS
            ),
        ]
        for row in rows
    ]
    changes = [
        [row.name, str(row.instances), str(row.differing), f"{row.largest:.2f}"] for row in rows
    ]
    header = ["official against exact", "instances", "of another IoU", "largest change of one"]
    table = markdown_table(["IA-mIoU / IA-mIoU_S", "mIoU", *CONVENTIONS], figures)
    return f"{table}\n\n{markdown_table(header, changes)}"


def write_conventions(path: str | os.PathLike[str], rows: Sequence[ConventionRow]) -> None:
    """Write all figures as CSV: one line per set of predictions, convention and figure."""
    lines = [
        [row.name, convention, name, number(value, ".6f", "")]
        for row in rows
        for convention, figures in row.figures.items()
        for name, value in figures.items()
    ]
    write_csv(path, ["predictions", "convention", "figure", "percent"], lines)


def _score(
    name: str, images: Sequence[LabelledImage], predict: Predictor, class_names: Sequence[str]
) -> ConventionRow:
    """Score one set of predictions."""
    found = {
        key: Accumulator(len(class_names), mode="official" if key == "official" else "exact")
        for key in CONVENTIONS
        if key != "no background"
    }
    for image in images:
        semantic, instances = image.load()
        prediction = predict(image.image_id, semantic, instances)
        # Void of the instance map (crowds) is ignored in the figures by instance only.
        bare = np.where((semantic == IGNORE) | (instances == IGNORE), 0, prediction)
        for key, accumulator in found.items():
            guess = bare if key == "void dropped first" else prediction
            truth = None if key == "components" else instances
            accumulator.update(image.image_id, guess, semantic, truth)
    names = ("mIoU", "IA-mIoU", "IA-mIoU_S")
    summaries = {key: accumulator.summarize(class_names) for key, accumulator in found.items()}
    figures = {key: {name: all_[name] for name in names} for key, all_ in summaries.items()}
    foreground = {"IA-mIoU": summaries["exact"]["IA-mIoU_fg"]}
    figures["no background"] = {**figures["exact"], **foreground}
    tables = [found[key].table for key in ("exact", "official")]
    exact, official = (table.iou[table.things] for table in tables)
    moved = 100.0 * np.abs(exact - official)
    return ConventionRow(
        name,
        {key: figures[key] for key in CONVENTIONS},
        len(moved),
        int(np.count_nonzero(moved)),
        float(moved.max(initial=0.0)),
    )


def _grow(labels: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply a growing operation class by class; classes do not grow into one another."""
    grown = labels.copy()
    for label in np.unique(labels[labels > 0]).tolist():
        mask = change((labels == label).astype(np.uint8)) > 0
        grown[mask & (grown == 0)] = label
    return grown


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
