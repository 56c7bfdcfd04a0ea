"""Stored values and what they mean."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from d2_smallobj.annotations.cityscapes import (
    CITYSCAPES_CLASS_NAMES,
    VEHICLES_AND_PERSONS,
    cityscapes_rule,
)
from d2_smallobj.annotations.label_rules import LabelRule, identity_rule


def test_semantic_values_become_classes():
    rule = LabelRule((0, 0, 255, 1))
    labels = rule.semantic(np.array([[0, 1, 2, 3, 255]], np.uint16), "x.png")
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 0, 255, 1, 255]]


def test_other_values_are_errors():
    stored = np.array([[0, 3, 4, 300]], np.uint16)
    with pytest.raises(
        ValueError, match=r"^x\.png: label values must be 0\.\.2 or 255, found 3, 4"
    ):
        identity_rule(3).semantic(stored, "x.png")


def test_an_empty_map():
    assert identity_rule(3).semantic(np.zeros((0, 4), np.uint8), "x").shape == (0, 4)


def test_classes_are_checked():
    with pytest.raises(ValueError, match=r"classes: must be in 0\.\.255, got \[256, -1\]"):
        LabelRule((0, 256, -1))


def test_one_class_of_many():
    rule = LabelRule((0, 1, 2, 255, 2)).only(2)
    assert rule.classes == (0, 0, 1, 255, 1)
    assert pickle.loads(pickle.dumps(rule)) == rule


def test_any_class_of_many():
    assert LabelRule((0, 1, 2, 255, 2)).only(None).classes == (0, 1, 1, 255, 1)


def test_instances_follow_the_semantic_map():
    """Void and groups are 255, background 0, and what is not the class has no instance."""
    rule = LabelRule((0, 1, 0, 255), groups_below=10)
    stored_labels = np.array([[0, 1, 1, 2, 3, 255]])
    stored = np.array([[0, 11, 1, 12, 13, 14]], np.uint16)
    semantic = rule.semantic(stored_labels, "x")
    instances = rule.instances(stored, semantic)
    assert instances.dtype == np.int32
    assert instances.tolist() == [[0, 11, 255, 0, 255, 255]]


def test_cityscapes_labels():
    """The labels of the benchmark: ids of things, what is background, what is not scored."""
    rule = cityscapes_rule()
    assert CITYSCAPES_CLASS_NAMES[1:] == tuple(VEHICLES_AND_PERSONS)
    labels = rule.semantic(np.arange(34)[None], "x")[0].tolist()
    assert [labels.index(class_id) for class_id in range(1, 9)] == [24, 25, 26, 27, 28, 31, 32, 33]
    ignored = [label for label in range(34) if labels[label] == 255]
    assert ignored == [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30]
    # Road, sidewalk, building, wall, fence, pole, traffic light and sign, vegetation to sky.
    background = [label for label in range(34) if labels[label] == 0]
    assert background == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23]
