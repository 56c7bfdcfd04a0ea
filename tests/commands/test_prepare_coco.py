"""datasets/prepare_coco.py."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def root(tmp_path, realdata):
    path = tmp_path / "coco/annotations/instances_val2017.json"
    path.parent.mkdir(parents=True)
    content = json.loads((realdata / "coco/tinycoco50_val2017.json").read_text())
    content["images"] = content["images"][:4]
    known = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in known]
    path.write_text(json.dumps(content))
    return tmp_path / "coco"


def test_again_and_by_force(command, root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root.parent))
    status, out, _ = command("prepare_coco.py", "val2017", "--painting", "area")
    assert status == 0
    assert out.startswith("val2017: maps of 4 images written, of 0 kept, in ")
    for kind in ("Class", "Object"):
        assert len(list((root / f"Segmentation{kind}81_area/val2017").iterdir())) == 4
    (root / "SegmentationClass81_area/val2017.json").unlink()
    again = ("prepare_coco.py", "val2017", "--root", root, "--painting", "area")
    status, _, err = command(*again)
    assert status == 1
    assert "error: " in err
    assert "--force" in err
    for options, counts in (
        (["--force"], "4 images written, of 0"),
        ([], "0 images written, of 4"),
    ):
        status, out, _ = command(*again, *options)
        assert (status, f"maps of {counts} kept" in out) == (0, True)


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
