"""Ground truth in annotation files and registered data sets, on real pieces of COCO and LVIS."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from small_scenes import write_ids

from d2_smallobj.annotations.cityscapes import BENCHMARK_LABELS
from d2_smallobj.annotations.classes import COCO_CLASS_NAMES
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.metrics import Accumulator
from d2_smallobj.scoring import Inputs, Settings, evaluate, save_run

QUICK = Settings(samples=0)


def perfect(annotations, folder, name):
    """Predictions equal to the ground truth, ignored pixels filled."""
    for image_id in annotations.image_ids:
        semantic, _ = annotations.maps(image_id)
        labels = np.where(semantic == 255, 0, semantic)
        write_label_map(folder / f"{name(image_id)}.png", labels, palette=False)


def refused(inputs, message, **changes):
    with pytest.raises(ValueError, match=message):
        evaluate(Inputs(**{**inputs, **changes}), QUICK)


def ious(figures):
    return {v for k, v in figures.items() if "IoU" in k and not math.isnan(v)}


@pytest.mark.parametrize("classes", [None, "coco"])
def test_coco_scored_against_itself(realdata, tmp_path, classes):
    """Predictions may be called like the picture, or by the id, in twelve digits or not."""
    path = realdata / "coco" / "tinycoco50_val2017.json"
    annotations = InstanceAnnotations(path)
    forms = ("{}".format, "{:012d}".format, lambda n: annotations.file_name(n)[:-4])
    perfect(annotations, tmp_path, lambda number: forms[number % 3](number))
    scored = evaluate(Inputs(str(tmp_path), coco_json=str(path), classes=classes), QUICK)
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
    refused(inputs, r"its 1230 categories are more than the 254 labels.*--cl")
    refused(inputs, r"the 255 classes beside .* more than the 254 lab", classes="256")


def test_lvis_with_classes_of_its_own(realdata, tmp_path):
    path = realdata / "lvis" / "lvis_v05_val_100.json"
    content = json.loads(path.read_bytes())
    counts = Counter(entry["category_id"] for entry in content["annotations"])
    wanted = [category for category, _ in counts.most_common(20)]
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
    refused(inputs, r"2 image\(s\) of --list that .*lvis.* does not have", image_list=str(chosen))


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


NAMES = ("cat", "television_set", "shoe")


@pytest.fixture
def annotated(tmp_path):
    """Two images: a cat with a television on it, and an empty one; its prediction."""
    masks = [(20, (2, 2, 4, 4)), (10, (0, 0, 8, 8)), (30, (8, 8, 12, 10))]
    size = {"height": 10, "width": 12}
    content = {
        "images": [{"id": 7, "file_name": "../../etc/seven.jpg", **size}, {"id": 8, **size}],
        "categories": [{"id": 10 * n, "name": name} for n, name in enumerate(NAMES, start=1)],
        "annotations": [
            {"id": n, "image_id": 7, "category_id": category, "segmentation": box(*edges)}
            for n, (category, edges) in enumerate(masks, start=1)
        ],
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


MAP = r"map\.json: "


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cats": "cat"}', MAP + r"no category 'cats'; did you mean 'cat'\?"),
        ('{"99": "cat"}', MAP + "no category '99'"),
        ('{"cat": "tvmonitors"}', r"'cat' maps to 'tvmonitors'.*\(1\.\.2\).*mean 'tvmonitor'\?"),
        ('{"cat": 0}', "category 'cat' maps to 0, which is neither"),
        ('{"cat": true}', "category 'cat' maps to True, which is neither"),
        ("[]", MAP + "expected a JSON object such as"),
        ("{}", MAP + "expected a JSON object such as .* of length >= 1"),
        ("{", MAP + "not a complete JSON file"),
    ],
)
def test_category_maps_that_do_not_fit(annotated, tmp_path, content, message):
    _, inputs = annotated
    (tmp_path / "map.json").write_text(content)
    refused(inputs, message, category_map=str(tmp_path / "map.json"))


def test_classes_that_the_file_does_not_have(annotated):
    path, inputs = annotated
    refused(inputs, r"--classes: a class of .* no category 'tvmonitor'")
    refused(inputs, r"--category-map needs --classes", classes=None, category_map=str(path))
    with pytest.raises(ValueError, match=r"--ignore-label: this ground truth ignores 255, got 254"):
        evaluate(Inputs(**{**inputs, "classes": None}), Settings(ignore_label=254))
    path.write_text('{"images": []}')
    refused(inputs, r"instances\.json: an annotation file has a list 'cat")


def test_malformed_masks_are_listed(annotated):
    path, inputs = annotated
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = {"size": [5, 5], "counts": [25]}
    path.write_text(json.dumps(content))
    message = r"1 unusable ground-truth map\(s\):\n  \S+json: annotation 1: its run-length .*\[5, 5"
    refused(inputs, message, classes=None)


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
    named = {"predictions": predictions, "open_dataset": open_dataset}
    by_name = evaluate(Inputs(**named, dataset="smallobj_demo_val"), QUICK)
    by_folder = evaluate(
        Inputs(
            predictions=predictions,
            semantic=str(folder / "SegmentationClass"),
            instances=str(folder / "SegmentationObject"),
            classes=str(classes),
            image_list=str(folder / "ImageSets" / "Segmentation" / "val.txt"),
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
    refused(named, r"--dataset: unknown value 'smallobj_demo_vl'.*mean", dataset="smallobj_demo_vl")


def headline(figures):
    return [figures[name] for name in ("mIoU", "IA-mIoU", "IA-mIoU_S", "instances")]


def encode(labels, name):
    """Entries of detectron2's JSON for one image, their category_id being the label."""
    entries = []
    for label in np.unique(labels).tolist():
        runs = coco_mask.encode(np.asfortranarray((labels == label).astype(np.uint8)))
        runs = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
        entries.append({"file_name": name, "category_id": label, "segmentation": runs})
    return entries


