"""datasets/prepare_coco.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest


@pytest.fixture
def root(tmp_path, realdata):
    path = tmp_path / "coco/annotations/instances_val2017.json"
    path.parent.mkdir(parents=True)
    shutil.copy(realdata / "coco/tinycoco50_val2017.json", path)
    content = json.loads(path.read_text())
    content["images"] = content["images"][:4]
    known = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in known]
    path.write_text(json.dumps(content))
    return tmp_path / "coco"


def test_as_a_user_runs_it(root, repository):
    done = subprocess.run(
        [
            *(sys.executable, repository / "datasets/prepare_coco.py", "val2017"),
            *("--root", root, "--painting", "area", "--jobs", "2"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("val2017: maps of 4 images written, of 0 kept, in ")
    assert len(list((root / "SegmentationClass81_area/val2017").iterdir())) == 4
    assert len(list((root / "SegmentationObject81_area/val2017").iterdir())) == 4


def test_again_and_by_force(command, root):
    status, out, _ = command("prepare_coco.py", "val2017", "--root", root)
    assert (status, "maps of 4 images written" in out) == (0, True)
    status, out, _ = command("prepare_coco.py", "val2017", "--root", root)
    assert (status, "maps of 0 images written, of 4 kept" in out) == (0, True)
    (root / "SegmentationClass81/val2017.json").unlink()
    status, _, err = command("prepare_coco.py", "val2017", "--root", root)
    assert status == 1
    assert "error: " in err
    assert "--force" in err
    status, out, _ = command("prepare_coco.py", "val2017", "--root", root, "--force")
    assert (status, "maps of 4 images written" in out) == (0, True)


def test_the_default_root(command, root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root.parent))
    assert command("prepare_coco.py", "val2017")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("train2014",), 1, "instances_train2014.json"),
        (("val2018",), 2, "invalid choice: 'val2018'"),
        (("val2017", "--jobs", "0"), 2, "--jobs: expected an integer >= 1, got '0'"),
        ((), 2, "the following arguments are required"),
    ],
)
def test_wrong_use(command, root, arguments, status, told):
    found, _, err = command("prepare_coco.py", *arguments, "--root", root)
    assert found == status
    assert told in err
    assert not (root / "SegmentationClass81").exists()
