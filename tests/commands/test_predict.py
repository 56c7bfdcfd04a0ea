"""``tools/predict.py``: of a data set, of any files and folders, as PNGs and overlays."""

from __future__ import annotations

import itertools
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from d2_smallobj import TwoTaskTrainer, host
from d2_smallobj.annotations.label_maps import read_label_map, voc_palette
from d2_smallobj.engine import build_config
from d2_smallobj.engine.prediction import IMAGE_SUFFIXES, find_images, output_path
from d2_smallobj.report.drawing import blend_labels


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory):
    """The path of an untrained net."""
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    cfg = build_config(tiny.config_file, tiny.as_options(tiny.options))
    torch.manual_seed(0)
    torch.save({"model": TwoTaskTrainer.build_model(cfg).state_dict()}, path)
    return path


@pytest.fixture
def predict(train_server, tiny, demo_root, weights, tmp_path):
    """Function: the command into ``tmp_path/out``."""

    def run(*arguments, root=demo_root, **options):
        options = tiny.as_options(tiny.options, {"MODEL.WEIGHTS": weights}, options)
        return train_server.ask(
            tiny.repository / "tools" / "predict.py",
            *("--config-file", tiny.config_file, *arguments),
            *("--output", tmp_path / "out", *options),
            env={"DETECTRON2_DATASETS": str(root)},
        )

    return run