CATEGORIES = [
    {"id": 90, "name": "sky, clouds", "isthing": 0},
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 20, "name": "dog", "isthing": 1},
]
"""Labels: cat 0, dog 1, sky 2."""


@pytest.fixture
def panoptic(tmp_path):
    """Two images of two cats that touch, a crowd of dogs, sky; predictions shifted by a pixel."""
    ids = np.zeros((20, 24), np.int64)
    ids[:6] = 5
    ids[8:14, 2:8], ids[8:14, 8:14], ids[15:, 4:10] = 255, 66000, 17
    segments = [(5, 90, 0), (255, 3, 0), (66000, 3, 0), (17, 20, 1)]
    semantic = np.select([ids == 5, ids == 0, ids == 17], [2, 255, 1], 0)
    instances = np.select([ids == 255, ids == 66000, ids == 17], [1, 2, 255], 0)
    guess = np.roll(np.where(semantic == 255, 2, semantic), 1, axis=1)
    info = [{"id": s, "category_id": c, "iscrowd": crowd} for s, c, crowd in segments]
    entries = []
    for number in (1, 2):
        name = f"{number:012d}.png"
        write_ids(tmp_path / "maps" / name, ids)
        write_label_map(tmp_path / "preds" / name, guess, palette=False)
        entries.append({"image_id": number, "file_name": name, "segments_info": info})
    content = {"annotations": entries, "categories": CATEGORIES, "images": []}
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    folders = {"predictions": str(tmp_path / "preds"), "panoptic_maps": str(tmp_path / "maps")}
    return path, {"panoptic": str(path), **folders}, semantic, instances, guess


def test_a_panoptic_file(panoptic):
    _, inputs, semantic, instances, guess = panoptic
    scored = evaluate(Inputs(**inputs), QUICK)
    assert scored.class_names == ("cat", "dog", "sky, clouds")
    assert scored.options["stuff"] == [2]
    expected = Accumulator(3, stuff=(2,))
    for number in (1, 2):
        expected.update(number, guess, semantic, instances)
    assert headline(scored.figures) == headline(expected.summarize(scored.class_names))
    assert 0 < scored.figures["IA-mIoU"] < 100
    assert scored.figures["instances"] == 4
    # What the report shows is painted again.
    sources = scored.sources["1"]
    np.testing.assert_array_equal(sources["semantic"](), semantic)
    assert np.unique(sources["instances"]()).tolist() == [0, 255, 66000, 66001]
    # Another process reads the same.
    truth = pickle.loads(pickle.dumps(Inputs(**inputs).open_truth()))
    np.testing.assert_array_equal(truth.read(truth.images[0])[0], semantic)


