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


def test_lvis_and_coco_agree(world, result):
    world.image(1)
    world.add("both", 1, ("cat", "cat"), (10, 10, 50, 50))
    composition, semantic, instances = result()
    assert composition.outcomes == (Outcome.USED, Outcome.SAME_IN_LVIS)
    assert counts(semantic) == {0: H * W - 1600, 8: 1600}
    assert counts(instances) == {0: H * W - 1600, 1: 1600}
    assert (composition.disagreement, composition.overlap, composition.void_share) == (0, 0, 0)


USED, VOID, CROWD = Outcome.USED, Outcome.VOID_AMBIGUOUS, Outcome.CROWD
SAME, COCO_ONLY, CONFLICT = Outcome.SAME_IN_LVIS, Outcome.VOID_COCO_ONLY, Outcome.VOID_CONFLICT
# What is shown | LVIS's objects: category and box; * a crowd | COCO's | pixels by label.
CASES = """
other categories hide nothing | cat 0 0 60 60, zebra 0 0 30 30 | | 8: 3600
ambiguous ones are void and take part by size
    | table 0 0 80 80, bottle 10 10 20 30, pickup_truck 12 12 16 16 | | 5: 184, 255: 6216
void where only COCO labels: wholly, in part, beneath a smaller object
    | cat 10 10 50 50, bottle 70 70 80 80 | cat 10 10 50 52, dining table 60 60 110 90
    | 8: 1600, 5: 100, 255: 1480
a small object that only COCO labels lies on top
    | sofa 0 0 60 60 | couch 0 0 60 60, cat 10 10 20 20 | 18: 3500, 255: 100
crowds are void beneath objects
    | person 10 10 30 30 | person 10 10 30 30, person 0 0 60 60 *, zebra 60 60 90 90 *
    | 15: 400, 255: 3200
a crowd of LVIS is no instance | cat 0 0 20 20 *, dog 40 40 60 60 | | 12: 400, 255: 400
potted plants come from COCO
    | | potted plant 0 0 20 20, potted plant 50 50 80 80 * | 16: 400, 255: 900
of two names the class's own is kept
    | armchair 0 0 40 41, chair 0 0 40 40, chair 50 0 90 40 | | 9: 3200, 255: 40
the narrower name holds: a class | dining_table 0 0 40 40, table 0 0 40 40 | | 11: 1600
the narrower name holds: a kind | sofa 0 0 40 40, sofa_bed 0 0 40 40 | | 255: 1600
the narrower name holds: another kind
    | car_(automobile) 0 0 40 40, police_cruiser 0 0 40 40 | | 255: 1600
different names in LVIS and COCO | chair 0 0 40 40 | couch 0 0 40 44 | 255: 1760
no conflict where COCO has LVIS's name, too
    | chair 0 0 40 40 | couch 0 0 40 44, chair 0 0 40 40 | 9: 1600, 255: 160
different names where COCO provides the class
    | chair 0 0 40 40 | potted plant 0 0 40 40 | 255: 1600
"""
OUTCOMES = [
    [USED],
    [VOID, USED, VOID],
    [USED, USED, SAME, COCO_ONLY],
    [USED, SAME, COCO_ONLY],
    [USED, SAME, CROWD],
    [CROWD, USED],
    [USED, CROWD],
    [Outcome.DUPLICATE, USED, USED],
    [USED, Outcome.DUPLICATE],
    [VOID, VOID],
    [VOID, VOID],
    [CONFLICT, COCO_ONLY],
    [USED, COCO_ONLY, SAME],
    [CONFLICT, CONFLICT],
]
ROWS = [row.split("|") for row in CASES.strip().replace("\n    |", "|").split("\n")]


@pytest.mark.parametrize(("row", "outcomes"), zip(ROWS, OUTCOMES), ids=[row[0] for row in ROWS])
def test_outcomes_and_pixels(world, result, row, outcomes):
    world.image(1)
    for source, objects in zip(("lvis", "coco"), row[1:3]):
        for text in filter(str.strip, objects.split(",")):
            *name, x0, y0, x1, y1 = text.replace("*", "").split()
            mask = tuple(map(int, (x0, y0, x1, y1)))
            world.add(source, 1, " ".join(name), mask, iscrowd=int("*" in text))
    expected = dict(tuple(map(int, pair.split(":"))) for pair in row[3].split(","))
    composition, semantic, instances = result()
    assert composition.outcomes == tuple(outcomes)
    assert counts(semantic) == {0: H * W - sum(expected.values()), **expected}
    assert ((instances == 255) == (semantic == 255)).all()
    assert composition.void_share == expected.get(255, 0) / (H * W)
    if row[0].startswith("crowds"):
        assert composition.disagreement == 0


