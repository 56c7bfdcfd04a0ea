"""Image lists and data sets in the VOC layout."""

from __future__ import annotations

import os

import pytest

from d2_smallobj.annotations.dataset_files import FileCheck
from d2_smallobj.annotations.image_lists import ListedImage, read_image_list, voc_dicts


@pytest.fixture
def voc(tmp_path):
    """A small VOC tree: three images in the list, one more beside it."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "PseudoLabels/irn"):
        (root / folder).mkdir(parents=True)
        suffix = "jpg" if folder == "JPEGImages" else "png"
        for name in ("a", "b", "c", "unlisted"):
            (root / folder / f"{name}.{suffix}").touch()
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("a\nb\nc\n")
    return root


def _write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeff2007_000032\r\n\n  a \n", [ListedImage("2007_000032"), ListedImage("a")]),
        ("/x/a.jpg /y/a.png\n", [ListedImage("a", "x/a.jpg")]),
    ],
)
def test_image_lists(tmp_path, text, expected):
    assert read_image_list(_write(tmp_path / "l.txt", text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"l\.txt: the image list is empty"),
        ("\n \n", "the image list is empty"),
        ("a\nb\na\n", r"l\.txt, line 3: image 'a' is listed twice"),
        ("a -1\n", r"line 1: expected an image id, or .*got 'a -1'"),
        ("/x/a.jpg /y/a.png 1\n", "expected an image id"),
        ("x/a.jpg\n", "expected an image id"),
        ("..\n", "expected an image id"),
        ("..\\a\n", "expected an image id"),
        ("a\n/../../etc/a.jpg /y/a.png\n", r"line 2: '/\.\./\.\./etc/a\.jpg' is not a path within"),
        ("/x/a.jpg C:/y/a.png\n", "is not a path within"),
        (b"\xff\xfe\x00", "an image list is UTF-8 text"),
    ],
)
def test_malformed_lists(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_image_list(_write(tmp_path / "l.txt", text))


def test_dicts(voc):
    dicts = voc_dicts(voc, "val", label_dir="SegmentationClass", instance_dir="SegmentationObject")
    assert [d["image_id"] for d in dicts] == ["a", "b", "c"]
    assert dicts[1] == {
        "file_name": str(voc / "JPEGImages/b.jpg"),
        "sem_seg_file_name": str(voc / "SegmentationClass/b.png"),
        "ins_seg_file_name": str(voc / "SegmentationObject/b.png"),
        "image_id": "b",
    }


def test_pseudo_labels_with_palettes_beside_and_a_list_of_pairs(voc):
    (voc / "PseudoLabels/irn/a_palette.png").touch()
    (voc / "ImageSets/Segmentation/pairs.txt").write_text(
        "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n"
    )
    (record,) = voc_dicts(voc, "pairs", label_dir="PseudoLabels/irn")
    assert record == {
        "file_name": str(voc / "JPEGImages/a.jpg"),
        "sem_seg_file_name": str(voc / "PseudoLabels/irn/a.png"),
        "image_id": "a",
    }


def test_one_error_for_missing_files(voc):
    (voc / "JPEGImages/b.jpg").unlink()
    (voc / "PseudoLabels/irn/c.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"'irn_set': 2 path\(s\) missing") as caught:
        voc_dicts(voc, "val", label_dir="PseudoLabels/irn", check=FileCheck("irn_set", "Run this."))
    text = str(caught.value)
    assert f"\n  {voc}/JPEGImages/b.jpg\n  {voc}/PseudoLabels/irn/c.png\nRun this." in text


def test_missing_folders_are_named_once(voc):
    with pytest.raises(FileNotFoundError, match=r"1 path\(s\) missing:\n  .*/PseudoLabels/amn/\n"):
        voc_dicts(voc, "val", label_dir="PseudoLabels/amn")
    with pytest.raises(FileNotFoundError, match=r"3 path\(s\) missing") as caught:
        voc_dicts(voc / "no", "val", label_dir="SegmentationClass")
    for path in ("ImageSets/Segmentation/val.txt", "JPEGImages/", "SegmentationClass/"):
        assert f"{voc}/no/{path}\n" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "number"), [("voc12_train", 1464), ("voc12_val", 1449), ("voc12_train_aug", 10582)]
)
def test_real_lists(realdata, name, number):
    assert len(read_image_list(realdata / f"lists/{name}.txt")) == number


def test_listing_opens_no_image_and_lists_each_folder_once(tmp_path, monkeypatch):
    names = [f"{number:06d}" for number in range(100)]
    for folder, suffix in (("JPEGImages", "jpg"), ("Labels", "png")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.{suffix}").touch()  # opening it would fail
    (tmp_path / "l.txt").write_text("\n".join(names))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    monkeypatch.setattr(os, "stat", None)  # not even looked at one by one
    dicts = voc_dicts(tmp_path, "val", label_dir="Labels", list_file="l.txt")
    monkeypatch.undo()
    assert [record["image_id"] for record in dicts] == names
    assert sorted(listed) == [str(tmp_path), str(tmp_path / "JPEGImages"), str(tmp_path / "Labels")]