def test_detectron2s_json_has_the_ids_of_the_categories(panoptic, tmp_path):
    _, inputs, _, _, guess = panoptic
    expected = evaluate(Inputs(**inputs), QUICK)
    entries = [
        {**entry, "category_id": [3, 20, 90][entry["category_id"]]}
        for number in (1, 2)
        for entry in encode(guess, f"{number:012d}.jpg")
    ]
    path = tmp_path / "sem_seg_predictions.json"
    path.write_text(json.dumps(entries))
    found = evaluate(Inputs(**{**inputs, "predictions": str(path)}), QUICK)
    assert headline(found.figures) == headline(expected.figures)
    path.write_text(json.dumps(encode(guess, "000000000001.jpg")))
    refused(inputs, r"no category of the ground truth .*\n.*entry 0: 0", predictions=str(path))


def test_stuff_of_the_users_choice(panoptic):
    _, inputs, *_ = panoptic
    scored = evaluate(Inputs(**inputs, stuff=("sky, clouds", "dog")), QUICK)
    assert scored.options["stuff"] == [1, 2]
    again = Inputs.from_description(scored.options["inputs"])
    assert again.stuff == ("sky, clouds", "dog")
    # The dogs are a crowd no more, since stuff has no instances.
    assert 255 not in np.unique(scored.sources["1"]["instances"]())
    nothing = evaluate(Inputs(**inputs, stuff=()), QUICK)
    assert nothing.options["stuff"] == []
    assert Inputs.from_description(nothing.options["inputs"]).stuff == ()
    assert nothing.figures["instances"] == 6
    refused(inputs, r"--stuff: unknown value 'sky'; expected one of 'cat', ", stuff=("sky",))


def test_panoptic_files_that_do_not_fit(panoptic, tmp_path):
    path, inputs, *_ = panoptic
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"].pop()
    path.write_text(json.dumps(content))
    refused(inputs, r"0001\.png: id\(s\) 17 \(30 px\) have no entry in segm")
    (tmp_path / "maps/000000000002.png").unlink()
    refused(inputs, r"1 panoptic PNG\(s\) of .* that are not in .*\n  0000")


LABELS = np.array([*BENCHMARK_LABELS.values()])
CITY_IMAGES = ["bonn_000001_000019", "ulm_000002_000019"]


@pytest.fixture
def city(tmp_path):
    """Two images of a road, two cars that touch, a group of cars and what is not scored."""
    train_ids = np.zeros((16, 40), np.uint8)
    labels = np.full((16, 40), 7, np.uint8)
    stored = np.full((16, 40), 7, np.uint16)
    for columns, value in ((slice(2, 8), 26000), (slice(8, 14), 26001), (slice(16, 24), 26)):
        train_ids[2:8, columns], labels[2:8, columns], stored[2:8, columns] = 13, 26, value
    train_ids[12:], labels[12:], stored[12:] = 255, 1, 1
    for image in CITY_IMAGES:
        folder = tmp_path / "gtFine" / "val" / image.split("_")[0]
        for kind, content in (("labelIds", labels), ("instanceIds", stored)):
            write_label_map(folder / f"{image}_gtFine_{kind}.png", content, palette=False)

    def predict(suffix="", ids=None):
        stored = LABELS[guess] if ids == "label" else guess
        for image in CITY_IMAGES:
            write_label_map(tmp_path / "preds" / f"{image}{suffix}.png", stored, palette=False)
        return {"predictions": str(tmp_path / "preds"), "prediction_ids": ids}

    guess = np.where(train_ids == 255, 0, train_ids)
    return tmp_path / "gtFine", train_ids, guess, predict


