"""Void pixels, odd ids, and input that is refused."""

from __future__ import annotations

import numpy as np
import pytest

from d2_smallobj.metrics import component_instances, match_image


def row(*values, dtype=np.uint8):
    return np.array([values], dtype)


@pytest.mark.parametrize(("prediction", "semantic", "instances", "expected"), [
    # Perfect.
    ([0, 1, 1, 2, 255], [0, 1, 1, 2, 255], [0, 1, 1, 2, 255],
     [(0, 0, 1, 1), (1, 1, 2, 1), (2, 2, 1, 1)]),
    # The component covers class 1 and class 2: all is instance 1's, the rest of it surplus.
    ([1, 1, 1, 1], [1, 1, 2, 2], [1, 1, 2, 2], [(1, 1, 2, 1 / 2), (2, 2, 2, 0)]),
    # Ids with gaps; the authors' code gives NaN here.
    ([1, 0, 1, 0], [1, 0, 1, 0], [3, 0, 90, 0], [(0, 0, 2, 1), (3, 1, 1, 1), (90, 1, 1, 1)]),
    # An instance map of void alone; the authors' code raises an IndexError here.
    ([0, 1], [0, 1], [255, 255], []),
    ([0, 1], [255, 255], [255, 255], []),
    # Ignored pixels inside an instance; an IndexError there. Size 4 px, 3 of them counted.
    ([1, 1, 0, 0, 0], [1, 1, 255, 1, 0], [5, 5, 5, 5, 0], [(0, 0, 1, 1 / 2), (5, 1, 4, 2 / 3)]),
    ([0, 1, 0], [0, 0, 0], [0, 0, 0], [(0, 0, 3, 2 / 3)]),
    # Column 2 is class 1 without an instance: to the component it is surplus.
    ([1, 1, 1, 0], [1, 1, 1, 0], [4, 4, 0, 0], [(0, 0, 1, 1), (4, 1, 2, 2 / 3)]),
    # Background is one record without void. Truth 3, predicted 2 right and 1 wrong: 2 / 4.
    ([0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 255, 0], [0, 0, 0, 1, 255, 255],
     [(0, 0, 4, 1 / 2), (1, 1, 1, 0)]),
])  # fmt: skip
def test_small_cases(prediction, semantic, instances, expected):
    for mode in ("exact", "official"):
        maps = [np.array([values], np.uint8) for values in (prediction, semantic, instances)]
        match = match_image(*maps, num_classes=3, mode=mode)
        columns = (match.table.instance_id, match.table.category_id, match.table.area)
        assert list(zip(*columns, match.table.iou)) == expected
        # mIoU knows no instances: the instance map's void pixels count there.
        assert match.confusion.sum() == np.count_nonzero(maps[1] != 255)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_ids_beyond_eight_bits(dtype):
    semantic = row(1, 1, 0, 2, 255, 1)
    instances = row(256, 256, 0, 70 if dtype == np.uint16 else 99999, 300, 255, dtype=dtype)
    table = match_image(row(1, 1, 1, 2, 1, 1), semantic, instances, num_classes=3).table
    assert table.category_id.tolist()[0] == 0
    by_id = dict(zip(table.instance_id.tolist(), table.iou.tolist()))
    # Id 300 lies wholly on ignored pixels and is dropped; 255 is void in any dtype.
    assert set(by_id) == {0, 256, int(instances[0, 3])}
    assert by_id[256] == 2 / 3


def test_components_stand_in_for_instances():
    semantic = np.array([[1, 1, 0, 2], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 2, 2]], np.uint8)
    table = match_image(semantic, semantic, num_classes=3).table
    # 8-connected: three pixels of class 1 touch by a corner, one lies apart.
    assert sorted(zip(table.category_id, table.area)) == [(0, 9), (1, 1), (1, 3), (2, 1), (2, 2)]
    assert sorted(table.instance_id.tolist()) == [0, 1, 2, 3, 4]
    assert np.all(table.iou == 1.0)


def test_component_numbers_pass_over_255():
    semantic = np.zeros((40, 40), np.uint8)
    semantic[::2, ::2] = 1  # 400 components
    table = match_image(semantic, semantic, num_classes=2).table
    assert table.instance_id.tolist() == [i for i in range(402) if i != 255]
    assert np.all(table.iou == 1.0)
    assert np.unique(component_instances(semantic)).tolist() == table.instance_id.tolist()


def test_labels_of_a_large_vocabulary():
    semantic = row(0, 1203, 700, 65535, dtype=np.uint16)
    match = match_image(
        row(0, 1203, 0, 3, dtype=np.int64), semantic, num_classes=1204, ignore_label=65535
    )
    assert match.table.category_id.tolist() == [0, 700, 1203]
    assert match.table.iou.tolist() == [0.5, 0.0, 1.0]
    assert match.confusion.shape == (1204, 1204)


