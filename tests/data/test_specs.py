"""Data sets with boxes, Cityscapes in its own layout, binary tasks of one class."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from d2_smallobj.annotations.boxes import classes_of_numbers, coco_boxes, number_boxes
from d2_smallobj.annotations.cityscapes import CITYSCAPES_CLASS_NAMES
from d2_smallobj.annotations.classes import COCO_CLASS_NAMES
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.data import dataset_dicts
from d2_smallobj.data.catalog import canonical_name, register_all
from d2_smallobj.data.ground_truth import open_dataset, resolve
from d2_smallobj.data.mapper import SemSegMapper
from d2_smallobj.data.supervision import boxes_of
from d2_smallobj.demo.dataset import make_demo
from d2_smallobj.evaluation import SmallObjectEvaluator
from detectron2.data import MetadataCatalog

CITY_TRAIN = "cityscapes_vehicles_persons_train"
CITY_VAL = "cityscapes_vehicles_persons_val"


@pytest.fixture
def root(tmp_path, registration):
    """Register below an empty root."""
    register_all(tmp_path)
    return tmp_path


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


# ---- Cityscapes --------------------------------------------------------------------------------


@pytest.fixture
def city(root):
    """Two images of 12 x 24: road, a car, a group of cars behind it, a person, the ego vehicle."""
    rng = np.random.default_rng(0)
    folder = root / "cityscapes"
    for path in ("train/aachen/aachen_000000_000019", "val/bonn/bonn_000001_000007"):
        labels = np.full((12, 24), 7, np.uint8)
        instances = np.full((12, 24), 7, np.uint16)
        labels[1:5, 2:8], instances[1:5, 2:8] = 26, 26000
        labels[2:6, 5:10], instances[2:6, 5:10] = 26, 26001
        labels[1:4, 14:20], instances[1:4, 14:20] = 26, 26
        labels[5:10, 20:22], instances[5:10, 20:22] = 24, 24000
        labels[10:], instances[10:] = 1, 1
        picture = rng.integers(0, 256, (12, 24, 3), np.uint8)
        save(folder / f"leftImg8bit/{path}_leftImg8bit.png", picture)
        save(folder / f"gtFine/{path}_gtFine_labelIds.png", labels)
        save(folder / f"gtFine/{path}_gtFine_instanceIds.png", instances)
        # What else lies there must not matter.
        save(folder / f"gtFine/{path}_gtFine_color.png", picture)
    return folder


def test_cityscapes_is_listed(city, tiny_cfg):
    (record,) = dataset_dicts([CITY_TRAIN])
    assert record["image_id"] == "aachen_000000_000019"
    truth = city / "gtFine/train/aachen/aachen_000000_000019_gtFine"
    assert record["sem_seg_file_name"] == f"{truth}_labelIds.png"
    assert record["ins_seg_file_name"] == f"{truth}_instanceIds.png"
    assert MetadataCatalog.get(CITY_TRAIN).stuff_classes == list(CITYSCAPES_CLASS_NAMES)
    # A box around every car and person, one around the group; the ego vehicle has none.
    boxes = boxes_of({**record, "height": 12, "width": 24})
    labels = classes_of_numbers(boxes, number_boxes(boxes, 12, 24))
    expected = np.zeros((12, 24), int)
    expected[1:6, 2:10] = expected[1:4, 14:20] = 3
    expected[5, 2:5] = expected[1, 8:10] = 0
    expected[5:10, 20:22] = 1
    np.testing.assert_array_equal(labels, expected)
    cfg = tiny_cfg("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 9, "SMALLOBJ.SCALES", "[1.0]")
    x = SemSegMapper(cfg, True)({**record, "supervision": "mask"})
    labels = x["sem_seg"][:12, :24]
    assert sorted(set(labels.flatten().tolist())) == [0, 1, 3, 255]
    assert (labels[10:] == 255).all()
    missing = city / "gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png"
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(missing))}\n.*\"Cityscapes\""):
        dataset_dicts([CITY_TRAIN])


def test_cityscapes_truth(city):
    """Groups and what is not scored are void; instances keep their ids, for scoring as well."""
    (record,) = dataset_dicts([CITY_VAL])
    maps = resolve(CITY_VAL).read_record(record)
    assert np.unique(maps.semantic).tolist() == [0, 1, 3, 255]
    assert np.unique(maps.instances).tolist() == [0, 255, 24000, 26000, 26001]
    assert (maps.instances[1:4, 14:20] == 255).all()
    truth = open_dataset(CITY_VAL)
    assert truth.class_names == CITYSCAPES_CLASS_NAMES
    (image,) = truth.images
    assert truth.size(image) == (12, 24)
    for found, expected in zip(truth.read(image), maps[:2]):
        np.testing.assert_array_equal(found, expected)
    # A perfect prediction.
    evaluator = SmallObjectEvaluator(CITY_VAL)
    semantic = maps.semantic.astype(np.int64)
    evaluator.process([record], [{"sem_seg": np.where(semantic > 8, 0, semantic)}])
    figures = evaluator.evaluate()["small_objects"]
    assert (figures["mIoU"], figures["IA-mIoU"], figures["instances"]) == (100.0, 100.0, 3.0)


# ---- Binary tasks ------------------------------------------------------------------------------


def test_one_class_of_the_demo_or_any(root):
    make_demo(root / "smallobj_demo", num_train=1, num_val=3, size=96)
    whole = resolve("smallobj_demo_val").read_record
    found = 0
    for kind, called in (("star", "star"), ("any", "object")):
        name = canonical_name(f"smallobj_demo_val:{kind}")
        assert canonical_name(name) == name
        metadata = MetadataCatalog.get(name)
        assert metadata.stuff_classes == ["background", called]
        assert metadata.num_classes == 2
        read = resolve(name).read_record
        for record in dataset_dicts([name]):
            binary, every = read(record), whole(record)
            chosen = every.semantic == 3 if kind == "star" else every.semantic > 0
            void = every.semantic == 255
            np.testing.assert_array_equal(binary.semantic, np.where(void, 255, chosen))
            instances = np.where(void, 255, np.where(chosen, every.instances, 0))
            np.testing.assert_array_equal(binary.instances, instances)
            found += kind == "star" and chosen.any()
    assert found


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("smallobj_demo_val:stars", ValueError, r"class of 'smallobj_demo_val'.*you mean 'star'"),
        ("smallobj_demo:star", ValueError, r"before ':': unknown value 'smallobj_demo'; expected"),
        (CITY_TRAIN, FileNotFoundError, r"2 path\(s\) missing:\s.*leftImg8bit.*\s.*gtFine"),
    ],
)  # fmt: skip
def test_unknown_and_missing_data_sets(root, name, error, message):
    with pytest.raises(error, match=message):
        dataset_dicts([name])


# ---- COCO and VOC ------------------------------------------------------------------------------


@pytest.fixture
def coco(root):
    """Two images of 10 x 8 with a person (mask 2 x 3 in the corner of its box) and a crowd."""
    folder = root / "coco"
    content = {
        "images": [
            {"id": i, "height": 10, "width": 8, "file_name": f"{i:012d}.jpg"} for i in (1, 2)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(COCO_CLASS_NAMES[1:], 1)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 4, 5], "iscrowd": 0,
             "segmentation": [[1, 2, 4, 2, 4, 4, 1, 4]]},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [6, 0, 2, 2], "iscrowd": 0,
             "segmentation": [[6, 0, 8, 0, 8, 2, 6, 2]]},
            {"id": 3, "image_id": 2, "category_id": 1, "bbox": [0, 0, 3, 3], "iscrowd": 1,
             "segmentation": {"size": [10, 8], "counts": [0, 3, 77]}},
        ],
    }  # fmt: skip
    for split in ("train", "val"):
        path = folder / f"annotations/instances_{split}2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        blank = np.zeros((10, 8), np.uint8)
        for i in (1, 2):
            save(folder / f"{split}2017/{i:012d}.jpg", blank)
            save(folder / f"SegmentationClass81/{split}2017/{i:012d}.png", blank)


def test_coco_with_boxes_and_of_one_category(coco):
    first, second = dataset_dicts(["coco_2017_train_81_mixed"])
    assert first["boxes"].tolist() == [[1, 1, 2, 5, 7], [2, 6, 0, 8, 2]]
    assert second["boxes"].tolist() == [[-1, 0, 0, 3, 3]]
    first, second = dataset_dicts(["coco_2017_train_81_mixed:bicycle"])
    assert first["boxes"].tolist() == [[1, 6, 0, 8, 2]]
    assert len(second["boxes"]) == 0
    # Its ground truth, too.
    name = "coco_2017_val_81:person"
    truth = resolve(name).read_record(dataset_dicts([name])[0])
    person = np.zeros((10, 8), int)
    person[2:4, 1:4] = 1
    np.testing.assert_array_equal(truth.semantic, person)
    np.testing.assert_array_equal(truth.instances > 0, person > 0)
    scored = open_dataset(name)
    np.testing.assert_array_equal(scored.read(scored.images[0])[0], person)


def test_voc_with_boxes(root):
    folder = root / "VOCdevkit/VOC2012"
    paths = [folder / f"Annotations/2007_00000{i}.xml" for i in (1, 2)]
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>5</ymax>"
    text = (
        "<annotation><size><width>8</width><height>10</height></size><object><name>dog</name>"
        f"<bndbox>{box}</bndbox></object></annotation>"
    )
    for path in paths:
        save(folder / f"JPEGImages/{path.stem}.jpg", np.zeros((10, 8), np.uint8))
        save(folder / f"SegmentationClassAug/{path.stem}.png", np.zeros((10, 8), np.uint8))
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainaug.txt").write_text("2007_000001\n2007_000002\n")
    name = "voc_2012_trainaug_mixed"
    assert [x["boxes"].tolist() for x in dataset_dicts([name])] == [[[12, 0, 0, 4, 5]]] * 2
    for path in paths:
        path.write_text(text.replace("<xmax>4", "<xmax>-4"))
    message = r"(?s)_mixed: 2 bad annotation\(s\):.*0001\.xml.*inverted.*0002\.xml"
    with pytest.raises(ValueError, match=message):
        dataset_dicts([name])
    paths[0].unlink()
    with pytest.raises(FileNotFoundError, match=rf"Annotations/{paths[0].name}"):
        dataset_dicts([name])


def test_real_boxes_hold_their_masks(realdata):
    """Real COCO: all but the last pixels of the objects lie in painted boxes."""
    path = realdata / "coco/tinycoco50_val2017.json"
    annotations, boxes = InstanceAnnotations(path), coco_boxes(path)
    inside = total = 0
    for image_id in list(annotations.image_ids)[::2]:
        semantic, _ = annotations.maps(image_id)
        numbers = number_boxes(boxes[image_id], *semantic.shape)
        painted = classes_of_numbers(boxes[image_id], numbers)
        inside += np.count_nonzero((semantic > 0) & (painted > 0))
        total += np.count_nonzero(semantic)
    assert total > 10**6
    assert inside / total > 0.999
