"""A gallery: image, ground truth and the predictions of several models, side by side."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np

from d2_smallobj.utils.files import atomic_write

_VOID = 255


@dataclasses.dataclass(frozen=True)
class GalleryRow:
    """One image of the gallery.

    Attributes:
        title: shown beside the row.
        image: (H, W, 3) uint8, RGB.
        semantic: (H, W) ground truth, 255 = ignore.
        instances: (H, W) ground truth, 0 none, 255 = void.
        predictions: model name to (H, W) label map.
        ious: model name to {instance id: IoU in 0..1}.
    """

    title: str
    image: np.ndarray
    semantic: np.ndarray
    instances: np.ndarray
    predictions: Mapping[str, np.ndarray]
    ious: Mapping[str, Mapping[int, float]]


def draw_gallery(
    path: str,
    rows: Sequence[GalleryRow],
    colors: Sequence[Sequence[int]],
    *,
    small_area: float = 32**2,
) -> None:
    """Draw the rows and save them as PNG.

    Small instances are marked with their IoU in every prediction: red below 0.25, orange below
    0.5, green above.

    Args:
        path: file to write, atomically.
        rows: images, all with the same models.
        colors: RGB of each class.
        small_area: instances below this many pixels are marked.

    Raises:
        ValueError: without a row.
    """
    if not rows:
        raise ValueError("rows must hold at least one image, got none")
    # Not through pyplot: it keeps global state and may open a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models = list(rows[0].predictions)
    titles = ["image", "ground truth", *models]
    figure = Figure(figsize=(2.1 * len(titles), 2.1 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, line in zip(rows, axes):
        panels = [row.image, _blend(row.image, row.semantic, colors)]
        panels += [_blend(row.image, row.predictions[model], colors) for model in models]
        for axis, panel, title in zip(line, panels, titles):
            axis.imshow(panel, interpolation="nearest")
            axis.set_axis_off()
            if row is rows[0]:
                axis.set_title(title, fontsize=9)
        for axis, model in zip(line[2:], models):
            _mark_small(axis, row.instances, row.ious[model], small_area)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def _blend(image: np.ndarray, labels: np.ndarray, colors: Sequence[Sequence[int]]) -> np.ndarray:
    """The label map over a greyed image; background stays grey, void becomes white."""
    table = np.full((256, 3), 255, dtype=np.float64)
    table[: len(colors)] = np.asarray(colors)
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    covered = (labels != 0)[..., None]
    mixed = np.where(covered, 0.25 * grey + 0.75 * table[labels], 0.6 * grey + 80)
    return mixed.clip(0, 255).astype(np.uint8)


def _mark_small(
    axis: object, instances: np.ndarray, ious: Mapping[int, float], small_area: float
) -> None:
    """Put the IoU of every small instance at its place."""
    for instance, iou in ious.items():
        rows, columns = np.nonzero(instances == instance)
        if instance in (0, _VOID) or not 0 < len(rows) < small_area:
            continue
        color = "#d62728" if iou < 0.25 else "#ff9e2c" if iou < 0.5 else "#2ca02c"
        axis.text(
            columns.mean(),
            max(rows.min() - 3, 6),
            f"{100 * iou:.0f}",
            ha="center",
            va="bottom",
            fontsize=6,
            color="white",
            bbox={"facecolor": color, "edgecolor": "none", "pad": 0.8},
        )
