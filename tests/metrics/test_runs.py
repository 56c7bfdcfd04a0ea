"""Runs and their components against pixels and OpenCV."""

from __future__ import annotations

import numpy as np
import pytest
from random_maps import label_maps, on_random_maps

from d2_smallobj.metrics import component_instances, image_runs, match_image
from d2_smallobj.metrics import runs as runs_module
from d2_smallobj.metrics.components import class_components
from d2_smallobj.metrics.runs import find_runs, run_components, stack_runs


def as_sets(numbered):
    return {frozenset(np.flatnonzero(numbered == k)) for k in np.unique(numbered) if k}


def paint(runs, values, shape):
    return np.repeat(values, runs.length).reshape(shape)


def numbered_by_runs(labels, *others):
    runs = find_runs(labels, *others)
    values = runs.sample(labels)
    chosen = np.flatnonzero(values)
    start, end, width = stack_runs([(runs, chosen)])
    tree, first = run_components(start, end, values[chosen], width)
    number = np.zeros(len(runs), np.int64)
    number[chosen] = tree + 1
    return paint(runs, number, labels.shape), values[chosen][first]


@on_random_maps(150)
def test_runs_cover_the_image_and_are_as_long_as_can_be(rng):
    for labels in label_maps(rng):
        other = rng.integers(0, 2, labels.shape).astype(np.int32) * 70000
        runs = find_runs(labels, other)
        changed = np.ones(labels.shape, bool)
        changed[:, 1:] = (np.diff(labels) != 0) | (np.diff(other) != 0)
        assert runs.start.tolist() == np.flatnonzero(changed).tolist()
        for source in (labels, other):
            assert np.array_equal(paint(runs, runs.sample(source), labels.shape), source)
        kinds = {runs.start.dtype, runs.length.dtype, runs.sample(labels).dtype}
        assert kinds == {np.dtype(np.int64)}


@on_random_maps(200)
def test_components_are_opencvs(rng):
    for labels in label_maps(rng):
        expected = class_components(labels)
        # Cut finer by another map: the components stay the same.
        for others in ((), (rng.integers(0, 3, labels.shape),)):
            found, label_of = numbered_by_runs(labels, *others)
            assert as_sets(found) == as_sets(expected.map)
            assert len(label_of) == len(expected)
            assert np.array_equal(np.append(0, label_of)[found], labels)


def spirals(size):
    """Two arms wound around each other, one pixel wide, with a gap between."""
    labels = np.zeros((size, size), np.uint8)
    y, x, turn = 0, 0, 0
    reach = size - 1
    while reach > 0:
        for _ in range(2 if turn else 3):
            for _ in range(reach):
                labels[y, x] = 1
                y, x = y + (0, 1, 0, -1)[turn % 4], x + (1, 0, -1, 0)[turn % 4]
            turn += 1
        reach -= 2
    return labels


def comb(size, *, nested):
    """A spine at the right that teeth of growing depth reach, each by way of a bend."""
    labels = np.zeros((size, size), np.uint8)
    labels[:, -1] = 1
    for k in range(2, size - 3, 2):
        labels[k:, size - 2 - k if nested else k] = 1
        labels[k, size - 2 - k :] = 1
    return labels


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "labels",
    [spirals(41), comb(40, nested=True), comb(40, nested=False), np.tri(30, dtype=np.uint8)[::-1]],
)
def test_long_ways_round(labels, turn, flip):
    labels = np.rot90(labels[:, ::-1] if flip else labels, turn)
    labels = np.ascontiguousarray(labels)
    found, _ = numbered_by_runs(labels)
    assert as_sets(found) == as_sets(class_components(labels).map)


def test_noise_beyond_eight_bits_of_components():
    labels = np.random.default_rng(0).integers(0, 9, (120, 150)).astype(np.uint8)
    found, _ = numbered_by_runs(labels)
    assert found.max() > 2000
    assert as_sets(found) == as_sets(class_components(labels).map)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_no_pixels(shape):
    labels = np.zeros(shape, np.uint8)
    assert len(find_runs(labels, labels)) == 0
    assert component_instances(labels).shape == shape
    for mode in ("exact", "official"):
        for instances in (labels, None):
            match = match_image(labels, labels, instances, num_classes=2, mode=mode)
            assert (len(match.table), len(match.blobs), match.confusion.sum()) == (0, 0, 0)


def test_component_instances_are_the_records_ids():
    semantic = np.array(
        [[0, 2, 0, 1, 0, 1], [2, 0, 0, 0, 0, 1], [0, 255, 1, 0, 0, 0], [3, 3, 0, 1, 0, 2]]
    )
    # Class by class, then by the first pixel: three of class 1, two of class 2, one of class 3.
    assert component_instances(semantic).tolist() == [
        [0, 4, 0, 1, 0, 2],
        [4, 0, 0, 0, 0, 2],
        [0, 0, 3, 0, 0, 0],
        [6, 6, 0, 3, 0, 5],
    ]
    table = match_image(semantic % 255, semantic, num_classes=4).table
    assert list(zip(table.instance_id, table.category_id, table.area)) == [
        (0, 0, 13), (1, 1, 1), (2, 1, 2), (3, 1, 2), (4, 2, 2), (5, 2, 1), (6, 3, 2)
    ]  # fmt: skip


@on_random_maps(60)
def test_records_equal_those_of_the_painted_components(rng):
    for semantic in label_maps(rng):
        guess = np.where(rng.random(semantic.shape) < 0.8, semantic, 1)
        painted = component_instances(semantic, ignore_label=9)
        one = match_image(guess, semantic, num_classes=4, ignore_label=9)
        two = match_image(guess, semantic, painted, num_classes=4, ignore_label=9)
        for name, column in one.table.columns().items():
            assert np.array_equal(column, two.table.columns()[name])


def test_huge_ids_are_numbered_anew(monkeypatch):
    rng = np.random.default_rng(3)
    instances = rng.integers(0, 5, (9, 9)).repeat(3, 0).repeat(3, 1)
    semantic = np.array([0, 1, 2, 1, 2])[instances]
    guess = np.where(rng.random(semantic.shape) < 0.7, semantic, 1)
    far = np.array([0, 2**62, 2**61 + 3, 2**40, 7])[instances]
    expected = match_image(guess, semantic, instances, num_classes=3)
    found = match_image(guess, semantic, far, num_classes=3)
    back = {2**62: 1, 2**61 + 3: 2, 2**40: 3, 7: 4, 0: 0}
    order = np.argsort([back[i] for i in found.table.instance_id.tolist()])
    for name in ("pixels", "intersection", "charged", "components", "shared"):
        column = getattr(found.table, name)[order]
        assert column.tolist() == getattr(expected.table, name).tolist()
    # The same road taken with small ids.
    monkeypatch.setattr(image_runs, "LARGEST_TABLE", 0)
    monkeypatch.setattr(runs_module, "_LARGEST_TABLE", 0)
    monkeypatch.setattr(image_runs, "_TABLE_PER_RUN", 0)
    again = match_image(guess, semantic, instances, num_classes=3)
    assert again.table.charged.tolist() == expected.table.charged.tolist()
    assert again.table.instance_id.tolist() == expected.table.instance_id.tolist()
