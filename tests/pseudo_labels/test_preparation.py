"""A method's folders become label maps of a registered set; what is wrong is listed."""

from __future__ import annotations

import json
import os
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.classes import COCO_CLASS_NAMES
from d2_smallobj.annotations.label_maps import read_label_map, write_label_map
from d2_smallobj.pseudo_labels.preparation import (
    check_labels,
    find_sources,
    marker_path,
    prepare_labels,
)
from d2_smallobj.pseudo_labels.targets import open_target
from d2_smallobj.utils.messages import InputError

IDS = [f"2007_{i:06d}" for i in range(12)]


def labels_of(index):
    """Pseudo label of an image: 20 + index columns, classes 1.. and an object."""
    labels = np.zeros((16, 20 + index), np.uint8)
    labels[2:9, 3:12] = 1 + index
    return labels


@pytest.fixture
def voc(tmp_path):
    """A VOC tree of twelve images without labels."""
    folder = tmp_path / "data/VOCdevkit/VOC2012"
    for name in ("JPEGImages", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for index, image in enumerate(IDS):
        picture = np.full((16, 20 + index, 3), 90, np.uint8)
        Image.fromarray(picture).save(folder / f"JPEGImages/{image}.jpg")
    (folder / "ImageSets/Segmentation/trainaug.txt").write_text("\n".join(IDS))
    return folder


@pytest.fixture
def root(voc):
    return voc.parents[1]


@pytest.fixture
def written(tmp_path):
    """What a method wrote: L-mode PNGs, pictures beside them, an image that is not in the list."""
    folder = tmp_path / "irn/sem_seg"
    folder.mkdir(parents=True)
    for index, image in enumerate(IDS):
        write_label_map(folder / f"{image}.png", labels_of(index), palette=False)
        shutil.copy(folder / f"{image}.png", folder / f"{image}_palette.png")
    shutil.copy(folder / f"{IDS[0]}.png", folder / "2011_000001.png")
    return folder


def prepare(root, method, *folders, data_set="voc", name=None, file_format="auto", **options):
    target = open_target(root, data_set, name or method)
    sources = find_sources(target, method, folders, file_format=file_format)
    return target, sources, prepare_labels(target, sources, **options)


def test_label_maps(root, voc, written):
    # detectron2 turns images as their EXIF data say; labels are made for what is seen.
    # 99 and a text turn nothing.
    orientations = ((3, 1, 6, (16, 20)), (3, 1, 99, (21, 16)), (2, 2, ord("6"), (22, 16)))
    for place, (kind, count, value, size) in enumerate(orientations):
        entry = struct.pack("<IHHHIII", 8, 1, 0x0112, kind, count, value, 0)
        exif = b"Exif\0\0II*\0" + entry
        Image.new("RGB", size).save(voc / f"JPEGImages/{IDS[place]}.jpg", exif=exif)
    target, sources, done = prepare(root, "irn", written)
    assert (done.written, done.kept, sources.others) == (12, 0, 13)
    assert target.folder == voc / "PseudoLabels/irn"
    assert target.use == "voc_2012_trainaug_irn"
    assert target.command == "DATASETS.TRAIN \"('voc_2012_trainaug_irn',)\""
    assert sorted(os.listdir(target.folder)) == [f"{image}.png" for image in IDS]
    for index, image in enumerate(IDS):
        path = target.folder / f"{image}.png"
        np.testing.assert_array_equal(read_label_map(path), labels_of(index))
        assert Image.open(path).mode == "P"
    assert check_labels(target, find_sources(target, "other", [target.folder])) == 12


def test_two_folders_are_merged(root, tmp_path, written):
    other = tmp_path / "Y_ret"
    shutil.copytree(written, other)
    changed = labels_of(4)
    changed[2] = 0
    write_label_map(other / f"{IDS[4]}.png", changed)
    target, _, _ = prepare(root, "bana", written, other)
    expected = labels_of(4)
    expected[2, 3:12] = 255
    np.testing.assert_array_equal(read_label_map(target.folder / f"{IDS[4]}.png"), expected)
    np.testing.assert_array_equal(read_label_map(target.folder / f"{IDS[5]}.png"), labels_of(5))
    np.save(written / f"{IDS[0]}.npy", {0: np.zeros((16, 20))})
    with pytest.raises(ValueError, match=r"holds both \.png and \.npy files .*--format \(indices"):
        prepare(root, "bana", written, other)
    with pytest.raises(ValueError, match=r"irn: expected 1 folder\(s\) \(labels\), got 2"):
        prepare(root, "irn", written, other)
    # A method of one's own may write two, too; the list has another name.
    lists = root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    pairs = (f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in IDS)
    (lists / "train_aug.txt").write_text("\n".join(pairs))
    (lists / "trainaug.txt").unlink()
    options = {"name": "mine", "file_format": "indices"}
    target, _, done = prepare(root, "other", written, other, **options)
    assert target.use == f"voc_2012_trainaug@{target.folder}"
    assert done.written == 12


def test_activation_maps(root, tmp_path):
    folder = tmp_path / "cam"
    folder.mkdir()
    for index, image in enumerate(IDS):
        mask = (labels_of(index) > 0).astype(np.float32)
        np.save(folder / f"{image}.npy", {"keys": np.array([index]), "high_res": 0.3 * mask[None]})
    target, sources, _ = prepare(root, "irn", folder)
    assert sources.file_format == "cams"
    for index, image in enumerate(IDS):
        path = target.folder / f"{image}.png"
        np.testing.assert_array_equal(read_label_map(path), labels_of(index))
    assert json.loads(marker_path(target).read_text())["threshold"] == 0.15
    with pytest.raises(FileExistsError, match=r"irn holds labels that were made from .*\(cams\)"):
        prepare(root, "irn", folder, threshold=0.4)
    prepare(root, "irn", folder, threshold=0.4, force=True)
    assert not read_label_map(target.folder / f"{IDS[0]}.png").any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"name": n}, "method: a name of letters") for n in ("../a", "a/b", ".hidden", "a b")),
        ({"data_set": "vok"}, r"data_set: unknown value 'vok'.*did you mean 'voc'"),
        ({"method": "ir"}, r"method: unknown value 'ir'.*did you mean 'irn'"),
        ({"file_format": "png"}, r"--format: unknown value 'png'"),
    ],
)
def test_options_are_checked(root, written, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(root, options.pop("method", "irn"), written, **options)


def test_only_what_is_missing_or_older_is_made(root, written):
    target, _, _ = prepare(root, "irn", written)
    first, second, third = (target.folder / f"{image}.png" for image in IDS[:3])
    first.unlink()
    source = written / f"{IDS[1]}.png"
    write_label_map(source, np.zeros((16, 21), np.uint8))
    later = second.stat().st_mtime_ns + 10**9
    os.utime(source, ns=(later, later))
    before = third.stat().st_mtime_ns
    _, _, done = prepare(root, "irn", written)
    assert (done.written, done.kept) == (2, 10)
    assert first.exists()
    assert not read_label_map(second).any()
    assert third.stat().st_mtime_ns == before


def test_other_sources_are_not_mixed_in(root, written, tmp_path):
    target, _, _ = prepare(root, "irn", written)
    moved = shutil.copytree(written, tmp_path / "moved")
    message = rf"made from {written} \(indices\): check them with --check, replace them with"
    with pytest.raises(FileExistsError, match=message):
        prepare(root, "irn", moved)
    assert prepare(root, "irn", moved, force=True)[2].written == 12
    marker_path(target).unlink()
    with pytest.raises(FileExistsError, match="labels that were not made by this command"):
        prepare(root, "irn", moved)
    shutil.copytree(written, root / "VOCdevkit/VOC2012/PseudoLabels/cda")
    with pytest.raises(ValueError, match=r"is where the prepared labels belong: .*--check"):
        prepare(root, "cda", root / "VOCdevkit/VOC2012/PseudoLabels/cda")


def test_missing_files_and_folders(root, voc, tmp_path, written):
    for image in IDS[1:]:
        (written / f"{image}.png").rename(tmp_path / f"{image}.png")
    message = r"'irn pseudo labels': 11 path\(s\) missing:[\s\S]*000001\.png[\s\S]*and 1 more"
    with pytest.raises(FileNotFoundError, match=message + r"\n.*run its code on all of them"):
        prepare(root, "irn", written)
    assert not (voc / "PseudoLabels").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no pseudo label of any of the 12 images, e"):
        prepare(root, "irn", tmp_path / "empty")
    for path, message in (
        (voc / f"JPEGImages/{IDS[3]}.jpg", r"1 path\(s\) missing:\n.*000003\.jpg\nSee"),
        (voc / "ImageSets/Segmentation/trainaug.txt", r"trainaug\.txt\nSee datasets/README\.md"),
    ):
        path.unlink()
        with pytest.raises(FileNotFoundError, match=message):
            prepare(root, "irn", tmp_path)


def test_all_are_listed_and_the_others_converted(root, voc, written):
    write_label_map(written / f"{IDS[0]}.png", np.full((16, 20), 60, np.uint8))
    write_label_map(written / f"{IDS[1]}.png", np.zeros((16, 20), np.uint8))
    (written / f"{IDS[2]}.png").write_bytes(b"no picture")
    Image.new("RGB", (23, 16)).save(written / f"{IDS[3]}.png")
    picture = voc / f"JPEGImages/{IDS[4]}.jpg"
    intact = picture.read_bytes()
    picture.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match=r"^5 pseudo label\(s\) that cannot be used:") as caught:
        prepare(root, "irn", written)
    told = {
        IDS[4]: "the image cannot be read",  # its path comes first
        IDS[0]: "found 60 in 320 of 320 pixels",
        IDS[1]: "the pseudo label is 20x16, its image 21x16",
        IDS[2]: "corrupt or truncated",
        IDS[3]: "colour picture (mode RGB)",
    }
    for line, (image, text) in zip(str(caught.value).splitlines()[1:], told.items()):
        assert f"{image}." in line
        assert text in line
    folder = root / "VOCdevkit/VOC2012/PseudoLabels/irn"
    assert sorted(p.name for p in folder.iterdir()) == [f"{image}.png" for image in IDS[5:]]
    # Mended, it goes on where it was.
    picture.write_bytes(intact)
    for index in range(4):
        write_label_map(written / f"{IDS[index]}.png", labels_of(index))
    _, _, done = prepare(root, "irn", written)
    assert (done.written, done.kept) == (5, 7)
    # The check finds the same.
    target = open_target(root, "voc", "irn")
    write_label_map(folder / f"{IDS[0]}.png", np.full((16, 20), 60, np.uint8))
    with pytest.raises(InputError, match=r"1 pseudo label\(s\) that cannot be used"):
        check_labels(target, find_sources(target, "other", [target.folder]))