@pytest.mark.parametrize(
    ("suffix", "ids", "below", "jobs"),
    [
        ("", None, "", 1),
        ("_leftImg8bit", "train", "val", 1),
        ("_gtFine_labelIds", "label", "", 2),
        ("_gtFine_labelTrainIds", None, "val", 1),
        ("_leftImg8bit_pred", "label", "", 1),
    ],
)
def test_cityscapes_predictions(city, suffix, ids, below, jobs):
    folder, train_ids, guess, predict = city
    inputs = Inputs(**predict(suffix, ids), cityscapes=str(folder / below))
    scored = evaluate(inputs, QUICK, jobs=jobs)
    assert ious(scored.figures) == {100.0}
    assert scored.images == CITY_IMAGES
    assert scored.options["stuff"] == list(range(11))
    # The group is no instance.
    assert (scored.figures["instances"], scored.figures["instances-car"]) == (4, 4)
    sources = scored.sources[scored.images[0]]
    np.testing.assert_array_equal(sources["semantic"](), train_ids)
    shown = sources["prediction"]
    if ids == "label":
        np.testing.assert_array_equal(shown(), guess)
    else:
        assert str(shown).endswith(f"{suffix}.png")


def test_cityscapes_labels_of_another_kind(city, tmp_path):
    folder, *_, predict = city
    inputs = {**predict(), "cityscapes": str(folder)}
    refused(inputs, r"(?s)--prediction-ids label .*got 0.*they train ids", prediction_ids="label")
    listed = tmp_path / "list.txt"
    listed.write_text("ulm_000002_000019_leftImg8bit\n")
    assert evaluate(Inputs(**inputs, image_list=str(listed)), QUICK).images == CITY_IMAGES[1:]


def test_cityscapes_files_that_do_not_fit(city, tmp_path):
    folder, *_, predict = city
    inputs = {**predict(), "cityscapes": str(folder)}
    path = folder / "val/ulm/ulm_000002_000019_gtFine_instanceIds.png"
    write_label_map(path, np.full((16, 39), 7), palette=False)
    refused(inputs, r"instanceIds\.png: height x width 16 x 39, but 16 x 40")
    path.unlink()
    refused(inputs, r"1 instance map\(s\) missing beside the label map:\n.*u")
    refused(inputs, r"--cityscapes: no \*_gtFine_labelIds\.png", cityscapes=str(tmp_path / "preds"))
    with pytest.raises(FileNotFoundError):
        evaluate(Inputs(**{**inputs, "cityscapes": str(tmp_path / "gone")}), QUICK)


def test_classes_without_background_in_a_folder(tmp_path):
    semantic = np.full((10, 12), 2, np.uint16)
    semantic[2:5, 2:5], semantic[2:5, 6:9], semantic[0] = 0, 300, 65535
    guess = np.where(semantic == 65535, 2, semantic)
    write_label_map(tmp_path / "truth" / "a.png", semantic)
    write_label_map(tmp_path / "preds" / "a.png", guess)
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(["cat", "dog", "sky", *(f"class {n}" for n in range(3, 301))]))
    folders = {"predictions": str(tmp_path / "preds"), "semantic": str(tmp_path / "truth")}
    inputs = {**folders, "classes": str(classes)}
    settings = Settings(samples=0, ignore_label=65535)
    scored = evaluate(Inputs(**inputs, stuff=("sky",)), settings)
    assert ious(scored.figures) == {100.0}
    assert scored.figures["instances-cat"] == scored.figures["instances-class 300"] == 1
    assert scored.figures["instances"] == 2
    assert evaluate(Inputs(**inputs, stuff=()), settings).figures["instances"] == 3


BOTH = {"panoptic": "a", "panoptic_maps": "b"}
CITY, MAPS = {"cityscapes": "a"}, {"semantic": "a"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"panoptic": "a.json"}, r"--panoptic: give the folder of the PNGs, too: a\.json DIR"),
        ({**BOTH, "classes": "voc"}, "--classes goes with .*, not with --panoptic"),
        ({**CITY, "classes": "voc"}, "--classes goes .* not with --cityscapes"),
        ({**CITY, "prediction_ids": "trian"}, "--prediction-ids: .*mean 'train'"),
        ({**MAPS, "prediction_ids": "label"}, "--prediction-ids goes with --cityscapes"),
        ({**MAPS, "unannotated": "void"}, "--unannotated goes with --dataset, not with"),
        ({**MAPS, "missing_instances": "void"}, "--missing-instances goes with --data"),
    ],
)
def test_options_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        Inputs(predictions="x", **changes)
