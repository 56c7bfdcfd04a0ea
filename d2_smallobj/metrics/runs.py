"""Label maps as horizontal runs of equal pixels, and their 8-connected components.

A segmentation map of 500 x 375 pixels has some 3,000 runs, so that counting and connecting them
costs less than counting its pixels once does.

Shapes: H, W image height and width; R number of runs; K number of components.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

# Largest table of labels and instances; a larger one costs more than numbering the instances first.
_LARGEST_TABLE = 1 << 14


@dataclasses.dataclass(frozen=True)
class Runs:
    """Horizontal runs of pixels that cover an image, in raster order.

    Attributes:
        height: H.
        width: W.
        start: int64 (R,), flat index of the first pixel.
        length: int64 (R,), number of pixels; no run goes on in the next row.
    """

    height: int
    width: int
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def sample(self, labels: np.ndarray) -> np.ndarray:
        """Read a (H, W) integer map that is constant on each run: int64 (R,)."""
        return labels.ravel()[self.start].astype(np.int64)


def find_runs(*maps: np.ndarray) -> Runs:
    """Cut an image into the longest runs on which none of the integer maps (H, W) changes."""
    height, width = maps[0].shape
    size = height * width
    if size == 0:
        return Runs(height, width, np.zeros(0, np.int64), np.zeros(0, np.int64))
    # Bytes that are not 0 where a run begins, filled up to whole words.
    changed = np.zeros(size + -size % 8, np.uint8)
    inner, other = changed[1:size], np.empty(size - 1, np.uint8)
    for number, labels in enumerate(maps):
        flat, out = labels.ravel(), other if number else inner
        if flat.dtype == np.uint8:
            np.bitwise_xor(flat[1:], flat[:-1], out=out)
        else:
            np.not_equal(flat[1:], flat[:-1], out=out.view(bool))
        if number:
            np.bitwise_or(inner, other, out=inner)
    changed[:size:width] = 1
    start = _nonzero_bytes(changed)
    length = np.empty_like(start)
    np.subtract(start[1:], start[:-1], out=length[:-1])
    length[-1] = size - start[-1]
    return Runs(height, width, start, length)


def _nonzero_bytes(values: np.ndarray) -> np.ndarray:
    """Find the bytes, uint8 (8 n,), that are not 0, by words of eight if they are few."""
    words = values.view(np.uint64)
    filled = (words != 0).nonzero()[0]
    if 4 * len(filled) > len(words):
        return (values != 0).nonzero()[0]
    place = (words[filled].view(np.uint8) != 0).nonzero()[0]
    found = filled[place >> 3]
    found <<= 3
    place &= 7
    found += place
    return found


def stack_runs(
    parts: Sequence[tuple[Runs, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, int]:
    """Put runs of several images below one another in one map, with an empty row between them.

    Args:
        parts: runs of each image, and positions of those to take, ascending.

    Returns:
        int64 (R,), flat index of the first pixel of each run taken, and after its last pixel; and
        the columns of the map, of which the last is empty, so that ends of rows do not touch.
    """
    width = 1 + max(runs.width for runs, _ in parts)
    starts, ends, row = [], [], 0
    for runs, chosen in parts:
        start = runs.start[chosen]
        place = start // max(runs.width, 1)
        place *= width - runs.width
        place += start
        place += row * width
        starts.append(place)
        ends.append(place + runs.length[chosen])
        row += runs.height + 1
    return join(starts), join(ends), width


def run_components(
    start: np.ndarray, end: np.ndarray, label: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Number the 8-connected components of runs; those of different labels never join.

    Args:
        start: int64 (R,), ascending, flat index of the first pixel; a row of equal labels may
            be cut into several runs.
        end: int64 (R,), flat index after the last pixel.
        label: int64 (R,).
        width: number of columns, of which the last is empty.

    Returns:
        int64 (R,), number 0..K-1 of each run's component, and int64 (K,), a run of each component.
        Numbers are in no particular order.
    """
    if len(start) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # Put together what other maps have cut.
    apart = np.empty(len(start), bool)
    apart[0] = True
    np.not_equal(label[1:], label[:-1], out=apart[1:])
    apart[1:] |= start[1:] != end[:-1]
    heads = apart.nonzero()[0]
    parts = np.empty_like(heads)
    np.subtract(heads[1:], heads[:-1], out=parts[:-1])
    parts[-1] = len(start) - heads[-1]
    label, start, end = label[heads], start[heads], end[heads + (parts - 1)]
    repeats = _repeats(start, end, label, width)
    if repeats is None:
        tree, roots = _join(len(heads), *_touching(start, end, label, width))
    else:
        # Rows like the one above them add no component; they get the numbers of that row.
        kept, place, moved = repeats
        start, end = start[kept] - moved, end[kept] - moved
        tree, roots = _join(len(kept), *_touching(start, end, label[kept], width))
        tree, roots = tree[place], kept[roots]
    return tree.repeat(parts), heads[roots]


