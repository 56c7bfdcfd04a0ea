"""Panoptic files, Cityscapes and stuff classes as inputs of the command."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from d2_smallobj.annotations.cityscapes import BENCHMARK_LABELS
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.metrics import Accumulator
from d2_smallobj.scoring import InputError, Inputs, Settings, evaluate
from d2_smallobj.scoring.instance_sizes import measure_instances

QUICK = Settings(samples=0)
LABELS = np.array([*BENCHMARK_LABELS.values()])


def headline(figures):
    return {k: v for k, v in figures.items() if k in ("mIoU", "IA-mIoU", "IA-mIoU_S", "instances")}


def encode(labels, name):
    """Entries of detectron2's JSON for one image, their category_id being the label."""
    entries = []
    for label in np.unique(labels).tolist():
        runs = coco_mask.encode(np.asfortranarray((labels == label).astype(np.uint8)))
        runs = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
        entries.append({"file_name": name, "category_id": label, "segmentation": runs})
    return entries


def all_right(figures):
    return {v for k, v in figures.items() if "IoU" in k and not math.isnan(v)} == {100.0}


# ---- Panoptic ----------------------------------------------------------------------------------


def save_ids(path, ids):
    colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=2).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours).save(path)


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
    entries = []
    for number in (1, 2):
        save_ids(tmp_path / "maps" / f"{number:012d}.png", ids)
        write_label_map(tmp_path / "preds" / f"{number:012d}.png", guess, palette=False)
        entries.append(
            {
                "image_id": number,
                "file_name": f"{number:012d}.png",
                "segments_info": [
                    {"id": s, "category_id": c, "iscrowd": crowd} for s, c, crowd in segments
                ],
            }
        )
    content = {"annotations": entries, "categories": CATEGORIES, "images": []}
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    inputs = {
        "predictions": str(tmp_path / "preds"),
        "panoptic": str(path),
        "panoptic_maps": str(tmp_path / "maps"),
    }
    return path, inputs, semantic, instances, guess


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_panoptic_file(panoptic, jobs):
    _, inputs, semantic, instances, guess = panoptic
    scored = evaluate(Inputs(**inputs), QUICK, jobs=jobs)
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
    with pytest.raises(InputError, match=r"no category of the ground truth .*\n.*entry 0: 0"):
        evaluate(Inputs(**{**inputs, "predictions": str(path)}), QUICK)


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
    with pytest.raises(ValueError, match=r"--stuff: unknown value 'sky'; expected one of 'cat', "):
        evaluate(Inputs(**inputs, stuff=("sky",)), QUICK)


def test_panoptic_statistics(panoptic):
    _, inputs, *_ = panoptic
    truth = Inputs(**inputs).open_truth(label_maps=False)
    sizes = measure_instances(truth, source="x", jobs=2)
    assert sizes.class_ids.tolist() == [0] * 4
    assert sizes.areas.tolist() == [36] * 4


def test_panoptic_files_that_do_not_fit(panoptic, tmp_path):
    path, inputs, *_ = panoptic
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"0001\.png: id\(s\) 17 \(30 px\) have no entry in segm"):
        evaluate(Inputs(**inputs), QUICK)
    content["annotations"][0]["segments_info"] += [{"id": 17, "category_id": 4}]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"image 1: segment 17 has category_id 4, which is not in"):
        evaluate(Inputs(**inputs), QUICK)
    content["annotations"][0]["segments_info"].pop()
    content["annotations"][0]["segments_info"] += [
        {"id": 17, "category_id": 3}, {"id": 18, "category_id": 3}
    ]  # fmt: skip
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"0001\.png: segment\(s\) 18 of segments_info have no px|"
                       r"0001\.png: segment\(s\) 18 of segments_info have no pixel"):  # fmt: skip
        evaluate(Inputs(**inputs), QUICK)
    (tmp_path / "maps/000000000002.png").unlink()
    with pytest.raises(InputError, match=r"1 panoptic PNG\(s\) of .* that are not in .*\n  0000"):
        evaluate(Inputs(**inputs), QUICK)


def test_predictions_of_another_size_or_number_of_classes(panoptic, tmp_path):
    _, inputs, *_, guess = panoptic
    write_label_map(tmp_path / "preds/000000000001.png", guess[:-1], palette=False)
    with pytest.raises(InputError, match=r"of another height x width .*\n.*19 x 24 instead of 20"):
        evaluate(Inputs(**inputs), QUICK)
    guess = guess.copy()
    guess[0, 0] = 3
    write_label_map(tmp_path / "preds/000000000001.png", guess, palette=False)
    with pytest.raises(
        InputError,
        match=r"do not fit the 3 classes.*\n.*prediction must hold 0\.\.2 .*got 3 \(1",
    ):
        evaluate(Inputs(**inputs), QUICK)


# ---- Cityscapes --------------------------------------------------------------------------------


@pytest.fixture
def city(tmp_path):
    """Two images of a road, two cars that touch, a group of cars and what is not scored."""
    train_ids = np.zeros((16, 40), np.uint8)
    labels = np.full((16, 40), 7, np.uint8)
    stored = np.full((16, 40), 7, np.uint16)
    for columns, value in ((slice(2, 8), 26000), (slice(8, 14), 26001), (slice(16, 24), 26)):
        train_ids[2:8, columns], labels[2:8, columns], stored[2:8, columns] = 13, 26, value
    train_ids[12:], labels[12:], stored[12:] = 255, 1, 1
    for image in ("bonn_000001_000019", "ulm_000002_000019"):
        folder = tmp_path / "gtFine" / "val" / image.split("_")[0]
        for kind, content in (("labelIds", labels), ("instanceIds", stored)):
            write_label_map(folder / f"{image}_gtFine_{kind}.png", content, palette=False)
    return tmp_path / "gtFine", train_ids


