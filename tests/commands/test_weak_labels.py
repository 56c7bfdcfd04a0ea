"""``smallobj prepare weak-labels``: labels of boxes and of image labels."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from d2_smallobj.annotations.label_maps import read_label_map

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
    # Another threshold needs neither training nor maps; other scales need maps; a seed needs all.
    code, _, error = weak("cam", *options, "--threshold", 0.5)
    assert code == 1
    assert "(cam) with another threshold: replace them with --force" in error
    for changed, written in ((("--threshold", 0.5), 0), (("--scales", 1), 12), (("--seed", 1), 12)):
        out = weak("cam", *options, *changed, "--no-crf", "--force")[1]
        assert f"{written} activation maps written" in out
        assert "12 label maps written" in out
        assert (os.stat(checkpoint).st_mtime_ns == made) == (changed[0] != "--seed")


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
