"""Batches that arrive on the device. Here it is ``meta``: tensors that only say where they are."""

from __future__ import annotations

import itertools

import torch

from d2_smallobj.data.loaders import DeviceLoader, on_device, tensors_of, to_device
from d2_smallobj.engine import build_config

META = torch.device("meta")


def sample(position):
    return {
        "image": torch.full((3, 4, 5), float(position)),
        "logit_size_weights": {(2, 3): torch.ones(2, 3)},
        "stream_position": position,
        "parts": [torch.zeros(1), "text", (torch.ones(2), None)],
    }


def test_every_tensor_moves_and_nothing_else_changes():
    before = sample(7)
    after = to_device([before], META)[0]
    assert list(after) == list(before)
    assert (after["stream_position"], after["parts"][1], after["parts"][2][1]) == (7, "text", None)
    assert isinstance(after["parts"][2], tuple)
    found, expected = list(tensors_of(after)), list(tensors_of(before))
    assert len(found) == len(expected) == 4
    for moved, tensor in zip(found, expected):
        assert moved.device == META
        assert (moved.shape, moved.dtype) == (tensor.shape, tensor.dtype)
        assert tensor.device.type == "cpu"


def test_batches_keep_their_order_and_none_is_read_ahead():
    read = []

    def batches():
        for position in itertools.count():
            read.append(position)
            yield [sample(position)]

    loader = DeviceLoader(batches(), META)
    first = [x[0]["stream_position"] for x in itertools.islice(loader, 3)]
    assert first == read == [0, 1, 2]


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
