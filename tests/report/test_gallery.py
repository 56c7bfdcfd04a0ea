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
    assert draw_gallery.read_credits(credits) == {1: "COCO 1, CC BY 2.0, Flickr photo 771"}
    drawn = []
    monkeypatch.setattr(draw_gallery, "draw_gallery", lambda *args: drawn.append(args))
    weights = [f"{name}={tmp_path / 'net.pth'}" for name in ("CE", "SBCE")]
    given = ["--config-file", CONFIG, "--output", "x.png", "--credits", str(credits)]
    monkeypatch.setattr(sys, "argv", ["draw_gallery", *given, "--weights", *weights, *options])
    draw_gallery.main()
    ((_, (row,), _),) = drawn
    assert row.title == "COCO 1, CC BY 2.0, Flickr photo 771"
    assert list(row.predictions) == ["CE", "SBCE"]
    assert row.image.shape[:2] == row.semantic.shape == row.predictions["CE"].shape
    assert row.ious["CE"] == row.ious["SBCE"]
    assert set(row.ious["CE"]) == set(np.unique(row.instances)) - {255}
    for image in content["images"]:
        image["license"] = 1
    credits.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"puts no image of .* under CC BY"):
        draw_gallery.main()


def test_a_title_does_not_move_the_pictures(tmp_path):
    pictures = []
    labels = np.zeros((40, 60), np.uint8)
    labels[5:15, 5:15] = 1
    for title in ("", "of a source " * 9):
        row = drawing.GalleryRow(
            np.full((40, 60, 3), 90, np.uint8),
            labels,
            labels,
            {"net": labels},
            {"net": {1: 0.4}},
            title,
        )
        drawing.draw_gallery(str(tmp_path / "x.png"), [row], [(0, 0, 0), (200, 0, 0)])
        pictures.append(np.asarray(Image.open(tmp_path / "x.png")))
    below = 3 * pictures[0].shape[0] // 4
    assert np.array_equal(pictures[0][:below], pictures[1][:below])
    assert not np.array_equal(*pictures)
