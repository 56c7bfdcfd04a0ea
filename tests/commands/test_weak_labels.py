"""``smallobj prepare weak-labels``: labels of boxes and of image labels."""

from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.label_maps import read_label_map, write_label_map

pytest.importorskip("torch")

from tiny_runs import CONFIG, TINY, as_options

SET = "smallobj_demo_train_gt"


@pytest.fixture
def weak(demo_root, registration, monkeypatch, capfd, tmp_path):
    """``weak(kind, *arguments)``: status, stdout, stderr of a run on the demo's scenes."""
    from d2_smallobj.commands import smallobj
    from d2_smallobj.utils.opencv import cv2

    registration(demo_root)

    def run(kind, *arguments, name=SET):
        given = ["--dataset", name, "--output", tmp_path / "labels", *arguments]
        if kind == "cam":
            given = ["--config-file", CONFIG, "--crop", "48", "--batch-size", "4", *given]
            given += as_options(TINY)
        code, threads = 0, cv2.getNumThreads()
        try:
            smallobj.main(["prepare", "weak-labels", kind, *map(str, given)])
        except SystemExit as stop:
            code = stop.code
        finally:
            cv2.setNumThreads(threads)
        out, error = capfd.readouterr()
        return (1, out, f"{error}{code}") if isinstance(code, str) else (code or 0, out, error)

    return run


def test_boxes(weak, tmp_path):
    code, out, error = weak("boxes")
    assert code == 0, error
    labels = tmp_path / "labels"
    assert f"12 label maps written, 0 kept in {labels}; 0 image(s) have no label" in out
    assert "labels against the true instances of 12 images, percent: mIoU " in out
    assert "the best single label for all pixels (background) has mIoU " in out
    assert {p.name for p in tmp_path.iterdir()} == {"labels"} | {
        f"labels.{suffix}" for suffix in ("json", "md", "csv", "png")
    }
    assert json.loads((tmp_path / "labels.json").read_text())["format"] == "boxes"
    assert "0 label maps written, 12 kept" in weak("boxes", "--no-summary")[1]
    code, _, error = weak("boxes", "--refine", "grabcut")
    assert code == 1
    told = f"labels that were made from {SET} (boxes) with another refine: replace them with"
    assert told in error
    before = {p.name: read_label_map(p) for p in labels.iterdir()}
    assert (
        "12 label maps written"
        in weak("boxes", "--refine", "grabcut", "--force", "--no-summary")[1]
    )
    assert any((read_label_map(labels / name) != x).any() for name, x in before.items())


@pytest.mark.slow
def test_cam(weak, tmp_path):
    options = ("--iterations", 3, "--scales", 1, 0.5)
    code, out, error = weak("cam", *options)
    assert code == 0, error
    assert "classifier: 100%" in error
    assert "12 activation maps written, 0 kept" in out
    assert "percent: mIoU " in out
    maps = tmp_path / "labels_activations"
    classes = json.loads((maps / "classes.json").read_text())
    for name, numbers in classes.items():
        stored = np.load(maps / f"{name}.npy", allow_pickle=False)
        assert stored.shape == (len(numbers), 16, 16)
        assert stored.max() <= 1
        shown = np.unique(read_label_map(tmp_path / "labels" / f"{name}.png"))
        assert set(shown.tolist()) <= {0, *numbers}
    # Started again after a kill: what is there is kept.
    checkpoint = tmp_path / "labels_classifier.pth"
    made = os.stat(checkpoint).st_mtime_ns
    (maps / f"{name}.npy").unlink()
    (tmp_path / "labels" / f"{name}.png").unlink()
    options += ("--no-summary",)
    out = weak("cam", *options)[1]
    assert "1 activation maps written, 11 kept" in out
    assert "1 label maps written, 11 kept" in out
    # Another threshold needs neither training nor maps; another seed needs both.
    code, _, error = weak("cam", *options, "--threshold", 0.5)
    assert code == 1
    assert "(cam) with another threshold: replace them with --force" in error
    for changed, written in ((("--threshold", 0.5), 0), (("--scales", 1, "--seed", 1), 12)):
        out = weak("cam", *options, *changed, "--no-crf", "--force")[1]
        assert f"{written} activation maps written" in out
        assert "12 label maps written" in out
        assert (os.stat(checkpoint).st_mtime_ns == made) == (written == 0)


@pytest.mark.parametrize(
    ("kind", "arguments", "status", "told"),
    [
        ("boxes", ("--refine", "grab"), 2, "invalid choice: 'grab'"),
        ("cam", ("--threshold", "1"), 2, "--threshold: expected a number >= 0 and < 1, got '1'"),
        ("cam", ("--scales", "0"), 2, "--scales: expected a number > 0, got '0'"),
        ("cam", ("--iterations", "0"), 2, "expected an integer >= 1, got '0'"),
        ("cam", ("MODEL.WEIGHTS", "{gone}.pth"), 1, "error: checkpoint"),
        ("boxes", ("{name}", "coco_2017_train_81_gt"), 1, "instances_train2017.json"),
        ("boxes", ("{name}", "nothing"), 1, "error: DATASETS: unknown value 'nothing'"),
    ],
)
def test_wrong_use(weak, tmp_path, kind, arguments, status, told):
    name = arguments[1] if arguments[0] == "{name}" else SET
    code, _, error = weak(kind, *(() if name != SET else arguments), name=name)
    assert code == status, error
    assert told in error
    assert not (tmp_path / "labels").exists()


