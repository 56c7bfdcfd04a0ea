"""PASCAL-B from real annotation files that are damaged: one clear line, and nothing half made."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from d2_smallobj.commands.build_pascal_b import prepare_pascal_b
from d2_smallobj.pascal_b import build as builder
from d2_smallobj.pascal_b.candidates import Outcome

NAMES = {
    "l.json": "lvis/lvis_v05_val_100.json",
    "c.json": "coco_pool/annotations/instances_val2017.json",
}
NONE_FIT = "none of 197 images is fit for PASCAL-B (dropped: image with a malformed mask: 3;"


@pytest.fixture
def build(realdata, tmp_path, capsys):
    """``build(changes)`` returns exit status and error; ``changes`` are functions of the files."""

    def run(changes, *options):
        for name, source in NAMES.items():
            text = (realdata / source).read_text()
            text = changes[name](text) if name in changes else text
            (tmp_path / name).write_text(text if isinstance(text, str) else json.dumps(text))
        files = ("--lvis", tmp_path / "l.json", "--coco", tmp_path / "c.json")
        place = ("--output", tmp_path / "set", "--jobs", 1, "--num-images", 9)
        with pytest.raises(SystemExit) as stopped:
            prepare_pascal_b(list(map(str, (*files, *place, *options))))
        assert not (tmp_path / "set").exists()
        return str(stopped.value.code)

    return run


def each(section, **values):
    """Change all entries of a section."""

    def change(text):
        content = json.loads(text)
        for entry in content[section]:
            entry.update(values)
        return content

    return change


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("l.json", lambda text: text[:-500], "l.json: not a complete JSON file (Input data was"),
        ("c.json", lambda text: "", "c.json: not a complete JSON file"),
        ("c.json", lambda text: "[]", "Expected `object`, got `array`"),
        ("l.json", lambda text: text.replace('"bbox": [', '"bbox": [NaN, ', 1), "l.json: not a c"),
        ("c.json", each("annotations", iscrowd="x"), "got `str` - at `$.annotations[0].iscrowd`"),
        ("c.json", each("annotations", category_id="x"), "913 error(s):\n  annotation 1158531 has"),
        ("c.json", each("annotations", id=7), "c.json: 1 error(s):\n  id 7 occurs 913 times"),
        ("c.json", each("images", height=10**6, width=10**6), "100 error(s):\n  image "),
        ("l.json", each("annotations", segmentation=None), NONE_FIT),
        ("c.json", each("annotations", segmentation={"size": [1, 1], "counts": [2**63]}), NONE_FIT),
        ("l.json", lambda text: text.replace("/val2017/", "/../", 1), "1 file name(s) refused:"),
        ("l.json", each("images", neg_category_ids=None), "expected lists ('neg_category_ids'"),
    ],
)  # fmt: skip
def test_damaged_annotation_files(build, tmp_path, name, change, told):
    message = build({name: change}, "--annotations-only")
    assert message.startswith("error: ")
    assert told in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "l.json"]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda picture: picture.write_bytes(picture.read_bytes()[:2000]), "unreadable:\n  "),
        (lambda picture: picture.write_text("no picture"), "1 image(s) unreadable:\n  "),
        (lambda picture: picture.unlink(), "1 of 3 images of the set missing:\n  "),
        (lambda picture: (picture.unlink(), os.mkfifo(picture)), "1 of 3 images of the set miss"),
        (None, "No such file or directory"),  # it vanishes after it was found
    ],
)
def test_damaged_pictures(build, realdata, tmp_path, monkeypatch, damage, told):
    folder = tmp_path / "coco/val2017"
    shutil.copytree(realdata / "coco_pool/val2017", folder)
    picture = folder / "000000346638.jpg"
    if damage is not None:
        damage(picture)
    else:
        copy = builder.copy_pictures
        lose = lambda *arguments: (picture.unlink(), copy(*arguments))  # noqa: E731
        monkeypatch.setattr(builder, "copy_pictures", lose)
    message = build({}, "--images", tmp_path / "coco")
    assert told in message
    assert str(picture) in message


def test_images_of_too_many_annotations(cat, verdict):
    # Pairs of a thousand took minutes.
    for _ in range(600):
        cat.add("lvis", 1, "dog", (1, 1, 9, 9))
    found = verdict()
    assert found.outcome is Outcome.MALFORMED
    assert "lvis.json: image 1 has 602 annotations of the 20 classes, at most 600" in found.message
