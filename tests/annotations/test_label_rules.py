"""Stored values and what they mean."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from d2_smallobj.annotations.cityscapes import (
    CITYSCAPES_CLASS_NAMES,
    VEHICLES_AND_PERSONS,
    benchmark_rule,
    cityscapes_instances,
    cityscapes_rule,
    instance_ids_beside,
    label_classes,
    predicted_train_ids,
)
from d2_smallobj.annotations.label_rules import (
    LabelRule,
    dict_annotations,
    fit_instances,
    identity_rule,
    unique_by_runs,
)


def test_semantic_values_become_classes():
    labels = LabelRule((0, 0, 255, 1)).semantic(np.array([[0, 1, 2, 3, 255]], np.uint16), "x.png")
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 0, 255, 1, 255]]
    message = r"^x\.png: label values must be 0\.\.2 or 255, found 3, 4, 300$"
    with pytest.raises(ValueError, match=message):
        identity_rule(3).semantic(np.array([[0, 3, 4, 300]], np.uint16), "x.png")
    with pytest.raises(ValueError, match=r"classes: must be in 0\.\.255, got \[256, -1\]"):
        LabelRule((0, 256, -1))


def test_one_class_of_many():
    assert LabelRule((0, 1, 2, 255, 2)).only(None).classes == (0, 1, 1, 255, 1)
    rule = LabelRule((0, 1, 2, 255, 2)).only(2)
    assert rule.classes == (0, 0, 1, 255, 1)
    assert pickle.loads(pickle.dumps(rule)) == rule


def test_instances_follow_the_semantic_map():
    rule = LabelRule((0, 1, 0, 255), groups_below=10)
    semantic = rule.semantic(np.array([[0, 1, 1, 2, 3, 255]]), "x")
    instances = rule.instances(np.array([[0, 11, 1, 12, 13, 14]], np.uint16), semantic)
    # Void and groups are 255, background is 0, and what is not the class has no instance.
    assert instances.dtype == np.int32
    assert instances.tolist() == [[0, 11, 255, 0, 255, 255]]


def test_cityscapes_labels():
    rule = cityscapes_rule()
    assert CITYSCAPES_CLASS_NAMES[1:] == tuple(VEHICLES_AND_PERSONS)
    labels = rule.semantic(np.arange(34)[None], "x")[0].tolist()
    assert [labels.index(class_id) for class_id in range(1, 9)] == [24, 25, 26, 27, 28, 31, 32, 33]
    ignored = [label for label in range(34) if labels[label] == 255]
    assert ignored == [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30]
    # Road, sidewalk, building, wall, fence, pole, traffic light and sign, vegetation to sky.
    background = [label for label in range(34) if labels[label] == 0]
    assert background == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23]


def fit(semantic, instances, classes=None, stuff=(0,)):
    options = {"stuff": stuff, "ignore_label": 9, "source": "a.png and b.png"}
    semantic, instances = np.array(semantic, np.uint8), np.array(instances)
    return fit_instances(semantic, instances, classes, **options).tolist()


@pytest.mark.parametrize(
    ("semantic", "instances", "classes", "expected"),
    [
        # One class each: as it was, ignored pixels kept (they are part of the instance's size).
        ([[1, 1, 9, 0]], [[5, 5, 5, 0]], {5: 1}, [[5, 5, 5, 0]]),
        # Pixels of another class are void, void stays void.
        ([[1, 1, 2, 0, 1]], [[5, 5, 5, 0, 255]], {5: 1}, [[5, 5, 255, 0, 255]]),
        # An instance of stuff is none.
        ([[0, 0, 1, 1]], [[4, 4, 5, 5]], {4: 0, 5: 1}, [[0, 0, 5, 5]]),
        # One without a pixel of its class is none: void on other classes, nothing on ignored.
        ([[2, 9, 1, 1]], [[4, 4, 5, 5]], {4: 1, 5: 1}, [[255, 0, 5, 5]]),
        # Classes that nothing tells: the most frequent one that is no stuff.
        ([[0, 0, 0, 1, 1, 1, 2]], [[0, 0, 6, 6, 6, 6, 6]], None, [[0, 0, 255, 6, 6, 6, 255]]),
        # The lower class of two equally frequent ones.
        ([[2, 1, 2, 1]], [[6, 6, 6, 6]], None, [[255, 6, 255, 6]]),
        # Nothing there.
        ([[0, 1]], [[0, 255]], None, [[0, 255]]),
    ],
)
def test_by_hand(semantic, instances, classes, expected):
    assert fit(semantic, instances, classes) == expected


def test_ids_of_any_size_survive():
    ids = np.arange(1, 1001).reshape(20, 50) * 16000
    assert fit(np.ones((20, 50)), ids, None, ()) == ids.tolist()


@pytest.mark.parametrize(
    ("instances", "classes", "message"),
    [
        ([[5, 5, 5]], {5: 1}, r"a\.png and b\.png: the semantic map is 1 x 4 .* map 1 x 3; do the"),
        ([[5, 5, 5, 5]], {5: 2}, r"b\.png: only 1 of the 4 pixels of its instances lie .* same im"),
        ([[5, 6, 6, 6]], {6: 1}, r"instance\(s\) \[5\] are of no known class"),
    ],
)
def test_maps_that_do_not_belong_together(instances, classes, message):
    with pytest.raises(ValueError, match=message):
        fit([[1, 1, 1, 2]], instances, classes)


def test_a_slip_in_a_large_image_is_void_and_no_error():
    semantic = np.ones((100, 100), np.uint8)
    instances = np.zeros_like(semantic)
    instances[:5, :10] = 3
    assert np.unique(fit(semantic, instances, {3: 2})).tolist() == [0, 255]


CITY = ["road", "person", "car"]
CLASSES = {7: 0, 24: 1, 26: 2}


def city(semantic, stored, classes=CLASSES):
    options = {"stuff": (0,), "ignore_label": 255, "source": "labels and instances"}
    semantic, stored = np.array(semantic, np.uint8), np.array(stored, np.uint16)
    return cityscapes_instances(semantic, stored, classes, **options).tolist()


def test_groups_are_void_and_roads_are_nothing():
    found = city([[0, 0, 2, 2, 2, 1, 255]], [[7, 7, 26000, 26001, 26, 24, 4]])
    assert found == [[0, 0, 26000, 26001, 255, 255, 0]]
    # Without known labels, the same by the classes beneath.
    assert city([[0, 0, 2, 2, 2]], [[7, 7, 26000, 26001, 26]], None) == [[0, 0, 26000, 26001, 255]]


def test_instance_ids_of_another_image():
    with pytest.raises(ValueError, match=r"labels and instances: only 1 of 4 pixels .* same image"):
        city([[2, 2, 0, 0]], [[7, 7, 26000, 7]])
    with pytest.raises(ValueError, match=r"is 1 x 4 .* the instance map 1 x 3; do the files"):
        city([[2, 2, 0, 0]], [[26000, 7, 7]])


def test_names_of_files_and_classes():
    for kind in ("labelIds", "labelTrainIds"):
        assert instance_ids_beside(f"x/a_gtFine_{kind}.png") == "x/a_gtFine_instanceIds.png"
    assert instance_ids_beside("x/a.png") is None
    assert label_classes(CITY) is None
    assert label_classes([str(number) for number in range(19)])[33] == 18


def test_predictions_in_label_ids():
    labels = np.array([[7, 33, 26]], np.uint8)
    assert predicted_train_ids(labels, "p.png").tolist() == [[0, 18, 13]]
    assert benchmark_rule().semantic(labels, "x").tolist() == [[0, 18, 13]]
    with pytest.raises(ValueError, match=r"p\.png: .*19 labels .*got 0, 9 in 2 px; are they train"):
        predicted_train_ids(np.array([[0, 9, 26]]), "p.png")


def test_annotations_of_a_dict():
    entries = [
        {"category_id": 1, "segmentation": [[0, 0, 1, 0, 1, 1]]},
        {"category_id": 0, "segmentation": [], "iscrowd": 1},
        {"category_id": 2, "segmentation": []},
    ]
    found = dict_annotations(entries, [4, 7, None], "a.jpg")
    assert [(a.class_id, a.crowd) for a in found] == [(7, False), (4, True)]
    with pytest.raises(ValueError, match=r"a\.jpg: annotation 2 has category_id 2.* has 0\.\.1"):
        dict_annotations(entries, [4, 7], "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg: annotation 0 has no 'segmentation'"):
        dict_annotations([{"category_id": 0}], [4], "a.jpg")


@pytest.mark.parametrize("size", [0, 1, 2, 500])
def test_unique_values_by_runs(size):
    values = np.random.default_rng(size).integers(0, 7, size).repeat(3)
    expected = np.unique(values, return_inverse=True, return_counts=True)
    for found, plain in zip(unique_by_runs(values), expected):
        np.testing.assert_array_equal(found, plain)