# ---- A user's own photographs --------------------------------------------------------------------

COLOURS = {1: (220, 40, 40), 2: (40, 70, 220)}


def _write_photographs(folder, change=None):
    """Twelve JPEGs with a red or a blue square on grey, and their JSON: paths of both."""
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number in range(12):
        rng = np.random.default_rng(number)
        pixels = rng.integers(90, 130, (48, 64, 3), np.uint8)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 48, "width": 64})
        for c in [(1,), (2,), (1, 2), ()][number % 4]:
            left, top = 4 + 32 * (c - 1), 10 + number
            pixels[top : top + 20, left : left + 20] = COLOURS[c]
            outline = [left, top, left + 20, top, left + 20, top + 20, left, top + 20]
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": number, "category_id": c},
                    **{"bbox": [left, top, 20, 20], "area": 400, "iscrowd": 0},
                    "segmentation": [outline],
                }
            )
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
    categories = [{"id": 1, "name": "apple"}, {"id": 2, "name": "plum"}]
    data = {"images": images, "categories": categories, "annotations": annotations}
    if change is not None:
        change(data)
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(data))
    return f"coco_json@{path}@{folder}"


def _labels_only(data):
    for entry in data["annotations"]:
        for key in ("bbox", "segmentation", "area"):
            entry.pop(key)


@pytest.fixture
def loggers():
    """Takes the handlers away again that a training in this process adds."""
    names = ("d2_smallobj", "detectron2", "fvcore")
    before = {name: list(logging.getLogger(name).handlers) for name in names}
    yield
    for name, handlers in before.items():
        logging.getLogger(name).handlers[:] = handlers


@pytest.mark.usefixtures("loggers")
def test_from_image_labels_to_a_scored_net_in_three_commands(weak, tmp_path, monkeypatch, capfd):
    from d2_smallobj.commands import smallobj

    monkeypatch.setenv("D2_SMALLOBJ_CACHE", str(tmp_path / "cache"))
    train = _write_photographs(tmp_path / "train", _labels_only)
    val = _write_photographs(tmp_path / "val")
    code, out, error = weak(
        "cam", "--iterations", 30, "--learning-rate", 0.02, "--no-crf", name=train
    )
    assert code == 0, error
    assert "3 image(s) have no label, their maps are background" in out
    assert "no summary: the data set has no true masks to compare with" in out
    options = as_options(
        TINY,
        {
            "DATASETS.TRAIN": f"('{train},labels={tmp_path / 'labels'}',)",
            "DATASETS.TEST": f"('{val}',)",
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
            "OUTPUT_DIR": tmp_path / "net",
        },
    )
    smallobj.main(["train", "--config-file", str(CONFIG), *options])
    shown = "".join(capfd.readouterr())
    assert "IA-mIoU_S" in shown
    assert "eta" in shown
    weights = ["MODEL.WEIGHTS", str(tmp_path / "net" / "model_final.pth")]
    predictions = ["--output", str(tmp_path / "predictions")]
    smallobj.main(["predict", "--config-file", str(CONFIG), *predictions, *options, *weights])
    assert "wrote 12 label maps" in capfd.readouterr().out


def test_boxes_of_ones_own_file(weak, tmp_path, monkeypatch):
    monkeypatch.setenv("D2_SMALLOBJ_CACHE", str(tmp_path / "cache"))
    name = _write_photographs(tmp_path / "boxes")
    code, out, error = weak("boxes", name=name)
    assert code == 0, error
    assert "percent: mIoU 100.00" in out  # the objects fill their boxes


def _without_a_box(data):
    for key in ("bbox", "segmentation"):
        data["annotations"][3].pop(key)


def _another_size(data):
    data["images"][5]["width"] = 65


@pytest.mark.parametrize(
    ("kind", "change", "ending", "told"),
    [
        ("boxes", _labels_only, "", "it has no boxes (nor instance maps to derive them from)"),
        ("boxes", _without_a_box, "", "has no boxes"),
        ("cam", _another_size, "", "5.jpg: height x width is 48 x 64, its data set says 48 x 65"),
        ("cam", None, ":apple", "has one class: make labels for all of"),
        ("boxes", None, ",labels={folder}", "has label maps that are no ground truth"),
        ("cam", "damage", "", "1 image(s) of "),
    ],
)
def test_bad_photographs(weak, tmp_path, monkeypatch, kind, change, ending, told):
    monkeypatch.setenv("D2_SMALLOBJ_CACHE", str(tmp_path / "cache"))
    name = _write_photographs(tmp_path / "own", change if callable(change) else None)
    if change == "damage":
        (tmp_path / "own" / "7.jpg").write_bytes(b"no picture")
    folder = tmp_path / "others"
    folder.mkdir()
    for number in range(12 if ending.startswith(",") else 0):
        write_label_map(folder / f"{number}.png", np.zeros((48, 64), np.uint8))
    code, _, error = weak(kind, name=name + ending.format(folder=folder))
    assert code == 1, error
    assert "error: " in error
    assert told in error
    assert not (tmp_path / "labels").exists()
    assert not (tmp_path / "labels.json").exists()
