"""The command that builds PASCAL-B."""

from __future__ import annotations

import json

import pytest

from d2_smallobj.annotations.classes import COCO_CLASS_NAMES
from d2_smallobj.pascal_b.index import LVIS_RULES


@pytest.fixture
def inputs(tmp_path):
    """Twelve images with a cat, LVIS's and COCO's; arguments that name them."""
    image = {"height": 60, "width": 80, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    images = [
        {**image, "id": n, "coco_url": f"http://images.cocodataset.org/val2017/{n:012d}.jpg"}
        for n in range(1, 13)
    ]
    for name, names in (("lvis", sorted(LVIS_RULES)), ("coco", COCO_CLASS_NAMES[1:])):
        fields = {"category_id": list(names).index("cat") + 1}
        annotations = [
            {**fields, "id": n, "image_id": n, "segmentation": [[5, 5, x, 5, x, 50, 5, 50]]}
            for n, x in ((n, 5 + 4 * n) for n in range(1, 13))
        ]
        categories = [{"id": i, "name": category} for i, category in enumerate(names, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = ["--lvis", tmp_path / "lvis.json", "--coco", tmp_path / "coco.json", "--jobs", 1]
    return [*files, "--annotations-only", "--output", tmp_path / "set"]


def test_building_and_rebuilding(command, inputs, tmp_path):
    options = ["--num-images", 5, "--candidates", tmp_path / "candidates.csv"]
    status, out, err = command("prepare_pascal_b.py", *inputs, *options)
    assert status == 0, err
    assert out.startswith(f"5 images, 5 instances in {tmp_path / 'set'}; the aim is ")
    assert "\nthis set: normalised entropy " in out
    assert "cells fall short of" in err
    assert len((tmp_path / "candidates.csv").read_text().splitlines()) == 13
    again = [*inputs[:-1], tmp_path / "again", "--manifest", tmp_path / "set/manifest.json"]
    status, out, err = command("prepare_pascal_b.py", *again)
    assert status == 0, err
    for path in (tmp_path / "set").rglob("*.*"):
        copy = tmp_path / "again" / path.relative_to(tmp_path / "set")
        assert copy.read_bytes() == path.read_bytes()


def test_options_reach_the_builder(command, inputs, tmp_path):
    (tmp_path / "rejected.txt").write_text("3\n4\n")
    more = [
        *("--seed", 7, "--per-cell", 3, "--num-images", 20, "--min-area", 300),
        *("--coco-classes", "diningtable", "--max-void", 0.25, "--max-overlap", 0.75),
        *("--max-disagreement", 0.125, "--rejected", tmp_path / "rejected.txt"),
    ]
    status, _, err = command("prepare_pascal_b.py", *inputs, *more)
    assert status == 0, err
    assert "note: only 9 images are fit; 20 were asked for" in err
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    assert manifest["screening"] == {
        "from_coco": ["diningtable"],
        "min_area": 300,
        "max_overlap": 0.75,
        "max_disagreement": 0.125,
        "max_void": 0.25,
    }
    assert (manifest["sampling"]["seed"], manifest["sampling"]["per_cell"]) == (7, 3)
    assert manifest["image_ids"] == [2, 5, 6, 7, 8, 9, 10, 11, 12]


def test_default_places(command, inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    status, _, err = command("prepare_pascal_b.py", "--annotations-only")
    assert status == 1
    assert f"{tmp_path / 'data/lvis/lvis_v1_train.json'}" in err
    place = [argument for argument in inputs if argument != "--annotations-only"]
    status, _, err = command("prepare_pascal_b.py", *place)
    assert status == 1
    assert "expected COCO's train2017 and val2017 in it, found neither" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max-void", 2], "error: max_void: expected a share in 0..1, got 2.0"),
        (["--rejected", "gone.json"], "gone.json"),
        (["--voc", "voc"], "error: voc: near-duplicates can only be found with pictures"),
        (["--max-disagreement", 0, "--min-area", 9999], "error: none of 12 images is fit"),
    ],
)
def test_errors_are_one_message(command, inputs, tmp_path, more, message):
    status, out, err = command("prepare_pascal_b.py", *inputs, *more)
    assert (status, out) == (1, "")
    assert message in err
    assert not (tmp_path / "set").exists()
