"""The mapping of category names."""

from __future__ import annotations

import csv

import benchmarks
import pytest

from d2_smallobj.annotations.classes import COCO_CLASS_NAMES, VOC_CLASS_NAMES
from d2_smallobj.pascal_b.index import (
    AMBIGUOUS,
    COCO_RULES,
    CORE,
    GENERAL,
    LVIS_RULES,
    PART,
    class_id,
    missing_lvis_names,
)

# Ids of detectron2's builtin_meta.py and of VOC, as lvis_to_voc.md lists them.
COCO_TO_VOC = (
    "5→1 2→2 16→3 9→4 44→5 6→6 3→7 17→8 62→9 21→10 67→11 18→12 19→13 4→14 1→15 64→16 20→17 63→18 "
    "7→19 72→20"
)
LEFT_OUT = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


def test_coco_to_voc_ids():
    ids = [n for n in range(1, 91) if n not in LEFT_OUT]
    by_id = dict(zip(ids, COCO_CLASS_NAMES[1:]))
    pairs = [tuple(map(int, pair.split("→"))) for pair in COCO_TO_VOC.split()]
    assert {by_id[coco]: voc for coco, voc in pairs} == {
        name: rule.class_id for name, rule in COCO_RULES.items()
    }


@pytest.mark.parametrize(
    ("category", "name", "role"),
    [
        ("airplane", "aeroplane", CORE),
        ("unicycle", "bicycle", "extension"),
        ("turkey_(bird)", "bird", "extension"),
        ("baby", "person", CORE),
        ("person", "person", CORE),
        ("monitor_(computer_equipment) computer_monitor", "tvmonitor", CORE),
        ("bullet_train", "train", "extension"),
        ("railcar_(part_of_a_train)", "train", PART),
        ("table", "diningtable", GENERAL),
        ("sofa_bed", "sofa", AMBIGUOUS),
        ("pickup_truck", "car", AMBIGUOUS),
    ],
)
def test_lvis_names(category, name, role):
    rule = LVIS_RULES[category]
    assert (VOC_CLASS_NAMES[rule.class_id], rule.role) == (name, role)


def test_background():
    background = {"truck", "ambulance", "stool", "bench", "wheelchair", "goat", "laptop_computer"}
    assert not {*background, "coffee_table", "desk", "flowerpot"} & set(LVIS_RULES)


def test_every_class_but_potted_plants_has_categories():
    roles = {(rule.class_id, rule.role) for rule in LVIS_RULES.values()}
    assert {c for c, role in roles if role == CORE} == set(range(1, 21)) - {16}
    assert 16 not in {c for c, _ in roles}


def test_names_are_lvis_v1s():
    """Those that v1 does not have are v0.5's alone."""
    with open(benchmarks.__path__[0] + "/lvis_v1_categories.csv", newline="") as file:
        names = {row["name"] for row in csv.DictReader(file)}
    assert len(names) == 1203
    assert set(LVIS_RULES) - names == {
        *("baby", "turkey_(bird)", "fishing_boat", "motorboat", "wing_chair"),
        *("Chihuahua", "dachshund"),
    }
    assert missing_lvis_names(names) == []


def test_missing_names():
    names = set(LVIS_RULES) - {"person", "cow", "television_set"}
    assert missing_lvis_names(names) == ["cow: 'cow'", "tvmonitor: 'television_set'"]
    assert missing_lvis_names(names - {"baby"})[1] == "person: 'person' or 'baby'"


def test_class_names_are_checked():
    assert class_id("pottedplant") == 16
    with pytest.raises(ValueError, match=r"class: unknown value 'tv'.*"):
        class_id("tv")