def test_input_is_not_changed():
    maps = [row(0, 1, 2, 9), row(0, 1, 255, 255), row(0, 1, 1, 255)]
    before = [m.copy() for m in maps]
    match_image(*maps, num_classes=3)
    for now, then in zip(maps, before):
        assert np.array_equal(now, then)


@pytest.mark.parametrize(("maps", "message"), [
    ((row(0, 1), row(0, 0, 1), row(0, 0, 1)),
     r"one shape, got prediction \(1, 2\), semantic \(1, 3\), instances \(1, 3\)"),
    ((row(0, 1), np.zeros(2, np.uint8)), r"semantic must have shape \(H, W\), got shape \(2,\)"),
    ((row(255, 2, 255, 1), row(0, 0, 0, 1)),
     r"prediction must hold 0..1 on .* got 2 \(1 px\), 255 \(2 px\)"),
    ((row(0, 0, 0, 0), row(0, 7, 7, 7)), r"semantic must hold 0..1 on .* got 7 \(3 px\)$"),
    ((row(0, -1, dtype=np.int64), row(0, 0)), r"prediction .* got -1 \(1 px\)"),
    ((row(0, 1, 1), row(0, 1, 1), row(0, -3, -3, dtype=np.int32)),
     r"instances must hold >= 0, got -3 \(2 px\)"),
    # Only ten wrong values are listed.
    ((row(*range(15)), row(*[0] * 15)), r"got 2 \(1 px\), .* 11 \(1 px\) and 3 more values$"),
    ((np.zeros((1, 2)), row(0, 0)), r"prediction must be an integer array .* got float64"),
    ((row(0, 1), row(0, 1), np.ones((1, 2), bool)), r"instances must be .* got bool"),
    ((row(0, 1), [[0, 1]]), r"semantic must be an integer array .* got list"),
    ((row(0, 1).view(np.matrix), row(0, 1)), r"prediction must be a plain array, got a matrix"),
    ((row(0, 1), np.ma.masked_array([[0, 1]])), r"semantic must be a plain array, got a Masked"),
    # Ids that an int64 cannot hold would be those of other instances.
    ((row(0, 1), row(0, 1), row(0, 2**64 - 1, dtype=np.uint64)), r"below 2\*\*63, got 1844"),
    ((row(0, 2**63, dtype=np.uint64), row(0, 1)), r"prediction must hold .* got 9223"),
])  # fmt: skip
def test_wrong_maps_are_refused(maps, message):
    with pytest.raises((ValueError, TypeError), match=message):
        match_image(*maps, num_classes=2)


def test_an_instance_on_two_classes_is_named():
    message = r"instance 5 lies on class 1 \(2 px\), class 2 \(1 px\); instance 9 lies on class 0"
    with pytest.raises(ValueError, match=message):
        match_image(row(0, 0, 0, 0), row(1, 1, 2, 0), row(5, 5, 5, 9), num_classes=3)
    with pytest.raises(ValueError, match="instance 300 lies on class 2"):
        match_image(row(0), row(2), row(300, dtype=np.int32), num_classes=4, stuff=(0, 2))


@pytest.mark.parametrize(("options", "message"), [
    ({"num_classes": 2, "mode": "offical"}, r"unknown value 'offical'.*did you mean 'official'"),
    ({"num_classes": 0}, r"num_classes must be at least 1 .* got 0"),
    ({"num_classes": 2.0}, r"num_classes must be an int, got 2.0"),
    ({"num_classes": 2, "ignore_label": 1}, r"must lie above the classes 0..1, got 1"),
    ({"num_classes": 999999999999, "ignore_label": 2**61}, r"at most 10000, got 999999999999"),
    *(({"num_classes": 2, "ignore_label": x}, f"ignore_label must be an int, got {x}")
      for x in (255.5, 255.0, float("nan"), None)),
    *(({"num_classes": 2, "ignore_label": x}, f"must lie below .*, got {x}")
      for x in (2**62, 2**64 - 1)),
])  # fmt: skip
def test_wrong_settings_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        match_image(row(0, 1), row(0, 1), **options)


@pytest.mark.parametrize("ignored", [2**58, 2**61])
def test_labels_of_64_bits_give_the_figures_of_small_ones(ignored):
    small = match_image(row(0, 1, 1), row(0, 255, 1), row(0, 7, 7), num_classes=2)
    for kind in (np.int64, np.uint64):
        maps = row(0, 1, 1, dtype=kind), row(0, ignored, 1, dtype=kind), row(0, 7, 7, dtype=kind)
        large = match_image(*maps, num_classes=2, ignore_label=ignored)
        assert large.table.iou.tolist() == small.table.iou.tolist()
        assert np.array_equal(large.confusion, small.confusion)