def number_regions(
    label: np.ndarray, instance: np.ndarray, labels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number the pairs of label, in 0..labels-1, and instance.

    Returns:
        int64 (R,), number of each run's pair; label and instance of each pair, int64 (G,).
    """
    below, ids = int(instance.max(initial=0)) + 1, None
    if below * labels > _LARGEST_TABLE:
        ids, instance = _distinct(instance, below)
        below = len(ids)
    pair = instance * labels
    pair += label
    pairs, region = _distinct(pair, below * labels)
    instance, label = np.divmod(pairs, labels)
    return region, label, instance if ids is None else ids[instance]


def _distinct(values: np.ndarray, below: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the distinct values of 0..below-1, ascending, and each one's position (R,) there."""
    if below > 8 * _LARGEST_TABLE:
        distinct, place = np.unique(values, return_inverse=True)
        return distinct, place.ravel()
    seen = np.zeros(below, bool)
    seen[values] = True
    distinct = seen.nonzero()[0]
    number = np.empty(below, np.int64)
    number[distinct] = np.arange(len(distinct))
    return distinct, number[values]


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate; a single array is taken as it is."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def changes(values: np.ndarray) -> np.ndarray:
    """Positions at which a value differs from the one before it, the first one included."""
    first = np.empty(len(values), bool)
    first[:1] = True
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return first.nonzero()[0]


def _repeats(
    start: np.ndarray, end: np.ndarray, label: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Find rows that repeat the row above them, as maps enlarged to the nearest pixel have.

    Returns:
        ``None`` if such rows are not the greater part. Otherwise positions of the runs of the rows
        to keep; int64 (R,), position among these of the run that each run repeats; and int64 by
        kept run, by how much its flat indices decrease when the repeated rows are taken out.
    """
    row = start // width
    first = changes(row)
    runs = np.append(first[1:], len(row)) - first
    # A row can repeat the one above only if it has as many runs, each below its like.
    leading = start[first]
    likely = (leading[1:] - width == leading[:-1]) & (runs[1:] == runs[:-1])
    if 2 * np.count_nonzero(likely) < len(first):
        return None
    above = np.arange(len(row)) - runs.repeat(runs)
    above[: runs[0]] = 0
    like = start - width == start[above]
    like &= end - width == end[above]
    like &= label == label[above]
    repeats = np.logical_and.reduceat(like, first)
    repeats[0] = False
    repeats[1:] &= likely
    kept = (~repeats.repeat(runs)).nonzero()[0]
    # In a repeated row, the k-th run is the k-th of the last row that was kept.
    number = np.cumsum(np.where(repeats, 0, runs)) - runs
    place = np.arange(len(row)) + (number - first).repeat(runs)
    moved = (repeats.cumsum() * width).repeat(runs)[kept]
    return kept, place, moved


def _touching(
    start: np.ndarray, end: np.ndarray, label: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs (upper run, lower run) of one label that touch by an edge or a corner."""
    above = end.searchsorted(start - width)
    count = start.searchsorted(end - width, side="right") - above
    lower = np.arange(len(start)).repeat(count)
    upper = np.arange(len(lower))
    upper += (above - count.cumsum() + count)[lower]
    same = (label[upper] == label[lower]).nonzero()[0]
    return upper[same], lower[same]


def _join(length: int, upper: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join nodes by edges, upper < lower: number (length,) of each node's tree, a node of each."""
    parent = np.arange(length)
    # Each run hangs on one above it (the last that is written stays), which makes trees ...
    parent[lower] = upper
    left = (parent[lower] != upper).nonzero()[0]
    roots = (parent == np.arange(length)).nonzero()[0]
    tree = _numbered(_flatten(parent), roots)
    # ... and the edges left over join them: few trees, so that rounds are cheap.
    one, two = tree[upper[left]], tree[lower[left]]
    joined = join_trees(len(roots), one, two)
    if joined is None:
        return tree, roots
    kept = (joined == np.arange(len(roots))).nonzero()[0]
    return _numbered(joined, kept)[tree], roots[kept]


def join_trees(length: int, one: np.ndarray, two: np.ndarray) -> np.ndarray | None:
    """Find each tree's root (length,) after joining trees by edges; ``None`` if nothing joins."""
    parent, downwards = None, False
    apart = one != two
    while apart.any():
        one, two = one[apart], two[apart]
        parent = np.arange(length) if parent is None else parent
        # Towards low numbers and towards high ones in turn: each way alone could need a round
        # for every neighbour of a tree that lies at the wrong end.
        low, high = np.minimum(one, two), np.maximum(one, two)
        parent[low if downwards else high] = high if downwards else low
        downwards = not downwards
        parent = _flatten(parent)
        one, two = parent[one], parent[two]
        apart = one != two
    return parent


def _numbered(root: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """Number the nodes by the position of their root among ``roots``."""
    number = np.empty(len(root), np.int64)
    number[roots] = np.arange(len(roots))
    return number[root]


def _flatten(parent: np.ndarray) -> np.ndarray:
    """Point every node at the root of its tree."""
    while True:
        above = parent[parent]
        if (above == parent).all():
            return parent
        parent = above[above]
