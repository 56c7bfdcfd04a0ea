"""The picture of predictions side by side, as README shows it."""

import json
import sys

import draw_gallery
import numpy as np
import pytest
import torch
from own_data import make_own_data
from PIL import Image

from d2_smallobj import TwoTaskTrainer
from d2_smallobj.engine import build_config
from d2_smallobj.report import drawing

CONFIG = "photos_supercategories.yaml"


@pytest.fixture
def data(tmp_path, registration, monkeypatch):
    monkeypatch.setenv("D2_SMALLOBJ_CACHE", str(tmp_path / "cache"))
    return make_own_data(tmp_path / "user")


@pytest.fixture
def options(data, tmp_path):
    """Overrides: the user's own images to test on; beside them the weights of an untrained net."""
    options = ["DATASETS.TEST", f"('{data.name},classes=supercategories',)"]
    options += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    model = TwoTaskTrainer.build_model(build_config(CONFIG, options))
    torch.save({"model": model.state_dict()}, tmp_path / "net.pth")
    return options


def test_only_cc_by_with_its_source(data, options, tmp_path, monkeypatch, capsys):
    content = json.loads(data.path.read_text())
    for image in content["images"]:
        image["license"] = 4 if image["file_name"].startswith("a") else 1
        image["flickr_url"] = f"http://farm.staticflickr.com/1/77{image['id']}_ab_z.jpg"
    credits = tmp_path / "credits.json"
    credits.write_text(json.dumps(content))
    assert draw_gallery.read_credits(credits) == {1: "COCO 1, CC BY 2.0,\nFlickr photo 771"}
    drawn = []
    monkeypatch.setattr(draw_gallery, "draw_gallery", lambda *args: drawn.append(args))
    weights = [f"{name}={tmp_path / 'net.pth'}" for name in ("CE", "SBCE")]
    given = ["--config-file", CONFIG, "--output", "x.png", "--credits", str(credits)]
    monkeypatch.setattr(sys, "argv", ["draw_gallery", *given, "--weights", *weights, *options])
    draw_gallery.main()
    ((_, (row,), _),) = drawn
    assert row.title == "COCO 1, CC BY 2.0,\nFlickr photo 771"
    assert list(row.predictions) == ["CE", "SBCE"]
    assert row.image.shape[:2] == row.semantic.shape == row.predictions["CE"].shape
    assert row.ious["CE"] == row.ious["SBCE"]
    assert set(row.ious["CE"]) == set(np.unique(row.instances)) - {255}
    for image in content["images"]:
        image["license"] = 1
    credits.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"puts no image of .* under CC BY"):
        draw_gallery.main()
    credits.write_text("{}")
    with pytest.raises(SystemExit, match=r"credits\.json: expected COCO.s list"):
        draw_gallery.main()


def test_titles_are_drawn_whole(tmp_path):
    labels = np.zeros((40, 60), np.uint8)
    labels[5:15, 5:15] = 1
    image, ious = np.full((40, 60, 3), 90, np.uint8), {"net": {1: 0.4}}
    ends = []
    for title in ("", "COCO 1,\nFlickr photo 2"):
        row = drawing.GalleryRow(image, labels, labels, {"net": labels}, ious, title)
        drawing.draw_gallery(str(tmp_path / "x.png"), [row, row], [(0, 0, 0), (200, 0, 0)])
        picture = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
        assert picture[-1].min() == 255
        # Where the first column ends: with the second image, or with what stands below it.
        column = picture[:, : picture.shape[1] // 4]
        ends.append(int(np.flatnonzero((column < 200).any(axis=1)).max()))
    panels = int(np.flatnonzero((picture[:, picture.shape[1] // 2 :] < 200).any(axis=1)).max())
    assert ends[1] > panels + 10
