"""Accumulating, merging, sending."""

from __future__ import annotations

import doctest
import json
import pickle

import numpy as np
import pytest

from d2_smallobj.metrics import Accumulator
from d2_smallobj.metrics import accumulator as module

NAMES = ["background", "a", "b"]


def filled(seed=0, images=range(4), **settings):
    accumulator = Accumulator(3, **settings)
    for image in images:
        rng = np.random.default_rng((seed, image))
        semantic = rng.integers(0, 3, (12, 12)).astype(np.uint8)
        semantic[0, 0] = 255
        accumulator.update(image, rng.integers(0, 3, (12, 12)), semantic)
    return accumulator


def same(first, second):
    one, two = first.summarize(NAMES), second.summarize(NAMES)
    return list(one) == list(two) and list(map(repr, one.values())) == list(map(repr, two.values()))


def test_counts_of_every_image():
    accumulator = Accumulator(3)
    accumulator.update("b", np.array([[0, 1, 1, 9]]), np.array([[0, 0, 1, 255]]))
    accumulator.update("a", np.array([[2]]), np.array([[2]]))
    # Rows ground truth, columns prediction.
    assert accumulator.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert accumulator.images == ["a", "b"]
    # Classes 0, 1, 2: intersection, ground truth, prediction; the ignored pixel is in none.
    pixels = accumulator.pixels
    assert {column.dtype.kind for column in pixels.columns().values()} == {"U", "i"}
    assert list(zip(*(column.tolist() for column in pixels.columns().values()))) == [
        ("a", 2, 1, 1, 1), ("b", 0, 1, 2, 1), ("b", 1, 1, 1, 2)
    ]  # fmt: skip
    assert len(Accumulator(3).pixels) == 0


@pytest.mark.parametrize("send", [
    lambda state: pickle.loads(pickle.dumps(state)),
    lambda state: json.loads(json.dumps(state, default=lambda value: value.tolist())),
])  # fmt: skip
def test_the_state_survives_sending(send):
    accumulator = filled(mode="official")
    rebuilt = Accumulator.from_state(send(accumulator.state()))
    assert rebuilt.mode == "official"
    assert rebuilt.images == accumulator.images
    for name, column in accumulator.pixels.columns().items():
        assert np.array_equal(getattr(rebuilt.pixels, name), column)
    assert rebuilt.blobs.area.tolist() == accumulator.blobs.area.tolist() != []
    assert same(rebuilt, accumulator)
    # A state is a copy.
    rebuilt.state()["confusion"][:] = 0
    assert rebuilt.confusion.sum() > 0


def test_memory_depends_on_instances_not_on_pixels():
    truth = np.zeros((30, 40), np.uint8)
    truth[5:15, 5:15], truth[20:25, 10:35] = 1, 2
    guess = np.roll(truth, 2, axis=1)
    sizes = []
    for scale in (1, 8):
        accumulator = Accumulator(3)
        for image in range(10):
            block = np.ones((scale, scale), np.uint8)
            accumulator.update(image, np.kron(guess, block), np.kron(truth, block))
        tables = (accumulator.table, accumulator.blobs, accumulator.pixels)
        held = [column for table in tables for column in table.columns().values()]
        assert len(accumulator.table) == 30
        sizes.append(accumulator.confusion.nbytes + sum(column.nbytes for column in held))
    assert sizes[0] == sizes[1]


def test_an_image_without_records_is_counted():
    accumulator = Accumulator(2)
    accumulator.update("void", np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    figures = accumulator.summarize(["background", "a"])
    assert (figures["images"], figures["instances"]) == (1.0, 0.0)
    assert Accumulator.from_state(accumulator.state()).images == ["void"]


def test_an_image_counts_once():
    accumulator = filled(images=[1])
    with pytest.raises(ValueError, match=r"evaluated once, got again 1 "):
        accumulator.update("1", np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"evaluated once, got again 1, 2 "):
        filled(images=[1, 2]).merge(filled(images=[2, 1]))
    with pytest.raises(ValueError, match=r"got again 0, 1, .* and 2 more"):
        filled(images=range(12)).merge(filled(images=range(12)))


def test_a_refused_image_leaves_nothing_behind():
    accumulator = filled(images=[1])
    before = accumulator.summarize(NAMES)
    with pytest.raises(ValueError, match=r"prediction must hold"):
        accumulator.update("x", np.full((2, 2), 9), np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"lies on class 0"):
        accumulator.update("x", *[np.zeros((2, 2), np.uint8)] * 2, np.ones((2, 2), np.uint8))
    assert accumulator.images == ["1"]
    assert repr(accumulator.summarize(NAMES)) == repr(before)


@pytest.mark.parametrize(("other", "message"), [
    (Accumulator(4), "num_classes 3 here, 4 there"),
    (Accumulator(3, ignore_label=254), "ignore_label 255 here, 254 there"),
    (Accumulator(3, mode="official"), "mode 'exact' here, 'official' there"),
])  # fmt: skip
def test_only_equals_merge(other, message):
    with pytest.raises(ValueError, match=message):
        Accumulator(3).merge(other)


def test_a_damaged_state_is_refused():
    state = filled().state()
    with pytest.raises(ValueError, match=r"state must have the keys .*'pixels'"):
        Accumulator.from_state({key: value for key, value in state.items() if key != "pixels"})
    with pytest.raises(ValueError, match=r"confusion must have shape \(3, 3\) .* got \(2, 2\)"):
        Accumulator.from_state({**state, "confusion": np.zeros((2, 2))})


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 2) == (0, True)
