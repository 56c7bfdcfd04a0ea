"""COCO and LVIS annotations as label maps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from d2_smallobj.annotations import image_lists
from d2_smallobj.annotations.classes import COCO_CLASS_NAMES, VOC_CLASS_NAMES
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.dataset_files import FileCheck
from d2_smallobj.annotations.image_lists import coco_dicts, image_index


def _box(x0, y0, x1, y1):
    """Run lengths of a 20 x 30 (H, W) image with a box."""
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    code = coco_mask.encode(mask)
    return {"size": [20, 30], "counts": code["counts"].decode()}


def _annotation(identity, category, segmentation, crowd=0, image_id=1):
    entry = {"id": identity, "image_id": image_id, "category_id": category, "iscrowd": crowd}
    return {**entry, "segmentation": segmentation}


def _content(*annotations):
    return {
        "images": [
            {"id": 1, "height": 20, "width": 30, "file_name": "one.jpg"},
            {"id": 2, "height": 20, "width": 30, "file_name": "two.jpg"},
        ],
        "annotations": list(annotations),
        "categories": [{"id": 44, "name": "cup"}, {"id": 7, "name": "table"}],
    }


@pytest.fixture
def read(tmp_path):
    """Write content as a file and read it."""

    def write_and_read(content, **options):
        path = tmp_path / "instances.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return InstanceAnnotations(path, **options)

    return write_and_read


BIG, SMALL = _box(0, 0, 20, 20), _box(5, 5, 9, 9)


CUP, TABLE = _annotation(1, 44, SMALL), _annotation(2, 7, BIG)
CROWD = _annotation(3, 44, BIG, crowd=1)
BY_FILE, VOID = {"painting": "file"}, {"void_categories": ["table"]}
MAPPED = {"category_map": {44: 3}, "class_names": ["b", "x", "y", "cup"]}


@pytest.mark.parametrize(
    ("annotations", "options", "semantic", "instances"),
    [
        # The smaller object stays visible; instances are numbered in the order of the file.
        ([CUP, TABLE], {}, {0: 200, 1: 384, 2: 16}, {0: 200, 1: 16, 2: 384}),
        ([TABLE, CUP], {}, {0: 200, 1: 384, 2: 16}, {0: 200, 1: 384, 2: 16}),
        ([CUP, TABLE, CROWD], BY_FILE, {0: 200, 1: 400}, {0: 200, 2: 400}),
        # Crowds are ignored beneath objects.
        ([CUP, CROWD], {}, {0: 200, 2: 16, 255: 384}, {0: 200, 1: 16, 255: 384}),
        # Of equally large ones, the later lies on top.
        ([CUP, CUP | {"id": 2, "category_id": 7}], {}, {0: 584, 1: 16}, {0: 584, 2: 16}),
        ([CUP, TABLE], VOID, {0: 200, 1: 16, 255: 384}, {0: 200, 1: 16, 255: 384}),
        ([CUP, TABLE], {**VOID, **BY_FILE}, {0: 584, 1: 16}, {0: 584, 1: 16}),
        # What is mapped to no class is not painted.
        ([CUP, TABLE], MAPPED, {0: 584, 3: 16}, {0: 584, 1: 16}),
        ([], {}, {0: 600}, {0: 600}),
    ],
)
def test_painting(read, annotations, options, semantic, instances):
    found = read(_content(*annotations), **options)
    maps = found.maps(1)
    assert [labels.shape for labels in maps] == [(20, 30)] * 2
    assert [labels.dtype for labels in maps] == [np.uint8, np.int32]
    for labels, counts in zip(maps, (semantic, instances)):
        values, pixels = np.unique(labels, return_counts=True)
        assert dict(zip(values.tolist(), pixels.tolist())) == counts
    assert found.num_instances == sum(not a.crowd for a in found.annotations(1))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ("background", "table", "cup")),
        (VOID, ("background", "cup")),
        (MAPPED, ("b", "x", "y", "cup")),
        ({"category_map": {44: 1, 7: 1}}, ("background", "table")),
    ],
)
def test_class_names(read, options, names):
    assert read(_content(), **options).class_names == names


def test_errors_name_file_and_entry(read, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        InstanceAnnotations(tmp_path / "gone.json")
    content = _content(_annotation(5, 44, None))
    del content["images"][0]["file_name"]
    found = read(content)
    for call, message in (
        (lambda: found.maps(3), "no image with id 3"),
        (lambda: found.maps(1), "annotation 5: "),
        (lambda: found.file_name(1), "image 1 has no file name"),
    ):
        with pytest.raises(ValueError, match=rf"instances\.json: {message}"):
            call()


def test_images_without_annotation(read):
    found = read(_content(CUP))
    assert found.image_ids == [1, 2]
    assert [len(found.annotations(i)) for i in (1, 2)] == [1, 0]
    assert found.image_size(2) == (20, 30)
    assert found.file_name(2) == "two.jpg"


ONE = _content()["images"][0]
LISTS = "an annotation file of kind 'coco' has lists 'images'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: json.dumps(c)[:-40], r"instances\.json: not a complete JSON file"),
        (lambda c: "", "not a complete JSON file"),
        (lambda c: "[1]", LISTS),
        (lambda c: "[" * 100000, LISTS),
        (lambda c: {**c, "annotations": None}, rf"{LISTS} .*Expected `array`.*`\$\.annotations`"),
        (lambda c: {**c, "images": [{"id": 1}]}, "missing required field `height`"),
        (lambda c: {**c, "images": [ONE | {"height": 0}]}, r">= 1 - at `\$\.images\[0\]\.height`"),
        (lambda c: {**c, "images": [ONE | {"height": 2.5}]}, "Expected `int`, got `float` - at"),
        # These killed pycocotools, or took all memory.
        *(
            (
                lambda c, s=s: {**c, "images": [ONE | dict(zip(("height", "width"), s))]},
                rf"image 1: height and width must give 1\.\.178956970 pixels, got {s[0]} x {s[1]}$",
            )
            for s in ((20, 10**30), (10**6, 10**6), (8589934592, 1), (1, 2**62), (178_956_971, 1))
        ),
        (lambda c: {**c, "images": [ONE, ONE]}, "id 1 occurs twice in 'images'"),
        (lambda c: {**c, "images": [ONE, ONE | {"id": 9}]}, "images 1 and 9 are the same file, 'o"),
        (
            lambda c: {**c, "images": []},
            "annotation 5 belongs to image 1, which is not in the file",
        ),
        (lambda c: {**c, "annotations": [{"id": 5}]}, "missing required field `image_id`"),
        (
            lambda c: {**c, "annotations": c["annotations"] * 3},
            "id 5 occurs 3 times in 'annotations'",
        ),
        (lambda c: {**c, "categories": c["categories"] * 2}, "id 44 occurs twice in 'categories'"),
        (
            lambda c: {**c, "categories": []},
            "annotation 5 has category 44, which is not in the file",
        ),
    ],
)
def test_malformed_files(read, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(change(_content(_annotation(5, 44, SMALL))))
    assert "instances.json" in str(caught.value)


def test_all_that_is_wrong_is_told_at_once(read):
    content = _content(*(_annotation(i, 44 if i < 3 else 99, SMALL) for i in range(1, 15)))
    content["annotations"][0]["image_id"] = 7
    with pytest.raises(ValueError, match=r"instances\.json: 13 error\(s\):\n") as caught:
        read(content)
    lines = str(caught.value).splitlines()[1:]
    assert lines[0] == "  annotation 1 belongs to image 7, which is not in the file"
    assert lines[1] == "  annotation 3 has category 99, which is not in the file"
    assert len(lines) == 11
    assert lines[-1] == "  and 3 more"


def test_ids_may_be_texts(read):
    content = _content({**_annotation("a", 44, SMALL), "image_id": "x"})
    content["images"] = [{"id": "x", "height": 20, "width": 30}]
    assert read(content).maps("x")[1].max() == 1


def test_a_file_with_more_classes_than_labels_can_be_read(read):
    content = {**_content(), "categories": [{"id": i, "name": str(i)} for i in range(1, 301)]}
    content["annotations"] = [_annotation(1, 255, SMALL), _annotation(2, 300, BIG)]
    found = read(content, label_maps=False)
    assert [(a.class_id, a.crowd) for a in found.annotations(1)] == [(255, False), (300, False)]
    with pytest.raises(ValueError, match="opened with label_maps=False"):
        found.maps(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "coko"}, "kind: unknown value 'coko'.*did you mean 'coco'"),
        ({"painting": "files"}, "painting: unknown value 'files'.*did you mean 'file'"),
        ({"category_map": {9: 1}}, r"category_map: .*has no category with id \[9\]"),
        ({"category_map": {44: 255}}, r"in 1\.\.254, got 255 for category 44"),
        ({"category_map": {44: 0}}, "got 0 for category 44"),
        ({"category_map": {44: 3}}, r"no category for class ids \[1, 2\]; give class_names"),
        ({"class_names": ["b", "x"]}, "class_names: 2 names .*class ids up to 2"),
        ({"void_categories": ["tabel"]}, r"void_categories: unknown value 'tabel'.*'table'"),
    ],
)
def test_options_are_checked(read, options, message):
    with pytest.raises(ValueError, match=message):
        read(_content(), **options)


@pytest.mark.parametrize("name", ["tinycoco50_val2017", "coco_val2014_100"])
def test_real_coco(realdata, name):
    path = realdata / f"coco/{name}.json"
    found = InstanceAnnotations(path)
    reference = COCO(str(path))
    assert found.class_names == COCO_CLASS_NAMES
    assert found.num_instances == sum(not a["iscrowd"] for a in reference.anns.values())
    contiguous = {c: i for i, c in enumerate(sorted(reference.cats), 1)}
    for image_id in found.image_ids[:40]:
        semantic, instances = found.maps(image_id)
        crowd = np.zeros(semantic.shape, bool)
        smallest = np.full(semantic.shape, semantic.size + 1, np.int32)
        expected = np.zeros(semantic.shape, np.uint8)
        for annotation in reference.imgToAnns[image_id]:
            mask = reference.annToMask(annotation).astype(bool)
            if annotation["iscrowd"]:
                crowd |= mask
                continue
            # Independent of any order: every pixel belongs to the smallest mask upon it.
            area = np.count_nonzero(mask)
            wins = mask & (area <= smallest)
            expected[wins], smallest[wins] = contiguous[annotation["category_id"]], area
        expected[crowd & (smallest > semantic.size)] = 255
        np.testing.assert_array_equal(semantic, expected)
        np.testing.assert_array_equal(instances == 255, semantic == 255)
        np.testing.assert_array_equal(instances == 0, semantic == 0)
        # Every instance is of one class.
        pairs = np.unique(instances * 256 + semantic)
        assert len(pairs) == len(set(pairs >> 8))


def test_real_lvis(realdata):
    path = realdata / "lvis/lvis_v05_val_100.json"
    with pytest.raises(ValueError, match="1230 categories do not fit"):
        InstanceAnnotations(path, kind="lvis")
    names = {c["name"]: c["id"] for c in json.loads(path.read_text())["categories"]}
    classes = {names["cow"]: 10, names["cat"]: 8, names["dog"]: 12}
    options = {"category_map": classes, "class_names": VOC_CLASS_NAMES}
    found = InstanceAnnotations(path, kind="lvis", **options)
    assert len(found.image_ids) == 100
    assert 0 < found.num_instances < 977
    seen = set()
    for image_id in found.image_ids:
        seen |= set(np.unique(found.maps(image_id)[0]))
    assert seen == {0, 8, 10, 12}
    assert found.file_name(266409) == "val2017/000000266409.jpg"


LABELS = {"label_dir": "labels", "check": FileCheck("s", "Do it.")}
COCOS = {"class_names": COCO_CLASS_NAMES}


@pytest.fixture
def coco(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(_content(_annotation(1, 44, SMALL))))
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name in ("one", "two"):
        (tmp_path / f"images/{name}.jpg").touch()
    return tmp_path


def test_all_images_without_labels(coco):
    dicts = coco_dicts(coco / "instances.json", coco / "images")
    assert [d["image_id"] for d in dicts] == [1, 2]
    size = {"height": 20, "width": 30}
    assert dicts[0] == {"file_name": str(coco / "images/one.jpg"), "image_id": 1, **size}


@pytest.mark.parametrize("label", ["one.png", "000000000001.png"])
def test_annotated_images_with_labels_by_name_or_id(coco, label):
    (coco / "labels" / label).touch()
    (record,) = coco_dicts(coco / "instances.json", coco / "images", label_dir=coco / "labels")
    assert record["sem_seg_file_name"] == str(coco / "labels" / label)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (LABELS, FileNotFoundError, r"'s': 1 path\(s\) missing:\n.*one\.png\nDo"),
        (COCOS, ValueError, r"instances\.json: expected 80 categories .*got 2"),
    ],
)
def test_files_that_do_not_fit(coco, monkeypatch, options, error, message):
    monkeypatch.chdir(coco)
    with pytest.raises(error, match=message):
        coco_dicts("instances.json", "images", **options)


def test_all_that_is_missing_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"3 path\(s\) missing") as caught:
        coco_dicts(tmp_path / "x/i.json", tmp_path / "y", label_dir=tmp_path / "z")
    assert str(tmp_path / "x/i.json") in str(caught.value)


@pytest.mark.parametrize("name", ["../secret.jpg", "a/../../b.jpg", "..\\x.jpg", "c:/x.jpg"])
def test_images_outside(coco, name):
    content = _content()
    content["images"][0]["file_name"] = name
    (coco / "instances.json").write_text(json.dumps(content))
    message = r"1 unusable file name\(s\):\n  image 1: .* is not a path within"
    with pytest.raises(ValueError, match=message):
        coco_dicts(coco / "instances.json", coco / "images")


def test_a_file_is_read_once_until_it_changes(coco, monkeypatch):
    path = coco / "instances.json"
    first = image_index(path)
    assert image_index(str(path)) is first
    reads = []
    real = image_lists.read_annotation_file
    monkeypatch.setattr(image_lists, "read_annotation_file", lambda *a: reads.append(a) or real(*a))
    dicts = coco_dicts(path, coco / "images", label_dir=None)
    dicts[0]["file_name"] = "changed by a mapper"
    assert coco_dicts(path, coco / "images")[0]["file_name"].endswith("one.jpg")
    assert not reads
    content = _content(_annotation(1, 44, SMALL), _annotation(2, 44, SMALL, image_id=2))
    path.write_text(json.dumps(content))
    assert [image.annotated for image in image_index(path).images] == [True, True]
    assert len(reads) == 1
    # Nothing is left on disk.
    assert {p.name for p in coco.iterdir()} == {"instances.json", "images", "labels"}
