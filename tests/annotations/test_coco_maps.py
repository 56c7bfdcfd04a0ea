"""COCO's annotations as PNG files, and evaluation from them."""

from __future__ import annotations

import csv
import functools
import json
from collections import Counter

import numpy as np
import pytest
from pycocotools.coco import COCO

from d2_smallobj.annotations.classes import COCO_CLASS_NAMES
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.coco_maps import FATES, account, write_coco_maps
from d2_smallobj.annotations.label_maps import read_label_map, write_label_map
from d2_smallobj.report.dataset_summary import format_accounting, write_accounting
from d2_smallobj.scoring import Inputs, Settings, evaluate

TINY, COCO_100 = "coco/tinycoco50_val2017.json", "coco/coco_val2014_100.json"


@pytest.fixture
def coco(tmp_path, realdata):
    """COCO's folder with twelve real images as val2017: two without annotation, two with crowds."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    write_twelve(realdata / TINY, folder, "val2017")
    return folder


def write_twelve(source, folder, split):
    """Write twelve images of every kind, in the order of the file."""
    content = json.loads(source.read_text())
    crowds = {a["image_id"] for a in content["annotations"] if a["iscrowd"]}
    annotated = {a["image_id"] for a in content["annotations"]}
    ids = [image["id"] for image in content["images"]]
    bare = [i for i in ids if i not in annotated]
    crowded = [i for i in ids if i in crowds][:2]
    keep = {*bare, *crowded, *[i for i in ids if i in annotated - crowds][: 10 - len(bare)]}
    content["images"] = [image for image in content["images"] if image["id"] in keep]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in keep]
    (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def rewrite(coco, change):
    """Change the content of an annotation file."""
    path = coco / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("painting", "suffix", "jobs"), [("file", "", 1), ("area", "_area", 2)], ids=["file", "area"]
)
def test_both_paintings(coco, painting, suffix, jobs):
    done = write_coco_maps(coco, "val2017", painting=painting, jobs=jobs)
    assert (done.written, done.kept, done.unannotated, done.crowded) == (12, 0, 2, 0)
    found = InstanceAnnotations(coco / "annotations/instances_val2017.json", painting=painting)
    crowds = 0
    for image_id in found.image_ids:
        semantic, instances = found.maps(image_id)
        name = f"{image_id:012d}.png"
        for kind, expected in (("Class", semantic), ("Object", instances)):
            path = coco / f"Segmentation{kind}81{suffix}/val2017/{name}"
            np.testing.assert_array_equal(read_label_map(path), expected)
        crowds += int((semantic == 255).sum())
    assert (crowds > 0) == (painting == "area")
    assert {p.name for p in coco.iterdir() if p.is_dir()} == {
        *("annotations", f"SegmentationClass81{suffix}", f"SegmentationObject81{suffix}")
    }


@pytest.mark.parametrize("split", ["val2017", "val2014"])
def test_evaluation_from_maps_equals_evaluation_from_annotations(coco, split, tmp_path, realdata):
    if split == "val2014":
        write_twelve(realdata / COCO_100, coco, split)
    write_coco_maps(coco, split, painting="area")
    predictions = tmp_path / "predictions"
    semantic = coco / f"SegmentationClass81_area/{split}"
    for path in semantic.iterdir():
        labels = read_label_map(path)
        labels = np.where(labels == 255, 0, labels)
        # Moved to the right, and the persons are chairs.
        labels = np.roll(np.where(labels == 1, 57, labels), 9, axis=1)
        write_label_map(predictions / path.name, labels)
    settings = Settings(samples=0)
    annotations = str(coco / f"annotations/instances_{split}.json")
    by_json = evaluate(Inputs(str(predictions), coco_json=annotations), settings)
    instances = str(coco / f"SegmentationObject81_area/{split}")
    inputs = Inputs(str(predictions), semantic=str(semantic), instances=instances, classes="coco")
    by_maps = evaluate(inputs, settings)
    assert by_maps.class_names == by_json.class_names == COCO_CLASS_NAMES
    assert 0 < by_json.figures["IA-mIoU"] < 60
    np.testing.assert_equal(by_maps.figures, by_json.figures)
    assert list(by_maps.figures) == list(by_json.figures)
    np.testing.assert_array_equal(np.sort(by_maps.table.iou), np.sort(by_json.table.iou))


def test_more_than_254_instances(coco):
    def crowded(content):
        image = content["images"][0]
        boxes = [(i % 20 * 10, i // 20 * 10) for i in range(300)]
        fields = {"image_id": image["id"], "category_id": 44, "iscrowd": 0}
        content["images"] = [image]
        content["annotations"] = [
            {**fields, "id": n, "segmentation": [[x, y, x + 8, y, x + 8, y + 8, x, y + 8]]}
            for n, (x, y) in enumerate(boxes, 1)
        ]

    rewrite(coco, crowded)
    done = write_coco_maps(coco, "val2017", painting="area")
    assert done.crowded == 1
    (path,) = (coco / "SegmentationObject81_area/val2017").iterdir()
    stored = read_label_map(path)
    assert stored.dtype == np.uint16
    assert np.unique(stored).tolist() == [0, *range(1, 255), *range(256, 302)]


def test_what_is_there_is_kept(coco):
    write_coco_maps(coco, "val2017")
    semantic = sorted((coco / "SegmentationClass81/val2017").iterdir())
    instances = sorted((coco / "SegmentationObject81/val2017").iterdir())
    content = semantic[0].read_bytes()
    semantic[0].unlink()
    instances[1].unlink()
    kept = semantic[2].stat().st_mtime_ns
    done = write_coco_maps(coco, "val2017")
    assert (done.written, done.kept) == (2, 10)
    assert semantic[0].read_bytes() == content
    assert semantic[2].stat().st_mtime_ns == kept


def test_maps_of_another_file_are_not_mixed_in(coco):
    write_coco_maps(coco, "val2017")
    marker = json.loads((coco / "SegmentationClass81/val2017.json").read_text())
    assert marker["annotations"] == "instances_val2017.json"
    assert marker["painting"] == "file"
    path = rewrite(coco, lambda c: c["annotations"].pop())
    message = r"made from another state of instances_val2017\.json: remove them, .*--force"
    with pytest.raises(FileExistsError, match=message):
        write_coco_maps(coco, "val2017")
    assert write_coco_maps(coco, "val2017", force=True).written == 12
    found = InstanceAnnotations(path, painting="file")
    last = found.image_ids[-1]
    stored = read_label_map(coco / f"SegmentationClass81/val2017/{last:012d}.png")
    np.testing.assert_array_equal(stored, found.maps(last)[0])


def test_maps_of_unknown_origin(coco):
    write_label_map(coco / "SegmentationClass81/val2017/x.png", np.zeros((2, 2), np.uint8))
    message = r"label maps of unknown origin \(.*val2017\.json"
    with pytest.raises(FileExistsError, match=message):
        write_coco_maps(coco, "val2017")


def test_malformed_masks_are_listed_and_all_else_is_painted(coco):
    def spoil(content):
        for annotation in content["annotations"][:13]:
            annotation["segmentation"] = {"size": [1, 1], "counts": [1]}

    path = rewrite(coco, spoil)
    spoilt = {a["image_id"] for a in json.loads(path.read_text())["annotations"][:13]}
    told = rf"instances_val2017\.json: {len(spoilt)} image\(s\) that cannot be painted \(all"
    with pytest.raises(ValueError, match=told) as caught:
        write_coco_maps(coco, "val2017")
    assert "is for an image of [height, width] = [1, 1]" in str(caught.value)
    assert len(list((coco / "SegmentationClass81/val2017").iterdir())) == 12 - len(spoilt)


def same_name(content):
    for image in content["images"][:2]:
        image["file_name"] = f"{image['id']}/same.jpg"
        image.pop("coco_url", None)


def other_categories(content):
    content["categories"].pop()
    content["annotations"] = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (same_name, r"1 label map\(s\) that two images share:\n.*same\.png"),
        (other_categories, "expected COCO's 80 categories, got 79 or others"),
    ],
)
def test_other_content(coco, change, message):
    rewrite(coco, change)
    with pytest.raises(ValueError, match=message):
        write_coco_maps(coco, "val2017")


def test_no_annotation_file(coco):
    with pytest.raises(FileNotFoundError, match=r"instances_train2014\.json"):
        write_coco_maps(coco, "train2014")


SQUARE, CORNER = [[2, 2, 12, 2, 12, 12, 2, 12]], [[2, 2, 6, 2, 6, 6, 2, 6]]


@pytest.fixture
def content(tmp_path):
    """Two images with an annotation of every fate; image 2 has none."""
    kinds = [
        ("cup", SQUARE, 0),
        ("cup", SQUARE, 0),
        ("cup", [[1, 1, 2, 2]], 0),
        ("cup", {"size": [20, 20], "counts": [400]}, 0),
        ("cup", {"size": [9, 9], "counts": [81]}, 0),
        ("cup", CORNER, 1),
        ("table", SQUARE, 0),
        ("plant", CORNER, 0),
    ]
    names = ["cup", "table", "plant", "unused"]
    annotations = [
        {"id": n, "image_id": 1, "category_id": names.index(name) + 1, "iscrowd": crowd}
        for n, (name, _, crowd) in enumerate(kinds, 1)
    ]
    return {
        "images": [{"id": i, "height": 20, "width": 20, "file_name": f"{i}.jpg"} for i in (1, 2)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": [a | {"segmentation": k[1]} for a, k in zip(annotations, kinds)],
    }


@pytest.fixture
def opened(tmp_path, content):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))

    return functools.partial(InstanceAnnotations, path)


def test_every_fate(opened, tmp_path):
    found = opened(category_map={1: 1}, class_names=["b", "cup"], void_categories=["table"])
    result = account(found)
    # The second of two equal squares hides the first.
    assert result.counts == {
        1: {"used": 1, "hidden": 1, "no area": 2, "malformed": 1, "crowd": 1},
        2: {"void": 1},
        3: {"background": 1},
    }
    assert set(result.total) == set(FATES)
    assert (result.num_images, result.num_unannotated) == (2, 1)
    (fault,) = result.malformed
    assert "annotation 5: its run-length mask is for an image of [height, width] = [9, 9]" in fault
    text = format_accounting(result)
    assert "| cup (1) " in text
    assert "2 images, 1 without annotations; 1 of 4 categories have none." in text
    assert "1 malformed mask(s):" in text
    write_accounting(tmp_path / "fates.csv", result)
    with open(tmp_path / "fates.csv", newline="") as file:
        rows = {row["category"]: row for row in csv.DictReader(file)}
    assert rows["cup"]["no_area"] == "2"
    assert rows["unused"]["used"] == "0"


def test_the_number_of_processes_does_not_matter(opened):
    assert account(opened(), jobs=2) == account(opened())


@pytest.mark.parametrize(
    ("name", "annotations", "crowds", "unannotated", "painting"),
    [
        (TINY, 382, 5, 2, "file"),
        (COCO_100, 839, 9, 0, "area"),
        ("lvis/lvis_v05_val_100.json", 977, 0, 7, "area"),
    ],
)
def test_real_pieces(realdata, name, annotations, crowds, unannotated, painting):
    kind = name.split("/")[0]
    path = realdata / name
    found = InstanceAnnotations(path, kind=kind, painting=painting, label_maps=False)
    result = account(found)
    content = json.loads(path.read_text())
    by_category = Counter(a["category_id"] for a in content["annotations"])
    assert {c: sum(fates.values()) for c, fates in result.counts.items()} == by_category
    assert (sum(result.total.values()), result.total["crowd"]) == (annotations, crowds)
    assert result.num_unannotated == unannotated
    assert set(result.total) <= {"used", "crowd", "hidden"}
    # Painted from the largest to the smallest, none is hidden in these files.
    assert painting == "file" or not result.total["hidden"]


def test_hidden_ones_are_those_that_pycocotools_finds_hidden(realdata, tmp_path):
    content = json.loads((realdata / "coco/coco_val2014_100.json").read_text())
    content["images"] = content["images"][:20]
    known = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in known]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    reference = COCO(str(path))
    hidden = 0
    for found in reference.imgToAnns.values():
        masks = [reference.annToMask(a).astype(bool) for a in found if not a["iscrowd"]]
        for place, mask in enumerate(masks):
            above = np.any([mask & False, *masks[place + 1 :]], axis=0)
            hidden += bool(mask.any()) and not (mask & ~above).any()
    assert hidden > 0
    assert account(InstanceAnnotations(path, painting="file")).total["hidden"] == hidden
