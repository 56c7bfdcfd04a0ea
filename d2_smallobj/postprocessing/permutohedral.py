"""Gaussian filtering of points in few dimensions, by the permutohedral lattice.

A. Adams, J. Baek, A. Davis: Fast High-Dimensional Filtering Using the Permutohedral Lattice,
Computer Graphics Forum 29 (2010). Written from the paper, in numpy.

Legend: N points, d dimensions, M lattice points that some point touches, C channels.
"""

from __future__ import annotations

import numpy as np

_MOST_KEYS = 2**62
_LARGEST = 2**20  # beyond it, float32 has no digits left for the place within a cell
_TOO_WIDE = "features span too many standard deviations, use larger ones"


class PermutohedralLattice:
    """Approximates ``out_i = sum_j exp(-|f_i - f_j|^2 / 2) in_j`` in time linear in N.

    Every point is spread over the d + 1 corners of the lattice simplex that holds it, the lattice
    is blurred along its d + 1 directions, and every point is read back from its corners. Lattice
    points that no point touches are left out, so that sparse data lose some of the weight between
    distant points. The result has one constant factor, which a normalisation divides out.

    ``features`` are finite float (N, d), N and d >= 1, divided by the wanted standard deviation;
    ValueError if they span so many that lattice points cannot be numbered.
    """

    def __init__(self, features: np.ndarray) -> None:
        if features.ndim != 2 or 0 in features.shape:
            raise ValueError(f"features must have shape (N, d), none 0, got {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError("features must be finite, got NaN or infinity")
        elevated = _elevate(np.asarray(features, np.float32))
        nearest, rank = _enclosing_simplex(elevated)
        self._weights = _barycentric(elevated, nearest, rank)
        cells = _corner_cells(nearest, rank)
        code, strides, low = _numbering(cells)
        numbers, self._corners = np.unique(code, return_inverse=True)
        self._corners = self._corners.reshape(code.shape)
        self._neighbours = _neighbours(numbers, strides, low)

    def __len__(self) -> int:
        """M, the number of lattice points in use."""
        return len(self._neighbours[0][0])

    def filter(self, values: np.ndarray) -> np.ndarray:
        """Filter float (N, C) values; returns float32 (N, C), up to the constant factor."""
        # The last row stands for all lattice points that are not in use and stays zero.
        lattice = np.zeros((len(self) + 1, values.shape[1]), np.float32)
        for channel in range(values.shape[1]):
            spread = (self._weights * values[:, channel]).ravel()
            lattice[:, channel] = np.bincount(self._corners.ravel(), spread, len(lattice))
        for forward, backward in self._neighbours:
            lattice[:-1] += 0.5 * (lattice[forward] + lattice[backward])
        filtered = np.zeros(values.shape, np.float32)
        for corners, weights in zip(self._corners, self._weights):
            filtered += weights[:, None] * lattice[corners]
        return filtered


def _elevate(features: np.ndarray) -> np.ndarray:
    """Map (N, d) points into the hyperplane of R^(d+1) whose coordinates sum to 0: (d + 1, N).

    Scaled so that spreading, blurring and reading back have variance 1 together.
    """
    count, d = features.shape
    steps = np.arange(1, d + 1)
    scaled = features * ((d + 1) * np.sqrt(2 / 3) / np.sqrt(steps * (steps + 1))).astype("f4")
    elevated = np.zeros((d + 1, count), np.float32)
    # Basis vector i has ones in its first i coordinates, -i in the next one, zeros after it.
    elevated[:-1] = scaled[:, ::-1].cumsum(axis=1)[:, ::-1].T
    elevated[1:] -= (scaled * steps.astype(np.float32)).T
    if np.abs(elevated).max() > _LARGEST:
        raise ValueError(f"{_TOO_WIDE}: up to {np.abs(features).max():.3g} from 0")
    return elevated


def _enclosing_simplex(elevated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the corner of remainder 0 of each point's simplex, and the ranks of the coordinates.

    Both int32 (d + 1, N): the corner in units of d + 1; ranks by distance from it, largest first.
    """
    size = len(elevated)
    nearest = np.rint(elevated / size).astype(np.int32)
    order = np.argsort(-(elevated - size * nearest), axis=0, kind="stable")
    rank = np.empty_like(nearest)
    np.put_along_axis(rank, order, np.arange(size, dtype=np.int32)[:, None], axis=0)
    # Rounding leaves the hyperplane; the coordinates that it moved farthest are moved back.
    rank += nearest.sum(axis=0)
    shift = (rank < 0).astype(np.int32) - (rank >= size)
    return nearest + shift, rank + size * shift


def _barycentric(elevated: np.ndarray, nearest: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Weights of the corners of remainder 0..d, float32 (d + 1, N), summing to 1."""
    size, count = elevated.shape
    ordered = np.empty((size, count), np.float32)
    np.put_along_axis(ordered, rank, elevated / size - nearest, axis=0)
    weights = np.empty_like(ordered)
    weights[1:] = (ordered[:-1] - ordered[1:])[::-1]
    weights[0] = 1 - weights[1:].sum(axis=0)
    return weights


def _corner_cells(nearest: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Coordinates of all corners, int32 (d + 1 corners, d coordinates + remainder, N).

    All coordinates of a corner of remainder k are k modulo d + 1, so they are kept as multiples
    of d + 1 with the remainder once; the last coordinate follows from the others.
    """
    size, count = nearest.shape
    cells = np.empty((size, size, count), np.int32)
    for remainder in range(size):
        cells[remainder, :-1] = nearest[:-1] - (rank[:-1] >= size - remainder)
        cells[remainder, -1] = remainder
    return cells


def _numbering(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One int64 for every corner (d + 1, N), with the strides and offsets that made it.

    One cell is left free on either side, so that neighbours have numbers too.
    """
    low = cells.min(axis=(0, 2)).astype(np.int64) - 1
    extent = cells.max(axis=(0, 2)) + 2 - low
    if np.prod(extent.astype(np.float64)) > _MOST_KEYS:
        raise ValueError(f"{_TOO_WIDE}: {' x '.join(map(str, extent))} cells of the lattice")
    strides = np.concatenate([[1], np.cumprod(extent[:-1])])
    code = np.tensordot(strides, cells.astype(np.int64) - low[:, None], axes=(0, 1))
    return code, strides, low


def _neighbours(
    numbers: np.ndarray, strides: np.ndarray, low: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of the next and previous lattice point in each of the d + 1 directions.

    A step adds 1 to all coordinates but one, which loses d. Rows that are not in use are M.
    """
    size, count = len(strides), len(numbers)
    remainder = numbers // strides[-1] + low[-1]
    wraps = remainder == size - 1
    # Adding 1 to every coordinate: the remainder grows, or returns to 0 with one more multiple.
    ahead = numbers + np.where(wraps, strides[:-1].sum() - (size - 1) * strides[-1], strides[-1])
    pairs = []
    for direction in range(size):
        # The coordinate that loses d = (d + 1) - 1 has one multiple less; the last is implied.
        target = ahead - (strides[direction] if direction < size - 1 else 0)
        row = np.minimum(np.searchsorted(numbers, target), count - 1)
        forward = np.where(numbers[row] == target, row, count)
        backward = np.full(count + 1, count)
        backward[forward] = np.arange(count)
        pairs.append((forward, backward[:count]))
    return pairs
