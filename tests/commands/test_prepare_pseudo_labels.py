"""datasets/prepare_pseudo_labels.py."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.demo.dataset import make_demo

SCRIPT = "prepare_pseudo_labels.py"


@pytest.fixture
def root(tmp_path, realdata):
    """Six real VOC images as training set, with their true maps."""
    folder = tmp_path / "data/VOCdevkit/VOC2012"
    source = realdata / "voc/VOC2012"
    ids = (source / "ImageSets/Segmentation/val.txt").read_text().split()[:6]
    for name, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (folder / name).mkdir(parents=True)
        for image in ids:
            shutil.copy(source / f"{name}/{image}.{suffix}", folder / name)
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/trainaug.txt").write_text("\n".join(ids))
    (folder / "SegmentationObject").mkdir()
    for image in ids[:4]:  # the images of SBD have no instance maps
        shutil.copy(source / f"SegmentationObject/{image}.png", folder / "SegmentationObject")
    return tmp_path / "data"


@pytest.fixture
def written(root, tmp_path):
    """A method's labels: the true ones, without void."""
    folder = tmp_path / "sem_seg"
    folder.mkdir()
    for path in (root / "VOCdevkit/VOC2012/SegmentationClass").iterdir():
        labels = read_label_map(path)
        Image.fromarray(np.where(labels == 255, 0, labels)).save(folder / path.name)
    return folder


def test_labels_and_their_summary(command, root, written):
    status, out, err = command(SCRIPT, "irn", written, "--root", root)
    assert status == 0, err
    folder = root / "VOCdevkit/VOC2012/PseudoLabels"
    assert out.startswith(f"6 label maps written, 0 kept in {folder}/irn; 0 other")
    assert "irn against the true instances of 4 images, percent: mIoU 100.00" in out
    assert "to train on them: DATASETS.TRAIN \"('voc_2012_trainaug_irn',)\"" in out
    names = {path.name for path in folder.iterdir()}
    assert names == {"irn", "irn.json", "irn.md", "irn.csv", "irn.png"}
    assert (folder / "irn.md").read_text() in out
    with open(folder / "irn.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["missed"] for row in rows} == {"0"}
    shutil.rmtree(root / "VOCdevkit/VOC2012/SegmentationObject")
    status, out, _ = command(SCRIPT, "irn", written, "--root", root)
    assert status == 0
    assert "no summary: none of the images has a map in SegmentationObject" in out


def test_another_name_and_check(command, root, written):
    options = ("--name", "mine", "--root", root)
    status, out, _ = command(SCRIPT, "other", written, *options, "--no-summary")
    folder = root / "VOCdevkit/VOC2012/PseudoLabels/mine"
    assert status == 0
    assert f"voc_2012_trainaug@{folder}" in out
    assert not folder.with_suffix(".csv").exists()
    path = next(folder.iterdir())
    Image.new("RGB", (5, 5)).save(path)
    status, _, err = command(SCRIPT, "other", *options, "--check")
    assert status == 1
    assert "error: 1 pseudo label(s) that cannot be used" in err
    assert path.name in err


def test_the_demo(command, tmp_path):
    make_demo(tmp_path / "smallobj_demo", num_train=4, num_val=1, size=96)
    before = sorted((tmp_path / "smallobj_demo").rglob("*"))
    options = ("--name", "demo", "--root", tmp_path, "--check", "--dataset", "demo")
    status, out, _ = command(SCRIPT, "other", *options)
    assert status == 0
    assert "4 label maps in" in out
    assert "demo against the true instances of 4 images" in out
    assert sorted((tmp_path / "smallobj_demo").rglob("*")) == before
    assert (tmp_path / "demo_labels_demo.png").is_file()


def test_the_methods_own_threshold(command, root, tmp_path):
    folder = tmp_path / "cam"
    folder.mkdir()
    for path in (root / "VOCdevkit/VOC2012/SegmentationClass").iterdir():
        shape = read_label_map(path).shape
        np.save(folder / f"{path.stem}.npy", {4: np.full(shape, 0.3, np.float32)})
    for method, expected in (("irn", 5), ("edam", 0)):
        status, _, err = command(SCRIPT, method, folder, "--root", root, "--no-summary")
        assert status == 0, err
        prepared = root / f"VOCdevkit/VOC2012/PseudoLabels/{method}"
        assert {int(read_label_map(path).max()) for path in prepared.iterdir()} == {expected}


def test_clip_es_is_refined_by_the_crf(command, root, tmp_path, monkeypatch):
    folder, seen = tmp_path / "cam_out", []

    def refine(crf, scores, image):
        seen.append(image.shape)
        return scores

    monkeypatch.setattr("d2_smallobj.postprocessing.DenseCrf.__call__", refine)
    folder.mkdir()
    for path in (root / "VOCdevkit/VOC2012/SegmentationClass").iterdir():
        maps = np.full((1, *read_label_map(path).shape), 0.97, np.float16)
        maps[0, 0] = 0.6
        np.save(folder / f"{path.stem}.npy", {"keys": np.array([4]), "attn_highres": maps})
    status, out, err = command(SCRIPT, "clip_es", folder, "--root", root, "--no-summary")
    assert status == 0, err
    prepared = root / "VOCdevkit/VOC2012/PseudoLabels/clip_es"
    assert f"voc_2012_trainaug@{prepared}" in out
    maps = [read_label_map(path) for path in sorted(prepared.iterdir())]
    assert sorted(seen) == sorted((*labels.shape, 3) for labels in maps)
    assert {(int(x[0].max()), int(x[1:].min())) for x in maps} == {(255, 5)}


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("irm", "{written}"), 2, "invalid choice: 'irm'"),
        (("irn",), 2, "give the folders that the method wrote, or --check alone"),
        (("irn", "{written}", "--check"), 2, "or --check alone"),
        (("other", "{written}"), 2, "--name is needed for a method without one"),
        (("irn", "{written}", "--jobs", "0"), 2, "--jobs: expected an integer >= 1, got '0'"),
        (("bana", "{written}"), 1, "error: bana: expected 2 folder(s) (Y_crf, Y_ret), got 1"),
        (("irn", "{written}/nowhere"), 1, "error: data set 'irn pseudo labels': 1 path(s)"),
        (("irn", "{written}", "--dataset", "coco_2014"), 1, "instances_train2014.json"),
        (("irn", "{written}", "--name", "../x"), 1, "got '../x'"),
        (("irn", "{written}", "--threshold", "nan"), 2, "expected a number, got 'nan'"),
    ],
)
def test_wrong_use(command, root, written, arguments, status, told):
    filled = [a.replace("{written}", str(written)) for a in arguments]
    found, _, err = command(SCRIPT, *filled, "--root", root)
    assert found == status
    assert told in err
    assert not (root / "VOCdevkit/VOC2012/PseudoLabels").exists()
