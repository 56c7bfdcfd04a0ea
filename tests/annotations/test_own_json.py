"""Any COCO-format JSON: its classes, its boxes, the images that a list names."""

from __future__ import annotations

import json

import pytest
from own_data import content, make_own_data, without

from d2_smallobj.annotations.classes import json_classes
from d2_smallobj.annotations.own_json import choose_images, own_json_dicts, read_own_json


def category(number, name, group="g"):
    return {"id": number, "name": name, "supercategory": group}


@pytest.mark.parametrize(
    ("categories", "choice", "classes", "names"),
    [
        ([(9, "b"), (2, "a")], "all", {2: 1, 9: 2}, "a b"),
        ([(0, "Background"), (1, "a")], "all", {1: 1}, "a"),
        (
            [(5, "a", "y"), (1, "b", "z"), (7, "c", "z")],
            "supercategories",
            {5: 2, 1: 1, 7: 1},
            "z y",
        ),
        ([(5, "a"), (1, "b"), (7, "c")], "c+a", {7: 1, 5: 2}, "c a"),
        ([(5, "a+b"), (1, "b")], "a+b", {5: 1}, "a+b"),
        ([("x", "a"), (3, "b")], "all", {3: 1, "x": 2}, "b a"),
    ],
)
def test_classes(tmp_path, categories, choice, classes, names):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"categories": [category(*entry) for entry in categories]}))
    assert json_classes(path, choice) == (classes, ("background", *names.split()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a complete JSON file"),
        ('{"categories": [{"id": 1}]}', "has a list 'categories' of 'id' and 'name'"),
        ('{"categories": []}', "it has no classes"),
        ('{"categories": [{"id": 1, "name": "background"}]}', "it has no classes"),
        ('{"categories": [{"id": 1, "name": "a", "supercategory": "background"}]}', "'background'"),
    ],
)
def test_files_without_classes(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        json_classes(path, "supercategories" if "super" in text else "all")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1\n", [1]),
        ("c.jpeg\n  b  \n", [2, 3]),
        ("5\n", "line 1: '5' is no image of"),
        ("b\n\n2\n", "line 3: '2' is the image of line 1"),
        ("twin\n", "line 1: 'twin' stands for 2 images of"),
        ("\n", "the list of images is empty"),
    ],
)
def test_lists(tmp_path, text, found):
    def twins(data):
        for number, name in ((8, "p/twin.jpg"), (9, "q/twin.jpg")):
            data["images"].append({"id": number, "file_name": name, "height": 4, "width": 4})

    own = make_own_data(tmp_path, twins)
    path = tmp_path / "ids"
    path.write_text(text)
    data = read_own_json(own.path)
    if isinstance(found, list):
        assert [image.image_id for image in choose_images(data, path)] == found
        return
    with pytest.raises(ValueError, match=found):
        choose_images(data, path)
    with pytest.raises(ValueError, match=r"that two images share:\s+p/twin.jpg and q/twin.jpg"):
        own_json_dicts(own.path, own.images, label_dir=tmp_path)


def test_boxes_only_where_all_annotations_have_one(tmp_path):
    def one(data):
        del data["annotations"][0]["bbox"]

    images = read_own_json(make_own_data(tmp_path / "a", one).path).images
    assert [image.boxes is None for image in images] == [True, False, False, False]
    images = read_own_json(make_own_data(tmp_path / "b", without("bbox")).path).images
    assert all(image.boxes is None for image in images)
    assert len(content()["images"]) == len(images)
