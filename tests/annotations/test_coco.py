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
    mask = np.zeros((20, 30), np.uint8)
    mask[y0:y1, x0:x1] = 1
    counts, value, run = [], 0, 0
    for pixel in mask.T.reshape(-1):
        if pixel != value:
            counts.append(run)
            value, run = pixel, 0
        run += 1
    return {"size": [20, 30], "counts": [*counts, run]}


def _annotation(identity, category, segmentation, **more):
    return {
        "id": identity,
        "image_id": 1,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": 0,
        **more,
    }


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


@pytest.mark.parametrize("reverse", [False, True])
def test_the_smaller_object_stays_visible(read, reverse):
    annotations = [_annotation(1, 44, SMALL), _annotation(2, 7, BIG)]
    found = read(_content(*(annotations[::-1] if reverse else annotations)))
    assert found.class_names == ("background", "table", "cup")
    semantic, instances = found.maps(1)
    assert (semantic.dtype, instances.dtype) == (np.uint8, np.int32)
    assert semantic.shape == instances.shape == (20, 30)
    assert np.bincount(semantic.ravel()).tolist() == [200, 384, 16]
    # Instances are numbered in file order, whatever the order of painting.
    assert instances[6, 6] == (2 if reverse else 1)
    assert instances[0, 0] == (1 if reverse else 2)
    assert found.num_instances == 2


def test_painting_in_file_order(read):
    content = _content(
        _annotation(1, 44, SMALL),
        _annotation(2, 7, BIG),
        _annotation(3, 7, _box(20, 0, 30, 20), iscrowd=1),
    )
    semantic, _ = read(content, painting="file").maps(1)
    assert np.bincount(semantic.ravel()).tolist() == [200, 400]


def test_crowds_are_ignored_beneath_objects(read):
    content = _content(_annotation(1, 44, SMALL), _annotation(2, 44, BIG, iscrowd=1))
    found = read(content)
    semantic, instances = found.maps(1)
    for painted, value in ((semantic, 2), (instances, 1)):
        counts = np.bincount(painted.ravel(), minlength=256)
        assert (counts[0], counts[value], counts[255]) == (200, 16, 384)
    assert found.num_instances == 1


