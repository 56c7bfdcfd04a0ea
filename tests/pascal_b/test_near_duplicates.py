"""Perceptual hashes, and the pictures of the set."""

from __future__ import annotations

import os
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.pascal_b.candidates import Candidate
from d2_smallobj.pascal_b.near_duplicates import (
    MAX_DISTANCE,
    NearDuplicate,
    PictureCheck,
    copy_pictures,
    find_pictures,
    hash_picture,
    nearest,
)


def candidate(image_id, height, width, name=None):
    name = f"val2017/{image_id:012d}.jpg" if name is None else name
    return Candidate(image_id, name, height, width, (), (), frozenset(), frozenset())


@pytest.fixture
def draw(tmp_path):
    """``draw(name, seed, size, **options)``: a smooth random picture, the same for a seed."""

    def write(name, seed, size=(96, 128), gain=1.0, **options):
        rng = np.random.default_rng(seed)
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
        image = image.resize(size[::-1], Image.Resampling.BICUBIC).point(lambda v: v * gain)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "JPEG", **options)
        return path

    return write


def bits(one, other):
    return int(nearest(hash_picture(one)[0][None], hash_picture(other)[0][None])[1][0])


def test_near_duplicates_are_near_and_others_are_not(draw):
    original = draw("a.jpg", 0)
    assert bits(original, draw("b.jpg", 0, size=(60, 80), gain=0.8, quality=40)) <= MAX_DISTANCE
    others = [bits(original, draw("c.jpg", seed)) for seed in range(1, 30)]
    assert min(others) > MAX_DISTANCE
    assert 26 < np.mean(others) < 38


def test_real_pictures(realdata):
    """COCO's and VOC's pieces share no picture; each is its own nearest."""
    paths = sorted((realdata / "coco/val2017").glob("*.jpg"))[:15]
    voc = sorted((realdata / "voc/VOC2012/JPEGImages").glob("*.jpg"))[:15]
    hashes, references = (np.stack([hash_picture(p)[0] for p in ps]) for ps in (paths, voc))
    assert nearest(hashes, references)[1].min() > MAX_DISTANCE
    index, distance = nearest(hashes, hashes)
    assert index.tolist() == list(range(15))
    assert not distance.any()


def test_unreadable_pictures(draw, tmp_path):
    path = draw("a.jpg", 0)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"a\.jpg: the image cannot be read"):
        hash_picture(path)
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        hash_picture(tmp_path / "gone.jpg")


@pytest.fixture
def check(tmp_path, draw):
    """``check(*image ids)``: near-duplicates among pictures 5 to 7 and their annotations."""
    draw("voc/JPEGImages/2007_000032.jpg", 7, size=(64, 80))
    draw("voc/JPEGImages/2007_000033.jpg", 8)
    for image_id in (5, 6, 7):
        draw(f"coco/val2017/{image_id:012d}.jpg", image_id)
    pictures = PictureCheck(tmp_path / "coco", tmp_path / "voc", max_distance=MAX_DISTANCE)
    return lambda *ids, width=128: pictures.near_duplicates([candidate(n, 96, width) for n in ids])


def test_each_picture_is_looked_at_once(check, tmp_path):
    (found,) = check(6, 7)
    assert found == NearDuplicate(7, "2007_000032", found.distance)
    assert found.distance <= MAX_DISTANCE
    (tmp_path / "coco/val2017/000000000007.jpg").unlink()
    assert check(5, 7) == [found]


def test_missing_unreadable_and_other_pictures(check, tmp_path):
    told = r"1 image\(s\) of another size than annotated:\n.*5\.jpg: 96 x 128 pixels "
    with pytest.raises(ValueError, match=told + r"\(height x width\), annotated as 96 x 129"):
        check(5, width=129)
    with pytest.raises(FileNotFoundError, match="2 of 3 images of the set missing:") as found:
        check(5, 8, 9)
    assert "val2017/000000000009.jpg\nPut COCO's train2017 and val2017" in str(found.value)
    (tmp_path / "coco/val2017/000000000005.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1 image\(s\) unreadable:\n.*5\.jpg: the image cannot"):
        check(5)


def test_folders_of_pictures(draw, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected COCO's train2017 and val2017 in it"):
        PictureCheck(tmp_path, None, max_distance=8)
    path = draw("train2017/000000000005.jpg", 0)
    assert find_pictures([candidate(5, 1, 1, "000000000005.jpg")], tmp_path) == [path]
    with pytest.raises(FileNotFoundError, match=r"voc.JPEGImages: no VOC images"):
        PictureCheck(tmp_path, tmp_path / "voc", max_distance=8)


def test_pictures_are_linked_or_copied(draw, tmp_path, monkeypatch):
    path, link = draw("a.jpg", 0), tmp_path / "link.jpg"
    link.symlink_to(path)
    copy_pictures([link], ["x"], tmp_path / "linked")
    assert (tmp_path / "linked/x.jpg").samefile(path)
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError("another file system")))
    copy_pictures([link], ["x"], tmp_path / "copied")
    copied = tmp_path / "copied/x.jpg"
    assert not copied.is_symlink()
    assert not copied.samefile(path)
    assert copied.read_bytes() == path.read_bytes()
    assert os.listdir(tmp_path / "copied") == ["x.jpg"]
