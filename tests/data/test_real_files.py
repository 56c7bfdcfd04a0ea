"""The real VOC and COCO pieces through catalog, mapper and ground truth: counts and sizes."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from d2_smallobj import SmallObjectEvaluator
from d2_smallobj.data import SemSegMapper, build_test_loader, dataset_dicts, register_all
from d2_smallobj.data.ground_truth import resolve
from d2_smallobj.engine import build_config


@pytest.fixture
def root(real_root, registration):
    register_all(real_root)
    return real_root


def stored(path):
    """Pixel values of a PNG as Pillow alone reads them."""
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.array(image)


def test_voc_val(root):
    cfg = build_config("", ["DATASETS.TEST", "('voc_2012_val',)", "DATALOADER.NUM_WORKERS", "0"])
    evaluator = SmallObjectEvaluator("voc_2012_val", distributed=False)
    instances, pixels = 0, np.zeros(256, np.int64)
    dicts = dataset_dicts(["voc_2012_val"])
    for (x,), record in zip(build_test_loader(cfg, "voc_2012_val"), dicts):
        semantic = stored(record["sem_seg_file_name"])
        objects = stored(record["ins_seg_file_name"])
        with Image.open(record["file_name"]) as image:
            assert (x["height"], x["width"]) == image.size[::-1] == semantic.shape == objects.shape
        assert x["image"].shape == (3, *semantic.shape)
        instances += len(set(np.unique(objects)) - {0, 255})
        pixels += np.bincount(semantic.ravel(), minlength=256)
        evaluator.process([x], [{"sem_seg": np.where(semantic == 255, 0, semantic)}])
    figures = evaluator.evaluate()["small_objects"]
    assert (figures["images"], figures["instances"]) == (len(dicts), instances) == (24, 67)
    assert figures["mIoU"] == figures["IA-mIoU"] == 100
    assert pixels[:21].sum() + pixels[255] == pixels.sum()
    by_class = evaluator._accumulator.confusion.sum(axis=1)
    np.testing.assert_array_equal(by_class, pixels[:21], "pixels by class")


def test_voc_training_set(root):
    mapper = SemSegMapper(
        build_config("", ["SMALLOBJ.SCALES", "[1.0]", "SMALLOBJ.CROP_SIZE", "[500, 500]"]), True
    )
    for position, record in enumerate(dataset_dicts(["voc_2012_trainaug_gt"])):
        x = mapper({**record, "stream_position": position})
        semantic = stored(record["sem_seg_file_name"])
        # The crop holds the whole image: its labels are those of the file, and padding.
        expected = np.bincount(semantic.ravel(), minlength=256)
        expected[255] += 500 * 500 - semantic.size
        np.testing.assert_array_equal(
            torch.bincount(x["sem_seg"].ravel(), minlength=256).numpy(), expected
        )


def test_coco_val(root):
    content = json.loads((root / "coco/annotations/instances_val2017.json").read_text())
    dicts = dataset_dicts(["coco_2017_val_81"])
    assert [x["image_id"] for x in dicts] == [image["id"] for image in content["images"]]
    read = resolve("coco_2017_val_81").read_record
    objects = Counter(a["image_id"] for a in content["annotations"] if not a["iscrowd"])
    for record in dicts:
        with Image.open(record["file_name"]) as image:
            assert image.size == (record["width"], record["height"])
        truth = read(record)
        assert truth.semantic.shape == (record["height"], record["width"])
        found = set(np.unique(truth.instances)) - {0, 255}
        assert len(found) == objects[record["image_id"]]
