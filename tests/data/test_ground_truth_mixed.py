"""A data set whose images have their instances in different places: one answer everywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest

import d2_smallobj  # noqa: F401 (makes the embedded host importable)
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.data.ground_truth import open_dataset
from d2_smallobj.evaluation import SmallObjectEvaluator
from d2_smallobj.scoring import Inputs, Settings, evaluate
from detectron2.data import DatasetCatalog, MetadataCatalog

NAME = "test_mixed_instances"
BOXES = [(2, 2, 8, 8), (8, 2, 14, 8), (3, 12, 6, 15)]
"""Left, top, right, bottom: two cats that touch, and one alone."""


@pytest.fixture
def mixed(tmp_path):
    """Two images of three cats: the first has an instance PNG, the second is in the JSON alone."""
    semantic = np.zeros((20, 24), np.uint8)
    instances = np.zeros_like(semantic)
    for number, (left, top, right, bottom) in enumerate(BOXES, start=1):
        semantic[top:bottom, left:right] = 1
        instances[top:bottom, left:right] = number
    records, entries, images = [], [], []
    for image in (1, 2):
        write_label_map(tmp_path / "semantic" / f"{image}.png", semantic)
        records.append(
            {
                "file_name": str(tmp_path / f"{image}.jpg"),
                "image_id": image,
                "sem_seg_file_name": str(tmp_path / "semantic" / f"{image}.png"),
            }
        )
        images.append({"id": image, "height": 20, "width": 24, "file_name": f"{image}.jpg"})
        entries += [
            {
                "id": 10 * image + number,
                "image_id": image,
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
            }
            for number, (x0, y0, x1, y1) in enumerate(BOXES)
        ]
        guess = np.roll(semantic, image, axis=1)
        write_label_map(tmp_path / "predictions" / f"{image}.png", guess)
    write_label_map(tmp_path / "instances" / "1.png", instances)
    records[0]["ins_seg_file_name"] = str(tmp_path / "instances" / "1.png")
    path = tmp_path / "instances.json"
    categories = [{"id": 1, "name": "cat"}]
    content = {"images": images, "annotations": entries, "categories": categories}
    path.write_text(json.dumps(content))
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(stuff_classes=["background", "cat"], instances_json=str(path))
    yield tmp_path, records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_the_evaluator_and_the_command_line_agree(mixed):
    folder, records = mixed
    evaluator = SmallObjectEvaluator(NAME)
    for record in records:
        guess = np.roll(_labels(record), record["image_id"], axis=1)
        evaluator.process([record], [{"sem_seg": guess.astype(np.int64)}])
    (figures,) = evaluator.evaluate().values()
    scored = evaluate(
        Inputs(predictions=str(folder / "predictions"), dataset=NAME, open_dataset=open_dataset),
        Settings(samples=0),
    )
    common = ("mIoU", "IA-mIoU", "IA-mIoU_S", "images", "instances")
    assert {name: figures[name] for name in common} == {
        name: scored.figures[name] for name in common
    }
    # Three in the PNG, three in the JSON; components would be two in each.
    assert figures["instances"] == 6


def _labels(record):
    from d2_smallobj.annotations.label_maps import read_label_map

    return read_label_map(record["sem_seg_file_name"])
