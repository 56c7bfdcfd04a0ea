"""Pictures as PNG: figures of matplotlib, label maps as colours, and a gallery of predictions.

Legend: H, W height and width of an image.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from d2_smallobj.annotations.label_maps import voc_palette
from d2_smallobj.utils.files import atomic_write
from d2_smallobj.utils.installation import explained_imports
from d2_smallobj.utils.opencv import cv2

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Make a figure (inches) with its own canvas: pyplot keeps global state, may open a display.

    Raises:
        ImportError: matplotlib is missing.
    """
    with explained_imports():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 100) -> None:
    """Write a figure as PNG, atomically; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def hide_frame(axis: Axes) -> None:
    """Remove the upper and the right side of a plot's frame."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """Colour a label map as VOC does: integers >= 0 (H, W) to uint8 (H, W, 3), RGB."""
    return voc_palette()[labels.astype(np.uint8)]


def blend_labels(image: np.ndarray, labels: np.ndarray, *, opacity: float = 0.6) -> np.ndarray:
    """Lay the colours of labels (H, W) over an RGB image (H, W, 3); background stays as it is.

    Raises:
        ValueError: if the sizes differ.
    """
    if image.shape != (*labels.shape, 3):
        raise ValueError(
            f"image and labels must have the same size, got {image.shape} and {labels.shape}"
        )
    mixed = cv2.addWeighted(image, 1 - opacity, colour_labels(labels), opacity, 0)
    return np.where((labels != 0)[..., None], mixed, image)


def colour_weights(weights: np.ndarray, largest: float) -> np.ndarray:
    """Draw weights (H, W) as a heat map, RGB uint8: black at 0, brightest at ``largest``."""
    grey = np.clip(weights / largest * 255, 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


@dataclasses.dataclass(frozen=True)
class GalleryRow:
    """One image of the gallery.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        semantic: (H, W) ground truth, 255 = ignore.
        instances: (H, W) ground truth, 0 none, 255 = void.
        predictions: model name to (H, W) label map.
        ious: model name to {instance id: IoU in 0..1}.
        title: below the image; may be empty.
    """

    image: np.ndarray
    semantic: np.ndarray
    instances: np.ndarray
    predictions: Mapping[str, np.ndarray]
    ious: Mapping[str, Mapping[int, float]]
    title: str = ""


def draw_gallery(path: str, rows: Sequence[GalleryRow], colors: Sequence[Sequence[int]]) -> None:
    """Draw image, ground truth and predictions side by side, a row for each image.

    Instances of less than 32² pixels are marked with their IoU in every prediction: red below
    0.25, orange below 0.5, green above.

    Args:
        path: PNG to write, atomically.
        rows: images, at least one, all with the same models.
        colors: RGB of each class.

    Raises:
        ImportError: matplotlib is missing.
    """
    models = list(rows[0].predictions)
    titles = ["image", "ground truth", *models]
    figure = new_figure(2.1 * len(titles), 2.1 * len(rows))
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, line in zip(rows, axes):
        panels = [row.image, _coloured(row.image, row.semantic, colors)]
        panels += [_coloured(row.image, row.predictions[model], colors) for model in models]
        for axis, panel, title in zip(line, panels, titles):
            axis.imshow(panel, interpolation="nearest")
            axis.set_axis_off()
            if row is rows[0]:
                axis.set_title(title, fontsize=9)
        if row.title:
            line[0].annotate(
                row.title, (0, 0), (0, -2), "axes fraction", "offset points", va="top", fontsize=6
            )
        for axis, model in zip(line[2:], models):
            _mark_small(axis, row.instances, row.ious[model])
    save_figure(figure, path, dpi=110)


def _coloured(image: np.ndarray, labels: np.ndarray, colors: Sequence[Sequence[int]]) -> np.ndarray:
    """The label map over a greyed image; background stays grey, void becomes white."""
    table = np.full((256, 3), 255, dtype=np.float64)
    table[: len(colors)] = np.asarray(colors)
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    covered = (labels != 0)[..., None]
    mixed = np.where(covered, 0.25 * grey + 0.75 * table[labels], 0.6 * grey + 80)
    return mixed.clip(0, 255).astype(np.uint8)


def _mark_small(axis: Axes, instances: np.ndarray, ious: Mapping[int, float]) -> None:
    """Write the IoU of every small instance above it."""
    for instance, iou in ious.items():
        rows, columns = np.nonzero(instances == instance)
        if instance in (0, 255) or not 0 < len(rows) < 32**2:
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
