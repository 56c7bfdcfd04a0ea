"""Whatever is wrong with the input is one error that lists every file, never a wrong mean."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.scoring import InputError, Inputs, Settings, evaluate, prepare
from d2_smallobj.scoring.pipeline import parse_shard


def run(dataset, **changes):
    return evaluate(Inputs(**{**dataset.options, **changes}), Settings(samples=0))


def png(dataset, kind, number):
    return getattr(dataset, kind) / f"image{number}.png"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def remove(kind, *numbers):
    return lambda dataset: [png(dataset, kind, number).unlink() for number in numbers]


def add_25_without_prediction(dataset):
    for folder in (dataset.semantic, dataset.instances):
        for index in range(25):
            write_label_map(folder / f"more{index:02d}.png", dataset.guesses[0])


def rename_all(dataset):
    for name in dataset.names:
        (dataset.preds / f"{name}.png").rename(dataset.preds / f"x{name}.png")


def resize(dataset):
    write_label_map(png(dataset, "preds", 1), dataset.guesses[3])
    np.save(dataset.preds / "image2.npy", dataset.guesses[0])
    png(dataset, "preds", 2).unlink()


def write_other_files(dataset):
    Image.new("RGB", (51, 40)).save(png(dataset, "preds", 1))
    png(dataset, "preds", 2).write_bytes(b"")
    png(dataset, "preds", 4).unlink()
    np.save(dataset.preds / "image4.npy", np.zeros((4, 40, 54), np.float32))


def swap_instances(dataset):
    png(dataset, "instances", 1).write_bytes(png(dataset, "instances", 2).read_bytes())


def add_npy(kind):
    return lambda dataset: np.save(getattr(dataset, kind) / "image1.npy", dataset.guesses[1])


def rename_unprintable(dataset):
    for kind in ("preds", "semantic", "instances"):
        png(dataset, kind, 1).rename(getattr(dataset, kind) / "im\nage.png")


@pytest.mark.parametrize(("change", "message"), [
    (remove("preds", 5, 2), r"^2 image\(s\) without a prediction:\n  image2\n  image5$"),
    (add_25_without_prediction,
     r"^25 image\(s\) without a prediction:\n(  more0\d\n){10}  and 15 more$"),
    (rename_all, r"(?s)7 image\(s\) without.*instead; do they belong.*:\n  ximage0, ximage1"),
    (resize,
     r"^2 prediction\(s\) of another height x width than the ground truth:\n"
     r"  \S+image1\.png: 40 x 53 instead of 40 x 51\n"
     r"  \S+image2\.npy: 40 x 50 instead of 40 x 52$"),
    (write_other_files,
     r"^3 unusable prediction\(s\):\n  \S+image1\.png: .*colour picture \(mode RGB\).*\n"
     r"  \S+image2\.png: corrupt.*\n  \S+image4\.npy: .*\(4, 40, 54\) of float32; of scores"),
    (swap_instances,
     r"^1 unusable ground-truth map\(s\):\n  \S+instances/image1\.png: height x width"
     r" 40 x 52, but 40 x 51 in \S+semantic/image1\.png; do the files belong .*\?$"),
    (remove("instances", 1),
     r"^1 image\(s\) without an instance map in \S+instances .*--list\):\n  image1$"),
    (add_npy("preds"), r"1 prediction\(s\) in two files each:\n  image1\.npy and image1\.png"),
    (add_npy("semantic"), r"share:\n  image1\.npy and image1\.png"),
    (rename_unprintable, r"unprintable characters:\n  'im\\nage'"),
])  # fmt: skip
def test_found_from_headers_alone(dataset, change, message):
    change(dataset)
    with pytest.raises(InputError, match=message):
        prepare(Inputs(**dataset.options))


def test_headers_and_pixels_are_listed_in_one_error(dataset):
    """Nobody should repair what one run finds only to be told of the rest by the next."""
    (dataset.preds / "image0.png").unlink()
    (dataset.preds / "image1.png").write_bytes(b"")
    truncate(dataset.preds / "image2.png")
    labels = dataset.guesses[3].copy()
    labels[0, 0] = 9
    write_label_map(dataset.preds / "image3.png", labels)
    truncate(dataset.instances / "image4.png")
    write_label_map(dataset.preds / "image5.png", dataset.guesses[4])
    for jobs in (1, 2):
        with pytest.raises(InputError) as caught:
            evaluate(Inputs(**dataset.options), Settings(samples=0), jobs=jobs)
        text = str(caught.value)
        for kind in (
            r"^1 image\(s\) without a prediction:\n  image0$",
            r"^2 unusable prediction\(s\):\n  \S+image1\.png: .*\n  \S+image2\.png: ",
            r"^1 image\(s\) whose labels do not fit .*:\n  \S+image3\.png",
            r"^1 unusable ground-truth map\(s\):\n  \S+instances/image4\.png: ",
            r"^1 prediction\(s\) of another height x width .*:\n  \S+image5\.png: 40 x 54 instead",
        ):
            assert re.search(kind, text, re.MULTILINE), kind
        assert len(text.splitlines()) == 11


def label_out_of_range(dataset):
    for number in (1, 4):
        labels = dataset.guesses[number].copy()
        labels[0, :3] = [9, 9, 255]
        write_label_map(png(dataset, "preds", number), labels)


def truncate_two(dataset):
    truncate(png(dataset, "preds", 1))
    truncate(png(dataset, "instances", 3))


def mix_classes(dataset):
    mixed = dataset.scenes[1][1].copy()
    mixed[20:25, 10:40] = 2
    write_label_map(png(dataset, "instances", 1), mixed)


@pytest.mark.parametrize(("change", "options", "message"), [
    (label_out_of_range, {},
     r"^2 image\(s\) whose labels do not fit the 4 classes \(--classes\), the ignore label 255.*\n"
     r"  \S+preds/image1\.png \(ground truth \S+semantic/image1\.png and \S+image1\.png\): "
     r"prediction must hold 0\.\.3 .*got 9 \(2 px\), 255 \(1 px\)\n  \S+image4\.png"),
    (truncate_two, {}, r"(?s)preds/image1\.png: corrupt.*instances/image3\.png"),
    (lambda _: None, {"classes": "2"},
     r"(?s)labels do not fit the 2 classes.*semantic must hold 0\.\.1"),
    (mix_classes, {},
     r"image1\.png \(ground truth \S+semantic/image1\.png and \S+instances/image1\.png\): .*"
     r"instance 2 lies on class 1 \(100 px\), class 2 \(145 px\)"),
])  # fmt: skip
def test_found_when_pixels_are_read(dataset, change, options, message):
    change(dataset)
    with pytest.raises(InputError, match=message):
        run(dataset, **options)


@pytest.mark.parametrize(("options", "message"), [
    ({"predictions": "nope"}, r"--predictions: no such folder or .*nope"),
    ({"semantic": "nope"}, r"--semantic: no such folder.*nope"),
    ({"instances": "classes.txt"}, r"--instances: no such .*classes\.txt"),
    ({"predictions": "empty"}, r"--predictions: no label map .*empty \(1 other"),
    ({"image_list": "nope.txt"}, r"nope\.txt"),
    ({"image_list": "unknown"},
     r"1 image\(s\) of --list without a semantic map in \S+semantic:\n  image9"),
    ({"image_list": "twice"}, r"line 2: image 'image1' is listed twice"),
    ({"image_list": "climbing"}, r"line 1: expected an image id"),
])  # fmt: skip
def test_paths_and_lists(dataset, tmp_path, options, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jpg").write_text("")
    (tmp_path / "unknown").write_text("image1\nimage9\n")
    (tmp_path / "twice").write_text("image1\nimage1\n")
    (tmp_path / "climbing").write_text("../image1\n")
    with pytest.raises((OSError, ValueError), match=message):
        run(dataset, **{name: str(tmp_path / path) for name, path in options.items()})


@pytest.mark.parametrize(("changes", "message"), [
    ({"semantic": None}, r"give one of --semantic, --coco-json, .*; got none"),
    ({"coco_json": "a.json"}, r"got --semantic and --coco-json$"),
    ({"category_map": "a.json"}, r"--category-map goes with --coco-json or --lvis-json"),
    ({"semantic": None, "dataset": "x"}, r"--instances goes with --semantic"),
    ({"semantic": None, "instances": None, "dataset": "x"}, r"not with --dataset"),
])  # fmt: skip
def test_options_that_do_not_go_together(dataset, changes, message):
    with pytest.raises(ValueError, match=message):
        Inputs(**{**dataset.options, **changes})


@pytest.mark.parametrize(("content", "options", "message"), [
    (b"", {"classes": "vocc"}, r"--classes: neither 'voc', .*did you mean 'voc'"),
    (b"", {"classes": "0"}, r"--classes: the number counts background.* got 0"),
    (b"background\ncat\n\ndog\n", {}, r"classes\.txt, line 3: empty"),
    (b"background\ncat\ndog\ncat\n", {}, r"line 4: .*'cat'.* line 2"),
    (b"background\n\xff\xfe\n", {}, r"a list of class names is UTF-8 text"),
    (b"\n", {}, r"no class name in it"),
    # A list without background may lack it, or have none: asked, since it cannot be known.
    (b"cat\ndog\nbird\nhorse\n", {}, r"no class is called 'background'.*--stuff NAME.*--no-st"),
    (b"cat\ndog\n", {"stuff": ("cats",)}, r"--stuff: unknown value 'cats'.*mean 'cat'\?"),
])  # fmt: skip
def test_class_names(dataset, content, options, message):
    dataset.classes.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(dataset, **options)


def test_a_named_stuff_class_takes_the_place_of_background(dataset):
    dataset.classes.write_text("cat\ndog\nbird\nhorse\n")
    assert run(dataset, stuff=("cat",)).options["stuff"] == [0]


def test_settings_are_checked(dataset):
    for options, message in (
        ({"mode": "oficial"}, r"mode: unknown value 'oficial'.*'official'"),
        ({"samples": -1}, r"must be >= 0, got -1 and 0"),
        ({"worst": 101}, r"worst must be a whole number .* got 101"),
        ({"ignore_label": 2}, r"ignore_label must lie above the classes 0\.\.3, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(Inputs(**dataset.options), Settings(**options))
    for text in ("0/3", "4/3", "1/0", "1", "a/b", "-1/3"):
        with pytest.raises(ValueError, match=rf"--shard must be i/n .*got '{text}'"):
            parse_shard(text)


def spoil(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def first(**changes):
    return lambda entries: [{**entries[0], **changes}, *entries[1:]]


SIZE = {"size": [40, 50], "counts": "abc"}
MALFORMED = [
    ({"category_id": 1}, "lacks file_name, segmentation"),
    ({"file_name": ".."}, "file_name must name a file, got '..'"),
    ({"file_name": 7}, "file_name must name a file, got 7"),
    ({"category_id": "cat"}, "category_id must be a label >= 0, got 'cat'"),
    ({"category_id": -1}, "category_id must be a label >= 0, got -1"),
    ({"segmentation": [[1, 2]]}, "segmentation must be run lengths"),
    ({"segmentation": {"size": [40, 50]}}, "segmentation must be run lengths"),
]


def test_malformed_entries_are_one_error(dataset, sem_seg_json):
    def change(entries):
        changed = [{**entry, **wrong} for entry, (wrong, _) in zip(entries, MALFORMED)]
        return [MALFORMED[0][0], *changed[1:], 5, *entries[len(changed) :]]

    spoil(sem_seg_json, change)
    with pytest.raises(InputError) as caught:
        prepare(Inputs(**{**dataset.options, "predictions": str(sem_seg_json)}))
    first_line, *lines = str(caught.value).splitlines()
    assert re.match(r"8 malformed entries of \S+sem_seg_predictions\.json", first_line)
    messages = [message for _, message in MALFORMED] + ["expected an object, got int"]
    for number, (line, message) in enumerate(zip(lines, messages)):
        assert line.startswith(f"  entry {number}: {message}")


@pytest.mark.parametrize(("change", "message"), [
    (first(file_name="/elsewhere/image0.jpg"),
     r"share their name .*:\n  /elsewhere/image0\.jpg and /data/JPEGImages/image0\.jpg"),
    (lambda e: [x for x in e if "image3" not in x["file_name"]], r"without a pred.*\n  image3"),
    (first(segmentation={**SIZE, "size": [40, 99]}), r"image0: 40 x 99 instead of 40 x 50"),
    (lambda e: e[1:], r"prediction of image0: .*exactly one class; \d+ px have none, 0 px"),
    (lambda e: [e[0], *e], r"exactly one class; 0 px have none, \d+ px have several"),
    (first(segmentation=SIZE), r"prediction of image0, class 0: .*run lengths"),
    (first(category_id=4), r"prediction must hold 0\.\.3 .*got 4"),
])  # fmt: skip
def test_json_predictions(dataset, sem_seg_json, change, message):
    spoil(sem_seg_json, change)
    with pytest.raises(InputError, match=message):
        run(dataset, predictions=str(sem_seg_json))


def test_json_names_that_climb_lead_nowhere(dataset, sem_seg_json):
    expected = run(dataset, predictions=str(sem_seg_json)).figures
    for prefix in ("../../etc/", "C:\\data\\", "/"):
        text = sem_seg_json.read_text()
        text = text.replace("/data/JPEGImages/", json.dumps(prefix)[1:-1])
        (sem_seg_json.parent / "climbing.json").write_text(text)
        found = run(dataset, predictions=str(sem_seg_json.parent / "climbing.json")).figures
        assert repr(found) == repr(expected)


@pytest.mark.parametrize(("content", "message"), [
    (b'[{"file_name": ', r"preds\.json: not a complete JSON file"),
    (b"[]", r"non-empty JSON list of file_name"),
    (b'{"a": 1}', r"non-empty JSON list .*got dict"),
    (b"\x00\xff", r"not a complete JSON file"),
])  # fmt: skip
def test_json_files_that_are_none(dataset, content, message):
    path = dataset.folder / "preds.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        run(dataset, predictions=str(path))
