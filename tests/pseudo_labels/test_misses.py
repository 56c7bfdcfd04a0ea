"""What pseudo labels miss, by size and class."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.image_sources import SourceReader
from d2_smallobj.annotations.label_maps import read_label_map, write_label_map
from d2_smallobj.annotations.truth import GroundTruth, TruthImage, annotation_truth
from d2_smallobj.metrics import OUTCOMES
from d2_smallobj.pseudo_labels.misses import summarize_labels
from d2_smallobj.report.label_summary import (
    draw_label_summary,
    format_label_summary,
    write_label_summary,
)
from d2_smallobj.scoring import Inputs, Settings, evaluate
from d2_smallobj.utils.messages import InputError

NAMES = ("background", "cat", "dog")


@pytest.fixture
def pair(tmp_path):
    """One image: a small cat missed, one half ignored, a large dog found."""
    semantic = np.zeros((120, 200), np.uint8)
    instances = np.zeros_like(semantic)
    objects = [(slice(0, 10), slice(0, 10), 1), (slice(0, 10), slice(20, 40), 1)]
    objects.append((slice(20, 120), slice(0, 120), 2))
    for number, (rows, columns, label) in enumerate(objects, start=1):
        semantic[rows, columns], instances[rows, columns] = label, number
    semantic[0, 0] = instances[0, 0] = 255
    label = np.where(semantic == 255, 0, semantic)
    label[0:10, 0:10] = 0
    label[0:10, 20:30] = 255
    for name, labels in (("semantic", semantic), ("instances", instances), ("label", label)):
        write_label_map(tmp_path / f"{name}/a.png", labels)
    files = (str(tmp_path / f"{name}/a.png") for name in ("semantic", "instances"))
    image = TruthImage.of_files("a", *files)
    return GroundTruth([image], SourceReader(NAMES)), {"a": str(tmp_path / "label/a.png")}


def rows_of(summary):
    return {(row["class"], row["size"]): row for row in summary.rows()}


def test_one_image(pair):
    summary = summarize_labels(*pair, name="mine")
    rows = rows_of(summary)
    assert set(rows) == {(c, s) for c in ("all", "cat", "dog") for s in ("S", "M", "L", "all")}
    small = rows["cat", "S"]
    assert (small["instances"], small["missed"], small["good"]) == (2, 1, 1)
    # Of 99 + 200 valid pixels of cats, 100 are labelled cat and 100 are ignored.
    assert small["labelled"] == small["ignored"] == pytest.approx(100 * 100 / 299)
    assert small["IA-IoU"] == pytest.approx(100 * (0 + 0.5) / 2)
    large = rows["dog", "L"]
    assert (large["good"], large["labelled"], large["ignored"]) == (1, 100.0, 0.0)
    assert rows["all", "all"]["instances"] == 3
    assert rows["cat", "M"]["instances"] == 0
    assert math.isnan(rows["cat", "M"]["IA-IoU"])
    assert summary.figures["IA-mIoU_S"] == pytest.approx(25.0)
    # True labels miss nothing.
    summary = summarize_labels(pair[0], {"a": pair[0].images[0].semantic}, name="gt")
    assert all(row["missed"] == 0 for row in summary.rows())
    assert rows_of(summary)["all", "all"]["IA-IoU"] == 100


def test_as_files(pair, tmp_path):
    summary = summarize_labels(*pair, name="mine|x")
    text = format_label_summary(summary)
    assert "mine|x against the true instances of 1 images" in text
    assert "| S | 2 |" in " ".join(text.split())
    assert "| cat | 2 |" in " ".join(text.split())
    assert "dog" not in text.split("class, size S")[1]  # no small dog
    write_label_summary(tmp_path / "s.csv", summary)
    rows = list(csv.DictReader((tmp_path / "s.csv").open(newline="")))
    assert len(rows) == 12
    assert rows[0]["labels"] == "mine|x"
    (cat,) = (row for row in rows if (row["class"], row["size"]) == ("cat", "S"))
    assert (cat["missed"], cat["IA-IoU"]) == ("1", "25.0000")
    (none,) = (row for row in rows if (row["class"], row["size"]) == ("cat", "M"))
    assert (none["instances"], none["labelled"]) == ("0", "")
    draw_label_summary(tmp_path / "s.png", summary)
    missed = np.asarray(Image.open(tmp_path / "s.png").convert("RGB")) == (0xC9, 0x2A, 0x2A)
    assert missed.all(axis=2).any()
    draw_label_summary(tmp_path / "again.png", summary)
    assert (tmp_path / "s.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_real_voc_shrunk(realdata, tmp_path):
    """The same figures as tools/evaluate.py gives; small objects go first when labels shrink."""
    folder = realdata / "voc/VOC2012"
    ids = (folder / "ImageSets/Segmentation/val.txt").read_text().split()[:8]
    images, labels = [], {}
    for image in ids:
        semantic = read_label_map(folder / f"SegmentationClass/{image}.png")
        label = np.where(semantic == 255, 0, semantic)
        for shift in (-12, 12):
            for axis in (0, 1):
                label = np.where(np.roll(label, shift, axis) == label, label, 0)
        labels[image] = str(tmp_path / f"labels/{image}.png")
        write_label_map(labels[image], label)
        kinds = ("SegmentationClass", "SegmentationObject")
        files = (str(folder / f"{kind}/{image}.png") for kind in kinds)
        images.append(TruthImage.of_files(image, *files))
    inputs = Inputs(
        predictions=str(tmp_path / "labels"),
        semantic=str(folder / "SegmentationClass"),
        instances=str(folder / "SegmentationObject"),
        image_list=str(tmp_path / "list.txt"),
    )
    (tmp_path / "list.txt").write_text("\n".join(ids))
    run = evaluate(inputs, Settings(samples=0))
    truth = GroundTruth(images, SourceReader(run.class_names))
    summary = summarize_labels(truth, labels, name="shrunk")
    for name, value in run.figures.items():
        np.testing.assert_equal(summary.figures[name], value)
    rows = rows_of(summary)
    shares = [rows["all", s]["missed"] / rows["all", s]["instances"] for s in "SML"]
    assert shares[0] > shares[1] > shares[2] == 0
    everything = rows["all", "all"]
    assert everything["instances"] == run.figures["instances"]
    assert sum(everything[outcome] for outcome in OUTCOMES) == everything["instances"]


def test_real_coco(realdata, tmp_path):
    path = realdata / "coco/tinycoco50_val2017.json"
    found = InstanceAnnotations(path)
    truth = annotation_truth(found)
    truth.images = truth.images[:6]
    labels = {}
    for image in truth.images:
        semantic, _ = found.maps(image.source.number)
        labels[image.image_id] = str(tmp_path / f"{image.image_id}.png")
        write_label_map(labels[image.image_id], semantic)
    summary = summarize_labels(truth, labels, name="gt", jobs=2)
    assert summary.num_images == 6
    assert rows_of(summary)["all", "all"]["IA-IoU"] == 100
    wanted = {image.source.number for image in truth.images}
    content = json.loads(path.read_text())["annotations"]
    count = sum(a["image_id"] in wanted and not a["iscrowd"] for a in content)
    assert rows_of(summary)["all", "all"]["instances"] == count


def test_files_that_do_not_fit(pair, tmp_path):
    truth, labels = pair
    with pytest.raises(ValueError, match="mine: no image has both a pseudo label and true inst"):
        summarize_labels(truth, {}, name="mine")
    for label, message in (
        (np.zeros((5, 5), np.uint8), r"1 image\(s\) whose pseudo label .*\n.*label/a\.png"),
        (np.full((120, 200), 7, np.uint8), r"label/a\.png .*prediction"),
        (None, "no such label map"),
    ):
        (tmp_path / "label/a.png").unlink()
        if label is not None:
            write_label_map(labels["a"], label)
        with pytest.raises(InputError, match=message):
            summarize_labels(truth, labels, name="mine")


def test_ground_truth_without_instances_is_refused(pair):
    truth, labels = pair
    truth.images = [TruthImage.of_files("a", truth.images[0].source.semantic)]
    with pytest.raises(InputError, match=r"semantic/a\.png: no instance map"):
        summarize_labels(truth, labels, name="mine")
