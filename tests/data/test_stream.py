"""The training stream: detectron2's order, from any position, over any number of processes."""

from __future__ import annotations

import itertools
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from d2_smallobj.data.loaders import StreamDataset, StreamSampler
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm


def take(sampler, count):
    return list(itertools.islice(iter(sampler), count))


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_order_is_detectron2s(size, seed):
    codes = take(StreamSampler(size, seed=seed), 40)
    assert [code % size for code in codes] == take(TrainingSampler(size, seed=seed), 40)
    assert [code // size for code in codes] == list(range(40))


def test_every_epoch_has_every_image_in_another_order():
    codes = take(StreamSampler(8, seed=3), 24)
    epochs = [[code % 8 for code in codes[i : i + 8]] for i in (0, 8, 16)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 30), start=st.integers(0, 100), seed=st.integers(0, 2**31))
def test_continues_exactly_from_any_position(size, start, seed):
    whole = take(StreamSampler(size, seed=seed), start + 20)
    assert take(StreamSampler(size, seed=seed, start=start), 20) == whole[start:]


def test_iterating_again_starts_again():
    sampler = StreamSampler(5, seed=0, start=3)
    assert take(sampler, 7) == take(sampler, 7)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("start", [0, 12])
def test_processes_share_the_stream_of_one(monkeypatch, processes, start):
    alone = take(StreamSampler(7, seed=1, start=start), 6 * processes)
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(take(StreamSampler(7, seed=1, start=start), 6))
    assert [code for step in zip(*shares) for code in step] == alone


def test_dataset_decodes_position_and_image():
    dicts = [{"image_id": i} for i in range(5)]
    dataset = StreamDataset(dicts)
    assert len(dataset) == 5
    for position, code in enumerate(take(StreamSampler(5, seed=0), 20)):
        assert dataset[code] == {"image_id": code % 5, "stream_position": position}
    assert dicts == [{"image_id": i} for i in range(5)]


def test_sampler_and_dataset_can_be_sent_to_workers():
    sampler = pickle.loads(pickle.dumps(StreamSampler(5, seed=2, start=4)))
    assert take(sampler, 5) == take(StreamSampler(5, seed=2, start=4), 5)
    assert pickle.loads(pickle.dumps(StreamDataset([{"a": 1}])))[3] == {
        "a": 1,
        "stream_position": 3,
    }


@pytest.mark.parametrize("size", [0, -1])
def test_an_empty_data_set(size):
    with pytest.raises(ValueError, match=f"[Gg]ot {size}"):
        StreamSampler(size, seed=0)
