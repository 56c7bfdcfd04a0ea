"""Ground truth painted from COCO and LVIS annotations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import d2_smallobj  # noqa: F401 (makes the embedded host importable)
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.data.ground_truth import resolve
from d2_smallobj.evaluation import SmallObjectEvaluator
from detectron2.data import MetadataCatalog


@pytest.fixture
def metadata():
    name = "test_json_ground_truth"
    yield MetadataCatalog.get(name)
    MetadataCatalog.pop(name)


def test_painted_by_hand(metadata, tmp_path):
    # A large box with a small one on top, and a crowd; [x, y, ...] polygons, file order reversed.
    def box(left, top, right, bottom):
        return [[left, top, right, top, right, bottom, left, bottom]]

    annotations = [
        {"id": 1, "category_id": 20, "segmentation": box(2, 2, 4, 4), "iscrowd": 0},
        {"id": 2, "category_id": 10, "segmentation": box(0, 0, 8, 8), "iscrowd": 0},
    ]
    content = {
        "images": [{"id": 7, "height": 10, "width": 12, "file_name": "7.jpg"}],
        "categories": [{"id": 10, "name": "cat"}, {"id": 20, "name": "dog"}],
        "annotations": [{**a, "image_id": 7, "area": 1, "bbox": []} for a in annotations],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    names = ["background", "cat", "dog"]
    metadata.set(stuff_classes=names, instances_json=str(path), json_kind="coco")
    evaluator = SmallObjectEvaluator(metadata.name, per_class=True)
    semantic = np.zeros((10, 12), np.uint8)
    semantic[:8, :8] = 1
    semantic[2:4, 2:4] = 2
    record = {"file_name": "7.jpg", "image_id": 7, "height": 10, "width": 12}
    evaluator.process([record], [{"sem_seg": semantic}])
    figures = evaluator.evaluate()["small_objects"]
    # The small box stays visible though it comes first: 4 px, the large one keeps 60.
    assert [figures[f"IA-IoU-{name}"] for name in names] == [100.0] * 3
    assert resolve(metadata.name).read_record(record).instances.max() == 2
    with pytest.raises(ValueError, match=r"instances\.json.* 8"):
        evaluator.process([{**record, "image_id": 8}], [{"sem_seg": semantic}])
    with pytest.raises(ValueError, match=r"no ground truth for '7\.jpg'.* and the dict 'image_id'"):
        evaluator.process([{"file_name": "7.jpg"}], [{"sem_seg": semantic}])


@pytest.mark.parametrize(
    ("file", "kind", "categories"),
    [
        ("coco/tinycoco50_val2017.json", "coco", None),
        # LVIS has more categories than an 8-bit map has labels: the first 250.
        ("lvis/lvis_v05_val_100.json", "lvis", {number: number for number in range(1, 251)}),
    ],
)
def test_real_annotations_as_prediction_are_100_everywhere(
    metadata, realdata, file, kind, categories
):
    path = realdata / file
    annotations = InstanceAnnotations(path, kind=kind, category_map=categories)
    names = list(annotations.class_names)
    metadata.set(stuff_classes=names, instances_json=str(path), json_kind=kind)
    metadata.set(json_category_map=categories)
    evaluator = SmallObjectEvaluator(metadata.name, per_class=True)
    visible, chosen = 0, list(annotations.image_ids)[::2]
    for image_id in chosen:
        semantic, instances = annotations.maps(image_id)
        visible += len(set(np.unique(instances).tolist()) - {0, 255})
        guess = np.where(semantic == 255, 0, semantic)
        evaluator.process([{"file_name": "x", "image_id": image_id}], [{"sem_seg": guess}])
    figures = evaluator.evaluate()["small_objects"]
    assert {v for k, v in figures.items() if "IoU" in k and not math.isnan(v)} == {100.0}
    assert figures["instances"] == visible > 150
    assert figures["images"] == len(chosen)
