"""Instances of any ground truth."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.scoring import Inputs
from d2_smallobj.scoring.instance_sizes import measure_instances
from d2_smallobj.statistics.counts import map_sizes
from d2_smallobj.utils.problems import InputError


def open_truth(kind, path, **options):
    return Inputs(predictions="", **{kind: path}, **options).open_truth(label_maps=False)


def entries(sizes):
    return sorted(zip(sizes.class_ids.tolist(), sizes.areas.tolist(), sizes.image_areas.tolist()))


def annotation_file(path, number_of_categories=3, **changes):
    """Two images; image 1 has an object of the last category."""
    box = [[2, 2, 8, 2, 8, 8, 2, 8]]
    content = {
        "images": [
            {"id": number, "height": 20, "width": 30, "file_name": f"{number}.jpg"}
            for number in (1, 2)
        ],
        "categories": [
            {"id": number, "name": f"c{number}"} for number in range(1, number_of_categories + 1)
        ],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": number_of_categories, "segmentation": box}
        ],
        **changes,
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def folders(dataset):
    return {
        "path": str(dataset.semantic),
        "instances": str(dataset.instances),
        "classes": str(dataset.classes),
    }


def test_folders_are_measured_in_any_number_of_processes(dataset, folders):
    truth = open_truth("semantic", **folders)
    expected = sorted(
        entry for maps in dataset.scenes for entry in entries(map_sizes(*maps, num_classes=4))
    )
    for jobs in (1, 2):
        sizes = measure_instances(truth, source="x", jobs=jobs)
        assert entries(sizes) == expected
        assert sizes.num_images == 7
    assert len(expected) == 21


def test_folders_without_instances_count_components(dataset, folders):
    sizes = measure_instances(
        open_truth("semantic", folders["path"], classes=folders["classes"]), source="x"
    )
    expected = sorted(
        entry
        for semantic, _ in dataset.scenes
        for entry in entries(map_sizes(semantic, None, num_classes=4))
    )
    assert entries(sizes) == expected


def test_a_list_chooses_images(folders, tmp_path):
    (tmp_path / "list.txt").write_text("image1\nimage4\n")
    truth = open_truth("semantic", **folders, image_list=str(tmp_path / "list.txt"))
    assert measure_instances(truth, source="x").num_images == 2
    path = annotation_file(tmp_path / "a.json")
    (tmp_path / "list.txt").write_text("2\n")
    truth = open_truth("coco_json", str(path), image_list=str(tmp_path / "list.txt"))
    assert (sizes := measure_instances(truth, source="x")).num_images == 1
    assert len(sizes) == 0


def test_more_categories_than_a_label_map_has_labels(tmp_path):
    path = annotation_file(tmp_path / "many.json", 1203)
    truth = open_truth("lvis_json", str(path))
    assert len(truth.class_names) == 1204
    sizes = measure_instances(truth, source="x")
    assert entries(sizes) == [(1203, 36, 600)]
    assert sizes.num_images == 2


def test_classes_of_an_annotation_file_can_be_chosen(tmp_path):
    path = annotation_file(tmp_path / "a.json")
    (tmp_path / "names.txt").write_text("background\nthing\n")
    (tmp_path / "map.json").write_text(json.dumps({"c3": "thing"}))
    truth = open_truth(
        "coco_json",
        str(path),
        classes=str(tmp_path / "names.txt"),
        category_map=str(tmp_path / "map.json"),
    )
    assert truth.class_names == ("background", "thing")
    assert entries(measure_instances(truth, source="x")) == [(1, 36, 600)]


def test_all_damaged_maps_are_listed(dataset, folders):
    (dataset.semantic / "image2.png").write_bytes(b"not a png")
    write_label_map(dataset.instances / "image3.png", np.zeros((4, 4), np.uint8))
    write_label_map(dataset.semantic / "image5.png", np.full((40, 55), 9, np.uint8))
    truth = open_truth("semantic", **folders)
    with pytest.raises(InputError, match=r"3 image\(s\) that cannot be measured") as caught:
        measure_instances(truth, source="x")
    for name in ("image2.png", "image3.png", "image5.png"):
        assert os.path.join("", name) in str(caught.value)


def test_all_malformed_annotations_are_listed(tmp_path):
    bad = [
        {"id": 10 + image, "image_id": image, "category_id": 1, "segmentation": [[1, 2, 3]]}
        for image in (1, 2)
    ]
    path = annotation_file(tmp_path / "bad.json", annotations=bad)
    with pytest.raises(InputError, match=r"2 image\(s\)[\s\S]*bad\.json: annotation 11") as caught:
        measure_instances(open_truth("coco_json", str(path)), source="x")
    assert "annotation 12" in str(caught.value)


def test_no_images(tmp_path):
    path = annotation_file(tmp_path / "none.json", images=[], annotations=[])
    with pytest.raises(ValueError, match="mine: the data set has no images"):
        measure_instances(open_truth("coco_json", str(path)), source="mine")


@pytest.mark.parametrize("kind", ["semantic", "coco_json"])
def test_what_the_user_calls_stuff_is_not_measured(dataset, folders, tmp_path, kind):
    if kind == "semantic":
        options, stuff, category = folders, ("background", "dog"), 2
    else:
        entries = [
            {
                "id": number,
                "image_id": 1,
                "category_id": number,
                "segmentation": [[left, 2, left + 6, 2, left + 6, 8, left, 8]],
            }
            for number, left in ((1, 2), (2, 12))
        ]
        path = annotation_file(tmp_path / "a.json", 2, annotations=entries)
        options, stuff, category = {"path": str(path)}, ("background", "c2"), 2
    both = measure_instances(open_truth(kind, **options, stuff=("background",)), source="x")
    sizes = measure_instances(open_truth(kind, **options, stuff=stuff), source="x")
    assert category in both.class_ids
    assert sizes.class_ids.tolist() == [n for n in both.class_ids.tolist() if n != category]
    assert sizes.num_images == both.num_images
