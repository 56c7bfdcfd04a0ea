"""Reading the annotation files and reject lists, joining them, and the mapping of names."""

from __future__ import annotations

import csv
import hashlib
import json

import benchmarks
import pytest

from d2_smallobj.annotations.classes import COCO_CLASS_NAMES, VOC_CLASS_NAMES
from d2_smallobj.pascal_b.candidates import AnnotationSources, Outcome, read_reject_list
from d2_smallobj.pascal_b.index import (
    AMBIGUOUS,
    COCO_RULES,
    CORE,
    GENERAL,
    LVIS_RULES,
    PART,
    missing_lvis_names,
    read_index,
)

MONITOR = "monitor_(computer_equipment) computer_monitor"
SQUARE = [[0, 0, 40, 0, 40, 40, 0, 40]]


def read(world, tmp_path, kind="lvis"):
    return read_index(world.write(tmp_path)[kind == "coco"], kind)


def test_order_leaves_no_trace(many, tmp_path):
    for kind in ("lvis", "coco"):
        one = read(many, tmp_path, kind)
        other = read(many.shuffled(1), tmp_path, kind)
        assert one.sha256 != other.sha256
        assert list(one.images.items()) == list(other.images.items())
        for name in ("annotation_ids", "image_ids", "category_ids", "crowd"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist()
        assert one.segmentations == other.segmentations


def test_what_an_index_holds(cat, tmp_path):
    cat.add("lvis", 1, "zebra", [["not looked at"]])
    index = read(cat, tmp_path)
    content = (tmp_path / "lvis.json").read_bytes()
    assert (index.sha256, index.size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert index.images[1].file_name == "val2017/000000000001.jpg"
    assert list(index.rows_of(1)) == [0, 1]
    assert list(index.rows_of(2)) == []
    assert {row: json.loads(text) for row, text in index.segmentations.items()} == {0: SQUARE}


def image(**changes):
    return lambda world: world.lvis["images"][0].update(changes)


def annotation(**changes):
    return lambda world: world.lvis["annotations"][0].update(changes)


def twice(section, **changes):
    return lambda world: world.lvis[section].append({**world.lvis[section][0], **changes})


REFUSED = r"1 file name\(s\) refused:\n  image 1: "
NO_INTEGERS = r"1 id\(s\) in 'annotations' no integers:\n  "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (image(neg_category_ids=None), "image 1: expected lists"),
        (image(not_exhaustive_category_ids=["x"]), r"\[\[\], \['x'\]\]; is this an LVIS file\?"),
        (image(coco_url="http://x/../etc.jpg"), REFUSED + r"'\.\./etc\.jpg' is not a path within"),
        (
            image(coco_url=None, file_name="../../x"),
            REFUSED + r"'\.\./\.\./x' is not a path with",
        ),
        (image(height=10**6, width=10**6), "must give 1..178956970 pixels, got 1000000 x 1000000"),
        (twice("images"), "id 1 occurs twice in 'images'"),
        (twice("images", id=2), "images 1 and 2 are the same file"),
        (annotation(category_id=999), "category 999, which is not"),
        (annotation(image_id=77), "image 77, which is not in"),
        (twice("annotations"), "id 1 occurs twice in 'annotations'"),
        (annotation(id="seven"), NO_INTEGERS + "'seven'"),
        (annotation(id=1 << 63), NO_INTEGERS + "9223372036854775808"),
    ],
)
def test_refused(cat, tmp_path, change, message):
    change(cat)
    with pytest.raises(ValueError, match=message) as caught:
        read(cat, tmp_path)
    assert "lvis.json" in str(caught.value)


def test_truncated(cat, tmp_path):
    path, _ = cat.write(tmp_path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"lvis\.json: not a complete JSON file"):
        read_index(path, "lvis")
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        read_index(tmp_path / "gone.json", "lvis")
    with pytest.raises(ValueError, match="kind: unknown value 'voc'"):
        read_index(path, "voc")


class TestSources:
    def test_an_image_in_two_files(self, cat, tmp_path):
        one = read(cat, tmp_path / "1")
        cat.lvis["annotations"].clear()
        other = read(cat, tmp_path / "2")
        with pytest.raises(ValueError, match=r"one version; 1 image\(s\) in both:\n  1$"):
            AnnotationSources([one, other], [])

    def test_several_files(self, cat, tmp_path):
        one = [read(cat, tmp_path / "1", kind) for kind in ("lvis", "coco")]
        for content in (cat.lvis, cat.coco):
            content["images"][0].update(id=2, coco_url="x/val2017/2.jpg")
            content["annotations"][0]["image_id"] = 2
        other = [read(cat, tmp_path / "2", kind) for kind in ("lvis", "coco")]
        both = [AnnotationSources(*zip(*pair)) for pair in ((one, other), (other, one))]
        assert both[0].image_ids() == [1, 2]
        assert [s.path for s in both[0].files] == [s.path for s in both[1].files]
        assert both[0].candidate(2, from_coco=()) == both[1].candidate(2, from_coco=())

    def test_files_without_a_class(self, cat, sources):
        names = cat.coco["categories"]
        cat.coco["categories"] = [c for c in names if c["name"] not in ("tv", "bird")]
        with pytest.raises(ValueError, match=r"coco\.json: COCO's categories \['bird', 'tv'\] are"):
            sources()
        cat.coco["categories"] = names
        cat.lvis["categories"] = [c for c in cat.lvis["categories"] if c["name"] != "person"]
        assert sources().missing == ["person: 'person' or 'baby'"]
        cat.lvis.update(annotations=[], categories=[{"id": 1, "name": "zebra"}])
        with pytest.raises(ValueError, match="no category has the name of one of the 20"):
            sources()


