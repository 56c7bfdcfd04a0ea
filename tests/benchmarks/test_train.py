"""The training benchmark: its own step is the trainer's, and what it tells is what was measured."""

from __future__ import annotations

import argparse
import copy

import pytest
import torch
from benchmarks import train, train_steps
from benchmarks.train_steps import (
    FISHER,
    LOSSES,
    PLAIN,
    OurSteps,
    PlainSteps,
    Problem,
    num_bytes,
    peak_bytes,
)

TINY = Problem(depth=18, width=32, crop=24, batch=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batches():
    return TINY.batches()


@pytest.fixture(scope="module")
def ours(batches):
    return OurSteps(TINY, batches)


def test_crops_are_those_of_the_mapper(batches):
    for x in batches[0]:
        assert (x["image"].shape, x["image"].dtype) == ((3, 24, 24), torch.float32)
        assert x["sem_seg"].dtype == torch.int64
        assert (x["size_weights"][x["sem_seg"] == 255] == 0).all()
    labels = torch.stack([x["sem_seg"] for batch in batches for x in batch])
    assert {0, 255} < set(labels.unique().tolist())
    for batch, other in zip(batches, TINY.batches()):
        assert torch.equal(batch[0]["image"], other[0]["image"])


@pytest.mark.slow
def test_the_plain_step_is_ours(batches, monkeypatch):
    """Two ways to write down the recipe: the same weights after steps at its real rate."""
    monkeypatch.setattr(train_steps, "_RATE", 2.5e-4)
    plain = PlainSteps(TINY, batches)
    for options in (PLAIN, ()):
        steps = OurSteps(TINY, batches, options)
        steps.model.load_state_dict(plain.model.state_dict())
        steps.optimizer.state.clear()
        steps.trainer.replace_data_loader([[dict(x) for x in batch] for batch in batches])
        one = copy.deepcopy(plain)
        one.run(3)
        steps.run("CE", 3)
        before = dict(plain.model.named_parameters())
        for name, value in one.model.named_parameters():
            other = steps.model.get_parameter(name)
            moved = (value - before[name]).abs().max()
            assert moved > 0
            assert (value - other).abs().max() < 1e-3 * moved, name
        assert len(steps.read_losses()) >= 3


def test_every_loss_does_its_part(ours):
    penalty = ours.ewc["L_SB"]
    fisher = {name: value.clone() for name, value in ours.ewc[FISHER].fisher.items()}
    ours.run("CE", 1)
    assert all(torch.equal(v, fisher[n]) for n, v in ours.ewc[FISHER].fisher.items())
    ours.run(FISHER, 1)
    assert any(not torch.equal(v, fisher[n]) for n, v in ours.ewc[FISHER].fisher.items())
    ours.run("L_SW", 1)
    assert ours.model.loss.size_weighted
    ours.run("L_SB", 1)
    assert penalty.penalty().item() > 0
    sample = dict.fromkeys(("image", "sem_seg", "size_weights"))
    assert next(ours._data([[sample]])) == [sample]
    ours.run("CE", 1)
    assert not ours.model.loss.size_weighted
    assert "size_weights" not in next(ours._data([[sample]]))[0]


def test_memory(ours):
    def work():
        first = torch.zeros(1 << 20)
        second = first + 1
        del first
        return second * 2

    assert 8 << 20 <= peak_bytes(work, CPU) < (8 << 20) + 100  # and what numbers take
    tensor = torch.zeros(10)
    assert num_bytes([tensor, tensor[2:], torch.zeros(1)]) == 44
    extra = num_bytes(ours.persistent("L_SB")) - num_bytes(ours.persistent("CE"))
    trained = [p for p in ours.model.parameters() if p.requires_grad]
    assert extra == 2 * num_bytes(trained)


def test_what_options_change(batches):
    assert "prefetch" not in train.option_names(CPU)
    assert "prefetch" in train.option_names(torch.device("cuda"))
    assert train.option_names(CPU, compiled=True)[-2:] == list(train.COMPILED)
    some = ["folded frozen norms", "loss image by image", "bfloat16"]
    rows = train.measure_options(TINY, batches, some, rounds=1, count=1)
    assert list(rows) == some
    assert rows["loss image by image"]["gradient"] < 1e-5
    assert rows["folded frozen norms"]["gradient"] < 1e-4 < rows["bfloat16"]["gradient"] < 0.5
    assert all(row["speedup"] > 0 for row in rows.values())


def arguments(*given):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args(list(given))


@pytest.mark.slow
def test_the_whole_benchmark(monkeypatch):
    monkeypatch.setattr(train, "option_names", lambda *_: ["bfloat16"])
    size = ("--depth", "18", "--width", "32", "--crop", "16", "--batch", "1", "--rounds", "1")
    found = train.run(arguments(*size))
    steps = found.figures["steps"]
    ours = [f"{loss}, {kind}" for kind in ("float32", "mixed") for loss in LOSSES]
    assert list(steps) == ["plain CE, float32", *ours]
    plain = steps["plain CE, float32"]
    assert plain["speedup"] == 1.0
    assert plain["images_per_s"] == pytest.approx(1e3 / plain["ms"])
    assert steps["CE, mixed"]["to_CE"] == 1.0
    row = steps["L_SB, float32"]
    assert row["to_CE"] == pytest.approx(row["ms"] / steps["CE, float32"]["ms"])
    assert row["peak_mib"] > steps["CE, float32"]["peak_mib"] > 0
    assert found.figures["penalty"]["copies"] == 2.0
    assert "| L_SB, mixed " in found.text
    assert "On a CPU, so a narrow net" in found.text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--width", "48"), "--width must be a multiple of 32, got 48"),
        (("--depth", "51"), "MODEL.RESNETS.DEPTH must be one of"),
    ],
)
def test_wrong_sizes(given, told):
    with pytest.raises(ValueError, match=told):
        train.run(arguments(*given))


@pytest.mark.parametrize(
    ("change", "gpu", "told"),
    [
        ({}, True, []),
        ({"sb": 1.04}, True, ["float32, takes 1.040 times CE's", "mixed, takes 1.040"]),
        ({"sb": 1.04}, False, ["float32, takes 1.040 times CE's, not 1.03"]),
        ({"mixed": 2.4}, True, ["mixed precision is 2.40 times as fast, not 2.5"]),
        ({"mixed": 2.4}, False, []),
        ({"copies": 2.5}, False, ["EWC takes 2.500 copies, not 2.0"]),
        ({"to_autograd": 1.0}, False, ["formula is not faster"]),
        ({"waits": "a sync"}, True, ["the host waits for the GPU: a sync"]),
    ],
)
def test_missed_targets(change, gpu, told):
    base = {"sb": 1.0, "mixed": 3.0, "copies": 2.0, "to_autograd": 0.1, "waits": "", **change}
    steps = {f"L_SB, {kind}": {"best_to_CE": base["sb"]} for kind in ("float32", "mixed")}
    steps["CE, mixed"] = {"speedup": base["mixed"]}
    missed = train.find_missed({"steps": steps, "penalty": base, "waits": base["waits"]}, gpu)
    assert len(missed) == len(told)
    assert all(text in sentence for text, sentence in zip(told, missed))
