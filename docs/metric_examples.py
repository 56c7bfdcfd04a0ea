"""The worked examples of docs/metric.md: small drawn scenes, and their numbers as Markdown.

Every number comes from the library, so that the page cannot say anything else than it computes.
Legend: H, W height and width of a map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from d2_smallobj.metrics import OUTCOMES, ImageMatch, classify, match_image, summarize
from d2_smallobj.report.labelled_images import drawn_discs, growth_order
from d2_smallobj.utils.tables import markdown_table

CLASS_NAMES = ("background", "object")


@dataclasses.dataclass(frozen=True)
class Example:
    """A scene of one class with a prediction.

    Attributes:
        instances: uint8 (H, W), 0 background, 1..N instances.
        prediction: uint8 (H, W), 0 or 1.
        names: of the instances, by id from 1.
    """

    instances: np.ndarray
    prediction: np.ndarray
    names: tuple[str, ...]

    @property
    def match(self) -> ImageMatch:
        """What the library makes of it."""
        truth = (self.instances > 0).astype(np.uint8)
        return match_image(self.prediction, truth, self.instances, num_classes=2)

    @property
    def figures(self) -> dict[str, float]:
        """Figures in percent; see :func:`d2_smallobj.metrics.summary.summarize`."""
        match = self.match
        return summarize(match.table, match.pixels, CLASS_NAMES)


def canvas(height: int, width: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A map on which box k (top, bottom, left, right; half-open) holds k, from 1.

    Args:
        height: H.
        width: W.
        boxes: rectangles, later ones over earlier ones.
    """
    painted = np.zeros((height, width), np.uint8)
    for number, (top, bottom, left, right) in enumerate(boxes, start=1):
        painted[top:bottom, left:right] = number
    return painted


def pooling_examples() -> dict[str, Example]:
    """Two predictions that miss equally many pixels: three whole small objects, or a rim.

    Returns:
        The examples ``prediction 1`` and ``prediction 2`` on one ground truth.
    """
    discs = [(0.38, 0.46, 0.32), (0.84, 0.22, 0.055), (0.88, 0.54, 0.05), (0.72, 0.86, 0.06)]
    _, instances = drawn_discs(discs, 180, "pooling").load()
    first = (instances == 1).astype(np.uint8)
    missing = np.count_nonzero(instances > 1)
    second = (instances > 0).astype(np.uint8)
    second.ravel()[growth_order(instances == 1)[-missing:]] = 0
    names = ("large", "small 1", "small 2", "small 3")
    return {
        "prediction 1": Example(instances, first, names),
        "prediction 2": Example(instances, second, names),
    }


def matching_example() -> Example:
    """One component over two objects, one object missed, one component over nothing."""
    instances = canvas(44, 76, (10, 20, 10, 20), (10, 20, 30, 50), (30, 38, 14, 22))
    prediction = canvas(44, 76, (8, 22, 8, 52)) + canvas(44, 76, (30, 38, 52, 66))
    return Example(instances, prediction, ("A", "B", "C"))


def outcome_example() -> Example:
    """One object of every outcome, a pair for ``merged``, and a false-positive component."""
    boxes = [
        (6, 22, 6, 22),
        (6, 22, 32, 48),
        (6, 22, 58, 74),
        (32, 42, 8, 18),
        (32, 42, 26, 36),
        (32, 42, 50, 60),
    ]
    prediction = canvas(52, 84, (5, 22, 5, 20), (6, 14, 32, 43), (6, 12, 58, 66), (17, 22, 68, 74))
    prediction += canvas(52, 84, (28, 46, 4, 40)) + canvas(52, 84, (38, 46, 68, 80))
    names = ("good", "partial", "fragmented", "merged", "merged", "missed")
    return Example(canvas(52, 84, *boxes), np.minimum(prediction, 1), names)


def example_tables() -> dict[str, str]:
    """The Markdown tables of the examples, by name."""
    return {
        "pooling": _pooling_table(pooling_examples()),
        "matching": _matching_table(matching_example()),
        "outcomes": _outcome_table(outcome_example()),
    }


def _pooling_table(examples: Mapping[str, Example]) -> str:
    header = ["", "missed pixels", "IoU", "IoU of each instance", "IA-IoU"]
    rows = []
    for name, example in examples.items():
        table, figures = example.match.table, example.figures
        table = table.select(table.things)
        missed = int((table.pixels - table.intersection).sum())
        each = ", ".join(f"{100 * iou:.1f}" for iou in table.iou)
        pooled, by_instance = (f"{figures[key]:.1f}" for key in ("IoU-object", "IA-IoU-object"))
        rows.append([name, str(missed), pooled, each, by_instance])
    return markdown_table(header, rows)


def _matching_table(example: Example) -> str:
    match = example.match
    table = match.table.select(match.table.things)
    rows = []
    for name, pixels, hit, charged, iou in zip(
        example.names,
        table.pixels.tolist(),
        table.intersection.tolist(),
        table.charged.tolist(),
        table.iou.tolist(),
    ):
        rows.append([name, str(pixels), str(hit), f"{charged:.2f}", f"{100 * iou:.2f}"])
    figures = example.figures
    return (
        markdown_table(["instance", "its pixels", "overlap", "charged", "IoU"], rows)
        + f"\n\nIA-IoU of the class: {figures['IA-IoU-object']:.2f}; IoU, all its pixels pooled: "
        f"{figures['IoU-object']:.2f}. False-positive components: {len(match.blobs)}, of "
        f"{int(match.blobs.area.sum())} px."
    )


def _outcome_table(example: Example) -> str:
    match = example.match
    table = match.table.select(match.table.things)
    found = classify(table)
    rows = []
    for position, outcome in enumerate(OUTCOMES):
        iou = table.iou[found == position]
        each = ", ".join(f"{value:.2f}" for value in iou)
        rows.append([outcome, str(len(iou)), each, f"{(1 - iou).sum():.2f}"])
    blobs = match.blobs
    rows.append(["(false-positive components)", str(len(blobs)), "", f"{int(blobs.area.sum())} px"])
    return markdown_table(["outcome", "instances", "IoU", "IoU lost"], rows)