def test_instance_ids_leave_out_255(read):
    boxes = [_box(i % 30, i // 30, i % 30 + 1, i // 30 + 1) for i in range(300)]
    content = _content(*(_annotation(i + 1, 44, box) for i, box in enumerate(boxes)))
    _, instances = read(content).maps(1)
    expected = [*range(1, 255), *range(256, 302)]
    assert instances.ravel()[:300].tolist() == expected


def test_of_equally_large_ones_the_later_lies_on_top(read):
    _, instances = read(_content(*(_annotation(i, 7, SMALL) for i in (1, 2)))).maps(1)
    assert np.unique(instances).tolist() == [0, 2]


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
    found = read(_content(_annotation(1, 44, SMALL)))
    semantic, instances = found.maps(2)
    assert not semantic.any()
    assert not instances.any()
    assert found.image_ids == [1, 2]
    assert [bool(found.annotations(i)) for i in (1, 2)] == [True, False]
    assert found.image_size(2) == (20, 30)
    assert found.file_name(2) == "two.jpg"


def test_category_map(read):
    content = _content(_annotation(1, 44, SMALL), _annotation(2, 7, BIG))
    found = read(content, category_map={44: 3}, class_names=["b", "x", "y", "cup"])
    semantic, instances = found.maps(1)
    assert np.bincount(semantic.ravel()).tolist() == [584, 0, 0, 16]
    assert np.unique(instances).tolist() == [0, 1]
    assert found.class_names == ("b", "x", "y", "cup")
    assert read(content, category_map={44: 1, 7: 1}).class_names == ("background", "table")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: json.dumps(c)[:-40], r"instances\.json: not a complete JSON file"),
        (lambda c: "", "not a complete JSON file"),
        (lambda c: "[1]", "has a list 'images'; this one has none"),
        (lambda c: {**c, "annotations": None}, "has a list 'annotations'"),
        (lambda c: {**c, "images": c["images"] * 2}, "id 1 occurs twice in 'images'"),
        (lambda c: {**c, "categories": c["categories"] * 2}, "id 44 occurs twice in 'categories'"),
        (
            lambda c: {**c, "annotations": c["annotations"] * 2},
            "id 5 occurs twice in 'annotations'",
        ),
        (lambda c: {**c, "images": [{"id": 1}]}, r"'images' lacks \['height', 'width'\]"),
        (lambda c: {**c, "images": ["x"]}, r"an entry of 'images' lacks"),
        (lambda c: {**c, "annotations": [{"id": 5}]}, r"'annotations' lacks \['image_id'"),
        (
            lambda c: {**c, "images": [{"id": 1, "height": 0, "width": 3}]},
            "image 1: height must be a positive integer, got 0",
        ),
        (lambda c: {**c, "categories": c["categories"][1:]}, "annotation 5 has category 44, which"),
        (lambda c: {**c, "images": c["images"][1:]}, "annotation 5 belongs to image 1, which"),
        (
            lambda c: {**c, "images": [*c["images"], {**c["images"][0], "id": 9}]},
            "images 1 and 9 are the same file, 'one.jpg'",
        ),
        (
            lambda c: {**c, "images": [{"id": 1, "height": 2.5, "width": 3}]},
            r"malformed annotation file: Expected `int`, got `float` - at `\$\.images\[0\]\.h",
        ),
        (lambda c: "[" * 100000, "not a complete JSON file"),
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


@pytest.mark.parametrize("painting", ["area", "file"])
def test_void_categories(read, painting):
    content = _content(_annotation(1, 44, SMALL), _annotation(2, 7, BIG))
    found = read(content, void_categories=["table"], painting=painting)
    assert found.class_names == ("background", "cup")
    semantic, instances = found.maps(1)
    void = 384 if painting == "area" else 0
    for painted in (semantic, instances):
        counts = np.bincount(painted.ravel(), minlength=256)
        assert (counts[0], counts[1], counts[255]) == (584 - void, 16, void)
    assert found.num_instances == 1
    with pytest.raises(ValueError, match=r"void_categories: unknown value 'tabel'.*'table'"):
        read(content, void_categories=["tabel"])


def test_a_file_with_more_classes_than_labels_can_be_read(read):
    content = {**_content(), "categories": [{"id": i, "name": str(i)} for i in range(1, 301)]}
    content["annotations"] = [_annotation(1, 255, SMALL), _annotation(2, 300, BIG)]
    found = read(content, label_maps=False)
    assert [(a.class_id, a.crowd) for a in found.annotations(1)] == [(255, False), (300, False)]
    with pytest.raises(ValueError, match="opened with label_maps=False"):
        found.maps(1)


def test_polygons_are_rasterised_as_coco_does(read):
    bow_tie = [2.0, 2.0, 25.0, 17.0, 25.0, 2.0, 2.0, 17.0]
    content = _content(_annotation(1, 44, [bow_tie, [1, 1, 2, 2]]), _annotation(2, 7, []))
    semantic, instances = read(content).maps(1)
    expected = coco_mask.decode(coco_mask.frPyObjects([bow_tie], 20, 30))[..., 0]
    np.testing.assert_array_equal(instances, expected)
    np.testing.assert_array_equal(semantic, 2 * expected)
    assert 0 < expected.sum() < 23 * 15


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
    ],
)
def test_options_are_checked(read, options, message):
    with pytest.raises(ValueError, match=message):
        read(_content(), **options)


def test_more_categories_than_labels_need_a_map(read):
    content = {**_content(), "categories": [{"id": i, "name": str(i)} for i in range(255)]}
    with pytest.raises(ValueError, match=r"255 categories do not fit .*give category_map"):
        read(content)
    assert read(content, category_map={200: 1}).class_names == ("background", "200")


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
        annotations = reference.imgToAnns[image_id]
        crowd = np.zeros(semantic.shape, bool)
        covered = np.zeros(semantic.shape, bool)
        smallest = np.full(semantic.shape, np.inf)
        expected = np.zeros(semantic.shape, int)
        for annotation in annotations:
            mask = reference.annToMask(annotation).astype(bool)
            if annotation["iscrowd"]:
                crowd |= mask
                continue
            # Independent of any order: every pixel belongs to the smallest mask upon it.
            wins = mask & (mask.sum() <= smallest)
            expected[wins], smallest[wins] = contiguous[annotation["category_id"]], mask.sum()
            covered |= mask
        expected[crowd & ~covered] = 255
        np.testing.assert_array_equal(semantic, expected)
        np.testing.assert_array_equal(instances == 255, semantic == 255)
        np.testing.assert_array_equal(instances == 0, semantic == 0)
        for identity in set(np.unique(instances)) - {0, 255}:
            assert len(np.unique(semantic[instances == identity])) == 1


