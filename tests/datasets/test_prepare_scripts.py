"""The data-set commands, run as a user does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.label_maps import read_label_map


@pytest.fixture
def run(repository, tmp_path):
    """Run a script of datasets/ in an empty folder; returns the finished process."""

    def run_script(name, *arguments, **environment):
        return subprocess.run(
            [sys.executable, str(repository / "datasets" / name), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run_script


TINY = ("--num-train", 3, "--num-val", 2, "--size", 96)


def test_demo_in_the_default_place(run, tmp_path):
    done = run("prepare_demo.py", *TINY, DETECTRON2_DATASETS=str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    assert "3 + 2 scenes at" in done.stdout
    assert (tmp_path / "data/smallobj_demo/demo.json").is_file()


def test_demo_with_other_options(run, tmp_path):
    root = tmp_path / "demo"
    assert run("prepare_demo.py", "--root", root, *TINY).returncode == 0
    refused = run("prepare_demo.py", "--root", root, *TINY, "--seed", 3)
    assert refused.returncode == 2
    assert "prepare_demo: " in refused.stderr
    assert "--force" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run("prepare_demo.py", "--root", root, *TINY, "--seed", 3, "--force").returncode == 0


def test_demo_with_a_wrong_option(run, tmp_path):
    done = run("prepare_demo.py", "--root", tmp_path / "demo", "--size", 8)
    assert done.returncode == 2
    assert done.stderr.strip() == "prepare_demo: size: must be in 64..1024, got 8"


def test_coco_maps(run, realdata, tmp_path):
    path = tmp_path / "coco/annotations/instances_val2017.json"
    path.parent.mkdir(parents=True)
    shutil.copy(realdata / "coco/tinycoco50_val2017.json", path)
    done = run("prepare_coco.py", "val2017", "--root", tmp_path / "coco")
    assert done.returncode == 0, done.stderr
    found = InstanceAnnotations(path, painting="file")
    annotated = [i for i in found.image_ids if found.is_annotated(i)]
    assert 0 < len(annotated) < 50
    folder = tmp_path / "coco/SegmentationClass81/val2017"
    assert len(list(folder.iterdir())) == len(annotated)
    for image_id in annotated[:5]:
        stored = read_label_map(folder / f"{image_id:012d}.png")
        np.testing.assert_array_equal(stored, found.maps(image_id)[0])
    # A second run writes what is missing and nothing else.
    (folder / f"{annotated[0]:012d}.png").unlink()
    again = run("prepare_coco.py", "val2017", "--root", tmp_path / "coco")
    assert again.stdout.startswith("1 new label maps")


def test_coco_without_annotations(run, tmp_path):
    done = run("prepare_coco.py", "train2014", "--root", tmp_path)
    assert done.returncode == 2
    assert "instances_train2014.json" in done.stderr
    assert "Traceback" not in done.stderr
