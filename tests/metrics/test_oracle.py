"""Random maps against a slow oracle that shares nothing with the package, and invariances.

The oracle floods pixel by pixel and reckons in fractions, so equality is exact.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_smallobj.metrics import Accumulator, match_image

CLASSES = 4
NAMES = ["background", "a", "b", "c"]
SETTINGS = settings(max_examples=120, deadline=None)


@st.composite
def scenes(draw, *, with_instances=True, unused_class=False):
    """Blobs of few pixels in a map of at most 10 x 10: prediction, semantic, instances."""
    height, width = draw(st.integers(1, 10)), draw(st.integers(1, 10))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = draw(st.integers(1, 3))

    def blobs(values):
        small = rng.choice(values, (-(-height // coarse), -(-width // coarse)))
        return small.repeat(coarse, 0).repeat(coarse, 1)[:height, :width]

    category = np.array([0, *rng.integers(1, CLASSES - unused_class, 6)])
    instances = blobs(np.arange(7))
    semantic = category[instances]
    prediction = np.where(rng.random((height, width)) < 0.7, semantic, blobs(np.arange(CLASSES)))
    ids = np.array([0, *rng.choice(np.arange(1, 255), 6, replace=False)])
    instances = ids[instances]
    # Void of each kind: in both maps, in the semantic map only, in the instance map only.
    kind = blobs(np.array([0, 0, 0, 0, 0, 0, 1, 2, 3]))
    semantic = np.where((kind == 1) | (kind == 2), 255, semantic)
    instances = np.where((kind == 1) | (kind == 3), 255, instances)
    maps = [m.astype(np.uint8) for m in (prediction, semantic, instances)]
    return maps if with_instances else [*maps[:2], None]


def neighbours(pixel, diagonal):
    y, x = pixel
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    steps += [(1, 1), (1, -1), (-1, 1), (-1, -1)] if diagonal else []
    return [(y + dy, x + dx) for dy, dx in steps]


def groups(pixels, diagonal=True):
    """Split a set of pixels into connected sets."""
    left, found = set(pixels), []
    while left:
        front = [left.pop()]
        group = set(front)
        while front:
            for near in neighbours(front.pop(), diagonal):
                if near in left:
                    left.remove(near)
                    group.add(near)
                    front.append(near)
        found.append(group)
    return found


def filled_groups(pixels, height, width):
    """Split a set of pixels by the filled outer contour in which they lie."""
    frame = {(y, x) for y in range(-1, height + 1) for x in range(-1, width + 1)}
    outside = next(g for g in groups(frame - pixels, diagonal=False) if (-1, -1) in g)
    return [group & pixels for group in groups(frame - outside)]


def oracle(prediction, semantic, instances, mode):
    """Records (category, instance, area, pixels, hit, charged, components, shared), confusion,
    and blobs (category, area)."""
    height, width = semantic.shape
    grid = [(y, x) for y in range(height) for x in range(width)]
    named = instances is not None
    if named:
        regions = {}
        for p in grid:
            if instances[p] not in (0, 255):
                regions.setdefault(int(instances[p]), set()).add(p)
    else:
        parts = [g for c in range(1, CLASSES) for g in groups(p for p in grid if semantic[p] == c)]
        regions = dict(enumerate(parts))
    valid = {p for p in grid if semantic[p] != 255 and not (named and instances[p] == 255)}
    truth = {t: r & valid for t, r in regions.items() if r & valid}
    category = {t: int(semantic[next(iter(r))]) for t, r in truth.items()}
    charged = dict.fromkeys(truth, Fraction(0))
    hits, touched = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    near, blobs = {t: set() for t in truth}, []
    for c in range(1, CLASSES):
        pixels = {p for p in grid if prediction[p] == c}
        parts = groups(pixels) if mode == "exact" else filled_groups(pixels, height, width)
        for part in parts:
            part = part & valid
            n = {t: len(part & truth[t]) for t in truth if category[t] == c and part & truth[t]}
            both = sum(n.values())
            if part and not n:
                blobs.append((c, len(part)))
            for t, count in n.items():
                beyond = len(part) - both
                exact = mode == "exact"
                share = Fraction(beyond * count, both) if exact else int(count / both * beyond)
                charged[t] += count + share
                hits[t] += count
                touched[t] += 1
                near[t] |= set(n) - {t}
    rows = [
        (category[t], t if named else None, len(regions[t]), len(truth[t]), hits[t],
         charged[t], touched[t], len(near[t]))
        for t in truth
    ]  # fmt: skip
    ground = {p for p in grid if semantic[p] == 0}
    if ground & valid:
        guess = {p for p in valid if prediction[p] == 0}
        hit = len(ground & guess)
        share = Fraction(len(guess) if hit else 0)
        rows.append(
            (0, 0 if named else None, len(ground), len(ground & valid), hit, share, int(hit > 0), 0)
        )
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for p in grid:
        if semantic[p] != 255:
            confusion[semantic[p], prediction[p]] += 1
    return rows, confusion, sorted(blobs)


def as_rows(table, named=True):
    return [
        (c, t if named else None, a, g, h, q, k, s)
        for t, c, a, g, h, q, k, s, _ in zip(
            *[x.tolist() for x in list(table.columns().values())[1:]]
        )
    ]


def as_blobs(blobs):
    return sorted(zip(blobs.category_id.tolist(), blobs.area.tolist()))


def ordered(rows):
    return sorted(rows, key=lambda row: tuple(-1 if v is None else v for v in row))


@pytest.mark.parametrize("mode", ["exact", "official"])
@pytest.mark.parametrize("named", [True, False])
@given(data=st.data())
@settings(max_examples=500, deadline=None)
def test_records_equal_the_oracles(mode, named, data):
    maps = data.draw(scenes(with_instances=named))
    match = match_image(*maps, num_classes=CLASSES, mode=mode)
    rows, confusion, blobs = oracle(*maps, mode)
    # Counts are integers and the charge is the exact fraction, rounded once.
    assert ordered(as_rows(match.table, named)) == ordered(
        [(*row[:5], float(row[5]), *row[6:]) for row in rows]
    )
    assert np.array_equal(match.confusion, confusion)
    assert as_blobs(match.blobs) == blobs
    for table in (match.table, match.blobs):
        assert set(table.image_area.tolist()) <= {maps[1].size}
    exact = {(c, t, a, g, h): h / (g + q - h) for c, t, a, g, h, q, *_ in rows}
    if named:
        for row, iou in zip(as_rows(match.table), match.table.iou.tolist()):
            assert iou == pytest.approx(float(exact[row[:5]]), rel=1e-14)


@given(scenes())
@SETTINGS
def test_summary_equals_fractions(maps):
    rows, confusion, _ = oracle(*maps, "exact")
    accumulator = Accumulator(CLASSES)
    accumulator.update("a", *maps)
    figures = accumulator.summarize(NAMES)
    ious = {c: [h / (g + q - h) for k, _, _, g, h, q, *_ in rows if k == c] for c in range(CLASSES)}
    means = [sum(v) / len(v) for v in ious.values() if v]
    front = [sum(v) / len(v) for c, v in ious.items() if v and c]
    for key, values in (("IA-mIoU", means), ("IA-mIoU_fg", front), ("IA-mIoU_S", front)):
        expected = 100 * float(sum(values) / len(values)) if values else float("nan")
        assert figures[key] == pytest.approx(expected, rel=1e-13, nan_ok=True)
    present = [c for c in range(CLASSES) if confusion[c].sum()]
    plain = [
        Fraction(
            int(confusion[c, c]), int(confusion[c].sum() + confusion[:, c].sum() - confusion[c, c])
        )
        for c in present
    ]
    expected = 100 * float(sum(plain) / len(plain)) if plain else float("nan")
    assert figures["mIoU"] == pytest.approx(expected, rel=1e-13, nan_ok=True)


@pytest.mark.parametrize("mode", ["exact", "official"])
@given(data=st.data())
@SETTINGS
def test_mirrored_and_transposed_maps_give_the_same_bits(mode, data):
    maps = data.draw(scenes())
    expected = match_image(*maps, num_classes=CLASSES, mode=mode)
    for turn in (np.fliplr, np.flipud, np.transpose, np.rot90):
        found = match_image(*map(turn, maps), num_classes=CLASSES, mode=mode)
        assert as_rows(found.table) == as_rows(expected.table)
        assert as_blobs(found.blobs) == as_blobs(expected.blobs)
        assert np.array_equal(found.confusion, expected.confusion)


@given(scenes(), st.integers(0, 2**32 - 1))
@SETTINGS
def test_instance_numbers_do_not_matter(maps, seed):
    prediction, semantic, instances = maps
    rng = np.random.default_rng(seed)
    # New numbers with wide gaps, beyond 8 and 16 bits, in another order.
    wide = np.concatenate([[0], rng.choice(np.arange(256, 90000), 254, replace=False), [255]])
    expected = match_image(prediction, semantic, instances, num_classes=CLASSES).table
    found = match_image(prediction, semantic, wide[instances], num_classes=CLASSES).table
    back = {int(new): old for old, new in enumerate(wide)}
    assert sorted((c, back[t], *rest) for c, t, *rest in as_rows(found)) == sorted(
        as_rows(expected)
    )


@given(scenes(unused_class=True), st.integers(0, 2**32 - 1))
@SETTINGS
def test_values_under_ignored_pixels(maps, seed):
    """What holds exactly: under ignored pixels, a prediction may change between labels of which
    the image has no instance (background, absent classes, nonsense), and an instance id may be
    anything. Between classes that do have instances it may not: components are found on the raw
    prediction, so a change there can join or split them (next test).
    """
    prediction, semantic, instances = maps
    rng = np.random.default_rng(seed)
    void = (semantic == 255) | (instances == 255)
    absent = np.array([0, CLASSES - 1])
    first = np.where(void, rng.choice(absent, void.shape), prediction)
    second = np.where(void, rng.choice(absent, void.shape), prediction)
    # Where the semantic map ignores as well, even values that are no class.
    second = np.where(semantic == 255, rng.choice([0, 200, 255], void.shape), second)
    scrambled = np.where(semantic == 255, rng.integers(0, 255, void.shape), instances)
    one = match_image(first, semantic, instances, num_classes=CLASSES).table
    two = match_image(second, semantic, instances, num_classes=CLASSES).table
    assert as_rows(one) == as_rows(two)
    three = match_image(second, semantic, scrambled, num_classes=CLASSES).table
    # The size in pixels of the instance map (area, position 2) may change, no count of the IoU.
    without_area = [(row[:2], row[3:]) for row in as_rows(three)]
    assert without_area == [(row[:2], row[3:]) for row in as_rows(one)]


def test_components_join_through_ignored_pixels():
    # Two blobs of one class, joined only under a void column: one component, shared.
    semantic = np.array([[1, 1, 255, 1, 0]], np.uint8)
    instances = np.array([[1, 1, 255, 2, 0]], np.uint8)
    apart = np.array([[1, 1, 0, 1, 1]], np.uint8)
    joined = np.array([[1, 1, 1, 1, 1]], np.uint8)
    found = match_image(apart, semantic, instances, num_classes=2).table
    assert found.charged[1:].tolist() == [2.0, 2.0]
    found = match_image(joined, semantic, instances, num_classes=2).table
    # 4 valid pixels shared 2 : 1.
    assert found.charged[1:].tolist() == [8 / 3, 4 / 3]


@given(st.lists(scenes(), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_order_and_sharding_leave_no_trace(images, seed):
    rng = np.random.default_rng(seed)
    whole = Accumulator(CLASSES)
    for number, maps in enumerate(images):
        whole.update(number, *maps)
    shards = [Accumulator(CLASSES) for _ in range(3)]
    for number in rng.permutation(len(images)):
        shards[rng.integers(3)].update(int(number), *images[number])
    merged = Accumulator(CLASSES)
    for shard in rng.permutation(3):
        merged.merge(Accumulator.from_state(shards[shard].state()))
    expected, found = whole.summarize(NAMES), merged.summarize(NAMES)
    assert list(found) == list(expected)
    assert np.array(list(found.values())).tobytes() == np.array(list(expected.values())).tobytes()
    assert as_rows(merged.table) == as_rows(whole.table)
    assert merged.table.image_id.tolist() == whole.table.image_id.tolist()
    for name, column in whole.blobs.columns().items():
        assert np.array_equal(merged.blobs.columns()[name], column)
    for name, column in whole.pixels.columns().items():
        assert np.array_equal(merged.pixels.columns()[name], column)
