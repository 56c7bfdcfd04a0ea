"""The drawings of docs/metric.md."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from metric_examples import (
    Example,
    matching_example,
    outcome_example,
    pooling_examples,
)

from d2_smallobj.metrics import label_components
from d2_smallobj.report.drawing import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAPER, _INK = (0.965, 0.965, 0.965), "#212529"
_HIT, _MISSED, _EXCESS = (0.55, 0.80, 0.58), (0.80, 0.82, 0.84), (1.0, 0.75, 0.46)
_INSTANCES = ((0.45, 0.65, 0.93), (0.93, 0.56, 0.60), (0.72, 0.60, 0.90))
_COMPONENTS = ((1.0, 0.82, 0.40), (0.88, 0.72, 0.52))


def draw_pooling(path: str | os.PathLike[str]) -> None:
    """Two predictions of one IoU and very different IA-IoU."""
    examples = pooling_examples()
    figure = new_figure(8.4, 3.3)
    axes = figure.subplots(1, 3)
    truth = next(iter(examples.values()))
    _show(axes[0], _flat(truth.instances > 0, _HIT), truth.instances, "ground truth")
    for axis, (name, example) in zip(axes[1:], examples.items()):
        figures = example.figures
        title = f"{name}: IoU {figures['IoU-object']:.1f}, IA-IoU {figures['IA-IoU-object']:.1f}"
        _show(axis, _compared(example), example.instances, title)
    _key(figure)
    save_figure(figure, path)


def draw_matching(path: str | os.PathLike[str]) -> None:
    """The steps from label maps to one IoU per instance."""
    example = matching_example()
    table = example.match.table
    table = table.select(table.things)
    figure = new_figure(8.4, 5.2)
    axes = figure.subplots(2, 2).ravel()
    truth = _colored(example.instances, _INSTANCES)
    _show(axes[0], truth, example.instances, "1  ground truth: one class, three instances")
    _label(axes[0], example.instances, example.names)

    _, parts = label_components(example.prediction)
    _show(axes[1], _colored(parts, _COMPONENTS), example.instances, "2  prediction: its components")
    axes[1].text(25, 15.5, "P1", ha="center", va="center", color=_INK, fontsize=10)
    axes[1].text(59, 34, "P2", ha="center", va="center", color=_INK, fontsize=10)

    inside = np.where(example.prediction > 0, example.instances, 0)
    step = _colored(parts, _COMPONENTS)
    step[inside > 0] = _colored(inside, _INSTANCES)[inside > 0]
    overlap = table.intersection.tolist()
    rest = int(np.count_nonzero((parts == parts[9, 9]) & (inside == 0)))
    _show(axes[2], step, example.instances, f"3  overlap to its instance; {rest} px of P1 are left")
    _label(axes[2], inside, tuple(f"{pixels} px" for pixels in overlap if pixels))

    shared = np.where(inside > 0, inside, 0)
    left = np.flatnonzero(((parts == parts[9, 9]) & (inside == 0)).T)
    first = round(len(left) * overlap[0] / sum(overlap))
    turned = shared.T.copy()
    turned.ravel()[left[:first]], turned.ravel()[left[first:]] = 1, 2
    last = _colored(turned.T, _INSTANCES)
    last[parts == parts[34, 59]] = _COMPONENTS[1]
    title = f"4  the rest is shared {overlap[0]} : {overlap[1]}"
    _show(axes[3], last, example.instances, title)
    names = (f"{name}\n{100 * iou:.1f} %" for name, iou in zip(example.names, table.iou.tolist()))
    _label(axes[3], example.instances, tuple(names))
    axes[3].text(
        59, 34, "false-positive\ncomponent", ha="center", va="center", fontsize=7, color=_INK
    )
    save_figure(figure, path)


def draw_outcomes(path: str | os.PathLike[str]) -> None:
    """One object of every outcome."""
    example = outcome_example()
    table = example.match.table
    table = table.select(table.things)
    figure = new_figure(6.4, 4.1)
    axis = figure.subplots()
    _show(axis, _compared(example), example.instances, "")
    for number, (name, iou) in enumerate(zip(example.names, table.iou.tolist()), start=1):
        rows, columns = np.nonzero(example.instances == number)
        axis.text(
            columns.mean(),
            rows.max() + 2.6,
            f"{name}, IoU {iou:.2f}",
            ha="center",
            va="center",
            fontsize=8,
            color=_INK,
        )
    axis.text(
        72.6, 47.6, "false-positive component", ha="center", va="center", fontsize=7, color=_INK
    )
    _key(figure)
    save_figure(figure, path)


def _flat(mask: np.ndarray, color: tuple[float, float, float]) -> np.ndarray:
    """A mask in one colour, float (H, W, 3)."""
    return np.where(mask[..., None], color, _PAPER)


def _colored(labels: np.ndarray, colors: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """Labels 1.. in their colours, float (H, W, 3)."""
    return np.array([_PAPER, *colors])[labels]


def _compared(example: Example) -> np.ndarray:
    """Found, missed and excess pixels, float (H, W, 3)."""
    truth, guess = example.instances > 0, example.prediction > 0
    picture = _flat(truth & guess, _HIT)
    picture[truth & ~guess] = _MISSED
    picture[guess & ~truth] = _EXCESS
    return picture


def _show(axis: Axes, picture: np.ndarray, instances: np.ndarray, title: str) -> None:
    """A picture with the outlines of the instances."""
    from matplotlib.collections import LineCollection

    axis.imshow(picture, interpolation="nearest")
    lines = []
    padded = np.pad(instances, 1)
    for row, column in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]).tolist():
        lines.append([(column - 0.5, row - 0.5), (column + 0.5, row - 0.5)])
    for row, column in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]).tolist():
        lines.append([(column - 0.5, row - 0.5), (column - 0.5, row + 0.5)])
    axis.add_collection(LineCollection(lines, colors=_INK, linewidths=1.1))
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("0.8")
    axis.set_title(title, fontsize=9, color=_INK)


def _label(axis: Axes, instances: np.ndarray, names: tuple[str, ...]) -> None:
    """Write a name on every instance."""
    for number, name in enumerate(names, start=1):
        rows, columns = np.nonzero(instances == number)
        axis.text(columns.mean(), rows.mean(), name, ha="center", va="center", fontsize=7.5)


def _key(figure: Figure) -> None:
    """What the colours of a comparison mean."""
    from matplotlib.patches import Patch

    entries = (("found", _HIT), ("missed", _MISSED), ("too much", _EXCESS))
    handles = [Patch(facecolor=color, label=name) for name, color in entries]
    figure.legend(
        handles=handles, loc="outside lower center", fontsize=8, frameon=False, ncols=len(handles)
    )
