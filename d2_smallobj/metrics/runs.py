"""Label maps as horizontal runs of equal pixels: every later step touches runs, not pixels.

A segmentation map of 500 x 375 pixels has some 3,000 runs, so that counting and connecting them
costs less than counting its pixels once does.

Shapes: H, W image height and width; R number of runs; K number of components.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Runs:
    """Horizontal runs of pixels that cover an image, in raster order.

    Attributes:
        width: W.
        start: int64 (R,), flat index of the first pixel.
        length: int64 (R,), number of pixels; no run goes on in the next row.
    """

    width: int
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def sample(self, labels: np.ndarray) -> np.ndarray:
        """Read a (H, W) integer map that is constant on each run: int64 (R,)."""
        return labels.ravel().take(self.start).astype(np.int64)


def find_runs(*maps: np.ndarray) -> Runs:
    """Cut an image into the longest runs on which none of the maps changes.

    Args:
        maps: (H, W) integer arrays of one shape, at least one.

    Returns:
        The runs.
    """
    width, size = maps[0].shape[1], maps[0].size
    if size == 0:
        return Runs(width, np.zeros(0, np.int64), np.zeros(0, np.int64))
    # Room for whole words: eight pixels are passed over at once where nothing changes.
    changed = np.zeros(-(-size // 8) * 8, bool)
    inner = changed[1:size]
    other = np.empty_like(inner)
    for number, labels in enumerate(maps):
        flat = labels.ravel()
        np.not_equal(flat[1:], flat[:-1], out=other if number else inner)
        if number:
            np.logical_or(inner, other, out=inner)
    changed[:size:width] = True
    eights = changed.view(np.uint64)
    words = (eights != 0).nonzero()[0]
    inside = eights.take(words).view(bool).nonzero()[0]
    start = words.take(inside >> 3) * 8 + (inside & 7)
    length = np.empty_like(start)
    np.subtract(start[1:], start[:-1], out=length[:-1])
    length[-1] = size - start[-1]
    return Runs(width, start, length)


def run_components(
    runs: Runs, labels: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Number the 8-connected components of all wanted labels at once.

    Args:
        runs: R runs; a row of equal labels may be cut into several.
        labels: int64 (R,), label of each; pixels of different labels never join.
        wanted: bool (R,), runs to look at; equal labels are wanted or unwanted together.

    Returns:
        int64 (R,), number 1..K of each run's component, 0 where not wanted; and int64 (K,), the
        label of each component. Numbers are in no particular order.
    """
    number = np.zeros(len(runs), np.int64)
    chosen = wanted.nonzero()[0]
    if len(chosen) == 0:
        return number, np.zeros(0, np.int64)
    label, start = labels.take(chosen), runs.start.take(chosen)
    # A column that no run enters parts the end of a row from the start of the next.
    start += start // runs.width
    end = start + runs.length.take(chosen)
    # Put together what other maps have cut.
    first = np.ones(len(chosen), bool)
    np.not_equal(label[1:], label[:-1], out=first[1:])
    first[1:] |= start[1:] != end[:-1]
    heads = first.nonzero()[0]
    tails = np.append(heads[1:], len(chosen)) - 1
    label = label.take(heads)
    pairs = _touching(start.take(heads), end.take(tails), label, runs.width + 1)
    tree, roots = _join(len(heads), *pairs)
    number[chosen] = (tree + 1).repeat(tails - heads + 1)
    return number, label.take(roots)


def _touching(
    start: np.ndarray, end: np.ndarray, label: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (upper run, lower run) of one label that touch by an edge or a corner.

    Args:
        start: int64 (R,), ascending, flat index of the first pixel.
        end: int64 (R,), flat index after the last pixel.
        label: int64 (R,).
        width: number of columns, of which the last is empty.
    """
    above = end.searchsorted(start - width)
    count = start.searchsorted(end - width, side="right") - above
    lower = np.arange(len(start)).repeat(count)
    shift = above - count.cumsum() + count
    upper = np.arange(len(lower)) + shift.take(lower)
    same = (label.take(upper) == label.take(lower)).nonzero()[0]
    return upper.take(same), lower.take(same)


def _join(length: int, upper: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join the nodes 0..length-1 by edges (upper, lower), upper < lower.

    Returns:
        int64 (length,), number 0..K-1 of each node's tree, and int64 (K,), the trees' roots.
    """
    nodes = np.arange(length)
    parent = nodes.copy()
    # Each run hangs on one above it (the last that is written stays), which makes trees ...
    parent[lower] = upper
    left = (parent.take(lower) != upper).nonzero()[0]
    parent = _flatten(parent)
    # ... and the edges left over join them.
    upper, lower = upper[left], lower[left]
    downwards = False
    while len(upper):
        one, two = parent.take(upper), parent.take(lower)
        # Towards low numbers and towards high ones in turn: each way alone could need a round
        # for every neighbour of a tree that lies at the wrong end.
        low, high = np.minimum(one, two), np.maximum(one, two)
        parent[low if downwards else high] = high if downwards else low
        downwards = not downwards
        parent = _flatten(parent)
        apart = parent.take(upper) != parent.take(lower)
        upper, lower = upper[apart], lower[apart]
    is_root = parent == nodes
    return (is_root.cumsum() - 1).take(parent), is_root.nonzero()[0]


def _flatten(parent: np.ndarray) -> np.ndarray:
    """Point every node at the root of its tree."""
    while True:
        above = parent.take(parent)
        if (above == parent).all():
            return parent
        parent = above.take(above)
