"""Loaders: one stream for any number of workers and processes, resumable; clear errors."""

from __future__ import annotations

import gc
import itertools
import re

import pytest
import torch

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from d2_smallobj.data import build_test_loader, build_train_loader, dataset_dicts, register_all
from d2_smallobj.data.catalog import registered
from detectron2.data import DatasetCatalog, build
from detectron2.utils import comm


def take(loader, count):
    """The first batches; the loader's workers end with its iterator."""
    return list(itertools.islice(iter(loader), count))


def same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected):
        assert [x.keys() for x in batch] == [x.keys() for x in other]
        for x, y in zip(batch, other):
            for key, value in x.items():
                assert torch.equal(value, y[key]) if torch.is_tensor(value) else value == y[key]
    return True


def positions(batches):
    return [[x["stream_position"] for x in batch] for batch in batches]


OPTIONS = ("SMALLOBJ.TASK_A.ITERS", 3)  # size weights from the fourth batch on


# ---- Training ----------------------------------------------------------------------------------


@pytest.fixture
def expected(tiny, tiny_cfg):
    """The first seven batches without workers: three epochs of the seven images."""
    return take(build_train_loader(tiny_cfg(*OPTIONS)), 7)


def test_batches(expected):
    assert positions(expected) == [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(7)]
    ids = [x["image_id"] for batch in expected for x in batch]
    epochs = [ids[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    weighted = [all("size_weights" in x for x in batch) for batch in expected]
    assert weighted == [False] * 3 + [True] * 4
    assert {tuple(x["image"].shape) for batch in expected for x in batch} == {(3, 24, 32)}


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(expected, tiny_cfg, workers):
    torch.manual_seed(99)
    loader = build_train_loader(tiny_cfg(*OPTIONS, "DATALOADER.NUM_WORKERS", workers))
    assert same(take(loader, 5), expected[:5])


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_continues_exactly(expected, tiny_cfg, workers):
    loader = build_train_loader(tiny_cfg(*OPTIONS, "DATALOADER.NUM_WORKERS", workers), start_iter=2)
    assert same(take(loader, 5), expected[2:])


def test_resuming_counts_accumulated_passes(expected, tiny_cfg):
    loader = build_train_loader(tiny_cfg(*OPTIONS, "SMALLOBJ.ACCUMULATE", 2), start_iter=2)
    resumed = take(loader, 3)
    assert positions(resumed) == positions(expected[4:])
    # Task A lasts three steps of two passes here: six batches.
    assert ["size_weights" in batch[0] for batch in resumed] == [False, False, True]


@pytest.mark.parametrize("start", [0, 2])
def test_processes_together_see_what_one_sees(tiny, tiny_cfg, monkeypatch, start):
    cfg = tiny_cfg(*OPTIONS, "SOLVER.IMS_PER_BATCH", 4)
    alone = take(build_train_loader(cfg, start_iter=start), 4)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(build, "get_world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(take(build_train_loader(cfg, start_iter=start), 4))
    assert {len(batch) for share in shares for batch in share} == {2}
    together = [sorted(a + b, key=lambda x: x["stream_position"]) for a, b in zip(*shares)]
    assert same(together, alone)


def test_another_seed_is_another_order(expected, tiny_cfg):
    other = take(build_train_loader(tiny_cfg("SEED", 5)), 7)
    orders = [[x["image_id"] for batch in batches for x in batch] for batches in (expected, other)]
    assert orders[0] != orders[1]


# ---- Test --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_every_test_image_once_in_order(tiny, tiny_cfg, workers):
    batches = list(build_test_loader(tiny_cfg("DATALOADER.NUM_WORKERS", workers), tiny))
    assert [[x["image_id"] for x in batch] for batch in batches] == [[i] for i in range(7)]
    for i, (x,) in enumerate(batches):
        assert x["image"].shape == (3, x["height"], x["width"]) == (3, 20 + 3 * i, 40 - 2 * i)
        assert "sem_seg" not in x


# ---- Data sets ---------------------------------------------------------------------------------


def test_data_sets_are_joined(tiny, tiny_dicts):
    assert dataset_dicts([tiny]) == tiny_dicts
    assert dataset_dicts((tiny, tiny)) == tiny_dicts * 2


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("voc_2012_trainaug_foo", "voc_2012_trainaug_"),
        ("voc_2012_trainaug_clim", "voc_2012_trainaug_clims"),
        ("pascalb_val", "pascal_b_val"),
    ],
)
def test_an_unknown_data_set(name, hint):
    with pytest.raises(
        ValueError, match=rf"DATASETS: unknown value '{name}'; expected .*; did you mean '{hint}"
    ):
        dataset_dicts([name])


def test_no_data_set(tiny_cfg):
    with pytest.raises(ValueError, match="DATASETS names no data set"):
        build_train_loader(tiny_cfg("DATASETS.TRAIN", "()"))


def test_an_empty_data_set(tiny):
    DatasetCatalog.register("tiny_empty", list)
    try:
        with pytest.raises(ValueError, match="data set 'tiny_empty' lists no image"):
            dataset_dicts([tiny, "tiny_empty"])
    finally:
        DatasetCatalog.remove("tiny_empty")


def test_a_missing_data_set(tiny_cfg):
    register_all()
    folder = re.escape(str(registered()["voc_2012_seg_val"].folder))
    if registered()["voc_2012_seg_val"].folder.is_dir():
        pytest.skip("this machine has VOC")
    with pytest.raises(
        FileNotFoundError,
        match=rf"data set 'voc_2012_seg_val'[\s\S]*{folder}[\s\S]*datasets/README\.md",
    ):
        build_test_loader(tiny_cfg(), "voc_2012_seg_val")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_named_from_the_workers_too(tiny, tiny_cfg, tiny_dicts, workers, monkeypatch):
    # How long PyTorch waits for the failed worker when the iterator goes: 5 s otherwise.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    for record in tiny_dicts:
        with open(record["sem_seg_file_name"], "wb") as file:
            file.write(b"no picture")
    batches = iter(build_train_loader(tiny_cfg("DATALOADER.NUM_WORKERS", workers)))
    with pytest.raises(ValueError, match=r"labels_\d\.png: corrupt or truncated label map"):
        next(batches)
    del batches
    gc.collect()


def test_a_missing_image_is_named(tiny, tiny_cfg, tiny_dicts):
    for record in tiny_dicts:
        record["file_name"] += ".gone"
    with pytest.raises(OSError, match=r"image_\d\.jpg\.gone: the image cannot be read"):
        take(build_train_loader(tiny_cfg()), 1)
