"""IoU against object size as a smooth curve, where three bins would hide the shape.

Shapes: R records of things; N images; P points of the curve; S resamples of one block.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from d2_smallobj.metrics.image_sums import fixed_point
from d2_smallobj.metrics.records import InstanceTable
from d2_smallobj.statistics.intervals import bootstrap_weights, check_settings
from d2_smallobj.utils.messages import listed

# The narrowest bandwidth that is chosen unasked: a quarter of a doubling of the area.
_NARROWEST = 0.25
# Keeps the slope of a curve whose records share one area at 0 instead of 0 / 0.
_RIDGE = 1e-6


@dataclasses.dataclass(frozen=True)
class SizeCurve:
    """Mean IoU of an instance of a given size.

    Attributes:
        area: float64 (P,), pixels, ascending.
        iou: float64 (P,), percent; NaN where too few instances lie near.
        low: float64 (P,), lower end of the pointwise band, percent.
        high: float64 (P,), upper end.
        weight: float64 (P,), number of instances near the point, each counted by its kernel
            weight (1 at the point itself).
        bandwidth: standard deviation of the kernel, in doublings of the area.
        level: of the band.
    """

    area: np.ndarray
    iou: np.ndarray
    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray
    bandwidth: float
    level: float


def size_curve(
    table: InstanceTable,
    *,
    points: int | Sequence[float] | np.ndarray = 50,
    bandwidth: float | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    images: Sequence[str] | None = None,
    minimum: float = 3.0,
) -> SizeCurve:
    """Estimate IoU against log-area by local linear regression, with a bootstrap band.

    At every point a line is fitted to the instances' IoU against log2(area), weighted by a
    Gaussian kernel, and its height at the point is the curve (cut to 0..100). Unlike a running
    mean, this has no bias at the smallest and the largest sizes. Every instance counts alike,
    whatever its class: select a class's records for its own curve. The band is pointwise, from
    the percentile bootstrap over images, as :func:`.statistics.bootstrap`.

    Args:
        table: the records; stuff is left out.
        points: number of points, evenly spaced in log-area from the smallest to the largest
            instance, or their areas in pixels, ascending.
        bandwidth: standard deviation of the kernel in doublings of the area; ``None`` takes
            Silverman's rule, ``0.9 min(sd, IQR / 1.349) R^(-1/5)``, and at least 0.25. Areas do
            not depend on the method, so several methods get the same points and bandwidth.
        samples: number of resamples.
        seed: same seed, same band.
        level: share of the resamples that the band holds at every point.
        images: ids of all images, those without instances included; default: those in the table.
        minimum: least weight (see :class:`SizeCurve`) for the curve to be defined.

    Returns:
        The curve; no points if there is no instance and ``points`` is a number.

    Raises:
        ValueError: if an option is out of range, or the table has images that ``images`` lacks.
    """
    check_settings(samples, seed, level)
    names = np.unique(table.image_id if images is None else np.asarray(images, np.str_))
    strange = np.setdiff1d(table.image_id, names)
    if len(strange):
        raise ValueError(f"images lacks images of the table: {listed(strange)}")
    table = table.select(table.things)
    x = np.log2(table.area.astype(np.float64))
    grid = _grid(x, points)
    width = _bandwidth(x, bandwidth)
    image = np.searchsorted(names, table.image_id)
    held, image = np.unique(image, return_inverse=True)
    sums = _point_sums(x, table.iou, image.ravel(), grid, width, len(held), len(names))
    weight, iou = _heights(sums.sum(axis=0)[None])
    draws = [np.zeros((0, len(grid)))]
    if len(held):
        for weights in bootstrap_weights(len(names), samples, seed):
            totals = sums.reshape(len(held), -1).T @ weights.T[held]
            draws.append(_heights(totals.T.reshape(len(weights), len(grid), 5))[1])
    defined = weight[0] >= minimum
    low, high = _band(np.concatenate(draws), level, defined if len(held) > 1 else defined & False)
    iou = np.where(defined, iou[0], np.nan)
    return SizeCurve(2.0**grid, 100 * iou, 100 * low, 100 * high, weight[0], width, level)


def _grid(x: np.ndarray, points: int | Sequence[float] | np.ndarray) -> np.ndarray:
    """Positions of the points in log2(area)."""
    if isinstance(points, (int, np.integer)):
        if points < 1:
            raise ValueError(f"points must be >= 1 or areas in pixels, got {points}")
        return np.linspace(x.min(), x.max(), int(points)) if len(x) else np.zeros(0)
    areas = np.asarray(points, np.float64)
    if areas.ndim != 1 or not np.all(areas > 0) or not np.all(np.diff(areas) > 0):
        raise ValueError(f"points must be positive areas in ascending order, got {points!r}")
    return np.log2(areas)


def _bandwidth(x: np.ndarray, given: float | None) -> float:
    """The bandwidth asked for, or Silverman's."""
    if given is not None:
        if not (given > 0 and math.isfinite(given)):
            raise ValueError(f"bandwidth must be a positive number of doublings, got {given!r}")
        return float(given)
    if len(x) < 2:
        return _NARROWEST
    low, high = np.quantile(x, [0.25, 0.75])
    spread = min(float(x.std()), float(high - low) / 1.349)
    return max(_NARROWEST, 0.9 * spread * len(x) ** -0.2)


def _point_sums(
    x: np.ndarray,
    y: np.ndarray,
    image: np.ndarray,
    grid: np.ndarray,
    width: float,
    held: int,
    images: int,
) -> np.ndarray:
    """Per image and point Σk, Σku, Σku², Σky, Σkuy of kernel weight k and offset u: (n, P, 5)."""
    sums = np.zeros((held, len(grid), 5))
    fullest = float(np.bincount(image, minlength=1).max()) if len(image) else 1.0
    for position, centre in enumerate(grid.tolist()):
        u = (x - centre) / width
        kernel = np.exp(-0.5 * u * u)
        columns = (kernel, kernel * u, kernel * u * u, kernel * y, kernel * u * y)
        for column, values in enumerate(columns):
            exact = fixed_point(values, images * fullest)
            sums[:, position, column] = np.bincount(image, weights=exact, minlength=held)
    return sums


def _heights(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight and height of the local lines, (S, P) each, from (S, P, 5); NaN without weight."""
    k, ku, kuu, ky, kuy = np.moveaxis(sums, -1, 0)
    spread = kuu + _RIDGE * k
    below = k * spread - ku * ku
    height = np.divide(spread * ky - ku * kuy, below, out=np.full(k.shape, np.nan), where=below > 0)
    return k, np.clip(height, 0.0, 1.0)


def _band(draws: np.ndarray, level: float, defined: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise percentiles (P,) of the defined heights (S, P)."""
    low, high = np.full((2, draws.shape[1]), np.nan)
    for point in np.flatnonzero(defined):
        column = draws[:, point]
        column = column[~np.isnan(column)]
        if len(column):
            low[point], high[point] = np.quantile(column, [(1 - level) / 2, (1 + level) / 2])
    return low, high
