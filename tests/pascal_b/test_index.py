"""Reading the annotation files, joining them, and what is refused."""

from __future__ import annotations

import hashlib
import json

import pytest

from d2_smallobj.pascal_b.candidates import AnnotationSources, Outcome
from d2_smallobj.pascal_b.index import read_index

SQUARE = [[2, 2, 30, 2, 30, 30, 2, 30]]


@pytest.fixture
def cat(world):
    """A world with one image of one cat."""
    world.image(1)
    world.add("both", 1, ("cat", "cat"), SQUARE)
    return world


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.lvis["images"][0].pop("neg_category_ids"), "image 1: expected lists"),
        (
            lambda w: w.lvis["images"][0].update(not_exhaustive_category_ids=["x"]),
            r"got \[\[\], \['x'\]\]; is this an LVIS file\?",
        ),
        (
            lambda w: w.lvis["images"][0].update(coco_url="http://x/../etc.jpg"),
            r"1 file name\(s\) refused:\n  image 1: '\.\./etc\.jpg' is not a path within",
        ),
        (
            lambda w: w.lvis["images"][0].update(coco_url=None, file_name="../../etc/passwd"),
            r"1 file name\(s\) refused:\n  image 1: '\.\./\.\./etc/passwd' is not a path",
        ),
        (lambda w: w.lvis["images"].append(w.lvis["images"][0]), "id 1 occurs twice in 'images'"),
        (
            lambda w: w.lvis["images"].append({**w.lvis["images"][0], "id": 2}),
            "images 1 and 2 are the same file",
        ),
        (lambda w: w.lvis["annotations"][0].update(category_id=999), "category 999, which is not"),
        (lambda w: w.lvis["annotations"][0].update(image_id=77), "image 77, which is not in"),
        (
            lambda w: w.lvis["annotations"].append(w.lvis["annotations"][0]),
            "id 1 occurs twice in 'annotations'",
        ),
        (
            lambda w: w.lvis["annotations"][0].update(id="seven"),
            r"1 id\(s\) in 'annotations' no integers:\n  'seven'",
        ),
        (
            lambda w: w.lvis["annotations"][0].update(id=1 << 63),
            r"1 id\(s\) in 'annotations' no integers:\n  9223372036854775808",
        ),
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

    def test_several_files(self, cat, world, tmp_path):
        one = [read(cat, tmp_path / "1", kind) for kind in ("lvis", "coco")]
        for content in (cat.lvis, cat.coco):
            for entry in content["images"]:
                entry.update(id=2, coco_url="x/val2017/2.jpg")
            for entry in content["annotations"]:
                entry["image_id"] = 2
        other = [read(cat, tmp_path / "2", kind) for kind in ("lvis", "coco")]
        both = [AnnotationSources(*zip(*pair)) for pair in ((one, other), (other, one))]
        assert both[0].image_ids() == [1, 2]
        assert [s.path for s in both[0].files] == [s.path for s in both[1].files]
        assert both[0].candidate(2, from_coco=()) == both[1].candidate(2, from_coco=())

    def test_files_without_a_class(self, cat, sources):
        names = cat.coco["categories"]
        cat.coco["categories"] = [c for c in names if c["name"] != "tv"]
        with pytest.raises(ValueError, match=r"coco\.json: COCO's categories \['tv'\] are"):
            sources()
        cat.coco["categories"] = names
        cat.lvis["categories"] = [c for c in cat.lvis["categories"] if c["name"] != "person"]
        assert sources().missing == ["person: 'person' or 'baby'"]
        cat.lvis.update(annotations=[], categories=[{"id": 1, "name": "zebra"}])
        with pytest.raises(ValueError, match="no category has the name of one of the 20"):
            sources()


class TestCandidates:
    def test_a_candidate(self, cat, candidate):
        found = candidate()
        assert (found.image_id, found.height, found.width) == (1, 100, 120)
        assert [(p.class_id, p.role, p.crowd) for p in found.lvis] == [(8, "core", False)]
        assert [p.class_id for p in found.coco] == [8]
        assert found.verified == {8}
        assert found.not_exhaustive == frozenset()

    def test_images_with_and_without_objects(self, world, candidate):
        for image_id in range(1, 5):
            world.image(image_id)
        world.add("lvis", 1, "zebra", SQUARE)
        world.add("lvis", 1, "table", SQUARE)
        world.add("coco", 1, "person", SQUARE)
        world.add("coco", 2, "potted plant", SQUARE, iscrowd=1)
        world.add("coco", 3, "potted plant", SQUARE)
        world.add("coco", 4, "dining table", SQUARE)
        assert candidate(1) is candidate(2) is candidate(4) is Outcome.NO_OBJECT
        assert candidate(3).coco[0].class_id == 16
        assert candidate(4, (11, 16)).coco[0].class_id == 11

    def test_not_in_both(self, cat, candidate):
        del cat.coco["images"][0], cat.coco["annotations"][0]
        assert candidate() is Outcome.NOT_IN_COCO
        cat.image(2)
        del cat.lvis["images"][1]
        assert candidate(2) is Outcome.NOT_IN_LVIS

    def test_other_size(self, cat, candidate):
        cat.coco["images"][0]["width"] = 121
        assert candidate() is Outcome.OTHER_SIZE

    def test_file_name_of_coco(self, cat, candidate):
        cat.lvis["images"][0].update(coco_url=None)
        assert candidate().file_name == "val2017/000000000001.jpg"

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
            ({"partial": ["kitten"]}, ["cat"], set()),
            # Television sets and monitors are two categories of one class.
            ({"negative": ["television_set"]}, [], set()),
            (
                {"negative": ["television_set"]},
                ["monitor_(computer_equipment) computer_monitor"],
                {20},
            ),
        ],
    )
    def test_what_lvis_looked_for(self, world, candidate, lists, labelled, verified):
        world.image(1, **lists)
        for name in labelled:
            world.add("lvis", 1, name, SQUARE)
        world.add("coco", 1, "potted plant", SQUARE)
        assert candidate().verified == verified

    def test_partly_labelled_classes(self, world, candidate):
        world.image(1, partial=["kitten", "table", "zebra"])
        world.add("lvis", 1, "cat", SQUARE)
        assert candidate().not_exhaustive == {8}