def test_tables_of_coco_complete_those_of_lvis(world, result):
    world.image(1)
    world.add("lvis", 1, "dining_table", (0, 0, 40, 40))
    world.add("lvis", 1, "table", (60, 0, 100, 40))
    world.add("coco", 1, "dining table", (0, 0, 40, 41))
    world.add("coco", 1, "dining table", (60, 0, 101, 40))
    composition, semantic, _ = result(from_coco=(11, 16))
    assert composition.outcomes == (USED, Outcome.SAME_IN_COCO, SAME, USED)
    assert counts(semantic) == {0: H * W - 3280, 11: 3240, 255: 40}
    # As in the paper: from LVIS only.
    assert counts(result()[1]) == {0: H * W - 3280, 11: 1600, 255: 1680}


@pytest.mark.parametrize("turned", [False, True])
def test_the_smaller_object_stays_visible(world, result, turned):
    world.image(1)
    pair = [("sofa", (0, 0, 60, 60)), ("cat", (10, 10, 30, 30))]
    for name, mask in pair[::-1] if turned else pair:
        world.add("lvis", 1, name, mask)
    composition, semantic, instances = result()
    assert counts(semantic) == {0: H * W - 3600, 18: 3200, 8: 400}
    assert [layer.visible for layer in composition.instances] == (
        [400, 3200] if turned else [3200, 400]
    )
    # Numbered by annotation, not by layer.
    assert instances[15, 15] == (1 if turned else 2)


def test_railway_cars_belong_to_their_train(world, result):
    world.image(1)
    world.add("lvis", 1, "train_(railroad_vehicle)", (0, 0, 30, 20))
    world.add("lvis", 1, "train_(railroad_vehicle)", (40, 0, 60, 20))
    world.add("lvis", 1, "railcar_(part_of_a_train)", (25, 0, 45, 20))
    world.add("lvis", 1, "passenger_car_(part_of_a_train)", (0, 50, 30, 70))
    composition, semantic, instances = result()
    # Both trains share five columns with the car: the first one gets it.
    assert composition.outcomes == (USED, USED, Outcome.IN_TRAIN, USED)
    assert counts(semantic) == {0: H * W - 1200 - 600, 19: 1800}
    assert counts(instances) == {0: H * W - 1800, 1: 800, 2: 400, 3: 600}


def test_empty_hidden_and_tiny(world, result):
    world.image(1)
    for mask in ([], [[1, 1, 5, 5]], (0, 0, 3, 5)):
        world.add("lvis", 1, "cat", mask)
    world.add("lvis", 1, "sofa", (50, 50, 70, 70))
    world.add("lvis", 1, "dog", (50, 50, 60, 70))
    world.add("lvis", 1, "cat", (60, 50, 70, 70))
    world.add("coco", 1, "person", {"size": [H, W], "counts": [H * W]}, iscrowd=1)
    composition, semantic, _ = result()
    empty = Outcome.EMPTY
    tiny, hidden = Outcome.VOID_TINY, Outcome.HIDDEN
    assert composition.outcomes == (empty, empty, tiny, hidden, USED, USED, empty)
    assert counts(semantic) == {0: H * W - 415, 12: 200, 8: 200, 255: 15}
    assert result(min_area=15)[0].outcomes[2] is USED


def test_disagreement_of_outlines(world, result):
    world.image(1)
    world.add("lvis", 1, "cat", (0, 0, 40, 40))
    world.add("coco", 1, "cat", (10, 0, 50, 40))
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


def test_crowds_and_doubtful_regions_take_no_side(world, result):
    world.image(1)
    world.add("both", 1, ("car_(automobile)", "car"), (0, 0, 40, 40))
    world.add("both", 1, ("pickup_truck", "car"), (60, 0, 80, 20))
    world.add("lvis", 1, "car_(automobile)", (60, 60, 80, 80))
    world.add("coco", 1, "car", (55, 55, 85, 85), iscrowd=1)
    assert result()[0].disagreement == 0


def test_no_disagreement_without_a_common_class(world, result):
    world.image(1)
    world.add("coco", 1, "potted plant", (0, 0, 20, 20))
    assert result()[0].disagreement == 0


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
objects = st.lists(
    st.tuples(boxes, st.integers(1, 20), st.sampled_from(["core", "general"])), max_size=7
)
checks = st.lists(st.tuples(boxes, st.integers(1, 20), st.booleans()), max_size=5)


@settings(max_examples=120, deadline=None)
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
    found = Candidate(
        1, "x.jpg", side, side, tuple(pieces), tuple(others), frozenset({1, 2}), frozenset()
    )
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
