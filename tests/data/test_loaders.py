"""Loaders: one stream for any number of workers and processes, resumable; batches on devices."""

from __future__ import annotations

import gc
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from d2_smallobj.data import build_test_loader, build_train_loader, dataset_dicts
from d2_smallobj.data.loaders import DeviceLoader, StreamDataset, StreamSampler, on_device
from d2_smallobj.engine import build_config
from detectron2.data import DatasetCatalog, build
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm


def take(loader, count):
    """The first batches or indices; the loader's workers end with its iterator."""
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


@pytest.mark.parametrize(("workers", "start"), [(2, 0), (0, 2), (1, 2)])
def test_workers_and_resuming_change_nothing(expected, tiny_cfg, workers, start):
    torch.manual_seed(99)
    cfg = tiny_cfg(*OPTIONS, "DATALOADER.NUM_WORKERS", workers)
    assert same(take(build_train_loader(cfg, start_iter=start), 5), expected[start:][:5])


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


# ---- Test --------------------------------------------------------------------------------------


def test_every_test_image_once_in_order(tiny, tiny_cfg):
    for workers in (0, 1):
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
    ("names", "message"),
    [
        (["pascalb_val"], "DATASETS: unknown value 'pascalb_val'; .*; did you mean 'pascal_b_val"),
        ([], "DATASETS names no data set"),
        (["tiny_empty"], "data set 'tiny_empty' lists no image"),
    ],
)
def test_unknown_and_empty_data_sets(names, message):
    DatasetCatalog.register("tiny_empty", list)
    try:
        with pytest.raises(ValueError, match=message):
            dataset_dicts(names)
    finally:
        DatasetCatalog.remove("tiny_empty")


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


# ---- The stream --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_order_is_detectron2s(size, seed):
    codes = take(StreamSampler(size, seed=seed), 40)
    assert [code % size for code in codes] == take(TrainingSampler(size, seed=seed), 40)
    assert [code // size for code in codes] == list(range(40))
    dataset = pickle.loads(pickle.dumps(StreamDataset([{"image_id": i} for i in range(size)])))
    assert len(dataset) == size
    for position, code in enumerate(codes):
        assert dataset[code] == {"image_id": code % size, "stream_position": position}


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 30), start=st.integers(0, 100), seed=st.integers(0, 2**31))
def test_continues_exactly_from_any_position(size, start, seed):
    whole = take(StreamSampler(size, seed=seed), start + 20)
    sampler = pickle.loads(pickle.dumps(StreamSampler(size, seed=seed, start=start)))
    assert take(sampler, 20) == take(sampler, 20) == whole[start:]


# ---- Boxes from a position on ------------------------------------------------------------------


def flagged(masks, boxes):
    flags = ["mask"] * masks + ["boxes"] * boxes
    return [{"image_id": i, "supervision": flag} for i, flag in enumerate(flags)]


def test_masks_stand_in_for_boxes_up_to_a_position():
    dicts = flagged(3, 7)
    stream = StreamDataset(dicts, boxes_from=20)
    for position in range(40):
        for index in range(10):
            x = stream[position * 10 + index]
            assert x["stream_position"] == position
            if index < 3 or position >= 20:
                assert x["image_id"] == index
            else:
                assert x["supervision"] == "mask"
    # Each box image's place goes round all masks, so that all are used alike.
    for index in range(3, 10):
        seen = [StreamDataset(dicts, 60)[p * 10 + index]["image_id"] for p in (0, 10, 20)]
        assert sorted(seen) == [0, 1, 2]


def test_there_must_be_masks_to_begin_with():
    assert StreamDataset(flagged(0, 2), 0)[3]["supervision"] == "boxes"
    with pytest.raises(ValueError, match=r"FROM is above 0, but no training image has a mask"):
        StreamDataset(flagged(0, 2), 1)
    # Images without a flag have masks.
    stream = StreamDataset([{"image_id": 0}, {"image_id": 1, "supervision": "boxes"}], 5)
    assert [stream[code]["image_id"] for code in range(8)] == [0] * 8


# ---- Batches on the device: "meta" tensors only say where they are ------------------------------

META = torch.device("meta")


def sample(position):
    return {
        "image": torch.full((3, 4, 5), float(position)),
        "logit_size_weights": {(2, 3): torch.ones(2, 3)},
        "stream_position": position,
        "parts": [torch.zeros(1), "text", (torch.ones(2), None)],
    }


def test_batches_move_in_order_and_none_is_read_ahead():
    read = []

    def batches():
        for position in itertools.count():
            read.append(position)
            yield [sample(position)]

    batches = list(itertools.islice(DeviceLoader(batches(), META), 3))
    assert [x["stream_position"] for (x,) in batches] == read == [0, 1, 2]
    ((after,), before) = batches[2], sample(2)
    assert list(after) == list(before)
    assert (after["stream_position"], after["parts"][1], after["parts"][2][1]) == (2, "text", None)
    assert isinstance(after["parts"][2], tuple)

    def tensors(x):
        return x["image"], x["logit_size_weights"][2, 3], x["parts"][0], x["parts"][2][0]

    for moved, tensor in zip(tensors(after), tensors(before)):
        assert (moved.device, moved.shape, moved.dtype) == (META, tensor.shape, tensor.dtype)


def test_only_a_gpu_is_fed_this_way():
    cfg = build_config()
    cfg.MODEL.DEVICE = "cpu"
    loader = [[sample(0)]]
    assert on_device(cfg, loader) is loader
    cfg.MODEL.DEVICE = "cuda:1"
    fed = on_device(cfg, loader)
    assert (fed.loader, fed.device) == (loader, torch.device("cuda:1"))
    cfg.SMALLOBJ.SPEED.PREFETCH = False
    assert on_device(cfg, loader) is loader