class TestCandidates:
    def test_a_candidate(self, cat, candidate):
        cat.lvis["images"][0].update(coco_url=None)
        found = candidate()
        assert (found.image_id, found.height, found.width) == (1, 100, 120)
        assert found.file_name == "val2017/000000000001.jpg"  # COCO's
        assert [(p.class_id, p.role, p.crowd) for p in found.lvis] == [(8, "core", False)]
        assert [p.class_id for p in found.coco] == [8]
        assert (found.verified, found.not_exhaustive) == ({8}, frozenset())

    def test_images_with_and_without_objects(self, world, candidate):
        for image_id in range(1, 5):
            world.image(image_id)
        world.draw("lvis", "zebra 0 0 40 40, table 0 0 40 40")
        world.draw("coco", "person 0 0 40 40")
        world.add("coco", 2, "potted plant", SQUARE, iscrowd=1)
        world.add("coco", 3, "potted plant", SQUARE)
        world.add("coco", 4, "dining table", SQUARE)
        assert candidate(1) is candidate(2) is candidate(4) is Outcome.NO_OBJECT
        assert candidate(3).coco[0].class_id == 16
        assert candidate(4, (11, 16)).coco[0].class_id == 11

    def test_not_in_both_or_of_another_size(self, cat, candidate):
        cat.coco["images"][0]["width"] = 121
        assert candidate() is Outcome.OTHER_SIZE
        cat.image(2)
        cat.image(3)
        del cat.coco["images"][0], cat.coco["annotations"][0], cat.lvis["images"][1]
        assert candidate() is Outcome.NOT_IN_COCO
        assert candidate(2) is Outcome.NOT_IN_LVIS

    @pytest.mark.parametrize(
        ("lists", "labelled", "verified"),
        [
            ({}, [], set()),
            ({}, ["cat"], {8}),
            # A kind of it does not tell whether all of it was labelled.
            ({}, ["duck"], set()),
            ({"negative": ["duck"]}, [], set()),
            ({"negative": ["bird"]}, ["duck"], {3}),
            ({"negative": ["person", "zebra"]}, ["cat"], {8, 15}),
            ({"partial": ["cat"]}, ["cat", "dog"], {12}),
            ({"partial": ["kitten", "table", "zebra"]}, ["cat"], set()),
            # Television sets and monitors are two categories of one class.
            ({"negative": ["television_set"]}, [], set()),
            ({"negative": ["television_set"]}, [MONITOR], {20}),
        ],
    )
    def test_what_lvis_looked_for(self, world, candidate, lists, labelled, verified):
        world.image(1, **lists)
        for name in labelled:
            world.add("lvis", 1, name, SQUARE)
        world.add("coco", 1, "potted plant", SQUARE)
        assert candidate().verified == verified
        assert candidate().not_exhaustive == ({8} if "partial" in lists else set())


@pytest.fixture
def reject_list(tmp_path):
    def write_and_read(content):
        path = tmp_path / "rejected"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_reject_list(path)

    return write_and_read


def test_exported_and_plain_lists(reject_list):
    entries = [{"image_id": 7, "reason": "blurred"}, {"image_id": 9}]
    assert reject_list(json.dumps({"version": 1, "rejected": entries})) == {7: "blurred", 9: ""}
    assert reject_list('{"version": 1, "rejected": []}') == {}
    assert reject_list("\ufeff# by hand\n\n000000000007  # blurred\n9\n") == {7: "blurred", 9: ""}
    assert reject_list("") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("7\n7\n", "image 7 is listed twice"),
        ("7\nx.jpg\n", r"rejected, line 2: expected an image id, got 'x\.jpg'"),
        ("-7\n", "line 1: expected an image id, got '-7'"),
        (b"\xff\xfe7", "a reject list is UTF-8 text"),
        ('{"version": 1, "rejected": [', "not a reject list .*truncated"),
        ('{"version": 2, "rejected": []}', "Invalid enum value 2"),
        ('{"version": 1}', "missing required field `rejected`"),
        ('{"version": 1, "rejected": [7]}', r"Expected `object`, got `int` - at .*\[0\]"),
        ('{"version": 1, "rejected": [{"image_id": "7"}]}', r"Expected `int`, .*\.image_id"),
        ('{"version": 1, "rejected": [{"image_id": 7, "reason": 1}]}', r"Expected `str`, .*reason"),
    ],
)
def test_malformed_lists(reject_list, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        reject_list(content)
    assert "rejected" in str(caught.value)


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


def test_lvis_names():
    expected = {
        "airplane": ("aeroplane", CORE),
        "unicycle": ("bicycle", "extension"),
        "turkey_(bird)": ("bird", "extension"),
        "baby": ("person", CORE),
        "person": ("person", CORE),
        "monitor_(computer_equipment) computer_monitor": ("tvmonitor", CORE),
        "bullet_train": ("train", "extension"),
        "railcar_(part_of_a_train)": ("train", PART),
        "table": ("diningtable", GENERAL),
        "sofa_bed": ("sofa", AMBIGUOUS),
        "pickup_truck": ("car", AMBIGUOUS),
    }
    rules = {name: LVIS_RULES[name] for name in expected}
    assert {n: (VOC_CLASS_NAMES[r.class_id], r.role) for n, r in rules.items()} == expected
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
    old = {"baby", "turkey_(bird)", "fishing_boat", "motorboat", "wing_chair", "Chihuahua"}
    assert set(LVIS_RULES) - names == {*old, "dachshund"}
    assert missing_lvis_names(names) == []


def test_missing_names():
    names = set(LVIS_RULES) - {"person", "cow", "television_set"}
    assert missing_lvis_names(names) == ["cow: 'cow'", "tvmonitor: 'television_set'"]
    assert missing_lvis_names(names - {"baby"})[1] == "person: 'person' or 'baby'"
