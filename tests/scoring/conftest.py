"""A small data set in files, and predictions for it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from small_scenes import NAMES, guess, scene

from d2_smallobj.annotations.label_maps import write_label_map


def encode(labels, name):
    """Entries of detectron2's JSON, written as SemSegEvaluator.encode_json_sem_seg does."""
    entries = []
    for label in np.unique(labels).tolist():
        runs = coco_mask.encode(np.asfortranarray((labels == label).astype(np.uint8)))
        segmentation = {"size": runs["size"], "counts": runs["counts"].decode()}
        entries.append({"file_name": name, "category_id": label, "segmentation": segmentation})
    return entries


@pytest.fixture
def dataset(tmp_path):
    """Seven images: folders, class file, names, the maps."""
    folders = {name: tmp_path / name for name in ("preds", "semantic", "instances")}
    names = [f"image{index}" for index in range(7)]
    for index, name in enumerate(names):
        semantic, instances = scene(index)
        write_label_map(folders["semantic"] / f"{name}.png", semantic)
        write_label_map(folders["instances"] / f"{name}.png", instances)
        write_label_map(folders["preds"] / f"{name}.png", guess(index), palette=index % 2 == 0)
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(NAMES) + "\n")
    return SimpleNamespace(
        **folders,
        folder=tmp_path,
        names=names,
        classes=classes,
        scenes=[scene(index) for index in range(7)],
        guesses=[guess(index) for index in range(7)],
        options={
            "predictions": str(folders["preds"]),
            "semantic": str(folders["semantic"]),
            "instances": str(folders["instances"]),
            "classes": str(classes),
        },
    )


@pytest.fixture
def sem_seg_json(dataset):
    """The same predictions as detectron2's file; the file names have folders of their own."""
    entries = []
    for name, labels in zip(dataset.names, dataset.guesses):
        entries += encode(labels, f"/data/JPEGImages/{name}.jpg")
    path = dataset.folder / "inference" / "sem_seg_predictions.json"
    path.parent.mkdir()
    path.write_text(json.dumps(entries))
    return path