@pytest.mark.parametrize("prefix", ["", "COCO_train2014_"])
def test_coco_names_by_id_or_by_file(tmp_path, realdata, prefix):
    path = tmp_path / "data/coco/annotations/instances_train2014.json"
    path.parent.mkdir(parents=True)
    content = json.loads((realdata / "coco/tinycoco50_val2017.json").read_text())
    annotated = {a["image_id"] for a in content["annotations"]}
    # Twelve images: two have no annotations, and no labels.
    content["images"] = sorted(content["images"], key=lambda x: x["id"] in annotated)[:12]
    annotated &= {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in annotated]
    (tmp_path / "rib").mkdir()
    for image in content["images"]:
        image["file_name"] = f"COCO_train2014_{image['id']:012d}.jpg"
        if image["id"] in annotated:
            labels = np.full((image["height"], image["width"]), 80, np.uint8)
            written = str(tmp_path / f"rib/{prefix}{image['id']:012d}")
            write_label_map(f"{written}.png", labels, palette=False)
            Image.new("RGB", (1, 1)).save(f"{written}_palette.png")
    path.write_text(json.dumps(content))
    data = tmp_path / "data"
    target, sources, done = prepare(data, "rib", tmp_path / "rib", data_set="coco_2014")
    assert done.written == sources.others == len(annotated) == 10
    assert target.folder == data / "coco/PseudoLabels/rib_2014"
    assert target.use == "coco_2014_train_81_rib"
    assert target.class_names == COCO_CLASS_NAMES
    names = {path.stem for path in target.folder.iterdir()}
    assert names == {f"COCO_train2014_{image:012d}" for image in annotated}
    content["categories"].pop()
    path.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match=r"expected COCO's 80 categories, got 79"):
        open_target(data, "coco_2014", "irn")
