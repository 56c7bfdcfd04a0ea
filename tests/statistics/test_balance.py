"""Instances by class and size, and how evenly they spread."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.metrics.records import parse_size_bins
from d2_smallobj.statistics.balance import (
    InstanceSizes,
    class_size_counts,
    coefficient_of_variation,
    map_sizes,
    normalized_entropy,
    size_statistics,
)

NAMES = ("background", "cat", "dog")


def entries(sizes):
    """The instances as sorted tuples: their order carries no meaning."""
    return sorted(zip(*(c.tolist() for c in (sizes.class_ids, sizes.areas, sizes.image_areas))))


def sizes_of(areas, class_ids=None, image_area=10**6):
    areas = np.asarray(areas)
    classes = np.ones_like(areas) if class_ids is None else np.asarray(class_ids)
    return InstanceSizes(classes, areas, np.full(len(areas), image_area), num_images=1)


def test_maps_are_measured_as_the_metric_measures_them():
    semantic = np.zeros((10, 20), np.uint8)
    instances = np.zeros((10, 20), np.int32)
    semantic[0:4, 0:4], instances[0:4, 0:4] = 1, 300
    semantic[6:9, 0:5], instances[6:9, 0:5] = 2, 2
    semantic[0:4, 10:12], instances[0:4, 10:12] = 1, 255  # void: no instance
    semantic[6, 0:2] = 255  # ignored, yet part of the instance's size
    semantic[9, 19], instances[9, 19] = 255, 7  # nothing of it counts
    sizes = map_sizes(semantic, instances, num_classes=3)
    assert entries(sizes) == [(1, 16, 200), (2, 15, 200)]
    assert (len(sizes), sizes.num_images) == (2, 1)


def test_real_voc_maps_are_counted_as_their_files_say(realdata):
    root = realdata / "voc/VOC2012"
    for path in sorted((root / "SegmentationObject").glob("*.png")):
        instances = read_label_map(path)
        semantic = read_label_map(root / "SegmentationClass" / path.name)
        inside = (instances > 0) & (instances < 255) & (semantic != 255)
        pairs = Counter(zip(instances[inside].tolist(), semantic[inside].tolist()))
        expected = [(c, int((instances == n).sum()), instances.size) for n, c in pairs]
        assert entries(map_sizes(semantic, instances, num_classes=21)) == sorted(expected)


def test_concatenating():
    joined = InstanceSizes.concatenate(iter([sizes_of([5, 6]), sizes_of([7], [2], image_area=9)]))
    assert entries(joined) == [(1, 5, 10**6), (1, 6, 10**6), (2, 7, 9)]
    nothing = InstanceSizes.concatenate([])
    assert (joined.num_images, nothing.num_images, nothing.areas.dtype) == (2, 0, np.int64)


def test_balance_and_empty_cells():
    found = size_statistics("x", sizes_of([10, 10, 2000, 10**5, 10**5], [1, 2, 1, 1, 1]), NAMES)
    assert found.class_names == ("cat", "dog")
    assert found.counts.tolist() == [[1, 1, 2], [1, 0, 0]]
    assert (found.num_empty, found.num_beyond, found.num_images) == (2, 0, 1)
    assert found.entropy == normalized_entropy([[1, 1, 2], [1, 0, 0]])
    assert found.variation == coefficient_of_variation([[1, 1, 2], [1, 0, 0]])
    even = size_statistics("x", sizes_of([10, 2000, 10**5] * 2, [1, 1, 1, 2, 2, 2]), NAMES)
    assert (even.entropy, even.variation) == (pytest.approx(1), 0)


def test_size_bounds():
    """docs/method.md#sizes: S < 32², M < 96², L the rest."""
    areas = [1, 1023, 1024, 9215, 9216]
    counts = class_size_counts([1, 1, 1, 2, 2], areas, num_classes=3)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    found = size_statistics("x", sizes_of(areas), NAMES)
    assert found.size_names == ("S", "M", "L")
    assert found.counts.tolist() == [[2, 2, 1], [0, 0, 0]]
    assert class_size_counts([], [], num_classes=2).tolist() == [[0, 0, 0]] * 2


def test_other_bins():
    areas = sizes_of([5, 50, 500], image_area=1000)
    absolute = size_statistics("x", areas, NAMES, bins=parse_size_bins("tiny:10,small:100"))
    assert absolute.size_names == ("tiny", "small")
    assert absolute.counts.tolist() == [[1, 1], [0, 0]]
    assert absolute.num_beyond == 1
    relative = size_statistics("x", areas, NAMES, bins=parse_size_bins("relative:S:0.05,L:1"))
    assert relative.counts.tolist() == [[1, 2], [0, 0]]


@pytest.mark.parametrize(("class_ids", "areas", "message"), [
    ([0], [5], r"must be in 1\.\.2, got \[0\]"),
    ([3, 1], [5, 5], r"must be in 1\.\.2, got \[3\]"),
    ([1], [5, 5], r"one length, got shapes \(1,\) and \(2,\)"),
])  # fmt: skip
def test_arguments_are_checked(class_ids, areas, message):
    with pytest.raises(ValueError, match=message):
        class_size_counts(class_ids, areas, num_classes=2)


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=60))
def test_against_scipy(counts):
    if not sum(counts):
        assert math.isnan(normalized_entropy(counts))
        assert math.isnan(coefficient_of_variation(counts))
        return
    expected = stats.entropy(counts) / math.log(len(counts))
    assert normalized_entropy(counts) == pytest.approx(expected, abs=1e-12)
    assert coefficient_of_variation(counts) == pytest.approx(stats.variation(counts))


@pytest.mark.parametrize(("counts", "entropy", "variation"), [
    ([7] * 60, 1, 0), ([9, 0, 0, 0], 0, math.sqrt(3)), ([[1, 1], [0, 0]], 0.5, 1),
    ([5], math.nan, 0), ([], math.nan, math.nan),
])  # fmt: skip
def test_extremes(counts, entropy, variation):
    assert normalized_entropy(counts) == pytest.approx(entropy, nan_ok=True)
    assert coefficient_of_variation(counts) == pytest.approx(variation, nan_ok=True)


@pytest.mark.parametrize("counts", [[-1, 2], [float("nan")], [float("inf")]])
@pytest.mark.parametrize("measure", [normalized_entropy, coefficient_of_variation])
def test_counts_are_checked(measure, counts):
    with pytest.raises(ValueError, match="counts: must be finite and >= 0, got"):
        measure(np.array(counts))