@pytest.fixture
def photos(tmp_path, demo_root):
    """A folder of three images in two formats, one in a subfolder, and files that are none."""
    source = sorted((demo_root / "smallobj_demo/VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(source[0], folder / "a.b.jpg")
    Image.open(source[1]).crop((0, 0, 50, 34)).save(folder / "c.PNG")
    shutil.copy(source[2], folder / "sub" / "d.jpeg")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_text("no image")
    return folder


def written(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_label_maps_are_what_the_model_says(predict, weights, tmp_path):
    model = torch.load(weights, weights_only=True)
    # A head that always answers class 3, whatever it sees.
    for name, value in model["model"].items():
        if "sem_seg_head" in name:
            value.zero_()
            if name.endswith("bias"):
                value[3] = 1.0
    torch.save(model, tmp_path / "model.pth")
    result = predict(**{"MODEL.WEIGHTS": tmp_path / "model.pth"})
    assert result.code == 0, result.stderr
    assert written(tmp_path / "out") == [f"val_{number:05d}.png" for number in range(4)]
    for file in (tmp_path / "out").iterdir():
        labels = read_label_map(file)
        assert labels.shape == (64, 64)
        assert np.unique(labels).tolist() == [3]
        with Image.open(file) as image:
            assert image.mode == "P"
            assert image.getpalette() == voc_palette().ravel().tolist()
    assert "wrote 4 label maps" in result.stdout


def test_files_and_folders(predict, photos, tmp_path):
    other = tmp_path / "other.jpg"
    shutil.copy(photos / "a.b.jpg", other)
    result = predict("--input", photos, other, "--overlay")
    assert result.code == 0, result.stderr
    assert "wrote 4 label maps" in result.stdout
    names, out = ["a.b", "c", "other", "sub/d"], tmp_path / "out"
    expected = [f"{name}.png" for name in names] + [f"overlay/{name}.jpg" for name in names]
    assert written(out) == sorted(expected)
    assert np.array_equal(*(read_label_map(out / f"{name}.png") for name in ("a.b", "other")))
    labels = read_label_map(out / "c.png")
    assert labels.shape == (34, 50)
    overlay = np.array(Image.open(out / "overlay" / "c.jpg"))
    image = np.array(Image.open(photos / "c.PNG"))
    assert np.abs(overlay.astype(int) - blend_labels(image, labels)).mean() < 8
    assert np.abs(overlay.astype(int) - image).mean() > 20


def test_scales_flip_and_crf_change_the_labels(predict, photos, tmp_path):
    scales = {"SMALLOBJ.TEST.SCALES": "[0.5, 1]", "SMALLOBJ.TEST.FLIP": True}
    maps = []
    for arguments, options in (((), {}), ((), scales), (("--crf",), {})):
        result = predict("--input", photos / "c.PNG", *arguments, **options)
        assert result.code == 0, result.stderr
        maps.append(read_label_map(tmp_path / "out" / "c.png"))
    for one, other in itertools.combinations(maps, 2):
        assert (one != other).any()


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_named_and_the_rest_is_done(predict, photos, tmp_path, workers):
    (photos / "torn.jpg").write_bytes((photos / "a.b.jpg").read_bytes()[:300])
    (photos / "empty.png").touch()
    os.mkfifo(photos / "pipe.jpg")  # nobody writes into it
    os.symlink("/dev/zero", photos / "zero.jpg")
    inputs = ("--input", photos, photos / "notes.txt")
    result = predict(*inputs, **{"DATALOADER.NUM_WORKERS": workers})
    assert result.code == 1
    assert "Traceback" not in result.stderr
    assert "wrote 3 label maps" in result.stdout
    assert written(tmp_path / "out") == ["a.b.png", "c.png", "sub/d.png"]
    message = result.stderr.partition("error: ")[2].splitlines()
    assert message[0] == "5 of 8 images could not be read:"
    names = ("empty.png", "pipe.jpg", "torn.jpg", "zero.jpg", "notes.txt")
    for line, name in zip(message[1:], names):
        assert re.match(rf"  {re.escape(str(photos / name))}: the image cannot be read: .", line)
    assert len(message) == 6


def test_a_missing_checkpoint_is_one_line(predict, tmp_path):
    for path, told in (("/nowhere/a.pth", "/nowhere/a.pth"), ("", "must name a checkpoint")):
        result = predict(**{"MODEL.WEIGHTS": path})
        assert result.code == 1
        assert told in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_one_line(predict, weights, demo_root, tmp_path):
    cut, data = tmp_path / "cut.pth", tmp_path / "data"
    cut.write_bytes(weights.read_bytes()[:-100])
    shutil.copytree(demo_root, data)
    names = next(data.rglob("Segmentation/val.txt"))
    names.write_text("val_00000\nval_99999\n")
    # detectron2's default, which the embedded host has not.
    absent = "GeneralizedRCNN" if host().name == "embedded" else "NoNet"
    for options, told in (
        ({"MODEL.WEIGHTS": cut}, r"cut\.pth cannot be read as a checkpoint .*corrupt"),
        ({"MODEL.WEIGHTS": tmp_path}, f"checkpoint {tmp_path} does not exist"),
        ({"MODEL.RESNETS.RES2_OUT_CHANNELS": 16}, "holds another ResNet than the model's"),
        ({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9}, "a head for 7 classes, .*NUM_CLASSES is 9"),
        ({"MODEL.META_ARCHITECTURE": absent}, f"unknown value '{absent}'"),
        ({"SMALLOBJ.TEST.SCALES": "[0]"}, r"SMALLOBJ\.TEST\.SCALES must be"),
        ({}, r"val_99999\.jpg"),
    ):
        result = predict(root=demo_root if options else data, **options)
        assert result.code == 1
        assert re.search(told, result.stderr.partition("error: ")[2]), told
        assert "Traceback" not in result.stderr + result.stdout
        assert not (tmp_path / "out").exists()


def test_found_images(photos, tmp_path):
    dicts = find_images([photos, photos / "c.PNG"], tmp_path / "out")
    assert {x["image_id"]: x["file_name"] for x in dicts} == {
        "a.b": str(photos / "a.b.jpg"),
        "c": str(photos / "c.PNG"),
        "sub/d": str(photos / "sub" / "d.jpeg"),
    }
    # Links to folders are not followed.
    os.symlink(photos, photos / "sub" / "loop")
    assert len(find_images([photos], tmp_path / "out")) == 3

    (tmp_path / "bare").mkdir()
    (tmp_path / "double").mkdir()
    for name in ("c.PNG", "c.jpg"):
        shutil.copy(photos / "c.PNG", tmp_path / "double" / name)
    for folder, output, told in (
        ("nothing", "out", r"1 input path\(s\) do not exist:\n  .*nothing"),
        ("bare", "out", rf"no image \({re.escape(IMAGE_SUFFIXES[0])}, .*bare"),
        ("double", "out", r"1 pair.*one name:\n  .*c\.(PNG|jpg) and .*c\.(PNG|jpg)\n"),
        ("photos", "photos/out", r"output folder .*out lies in the input folder .*photos"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=told):
            find_images([tmp_path / folder], tmp_path / output)


def test_names_do_not_lead_out_of_the_folder(tmp_path):
    assert output_path(tmp_path, "a/b.c", ".png") == tmp_path / "a" / "b.c.png"
    for name in ("../x", "a/../../x", "/etc/x", "", ".."):
        with pytest.raises(ValueError, match="its name leads out of the folder"):
            output_path(tmp_path, name, ".png")


def test_overlays_keep_the_background():
    image = np.full((2, 3, 3), 100, np.uint8)
    labels = np.array([[0, 1, 1], [0, 0, 15]])
    blended = blend_labels(image, labels, opacity=0.5)
    assert (blended[labels == 0] == 100).all()
    np.testing.assert_allclose(blended[0, 1], (100 + voc_palette()[1].astype(int)) / 2, atol=1)
    with pytest.raises(ValueError, match=r"the same size, got \(2, 3, 3\) and \(3, 2\)"):
        blend_labels(image, labels.T)