SUFFIXES = ["", "_leftImg8bit", "_gtFine_labelIds", "_gtFine_labelTrainIds", "_leftImg8bit_pred"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("ids", "below"), [(None, ""), ("train", "val"), ("label", "")])
def test_cityscapes_predictions(city, tmp_path, suffix, ids, below):
    folder, train_ids = city
    guess = np.where(train_ids == 255, 0, train_ids)
    stored = LABELS[guess] if ids == "label" else guess
    for image in ("bonn_000001_000019", "ulm_000002_000019"):
        write_label_map(tmp_path / "preds" / f"{image}{suffix}.png", stored, palette=False)
    inputs = Inputs(
        predictions=str(tmp_path / "preds"), cityscapes=str(folder / below), prediction_ids=ids
    )
    scored = evaluate(inputs, QUICK, jobs=2)
    assert all_right(scored.figures)
    assert scored.images == ["bonn_000001_000019", "ulm_000002_000019"]
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
    folder, train_ids = city
    guess = np.where(train_ids == 255, 0, train_ids)
    for image in ("bonn_000001_000019", "ulm_000002_000019"):
        write_label_map(tmp_path / "preds" / f"{image}.png", guess, palette=False)
    inputs = {"predictions": str(tmp_path / "preds"), "cityscapes": str(folder)}
    with pytest.raises(InputError, match=r"(?s)--prediction-ids label .*got 0.*are they train ids"):
        evaluate(Inputs(**inputs, prediction_ids="label"), QUICK)
    listed = tmp_path / "list.txt"
    listed.write_text("ulm_000002_000019_leftImg8bit\n")
    assert evaluate(Inputs(**inputs, image_list=str(listed)), QUICK).images == ["ulm_000002_000019"]


def test_cityscapes_files_that_do_not_fit(city, tmp_path):
    folder, train_ids = city
    inputs = {"predictions": str(tmp_path / "preds"), "cityscapes": str(folder)}
    guess = np.where(train_ids == 255, 0, train_ids)
    for image in ("bonn_000001_000019", "ulm_000002_000019"):
        write_label_map(tmp_path / "preds" / f"{image}.png", guess, palette=False)
    path = folder / "val/ulm/ulm_000002_000019_gtFine_instanceIds.png"
    write_label_map(path, np.full((16, 39), 7), palette=False)
    with pytest.raises(InputError, match=r"instanceIds\.png: height x width 16 x 39, but 16 x 40"):
        evaluate(Inputs(**inputs), QUICK)
    write_label_map(path, np.full((16, 40), 23), palette=False)
    with pytest.raises(InputError, match=r"only 0 of 480 pixels have the same label .* same image"):
        evaluate(Inputs(**inputs), QUICK)
    path.unlink()
    with pytest.raises(InputError, match=r"1 instance map\(s\) missing beside the label map:\n.*u"):
        evaluate(Inputs(**inputs), QUICK)
    with pytest.raises(ValueError, match=r"--cityscapes: no \*_gtFine_labelIds\.png in"):
        evaluate(Inputs(**{**inputs, "cityscapes": str(tmp_path / "preds")}), QUICK)
    with pytest.raises(FileNotFoundError):
        evaluate(Inputs(**{**inputs, "cityscapes": str(tmp_path / "gone")}), QUICK)


# ---- Stuff in folders of label maps ------------------------------------------------------------


def test_classes_without_background_in_a_folder(tmp_path):
    semantic = np.full((10, 12), 2, np.uint16)
    semantic[2:5, 2:5], semantic[2:5, 6:9], semantic[0] = 0, 300, 65535
    guess = np.where(semantic == 65535, 2, semantic)
    write_label_map(tmp_path / "truth" / "a.png", semantic)
    write_label_map(tmp_path / "preds" / "a.png", guess)
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(["cat", "dog", "sky", *(f"class {n}" for n in range(3, 301))]))
    inputs = {
        "predictions": str(tmp_path / "preds"),
        "semantic": str(tmp_path / "truth"),
        "classes": str(classes),
    }
    settings = Settings(samples=0, ignore_label=65535)
    with pytest.raises(ValueError, match=r"classes\.txt: no class is called 'background'.*'cat'"):
        evaluate(Inputs(**inputs), settings)
    scored = evaluate(Inputs(**inputs, stuff=("sky",)), settings)
    assert all_right(scored.figures)
    assert scored.figures["instances-cat"] == scored.figures["instances-class 300"] == 1
    assert scored.figures["instances"] == 2
    assert evaluate(Inputs(**inputs, stuff=()), settings).figures["instances"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"panoptic": "a.json"}, r"--panoptic: give the folder of the PNGs, too: a\.json DIR"),
        (
            {"panoptic": "a", "panoptic_maps": "b", "classes": "voc"},
            r"--classes goes with .*, not with --panoptic",
        ),
        ({"cityscapes": "a", "classes": "voc"}, r"--classes goes .* not with --cityscapes"),
        ({"cityscapes": "a", "prediction_ids": "trian"}, r"--prediction-ids: .*mean 'train'"),
        ({"semantic": "a", "prediction_ids": "label"}, r"--prediction-ids goes with --cityscapes"),
        ({"semantic": "a", "unannotated": "void"}, r"--unannotated goes with --dataset, not with"),
        (
            {"semantic": "a", "missing_instances": "void"},
            r"--missing-instances goes with --data",
        ),
    ],
)
def test_options_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        Inputs(predictions="x", **changes)
