"""Instances by class and size."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from d2_smallobj.annotations.coco import Annotation, InstanceAnnotations, paint
from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.metrics.sizes import parse_size_bins
from d2_smallobj.statistics.balance import coefficient_of_variation, normalized_entropy
from d2_smallobj.statistics.counts import (
    InstanceSizes,
    annotation_sizes,
    map_sizes,
    size_statistics,
)

HEIGHT, WIDTH = 24, 32
NAMES = ("background", "cat", "dog")


def entries(sizes):
    """The instances as sorted tuples: their order carries no meaning."""
    return sorted(zip(*(c.tolist() for c in (sizes.class_ids, sizes.areas, sizes.image_areas))))


def sizes_of(areas, class_ids=None, image_area=10**6):
    areas = np.asarray(areas)
    classes = np.ones_like(areas) if class_ids is None else np.asarray(class_ids)
    return InstanceSizes(classes, areas, np.full(len(areas), image_area), num_images=1)


def rectangle(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def runs(mask):
    found = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": found["size"], "counts": found["counts"].decode()}


def painted(annotations):
    semantic, instances = paint(annotations, HEIGHT, WIDTH)
    return map_sizes(semantic, instances, num_classes=4)


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


def test_without_instances_the_components_are_counted():
    semantic = np.zeros((6, 9), np.uint8)
    semantic[0:2, 0:2] = semantic[2:4, 2:4] = 1  # 8-connected
    semantic[0:3, 6:9] = 1
    semantic[5, :] = 2
    assert entries(map_sizes(semantic, None, num_classes=3)) == [(1, 8, 54), (1, 9, 54), (2, 9, 54)]


def test_malformed_maps_are_errors():
    semantic, instances = np.ones((3, 3), np.uint8), np.ones((3, 3), np.uint8)
    with pytest.raises(ValueError, match="semantic"):
        map_sizes(semantic * 9, instances, num_classes=3)
    semantic[0] = 2
    with pytest.raises(ValueError, match="instance"):
        map_sizes(semantic, instances, num_classes=3)


@pytest.mark.parametrize(
    ("area", "size"), [(1, 0), (1023, 0), (1024, 1), (9215, 1), (9216, 2), (10**6, 2)]
)
def test_the_bounds_of_the_sizes(area, size):
    found = size_statistics("x", sizes_of([area]), NAMES)
    assert found.size_names == ("S", "M", "L")
    assert found.counts.tolist() == [[int(size == place) for place in range(3)], [0, 0, 0]]


def test_smaller_annotations_hide_larger_ones():
    big, small = rectangle(0, 0, 20, 20), rectangle(5, 5, 9, 9)
    beside = rectangle(25, 0, 30, 10)
    for order in ((0, 1, 2), (2, 1, 0)):
        found = [Annotation(1, 1, 1, False, big), Annotation(2, 2, 2, False, small)]
        found.append(Annotation(3, 1, 1, False, beside))
        found = [found[place] for place in order]
        assert entries(annotation_sizes(found, HEIGHT, WIDTH, "x")) == [
            (1, 50, 768), (1, 384, 768), (2, 16, 768)
        ]  # fmt: skip


@pytest.mark.parametrize("shift", [(9, 0), (0, 9), (9, 9), (-9, 9)])
def test_annotations_that_overlap_by_one_pixel(shift):
    one = rectangle(10, 10, 20, 20)
    other = rectangle(*(10 + shift[0], 10 + shift[1], 20 + shift[0], 20 + shift[1]))
    found = [Annotation(1, 1, 1, False, one), Annotation(2, 2, 2, False, other)]
    hidden = (10 - abs(shift[0])) * (10 - abs(shift[1]))
    assert entries(annotation_sizes(found, 40, 40, "x")) == [
        (1, 100 - hidden, 1600),
        (2, 100, 1600),
    ]


def test_hidden_and_empty_instances_and_crowds_are_not_counted():
    same, line = rectangle(2, 2, 8, 8), [[1, 1, 5, 5]]
    found = [
        Annotation(1, 1, 1, False, same),
        Annotation(2, 2, 2, False, same),  # equally large, later: on top
        Annotation(3, 1, 1, False, line),
        Annotation(4, 1, 1, True, rectangle(0, 0, 30, 20)),
    ]
    assert entries(annotation_sizes(found, HEIGHT, WIDTH, "x")) == [(2, 36, 768)]
    assert entries(painted(found)) == [(2, 36, 768)]
    none = annotation_sizes([], HEIGHT, WIDTH, "x")
    assert (len(none), none.num_images) == (0, 1)


@pytest.mark.parametrize("crowd", [False, True])
def test_a_malformed_annotation_is_named(crowd):
    bad = {"size": [HEIGHT, WIDTH], "counts": [5]}
    found = [Annotation(17, 1, 1, crowd, bad)]
    with pytest.raises(ValueError, match=r"a\.json: annotation 17: run lengths"):
        annotation_sizes(found, HEIGHT, WIDTH, "a.json")


coordinate = st.integers(-4, 36).map(lambda value: value / 1.5)
polygon = st.lists(coordinate, min_size=2, max_size=12).map(lambda c: c[: len(c) // 2 * 2])
mask = st.builds(
    lambda seed, density: np.random.default_rng(seed).random((HEIGHT, WIDTH)) < density,
    st.integers(0, 99),
    st.sampled_from([0, 0.02, 0.5, 1]),
)
segmentation = st.one_of(st.lists(polygon, max_size=3), mask.map(runs))
annotation = st.builds(
    lambda kind, crowd, stored: Annotation(1, kind, kind, crowd, stored),
    st.integers(1, 3),
    st.sampled_from([False, False, False, True]),
    segmentation,
)


@settings(max_examples=120, deadline=None)
@given(st.lists(annotation, max_size=7))
def test_run_lengths_and_painting_give_the_same(annotations):
    fast = annotation_sizes(annotations, HEIGHT, WIDTH, "x")
    assert entries(fast) == entries(painted(annotations))
    assert fast.class_ids.dtype == fast.areas.dtype == fast.image_areas.dtype == np.int64


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("coco/tinycoco50_val2017.json", "coco"),
        ("coco/coco_val2014_100.json", "coco"),
        ("lvis/lvis_v05_val_100.json", "lvis"),
    ],
)
def test_run_lengths_and_painting_give_the_same_on_real_annotations(realdata, name, kind):
    path = realdata / name
    ids = [entry["id"] for entry in json.loads(path.read_text())["categories"]]
    found = InstanceAnnotations(
        path,
        kind=kind,
        category_map={category: number % 200 + 1 for number, category in enumerate(ids)},
        class_names=[str(number) for number in range(201)],
    )
    total = 0
    for image_id in found.image_ids:
        size = found.image_size(image_id)
        fast = annotation_sizes(found.annotations(image_id), *size, "x")
        assert entries(fast) == entries(map_sizes(*found.maps(image_id), num_classes=201))
        total += len(fast)
    assert total > 300


def test_real_voc_maps_are_counted_as_their_files_say(realdata):
    root = realdata / "voc/VOC2012"
    for path in sorted((root / "SegmentationObject").glob("*.png")):
        instances = read_label_map(path)
        semantic = read_label_map(root / "SegmentationClass" / path.name)
        inside = (instances > 0) & (instances < 255) & (semantic != 255)
        pairs = Counter(zip(instances[inside].tolist(), semantic[inside].tolist()))
        expected = sorted(
            (label, int((instances == number).sum()), instances.size) for number, label in pairs
        )
        assert entries(map_sizes(semantic, instances, num_classes=21)) == expected


def test_concatenating():
    parts = [sizes_of([5, 6]), sizes_of([7], [2], image_area=9)]
    joined = InstanceSizes.concatenate(iter(parts))
    assert entries(joined) == [(1, 5, 10**6), (1, 6, 10**6), (2, 7, 9)]
    assert joined.num_images == 2
    nothing = InstanceSizes.concatenate([])
    assert (len(nothing), nothing.num_images, nothing.areas.dtype) == (0, 0, np.int64)


def test_balance_and_empty_cells():
    found = size_statistics("x", sizes_of([10, 10, 2000, 10**5, 10**5], [1, 2, 1, 1, 1]), NAMES)
    assert found.class_names == ("cat", "dog")
    assert found.counts.tolist() == [[1, 1, 2], [1, 0, 0]]
    assert (found.num_empty, found.num_beyond, found.num_images) == (2, 0, 1)
    assert found.entropy == normalized_entropy([[1, 1, 2], [1, 0, 0]])
    assert found.variation == coefficient_of_variation([[1, 1, 2], [1, 0, 0]])
    even = size_statistics("x", sizes_of([10, 2000, 10**5] * 2, [1, 1, 1, 2, 2, 2]), NAMES)
    assert (even.entropy, even.variation) == (pytest.approx(1), 0)


def test_other_sizes():
    areas = sizes_of([5, 50, 500], image_area=1000)
    absolute = size_statistics("x", areas, NAMES, bins=parse_size_bins("tiny:10,small:100"))
    assert absolute.size_names == ("tiny", "small")
    assert absolute.counts.tolist() == [[1, 1], [0, 0]]
    assert absolute.num_beyond == 1
    relative = size_statistics("x", areas, NAMES, bins=parse_size_bins("relative:S:0.05,L:1"))
    assert relative.counts.tolist() == [[1, 2], [0, 0]]


def test_a_class_without_a_name_is_an_error():
    with pytest.raises(ValueError, match=r"class_ids: must be in 1\.\.2, got \[3\]"):
        size_statistics("x", sizes_of([5], [3]), NAMES)
