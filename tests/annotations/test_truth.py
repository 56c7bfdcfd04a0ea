"""Ground truth in annotation files and registered data sets, on real pieces of COCO and LVIS."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from d2_smallobj.annotations.classes import COCO_CLASS_NAMES
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.metrics import Accumulator
from d2_smallobj.scoring import InputError, Inputs, Settings, evaluate, save_run

QUICK = Settings(samples=0)


def perfect(annotations, folder, name):
    """Predictions equal to the ground truth, ignored pixels filled."""
    for image_id in annotations.image_ids:
        semantic, _ = annotations.maps(image_id)
        labels = np.where(semantic == 255, 0, semantic)
        write_label_map(folder / f"{name(image_id)}.png", labels, palette=False)


def ious(figures):
    return {v for k, v in figures.items() if "IoU" in k and not math.isnan(v)}


@pytest.mark.parametrize(
    ("file", "classes"),
    [
        ("coco_val2014_100.json", None),
        ("coco_val2014_100.json", "coco"),
        ("tinycoco50_val2017.json", None),
    ],
)
@pytest.mark.parametrize("naming", ["file", "twelve digits", "id"])
def test_coco_scored_against_itself(realdata, tmp_path, file, classes, naming):
    path = realdata / "coco" / file
    annotations = InstanceAnnotations(path)
    names = {
        "file": lambda number: annotations.file_name(number).rsplit(".", 1)[0],
        "twelve digits": lambda number: f"{number:012d}",
        "id": str,
    }
    perfect(annotations, tmp_path, names[naming])
    scored = evaluate(
        Inputs(predictions=str(tmp_path), coco_json=str(path), classes=classes), QUICK, jobs=2
    )
    assert ious(scored.figures) == {100.0}
    assert scored.class_names == COCO_CLASS_NAMES
    assert scored.images == sorted(str(number) for number in annotations.image_ids)
    assert scored.figures["instances"] > 300


def test_coco_figures_are_the_cores(realdata, tmp_path):
    path = realdata / "coco" / "coco_val2014_100.json"
    annotations = InstanceAnnotations(path)
    accumulator = Accumulator(81)
    for image_id in annotations.image_ids:
        maps = annotations.maps(image_id)
        labels = np.roll(np.where(maps[0] == 255, 3, maps[0]), 4, axis=1)
        np.save(tmp_path / f"{image_id}.npy", labels)
        accumulator.update(image_id, labels, *maps)
    expected = accumulator.summarize(COCO_CLASS_NAMES)
    scored = evaluate(Inputs(predictions=str(tmp_path), coco_json=str(path)), QUICK)
    assert repr(scored.figures) == repr(expected)
    assert 30 < scored.figures["IA-mIoU"] < 100


def test_lvis_needs_a_choice_of_classes(realdata, tmp_path):
    path = realdata / "lvis" / "lvis_v05_val_100.json"
    np.save(tmp_path / "a.npy", np.zeros((4, 5), np.uint8))
    inputs = {"predictions": str(tmp_path), "lvis_json": str(path)}
    with pytest.raises(ValueError, match=r"its 1230 categories are more than the 254 labels.*--cl"):
        evaluate(Inputs(**inputs), QUICK)
    with pytest.raises(ValueError, match=r"--classes: 255 classes beside .* more than the 254 lab"):
        evaluate(Inputs(**inputs, classes="256"), QUICK)


def test_lvis_with_classes_of_its_own(realdata, tmp_path):
    path = realdata / "lvis" / "lvis_v05_val_100.json"
    content = json.loads(path.read_bytes())
    counts = {}
    for annotation in content["annotations"]:
        counts[annotation["category_id"]] = counts.get(annotation["category_id"], 0) + 1
    wanted = sorted(counts, key=lambda key: -counts[key])[:20]
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(["background", *(names[key] for key in wanted)]))
    labels = {key: label for label, key in enumerate(wanted, start=1)}
    annotations = InstanceAnnotations(path, kind="lvis", category_map=labels)
    preds = tmp_path / "preds"
    perfect(annotations, preds, lambda number: f"{number:012d}")
    inputs = {"predictions": str(preds), "lvis_json": str(path), "classes": str(classes)}
    scored = evaluate(Inputs(**inputs), QUICK)
    assert ious(scored.figures) == {100.0}
    assert scored.figures["instances"] > 300
    # The picture's name stands for the image, too.
    chosen = tmp_path / "list.txt"
    chosen.write_text("000000266409\n")
    listed = evaluate(Inputs(**inputs, image_list=str(chosen)), QUICK)
    assert listed.images == ["266409"]
    chosen.write_text("1\n2\n")
    with pytest.raises(InputError, match=r"2 image\(s\) of --list that .*lvis.* does not have"):
        evaluate(Inputs(**inputs, image_list=str(chosen)), QUICK)


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


@pytest.fixture
def annotated(tmp_path):
    """Two images: a cat with a television on it, and an empty one; its prediction."""
    annotations = [
        {"id": 1, "category_id": 20, "segmentation": box(2, 2, 4, 4), "image_id": 7},
        {"id": 2, "category_id": 10, "segmentation": box(0, 0, 8, 8), "image_id": 7},
        {"id": 3, "category_id": 30, "segmentation": box(8, 8, 12, 10), "image_id": 7},
    ]
    content = {
        "images": [
            {"id": 7, "height": 10, "width": 12, "file_name": "../../etc/seven.jpg"},
            {"id": 8, "height": 10, "width": 12},
        ],
        "categories": [
            {"id": 10, "name": "cat"},
            {"id": 20, "name": "television_set"},
            {"id": 30, "name": "shoe"},
        ],
        "annotations": [{**entry, "iscrowd": 0} for entry in annotations],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    semantic = np.zeros((10, 12), np.uint8)
    semantic[:8, :8] = 1
    semantic[2:4, 2:4] = 2
    preds = tmp_path / "preds"
    write_label_map(preds / "seven.png", semantic)
    write_label_map(preds / "8.png", np.zeros((10, 12), np.uint8))
    classes = tmp_path / "classes.txt"
    classes.write_text("background\ncat\ntvmonitor\n")
    return path, {"predictions": str(preds), "coco_json": str(path), "classes": str(classes)}


@pytest.mark.parametrize("target", ["tvmonitor", 2])
@pytest.mark.parametrize("key", ["television_set", "20"])
def test_a_category_map(annotated, tmp_path, key, target):
    _, inputs = annotated
    mapping = tmp_path / "map.json"
    mapping.write_text(json.dumps({key: target, "cat": "cat"}))
    scored = evaluate(Inputs(**inputs, category_map=str(mapping)), QUICK)
    # The shoe is background; the picture's name leads nowhere but to the prediction.
    assert ious(scored.figures) == {100.0}
    assert (scored.figures["instances"], scored.figures["images"]) == (2, 2)
    sources = scored.sources["7"]
    assert np.bincount(sources["semantic"]().ravel()).tolist() == [56, 60, 4]
    assert sources["instances"]().max() == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cats": "cat"}', r"map\.json: no category 'cats'; did you mean 'cat'\?"),
        ('{"99": "cat"}', r"map\.json: no category '99'"),
        ('{"cat": "tvmonitors"}', r"'cat' maps to 'tvmonitors'.*\(1\.\.2\).*mean 'tvmonitor'\?"),
        ('{"cat": 0}', r"category 'cat' maps to 0, which is neither"),
        ('{"cat": true}', r"category 'cat' maps to True, which is neither"),
        ("[]", r"map\.json: expected a JSON object such as"),
        ("{", r"map\.json: not a complete JSON file"),
    ],
)
def test_category_maps_that_do_not_fit(annotated, tmp_path, content, message):
    _, inputs = annotated
    mapping = tmp_path / "map.json"
    mapping.write_text(content)
    with pytest.raises(ValueError, match=message):
        evaluate(Inputs(**inputs, category_map=str(mapping)), QUICK)


def test_classes_that_the_file_does_not_have(annotated):
    path, inputs = annotated
    with pytest.raises(ValueError, match=r"--classes: a class of .* no category 'tvmonitor'"):
        evaluate(Inputs(**inputs), QUICK)
    with pytest.raises(ValueError, match=r"--category-map needs --classes"):
        evaluate(Inputs(**{**inputs, "classes": None, "category_map": str(path)}), QUICK)
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"instances\.json: an annotation file has a list 'cat"):
        evaluate(Inputs(**inputs), QUICK)
    content = {"images": [{"id": 8, "height": 10, "width": 12}], "annotations": []}
    content["categories"] = [{"id": 10, "name": "cat"}, {"id": 20, "name": "tvmonitor"}]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"--ignore-label: this ground truth ignores 255, got 254"):
        evaluate(Inputs(**inputs), Settings(ignore_label=254))


def spoiled(change):
    def apply(content):
        content["annotations"][0].update(change)

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"].append(c["annotations"][0]), r"id 1 occurs twice in 'annot"),
        (spoiled({"image_id": 99}), r"annotation 1 belongs to image 99, which is not in"),
        (spoiled({"category_id": 99}), r"annotation 1 has category 99"),
    ],
)
def test_malformed_annotation_files(annotated, change, message):
    path, inputs = annotated
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        evaluate(Inputs(**{**inputs, "classes": None}), QUICK)


def test_malformed_masks_are_listed(annotated):
    path, inputs = annotated
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = {"size": [5, 5], "counts": [25]}
    path.write_text(json.dumps(content))
    message = r"1 unusable ground-truth map\(s\):\n  \S+json: annotation 1: its run-length .*\[5, 5"
    with pytest.raises(InputError, match=message):
        evaluate(Inputs(**{**inputs, "classes": None}), QUICK)


def test_degenerate_polygons_have_no_area(annotated):
    path, inputs = annotated
    content = json.loads(path.read_text())
    content["annotations"][2]["segmentation"] = [[1, 1, 2, 2], []]
    path.write_text(json.dumps(content))
    figures = evaluate(Inputs(**{**inputs, "classes": None}), QUICK).figures
    assert (figures["instances"], figures["instances-shoe"]) == (2, 0)
    assert ious(figures) == {100.0}


def test_the_demo_by_name_equals_its_folders(tmp_path, registration):
    pytest.importorskip("torch")
    from d2_smallobj.annotations.classes import DEMO_CLASS_NAMES
    from d2_smallobj.data.ground_truth import open_dataset
    from d2_smallobj.demo.dataset import make_demo

    make_demo(tmp_path / "smallobj_demo", num_train=1, num_val=5, size=96)
    folder = tmp_path / "smallobj_demo" / "VOCdevkit" / "VOC2012"
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(DEMO_CLASS_NAMES))
    registration(tmp_path)
    predictions = str(folder / "PseudoLabels" / "demo")
    by_name = evaluate(
        Inputs(predictions=predictions, dataset="smallobj_demo_val", open_dataset=open_dataset),
        QUICK,
    )
    chosen = folder / "ImageSets" / "Segmentation" / "val.txt"
    by_folder = evaluate(
        Inputs(
            predictions=predictions,
            semantic=str(folder / "SegmentationClass"),
            instances=str(folder / "SegmentationObject"),
            classes=str(classes),
            image_list=str(chosen),
            pictures=str(folder / "JPEGImages"),
        ),
        QUICK,
    )
    assert repr(by_name.figures) == repr(by_folder.figures)
    assert by_name.figures["instances"] > 5
    for run, name in ((by_name, "name"), (by_folder, "folder")):
        save_run(tmp_path / name, run)
    for file in ("instances.csv", "instance_details.csv", "images.csv", "pixels.csv"):
        assert (tmp_path / "name" / file).read_bytes() == (tmp_path / "folder" / file).read_bytes()
    with pytest.raises(ValueError, match=r"--dataset: unknown value 'smallobj_demo_vall'.*mean"):
        evaluate(
            Inputs(
                predictions=predictions, dataset="smallobj_demo_vall", open_dataset=open_dataset
            ),
            QUICK,
        )


def test_a_registered_annotation_file(realdata, tmp_path):
    pytest.importorskip("torch")
    from d2_smallobj.data.ground_truth import open_dataset
    from detectron2.data import DatasetCatalog, MetadataCatalog

    path = realdata / "coco" / "tinycoco50_val2017.json"
    annotations = InstanceAnnotations(path)
    records = [
        {"file_name": f"/x/{annotations.file_name(number)}", "image_id": number}
        for number in annotations.image_ids
    ]
    name = "test_registered_annotations"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        stuff_classes=list(COCO_CLASS_NAMES), instances_json=str(path), json_kind="coco"
    )
    try:
        perfect(annotations, tmp_path, lambda number: annotations.file_name(number)[:-4])
        scored = evaluate(
            Inputs(predictions=str(tmp_path), dataset=name, open_dataset=open_dataset), QUICK
        )
        assert ious(scored.figures) == {100.0}
        assert len(scored.images) == 50
        assert scored.sources["6818"]["image"] == "/x/000000006818.jpg"
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
