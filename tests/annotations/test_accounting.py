"""Every annotation of a file has one fate."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.coco_maps import FATES, account
from d2_smallobj.pascal_b.categories import AMBIGUOUS, LVIS_RULES
from d2_smallobj.report.dataset_summary import format_accounting, write_accounting

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
    return {
        "images": [{"id": i, "height": 20, "width": 20, "file_name": f"{i}.jpg"} for i in (1, 2)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": names.index(name) + 1,
                "segmentation": segmentation,
                "iscrowd": crowd,
            }
            for number, (name, segmentation, crowd) in enumerate(kinds, 1)
        ],
    }


@pytest.fixture
def opened(tmp_path, content):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))

    def read(**options):
        return InstanceAnnotations(path, **options)

    return read


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


def test_hidden_in_file_order_is_not_hidden_by_area(opened, content, tmp_path):
    content["annotations"] = [
        {**content["annotations"][0], "id": 1, "segmentation": CORNER},
        {**content["annotations"][0], "id": 2, "segmentation": SQUARE},
    ]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert account(opened(painting="file")).total == {"used": 1, "hidden": 1}
    assert account(opened(painting="area")).total == {"used": 2}


@pytest.mark.parametrize(
    ("name", "kind", "annotations", "crowds", "unannotated", "painting"),
    [
        ("coco/tinycoco50_val2017.json", "coco", 382, 5, 2, "area"),
        ("coco/tinycoco50_val2017.json", "coco", 382, 5, 2, "file"),
        ("coco/coco_val2014_100.json", "coco", 839, 9, 0, "area"),
        ("lvis/lvis_v05_val_100.json", "lvis", 977, 0, 7, "area"),
    ],
)
def test_real_pieces(realdata, name, kind, annotations, crowds, unannotated, painting):
    path = realdata / name
    found = InstanceAnnotations(path, kind=kind, painting=painting, label_maps=False)
    result = account(found)
    content = json.loads(path.read_text())
    by_category = np.bincount([a["category_id"] for a in content["annotations"]])
    assert {c: sum(fates.values()) for c, fates in result.counts.items()} == {
        c: n for c, n in enumerate(by_category.tolist()) if n
    }
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


def test_real_lvis_as_voc(realdata):
    path = realdata / "lvis/lvis_v05_val_100.json"
    content = json.loads(path.read_text())
    ids = {category["name"]: category["id"] for category in content["categories"]}
    rules = {name: rule for name, rule in LVIS_RULES.items() if name in ids}
    void = [name for name, rule in rules.items() if rule.role == AMBIGUOUS]
    classes = {ids[name]: rule.class_id for name, rule in rules.items() if name not in void}
    found = InstanceAnnotations(
        path,
        kind="lvis",
        category_map=classes,
        class_names=[str(i) for i in range(21)],
        void_categories=void,
    )
    result = account(found)
    in_rules = [a for a in content["annotations"] if a["category_id"] in classes]
    in_void = [a for a in content["annotations"] if a["category_id"] in {ids[n] for n in void}]
    assert result.total == {
        "used": len(in_rules),
        "void": len(in_void),
        "background": 977 - len(in_rules) - len(in_void),
    }
    assert result.total["void"] > 0
    # v0.5 calls persons "baby".
    assert result.counts[ids["baby"]]["used"] > 0
