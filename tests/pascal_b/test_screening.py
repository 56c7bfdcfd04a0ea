"""Screening: images that are dropped, and masks that cannot be used."""

from __future__ import annotations

import math

import pytest

from d2_smallobj.pascal_b import ScreeningOptions
from d2_smallobj.pascal_b.candidates import Outcome


def test_fit(cat, verdict):
    found = verdict()
    assert found.outcome is None
    assert found.instances == ((8, 1600),)
    assert (found.disagreement, found.void_share, found.message) == (0, 0, "")
    assert verdict(min_area=1601).outcome is Outcome.NOTHING_LEFT


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"size": [120, 100], "counts": [12000]}, r"for an image of \[height, width\] = \[120"),
        ({"size": [100, 120], "counts": [7, 5]}, "add up to height"),
        ({"size": [100, 120], "counts": "~~"}, "corrupt compressed run lengths"),
        ([[1, 2, 3, 4, 5]], "flat list of x, y pairs"),
        ([["a", 2, 3, 4, 5, 6]], "a polygon is a list of numbers"),
        ([[1, 2, 3e9, 4, 5, 6]], "finite and near the image"),
        ("mask", "a list of polygons or a run-length dict"),
        (None, "a list of polygons or a run-length dict"),
    ],
)
@pytest.mark.parametrize("source", ["lvis", "coco"])
def test_malformed_masks(cat, verdict, source, mask, message):
    cat.add(source, 1, "cat", mask)
    found = verdict()
    assert found.outcome is Outcome.MALFORMED
    assert f"{source}.json: annotation 2: " in found.message
    assert message.replace("\\", "") in found.message
    assert found.instances == ()
    assert math.isnan(found.disagreement)


@pytest.mark.parametrize(
    ("mask", "degenerate"),
    [
        # A bow tie, an outline walked twice, one mostly outside.
        ([[50, 10, 90, 90, 90, 10, 50, 90]], True),
        ([[50, 10, 90, 10, 90, 90, 50, 90] * 2], True),
        ((-400, 10, 20, 90), True),
        # A thin line, a tiny triangle, a star, a small loop at a corner.
        ([[50, 10, 90, 11, 90, 12, 50, 11]], False),
        ([[50.2, 10.1, 51.3, 10.4, 50.9, 11.2]], False),
        ([[70, 10, 75, 45, 100, 50, 75, 55, 70, 95, 65, 55, 45, 50, 65, 45]], False),
        ([[50, 10, 90, 10, 90, 90, 50, 90, 50, 14, 46, 14, 46, 18, 52, 18, 52, 10]], False),
    ],
)
def test_degenerate_and_odd_polygons(cat, verdict, mask, degenerate):
    cat.add("lvis", 1, "dog", mask)
    found = verdict(max_disagreement=1)
    assert found.outcome is (Outcome.DEGENERATE if degenerate else None)
    told = "lvis.json: annotation 2: its polygons cross themselves"
    assert (told in found.message) is degenerate


def test_masks_of_background_are_not_looked_at(cat, verdict):
    cat.add("lvis", 1, "zebra", "nonsense")
    cat.add("coco", 1, "zebra", {"size": [1, 1], "counts": [1]})
    assert verdict().outcome is None


@pytest.mark.parametrize(
    ("source", "names", "mask", "outcome", "limit"),
    [
        ("both", ("dog", "dog"), (0, 0, 40, 60), Outcome.OVERLAP, {"max_overlap": 0.67}),
        ("lvis", "dog", (60, 0, 110, 40), Outcome.DISAGREEMENT, {"max_disagreement": 0.6}),
        ("coco", "person", (0, 40, 120, 100), Outcome.MOSTLY_VOID, {"max_void": 0.6}),
    ],
)
def test_limits(cat, verdict, source, names, mask, outcome, limit):
    cat.add(source, 1, names, mask)
    found = verdict()
    assert found.outcome is outcome
    assert verdict(**limit).outcome is None
    disagree, void = outcome is Outcome.DISAGREEMENT, outcome is Outcome.MOSTLY_VOID
    assert (found.disagreement, found.void_share) == (disagree * 2000 / 3600, void * 0.6)


def test_partly_labelled(cat, verdict):
    category = cat.lvis["annotations"][0]["category_id"]
    cat.lvis["images"][0]["not_exhaustive_category_ids"] = [category]
    assert verdict().outcome is Outcome.NOT_EXHAUSTIVE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_coco": ("cat",)}, "from_coco: unknown value 'cat'; expected one of 'pottedplant'"),
        ({"min_area": 0}, "min_area: expected a number of pixels >= 1, got 0"),
        ({"max_void": 1.5}, r"max_void: expected a share in 0\.\.1, got 1\.5"),
        ({"max_overlap": "x"}, r"max_overlap: expected a share in 0\.\.1, got 'x'"),
        ({"max_disagreement": float("nan")}, "max_disagreement: expected a share"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ScreeningOptions(**options)