def test_real_lvis(realdata):
    path = realdata / "lvis/lvis_v05_val_100.json"
    with pytest.raises(ValueError, match="1230 categories do not fit"):
        InstanceAnnotations(path, kind="lvis")
    names = {c["name"]: c["id"] for c in json.loads(path.read_text())["categories"]}
    found = InstanceAnnotations(
        path,
        kind="lvis",
        category_map={names["cow"]: 10, names["cat"]: 8, names["dog"]: 12},
        class_names=VOC_CLASS_NAMES,
    )
    assert len(found.image_ids) == 100
    assert 0 < found.num_instances < 977
    seen = set()
    for image_id in found.image_ids:
        seen |= set(np.unique(found.maps(image_id)[0]))
    assert seen == {0, 8, 10, 12}
    assert found.file_name(266409) == "val2017/000000266409.jpg"


class TestCocoDicts:
    @pytest.fixture
    def coco(self, tmp_path):
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(_content(_annotation(1, 44, SMALL))))
        (tmp_path / "images").mkdir()
        (tmp_path / "labels").mkdir()
        for name in ("one", "two"):
            (tmp_path / f"images/{name}.jpg").touch()
        return tmp_path

    def test_all_images_without_labels(self, coco):
        dicts = coco_dicts(coco / "instances.json", coco / "images")
        assert [d["image_id"] for d in dicts] == [1, 2]
        assert dicts[0] == {
            "file_name": str(coco / "images/one.jpg"),
            "image_id": 1,
            "height": 20,
            "width": 30,
        }

    @pytest.mark.parametrize("label", ["one.png", "000000000001.png"])
    def test_annotated_images_with_labels_by_name_or_id(self, coco, label):
        (coco / "labels" / label).touch()
        (record,) = coco_dicts(coco / "instances.json", coco / "images", label_dir=coco / "labels")
        assert record["sem_seg_file_name"] == str(coco / "labels" / label)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            (
                {"label_dir": "labels", "check": FileCheck("s", "Do it.")},
                FileNotFoundError,
                r"'s': 1 path\(s\) missing:\n.*one\.png\nDo",
            ),
            (
                {"class_names": COCO_CLASS_NAMES},
                ValueError,
                r"instances\.json: expected 80 categories .*got 2",
            ),
        ],
    )
    def test_files_that_do_not_fit(self, coco, monkeypatch, options, error, message):
        monkeypatch.chdir(coco)
        with pytest.raises(error, match=message):
            coco_dicts("instances.json", "images", **options)

    def test_all_that_is_missing_at_once(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"3 path\(s\) missing") as caught:
            coco_dicts(tmp_path / "x/i.json", tmp_path / "y", label_dir=tmp_path / "z")
        assert str(tmp_path / "x/i.json") in str(caught.value)

    @pytest.mark.parametrize("name", ["../secret.jpg", "a/../../b.jpg", "..\\x.jpg", "c:/x.jpg"])
    def test_images_outside(self, coco, name):
        content = _content()
        content["images"][0]["file_name"] = name
        (coco / "instances.json").write_text(json.dumps(content))
        message = r"1 unusable file name\(s\):\n  image 1: .* is not a path within"
        with pytest.raises(ValueError, match=message):
            coco_dicts(coco / "instances.json", coco / "images")

    def test_a_file_is_read_once_until_it_changes(self, coco, monkeypatch):
        path = coco / "instances.json"
        first = image_index(path)
        assert image_index(str(path)) is first
        reads = []
        real = image_lists.read_annotation_file
        monkeypatch.setattr(
            image_lists, "read_annotation_file", lambda *a: reads.append(a) or real(*a)
        )
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
