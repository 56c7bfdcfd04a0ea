"""A registered data set of real files, and predictions for it."""

from __future__ import annotations

import logging
import uuid
from types import SimpleNamespace

import pytest
from small_scenes import NAMES, guess, scene

import d2_smallobj  # noqa: F401 (makes the embedded host importable)
from d2_smallobj.annotations.label_maps import write_label_map
from detectron2.data import DatasetCatalog, MetadataCatalog


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
        record = {"file_name": str(tmp_path / f"{index}.jpg"), "image_id": f"image{index}"}
        record.update(zip(("height", "width"), semantic.shape))
        record.update(zip(("sem_seg_file_name", "ins_seg_file_name"), map(str, paths)))
        records.append(record)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=list(NAMES), ignore_label=255)
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
