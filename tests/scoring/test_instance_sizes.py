"""Instances of any ground truth."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from d2_smallobj.annotations.coco import Annotation, InstanceAnnotations, paint
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.scoring import Inputs
from d2_smallobj.scoring.instance_sizes import annotation_sizes, measure_instances
from d2_smallobj.statistics.balance import map_sizes
from d2_smallobj.utils.messages import InputError

HEIGHT, WIDTH = 24, 32


def open_truth(kind, path, **options):
    return Inputs(predictions="", **{kind: path}, **options).open_truth(label_maps=False)


def entries(sizes):
    return sorted(zip(sizes.class_ids.tolist(), sizes.areas.tolist(), sizes.image_areas.tolist()))


def rectangle(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def annotation_file(path, number_of_categories=3, **changes):
    """Two images; image 1 has an object of the last category."""
    images = [{"id": n, "height": 20, "width": 30, "file_name": f"{n}.jpg"} for n in (1, 2)]
    last = {"category_id": number_of_categories, "segmentation": rectangle(2, 2, 8, 8)}
    content = {
        "images": images,
        "categories": [{"id": n, "name": f"c{n}"} for n in range(1, number_of_categories + 1)],
        "annotations": [{"id": 5, "image_id": 1, **last}],
        **changes,
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def folders(dataset):
    kinds = {"path": dataset.semantic, "instances": dataset.instances, "classes": dataset.classes}
    return {name: str(path) for name, path in kinds.items()}


@pytest.mark.parametrize("components", [False, True])
def test_folders_are_measured_in_any_number_of_processes(dataset, folders, components):
    if components:
        del folders["instances"]
    truth = open_truth("semantic", **folders)
    expected = []
    for semantic, instances in dataset.scenes:
        expected += entries(map_sizes(semantic, None if components else instances, num_classes=4))
    for jobs in (1, 2):
        sizes = measure_instances(truth, source="x", jobs=jobs)
        assert entries(sizes) == sorted(expected)
        assert sizes.num_images == 7
    assert components or len(expected) == 21


def test_more_categories_than_a_label_map_has_labels(tmp_path):
    path = annotation_file(tmp_path / "many.json", 1203)
    truth = open_truth("lvis_json", str(path))
    assert len(truth.class_names) == 1204
    sizes = measure_instances(truth, source="x")
    assert entries(sizes) == [(1203, 36, 600)]
    assert sizes.num_images == 2


def test_classes_of_an_annotation_file_can_be_chosen(tmp_path):
    path = annotation_file(tmp_path / "a.json")
    (tmp_path / "names.txt").write_text("background\nthing\n")
    (tmp_path / "map.json").write_text(json.dumps({"c3": "thing"}))
    files = {"classes": tmp_path / "names.txt", "category_map": tmp_path / "map.json"}
    files = {name: str(file) for name, file in files.items()}
    truth = open_truth("coco_json", str(path), **files)
    assert truth.class_names == ("background", "thing")
    assert entries(measure_instances(truth, source="x")) == [(1, 36, 600)]


def test_all_damaged_maps_are_listed(dataset, folders):
    (dataset.semantic / "image2.png").write_bytes(b"not a png")
    write_label_map(dataset.instances / "image3.png", np.zeros((4, 4), np.uint8))
    write_label_map(dataset.semantic / "image5.png", np.full((40, 55), 9, np.uint8))
    truth = open_truth("semantic", **folders)
    with pytest.raises(InputError, match=r"3 image\(s\) that cannot be measured") as caught:
        measure_instances(truth, source="x")
    for name in ("image2.png", "image3.png", "image5.png"):
        assert os.path.join("", name) in str(caught.value)


def test_all_malformed_annotations_are_listed(tmp_path):
    path = annotation_file(tmp_path / "none.json", images=[], annotations=[])
    with pytest.raises(ValueError, match="mine: the data set has no images"):
        measure_instances(open_truth("coco_json", str(path)), source="mine")
    wrong = {"category_id": 1, "segmentation": [[1, 2, 3]]}
    bad = [{"id": 10 + image, "image_id": image, **wrong} for image in (1, 2)]
    path = annotation_file(tmp_path / "bad.json", annotations=bad)
    with pytest.raises(InputError, match=r"2 image\(s\)[\s\S]*bad\.json: annotation 11") as caught:
        measure_instances(open_truth("coco_json", str(path)), source="x")
    assert "annotation 12" in str(caught.value)


@pytest.mark.parametrize("kind", ["semantic", "coco_json"])
def test_what_the_user_calls_stuff_is_not_measured(dataset, folders, tmp_path, kind):
    if kind == "semantic":
        options, stuff, category = folders, ("background", "dog"), 2
    else:
        entries = [
            {"id": number, "image_id": 1, "category_id": number, "segmentation": box}
            for number, box in ((1, rectangle(2, 2, 8, 8)), (2, rectangle(12, 2, 18, 8)))
        ]
        path = annotation_file(tmp_path / "a.json", 2, annotations=entries)
        options, stuff, category = {"path": str(path)}, ("background", "c2"), 2
    both = measure_instances(open_truth(kind, **options, stuff=("background",)), source="x")
    sizes = measure_instances(open_truth(kind, **options, stuff=stuff), source="x")
    assert category in both.class_ids
    assert sizes.class_ids.tolist() == [n for n in both.class_ids.tolist() if n != category]
    assert sizes.num_images == both.num_images


def runs(mask):
    found = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": found["size"], "counts": found["counts"].decode()}


def painted(annotations):
    semantic, instances = paint(annotations, HEIGHT, WIDTH)
    return map_sizes(semantic, instances, num_classes=4)


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


@pytest.mark.parametrize("count", [300, 1001])
def test_images_with_many_instances(count):
    # LVIS has images with more than 255; from 1,000 on they are painted.
    squares = ((x, y) for y in range(0, HEIGHT - 1) for x in range(0, WIDTH - 1))
    boxes = [rectangle(x, y, x + 2, y + 2) for _, (x, y) in zip(range(count), squares)]
    boxes = [*boxes, *boxes[: count - len(boxes)], rectangle(0, 0, 9, 9)]
    found = [Annotation(n, 1, 1 + n % 3, n == 5, box) for n, box in enumerate(boxes)]
    sizes = annotation_sizes(found, HEIGHT, WIDTH, "x")
    assert entries(sizes) == entries(painted(found))
    assert len(sizes) > 255


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


@pytest.mark.parametrize(("name", "kind"), [
    ("coco/tinycoco50_val2017.json", "coco"),
    ("coco/coco_val2014_100.json", "coco"),
    ("lvis/lvis_v05_val_100.json", "lvis"),
])  # fmt: skip
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
    for image_id in found.image_ids[:50]:
        size = found.image_size(image_id)
        fast = annotation_sizes(found.annotations(image_id), *size, "x")
        assert entries(fast) == entries(map_sizes(*found.maps(image_id), num_classes=201))
        total += len(fast)
    assert total > 150
