"""Outcomes and pixels of the annotations of an image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from d2_smallobj.pascal_b.candidates import Candidate, Outcome, Piece
from d2_smallobj.pascal_b.compose import compose
from d2_smallobj.pascal_b.painting import paint
from d2_smallobj.pascal_b.screening import read_masks

H, W = 100, 120


@pytest.fixture
def result(candidate):
    """``result()``: composition, semantic map and instance map of image 1."""

    def make(from_coco=(16,), min_area=16):
        found = candidate(1, from_coco)
        masks = read_masks(found, ["lvis.json", "coco.json"])
        composition = compose(found, masks, from_coco=from_coco, min_area=min_area)
        return composition, *paint(composition, found.height, found.width)[:2]

    return make


def counts(labels):
    values, number = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), number.tolist()))


USED, SAME = Outcome.USED, Outcome.SAME_IN_LVIS
# What is shown | LVIS's objects: category and box; * a crowd | COCO's | pixels by label | outcomes.
CASES = """
both agree: no side is wrong | cat 10 10 50 50 | cat 10 10 50 50 | 8: 1600 | USED SAME_IN_LVIS
crowds and doubtful regions: no side is wrong
    | car_(automobile) 0 0 40 40, pickup_truck 60 0 80 20, car_(automobile) 60 60 80 80
    | car 0 0 40 40, car 60 0 80 20, car 55 55 85 85 * | 7: 2000, 255: 900
    | USED VOID_AMBIGUOUS USED SAME_IN_LVIS VOID_COCO_ONLY CROWD
other categories hide nothing | cat 0 0 60 60, zebra 0 0 30 30 | | 8: 3600 | USED
ambiguous ones are void and take part by size
    | table 0 0 80 80, bottle 10 10 20 30, pickup_truck 12 12 16 16 |
    | 5: 184, 255: 6216 | VOID_AMBIGUOUS USED VOID_AMBIGUOUS
void where only COCO labels: wholly, in part, beneath a smaller object
    | cat 10 10 50 50, bottle 70 70 80 80 | cat 10 10 50 52, dining table 60 60 110 90
    | 8: 1600, 5: 100, 255: 1480 | USED USED SAME_IN_LVIS VOID_COCO_ONLY
a small object that only COCO labels lies on top
    | sofa 0 0 60 60 | couch 0 0 60 60, cat 10 10 20 20
    | 18: 3500, 255: 100 | USED SAME_IN_LVIS VOID_COCO_ONLY
crowds are void beneath objects: no side is wrong
    | person 10 10 30 30 | person 10 10 30 30, person 0 0 60 60 *, zebra 60 60 90 90 *
    | 15: 400, 255: 3200 | USED SAME_IN_LVIS CROWD
a crowd of LVIS is no instance
    | cat 0 0 20 20 *, dog 40 40 60 60 | | 12: 400, 255: 400 | CROWD USED
potted plants come from COCO: no side is wrong
    | | potted plant 0 0 20 20, potted plant 50 50 80 80 * | 16: 400, 255: 900 | USED CROWD
of two names the class's own is kept
    | armchair 0 0 40 41, chair 0 0 40 40, chair 50 0 90 40 |
    | 9: 3200, 255: 40 | DUPLICATE USED USED
the narrower name holds: a class
    | dining_table 0 0 40 40, table 0 0 40 40 | | 11: 1600 | USED DUPLICATE
the narrower name holds: a kind
    | sofa 0 0 40 40, sofa_bed 0 0 40 40 | | 255: 1600 | VOID_AMBIGUOUS VOID_AMBIGUOUS
the narrower name holds: another kind | car_(automobile) 0 0 40 40, police_cruiser 0 0 40 40
    | | 255: 1600 | VOID_AMBIGUOUS VOID_AMBIGUOUS
different names in LVIS and COCO
    | chair 0 0 40 40 | couch 0 0 40 44 | 255: 1760 | VOID_CONFLICT VOID_COCO_ONLY
