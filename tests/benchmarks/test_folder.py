"""The folder's benchmark: the files that are drawn, and that what is timed reads all of them."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
from benchmarks import FOLDERS, draw_folders, folder
from PIL import Image

from d2_smallobj.annotations.label_maps import read_label_map


def test_folders_are_drawn_like_voc(tmp_path):
    names = draw_folders(tmp_path, images=3, size=(80, 60), seed=3)
    assert names == ["00000", "00001", "00002"]
    maps = {
        kind: np.stack([read_label_map(tmp_path / kind / f"{name}.png") for name in names])
        for kind in FOLDERS
    }
    assert np.array_equal(maps["semantic"] == 255, maps["instances"] == 255)
    assert np.array_equal(maps["semantic"] == 0, maps["instances"] == 0)
    with Image.open(tmp_path / "predictions" / "00000.png") as image:
        assert (image.mode, image.size) == ("P", (80, 60))
    again = tmp_path / "again"
    draw_folders(again, images=3, size=(80, 60), seed=3)
    for path in again.rglob("*.png"):
        assert path.read_bytes() == (tmp_path / path.relative_to(again)).read_bytes()


def test_every_kind_of_work_is_measured_and_nothing_is_left(monkeypatch, tmp_path):
    monkeypatch.setattr(folder.tempfile, "tempdir", str(tmp_path))
    seen = {}

    def counted(kind, decode):
        def count(paths, *rest):
            seen.setdefault(kind, []).append(len(paths))
            return decode(paths, *rest)

        return count

    for kind in ("_pillow", "_opencv", "_verifying"):
        monkeypatch.setattr(folder, kind, counted(kind, getattr(folder, kind)))
    monkeypatch.setattr(folder, "TARGET", 0.0)
    found = folder.run(argparse.Namespace(images=4, jobs=[1], rounds=2, seed=0))
    assert seen == {kind: [12, 12] for kind in ("_pillow", "_opencv", "_verifying")}
    rows = found.figures["jobs 1"]
    assert set(rows) == {"pillow", "opencv", "verifying", "score"}
    ratio = rows["score"]["ratio"]
    assert ratio == pytest.approx(rows["score"]["seconds"] / rows["pillow"]["seconds"])
    assert found.missed == [f"scoring takes {ratio:.2f} times decoding with jobs 1, not 0.0"]
    assert list(tmp_path.iterdir()) == []


def test_several_processes_decode_every_file(tmp_path):
    draw_folders(tmp_path, images=2, size=(80, 60))
    paths = [str(path) for path in tmp_path.rglob("*.png")]
    assert folder._decode_all(folder._verifying, paths, 2) == 6 * 80 * 60
