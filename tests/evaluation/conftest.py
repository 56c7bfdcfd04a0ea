"""A registered data set of real files, and predictions for it."""

from __future__ import annotations

import logging
import uuid
from types import SimpleNamespace

import numpy as np
import pytest

import d2_smallobj  # noqa: F401 (makes the embedded host importable)
from d2_smallobj.annotations.label_maps import write_label_map
from detectron2.data import DatasetCatalog, MetadataCatalog

NAMES = ["background", "cat", "dog", "bird"]


def scene(index):
    """Two cats side by side, a dog and 255 borders: (semantic, instances), 40 x (50 + index)."""
    semantic = np.zeros((40, 50 + index), np.uint8)
    instances = np.zeros_like(semantic)
    boxes = [(5, 15, 5, 15, 1), (5, 15, 16, 30, 1), (20, 30 + index, 10, 40, 2)]
    for number, (top, bottom, left, right, label) in enumerate(boxes, start=1):
        semantic[top:bottom, left:right] = label
        instances[top:bottom, left:right] = number
    semantic[:, 15] = instances[:, 15] = 255
    return semantic, instances


def guess(index):
    """A prediction with holes, surplus and an odd class, as (40, 50 + index) labels."""
    semantic, _ = scene(index)
    rng = np.random.default_rng(index)
    labels = np.where(semantic == 255, 1, semantic)
    noise = rng.integers(0, len(NAMES), (8, labels.shape[1] // 5 + 1)).repeat(5, 0).repeat(5, 1)
    return np.where(rng.random(labels.shape) < 0.85, labels, noise[:40, : labels.shape[1]])


@pytest.fixture
def dataset(tmp_path):
    """Five images on disk: name, dicts, metadata, predictions by image id."""
    name = f"test_{uuid.uuid4().hex}"
    records = []
    for index in range(5):
        semantic, instances = scene(index)
        paths = [tmp_path / kind / f"{index}.png" for kind in ("semantic", "instances")]
        write_label_map(paths[0], semantic)
        write_label_map(paths[1], instances)
        height, width = semantic.shape
        records.append(
            {
                "file_name": str(tmp_path / f"{index}.jpg"),
                "image_id": f"image{index}",
                "height": height,
                "width": width,
                "sem_seg_file_name": str(paths[0]),
                "ins_seg_file_name": str(paths[1]),
            }
        )
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=NAMES, ignore_label=255)
    yield SimpleNamespace(
        name=name,
        records=records,
        metadata=MetadataCatalog.get(name),
        guesses=[guess(index) for index in range(5)],
        scenes=[scene(index) for index in range(5)],
        folder=tmp_path,
    )
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture(autouse=True)
def own_log(monkeypatch):
    """No handlers of programs that other tests ran: pytest's own sees what is logged."""
    for name in ("detectron2", "d2_smallobj"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