no conflict where COCO has LVIS's name, too
    | chair 0 0 40 40 | couch 0 0 40 44, chair 0 0 40 40
    | 9: 1600, 255: 160 | USED VOID_COCO_ONLY SAME_IN_LVIS
different names where COCO provides the class
    | chair 0 0 40 40 | potted plant 0 0 40 40 | 255: 1600 | VOID_CONFLICT VOID_CONFLICT
"""
ROWS = [row.split("|") for row in CASES.strip().replace("\n    |", "|").split("\n")]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_outcomes_and_pixels(world, result, row):
    world.draw("lvis", row[1])
    world.draw("coco", row[2])
    expected = dict(tuple(map(int, pair.split(":"))) for pair in row[3].split(","))
    composition, semantic, instances = result()
    assert [outcome.name for outcome in composition.outcomes] == row[4].split()
    assert counts(semantic) == {0: H * W - sum(expected.values()), **expected}
    assert ((instances == 255) == (semantic == 255)).all()
    assert composition.void_share == expected.get(255, 0) / (H * W)
    if "no side is wrong" in row[0]:
        assert composition.disagreement == 0


def test_tables_of_coco_complete_those_of_lvis(world, result):
    world.draw("lvis", "dining_table 0 0 40 40, table 60 0 100 40")
    world.draw("coco", "dining table 0 0 40 41, dining table 60 0 101 40")
    composition, semantic, _ = result(from_coco=(11, 16))
    assert composition.outcomes == (USED, Outcome.SAME_IN_COCO, SAME, USED)
    assert counts(semantic) == {0: H * W - 3280, 11: 3240, 255: 40}
    # As in the paper: from LVIS only.
    assert counts(result()[1]) == {0: H * W - 3280, 11: 1600, 255: 1680}


@pytest.mark.parametrize("order", [1, -1])
def test_the_smaller_object_stays_visible(world, result, order):
    world.draw("lvis", ", ".join(["sofa 0 0 60 60", "cat 10 10 30 30"][::order]))
    composition, semantic, instances = result()
    assert counts(semantic) == {0: H * W - 3600, 18: 3200, 8: 400}
    assert [layer.visible for layer in composition.instances] == [3200, 400][::order]
    # Numbered by annotation, not by layer.
    assert instances[15, 15] == (2 if order == 1 else 1)


def test_railway_cars_belong_to_their_train(world, result):
    world.draw("lvis", "train_(railroad_vehicle) 0 0 30 20, train_(railroad_vehicle) 40 0 60 20")
    world.draw("lvis", "railcar_(part_of_a_train) 25 0 45 20")
    world.draw("lvis", "passenger_car_(part_of_a_train) 0 50 30 70")
    composition, semantic, instances = result()
    # Both trains share five columns with the car: the first one gets it.
    assert composition.outcomes == (USED, USED, Outcome.IN_TRAIN, USED)
    assert counts(semantic) == {0: H * W - 1200 - 600, 19: 1800}
    assert counts(instances) == {0: H * W - 1800, 1: 800, 2: 400, 3: 600}


def test_empty_hidden_and_tiny(world, result):
    world.image(1)
    for mask in ([], [[1, 1, 5, 5]], (0, 0, 3, 5)):
        world.add("lvis", 1, "cat", mask)
    world.draw("lvis", "sofa 50 50 70 70, dog 50 50 60 70, cat 60 50 70 70")
    world.add("coco", 1, "person", {"size": [H, W], "counts": [H * W]}, iscrowd=1)
    composition, semantic, _ = result()
    names = [outcome.name for outcome in composition.outcomes]
    assert names == ["EMPTY", "EMPTY", "VOID_TINY", "HIDDEN", "USED", "USED", "EMPTY"]
    assert counts(semantic) == {0: H * W - 415, 12: 200, 8: 200, 255: 15}
    assert result(min_area=15)[0].outcomes[2] is USED


def test_disagreement_of_outlines(world, result):
    world.draw("lvis", "cat 0 0 40 40")
    world.draw("coco", "cat 10 0 50 40")
    # 30 columns agree, 10 are LVIS's alone, 10 COCO's alone.
    assert result()[0].disagreement == pytest.approx(20 / 50)


@pytest.mark.parametrize(
    ("source", "category", "negative", "expected"),
    [
        ("lvis", "bird", [], 400 / 2000),
        # An object of COCO counts where LVIS looked for it.
        ("coco", "person", [], 0),
        ("coco", "person", ["person"], 400 / 2000),
        ("coco", "person", ["zebra"], 0),
    ],
)
def test_disagreement_on_an_object(world, result, source, category, negative, expected):
    world.image(1, negative=negative)
    world.add("both", 1, ("cat", "cat"), (0, 0, 40, 40))
    world.add(source, 1, category, (60, 60, 80, 80))
    composition, semantic, _ = result()
    assert composition.disagreement == pytest.approx(expected)
    assert counts(semantic)[3 if source == "lvis" else 255] == 400


@pytest.mark.parametrize(
    ("partial", "filled_by", "complete"),
    [
        ([], None, True),
        (["cat"], None, False),
        (["cat"], {"iscrowd": 1}, True),
        (["cat"], {}, True),
        (["cat", "dog"], {"iscrowd": 1}, False),
    ],
)
def test_coco_completes_partly_labelled_classes(world, result, partial, filled_by, complete):
    world.image(1, partial=partial)
    world.add("both", 1, ("cat", "cat"), (0, 0, 40, 40))
    if filled_by is not None:
        world.add("coco", 1, "cat", (60, 60, 90, 90), **filled_by)
    assert result()[0].complete is complete


boxes = st.tuples(*[st.integers(0, 17)] * 2, *[st.integers(1, 12)] * 2)
classes, roles = st.integers(1, 20), st.sampled_from(["core", "general"])
objects = st.lists(st.tuples(boxes, classes, roles), max_size=7)
checks = st.lists(st.tuples(boxes, classes, st.booleans()), max_size=5)


@settings(max_examples=80, deadline=None)
@given(objects, checks)
def test_painting_is_by_area_and_every_pixel_is_told(lvis, coco):
    """Against pixels: counted areas, COCO's pixels never background, no class without LVIS."""
    side = 30
    dense = []
    for (x, y, w, h), *_ in [*lvis, *coco]:
        mask = np.zeros((side, side), np.uint8, order="F")
        mask[y : y + h, x : x + w] = 1
        dense.append(mask)
    pieces = [Piece(0, n, n, c, role, False, b"") for n, (_, c, role) in enumerate(lvis)]
    others = [Piece(1, n, n, c, "core", crowd, b"") for n, (_, c, crowd) in enumerate(coco)]
    named = (tuple(pieces), tuple(others), frozenset({1, 2}), frozenset())
    found = Candidate(1, "x.jpg", side, side, *named)
    composition = compose(found, [coco_mask.encode(m) for m in dense], from_coco={16}, min_area=4)
    semantic, instances, void_class = paint(composition, side, side)
    assert len(composition.outcomes) == len(dense)
    assert len(composition.instances) == composition.outcomes.count(Outcome.USED)
    for number, layer in enumerate(composition.instances, start=1):
        assert layer.visible == np.count_nonzero(instances == number) >= 4
        assert (semantic[instances == number] == layer.class_id).all()
    assert composition.void_share == np.count_nonzero(semantic == 255) / side**2
    assert ((semantic == 255) == (instances == 255)).all()
    assert ((semantic == 255) == (void_class > 0)).all()
    labelled = np.any([np.zeros((side, side)), *dense], axis=0)
    assert ((semantic > 0) == labelled).all()
    # The largest object of all never hides a pixel of another.
    for class_id in set(np.unique(semantic)) - {0, 255}:
        ours = [c == class_id and role == "core" for _, c, role in lvis]
        theirs = [c == class_id == 16 and not crowd for _, c, crowd in coco]
        allowed = [m for m, painted in zip(dense, ours + theirs) if painted]
        assert np.any(allowed, axis=0)[semantic == class_id].all()
    assert 0 <= composition.disagreement <= 1
