"""Random maps against a slow oracle that shares nothing with the package, and invariances.

The oracle floods pixel by pixel and reckons in fractions, so equality is exact.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
import pytest
from random_maps import EACH, blobs, on_random_maps

from d2_smallobj.metrics import Accumulator, accumulator, image_runs, match_image
from d2_smallobj.metrics.summary import headline_names

# Four classes, background, 255 for ignored and void pixels.
PLAIN = (4, (0,), 255, 255)
# Sizes that maps of 10 x 10 have.
TINY = {"S": 3, "M": 12, "L": math.inf}
MODES = pytest.mark.parametrize("mode", ["exact", "official"])
NAMED = pytest.mark.parametrize("named", [True, False])


def some_worlds(rng, **options):
    return [random_world(rng, **options) for _ in range(EACH)]


@dataclasses.dataclass(frozen=True)
class World:
    """Maps, and how they are to be read."""

    maps: list[Any]
    num_classes: int = 4
    stuff: tuple[int, ...] = (0,)
    ignore_label: int = 255
    void_instance: int | None = 255

    @property
    def settings(self):
        fields = dataclasses.fields(self)[1:]
        return {field.name: getattr(self, field.name) for field in fields}


def random_world(rng, *, kind=None, named=True, used=None):
    """Blobs of few pixels in a map of at most 10 x 10, of any conventions: a :class:`World`.

    Things may have pixels without an instance; every kind of void; anything is predicted where
    the semantic map ignores. The ground truth has the first ``used`` classes only.
    """
    classes, stuff, ignore, void = kind or random_kind(rng)
    height, width, coarse = rng.integers(1, (11, 11, 4)).tolist()
    grid = (height, width), (coarse, coarse)
    category = rng.integers(0, used or classes, 10)
    number = blobs(rng, *grid, range(10))
    semantic = category[number]
    near = np.where(rng.random((height, width)) < 0.7, semantic, blobs(rng, *grid, range(classes)))
    largest = int(rng.choice([8, 16, 31, 40, 62]))
    ids = rng.integers(1, 2**largest, 10)
    # Both sides of 255 are ordinary numbers, and so is 255 where void is another or none.
    ids[:3] = rng.permutation([254, 255, 256 if largest > 8 else 253])
    ids[ids == void] = 1 + (void == 1)
    # Equal numbers on two classes are an error.
    ids[[n for n in range(10) if ids[n] in ids[:n]]] = 0
    ids[np.isin(category, stuff)] = 0
    # Surplus: a thing's pixels without an instance.
    ids[rng.random(10) < rng.choice([0, 0.2])] = 0
    instances = ids[number]
    # Void of each kind: in both maps, in the semantic map only, in the instance map only.
    kinds = blobs(rng, *grid, [0, 0, 0, 0, 0, 0, 1, 2, 3])
    semantic = np.where((kinds == 1) | (kinds == 2), ignore, semantic)
    if void is not None:
        instances = np.where((kinds == 1) | (kinds == 3), void, instances)
    junk = [0, classes - 1, classes, 99, 255, ignore]
    junk += ([], [65535], [-1, -(2**40), 2**40])[rng.integers(3)]
    prediction = np.where(semantic == ignore, rng.choice(junk, near.shape), near)
    maps = [as_small(rng, labels) for labels in (prediction, semantic, instances)]
    return World(maps if named else [*maps[:2], None], classes, stuff, ignore, void)


def random_kind(rng):
    """Number of classes, stuff, ignore label and void instance."""
    classes = int(rng.integers(1, 7))
    few = [(), (0,), (2,), (0, 3), (classes - 1,), tuple(range(classes))]
    few = [kinds for kinds in few if set(kinds) <= set(range(classes))]
    ignore = [255, classes, 65535][rng.integers(3)]
    void = [255, None, 1, 254, 65535, 2**33][rng.integers(6)]
    return classes, few[rng.integers(len(few))], ignore, void


def as_small(rng, labels):
    """The labels in one of the types that hold them."""
    types = [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.int64]
    low, high = labels.min(), labels.max()
    fitting = [t for t in types if np.iinfo(t).min <= low and high <= np.iinfo(t).max]
    return labels.astype(fitting[rng.integers(len(fitting))])


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


def oracle(world, mode):
    """Records (category, instance, area, pixels, hit, charged, components, shared), confusion,
    and blobs (category, area)."""
    prediction, semantic, instances = world.maps
    stuff, void, ignore = world.stuff, world.void_instance, world.ignore_label
    things = [c for c in range(world.num_classes) if c not in stuff]
    height, width = semantic.shape
    grid = [(y, x) for y in range(height) for x in range(width)]
    named = instances is not None
    regions = {}
    if named:
        for p in grid:
            if instances[p] not in (0, void):
                regions.setdefault(int(instances[p]), set()).add(p)
    else:
        parts = [g for c in things for g in groups(p for p in grid if semantic[p] == c)]
        regions = dict(enumerate(parts))
    valid = {p for p in grid if semantic[p] != ignore and not (named and instances[p] == void)}
    truth = {t: r & valid for t, r in regions.items() if r & valid}
    category = {t: int(semantic[next(iter(r))]) for t, r in truth.items()}
    charged = dict.fromkeys(truth, Fraction(0))
    hits, touched = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    near, blobs = {t: set() for t in truth}, []
    for c in things:
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
    for c in stuff:
        ground = {p for p in grid if semantic[p] == c}
        if not ground & valid:
            continue
        guess = {p for p in valid if prediction[p] == c}
        hit = len(ground & guess)
        share = Fraction(len(guess) if hit else 0)
        rows.append(
            (c, 0 if named else None, len(ground), len(ground & valid), hit, share, int(hit > 0), 0)
        )
    confusion = np.zeros((world.num_classes, world.num_classes), np.int64)
    for p in grid:
        if semantic[p] != ignore:
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


def as_matrix(world, match):
    """The confusion matrix of one image, whatever form the match keeps it in."""
    accumulator = Accumulator(**world.settings)
    accumulator.add("", match)
    return accumulator.confusion


def as_pixel_rows(pixels):
    """(image, class, intersection, ground truth, predicted), in the order of the table."""
    return list(zip(*(column.tolist() for column in pixels.columns().values())))


def check_records(world, mode):
    """One image: records, confusion matrix and blobs are the oracle's."""
    named = world.maps[2] is not None
    match = match_image(*world.maps, **world.settings, mode=mode)
    rows, confusion, blobs = oracle(world, mode)
    # Counts are integers and the charge is the exact fraction, rounded once.
    assert ordered(as_rows(match.table, named)) == ordered(
        [(*row[:5], float(row[5]), *row[6:]) for row in rows]
    )
    assert np.array_equal(as_matrix(world, match), confusion)
    assert as_blobs(match.blobs) == blobs
    for table in (match.table, match.blobs):
        assert set(table.image_area.tolist()) <= {world.maps[1].size}
    assert not set(match.blobs.category_id.tolist()) & set(world.stuff)
    stuff = np.isin(match.table.category_id, world.stuff)
    assert np.array_equal(match.table.things, ~stuff)
    assert np.array_equal(match.table.instance_id == 0, stuff)
    exact = {(c, t, a, g, h): h / (g + q - h) for c, t, a, g, h, q, *_ in rows}
    if named:
        for row, iou in zip(as_rows(match.table), match.table.iou.tolist()):
            assert math.isclose(iou, exact[row[:5]], rel_tol=1e-14)


@MODES
@NAMED
@pytest.mark.parametrize("kind", [PLAIN, None])
@on_random_maps(300)
def test_records_equal_the_oracles(mode, named, kind, rng):
    for world in some_worlds(rng, named=named, kind=kind):
        check_records(world, mode)


@NAMED
@on_random_maps(300)
def test_records_found_in_the_pixels_equal_the_oracles(named, rng):
    """The road of maps of noise, here for maps of any kind."""
    with mock.patch.multiple(image_runs, _SMALLEST_AREA=1, _SHORT_RUN=1000):
        for world in some_worlds(rng, named=named):
            check_records(world, "exact")


@MODES
@pytest.mark.parametrize("short", [0, 2, 1000])
@on_random_maps(400)
def test_images_matched_together_are_as_alone(mode, short, rng):
    kind = random_kind(rng)
    # With and without instance map; up to more than are matched at once.
    count = rng.integers(2, 8)
    images = [random_world(rng, kind=kind, named=rng.random() < 0.5) for _ in range(count)]
    options = {**images[0].settings, "mode": mode}
    with (
        mock.patch.multiple(image_runs, _SMALLEST_AREA=1, _SHORT_RUN=short),
        mock.patch.object(accumulator, "_MOST_IMAGES", 4),
    ):
        together = Accumulator(**options)
        for number, world in enumerate(images):
            together.update(number, *world.maps)
    for number, world in enumerate(images):
        alone = match_image(*world.maps, image_id=str(number), **options)
        for name in ("table", "blobs", "pixels"):
            found = getattr(together, name)
            found = found.select(found.image_id == str(number)).columns()
            for column, values in getattr(alone, name).sorted().columns().items():
                assert np.array_equal(found[column], values), (name, column)
    expected = [oracle(world, mode) for world in images]
    assert np.array_equal(together.confusion, sum(confusion for _, confusion, _ in expected))
    assert len(together.table) == sum(len(rows) for rows, _, _ in expected)
    assert as_blobs(together.blobs) == sorted(blob for *_, blobs in expected for blob in blobs)


@MODES
@pytest.mark.parametrize("void", [None, 255])
@pytest.mark.parametrize("stuff", [(), (0,), (2,)])
def test_hundreds_of_touching_instances(mode, void, stuff):
    # Cells of 2 x 2 that are an instance each: 18 x 20 = 360 of three classes, two in three things.
    rng = np.random.default_rng(len(stuff))
    number = np.arange(1, 361).reshape(18, 20).repeat(2, 0).repeat(2, 1)
    category = rng.integers(0, 3, 361)
    semantic = category[number]
    instances = np.where(np.isin(semantic, stuff), 0, number)
    prediction = np.where(rng.random(number.shape) < 0.8, semantic, rng.integers(0, 3, (36, 40)))
    world = World([prediction, semantic, instances], 3, stuff, 255, void)
    check_records(world, mode)
    count = np.count_nonzero(~np.isin(category[1:], stuff))
    gone = int(void == 255 and category[255] not in stuff)
    table = match_image(*world.maps, **world.settings, mode=mode).table
    assert np.count_nonzero(table.things) == count - gone
    assert count > 200


def renumbered(world, order):
    """The same world, class c called order[c]."""
    maps = []
    for labels in world.maps[:2]:
        known = (labels >= 0) & (labels < world.num_classes)
        maps.append(np.where(known, order[np.where(known, labels, 0)], labels.astype(np.int64)))
    stuff = tuple(int(order[c]) for c in world.stuff)
    return dataclasses.replace(world, maps=[*maps, world.maps[2]], stuff=stuff)


@MODES
@NAMED
@on_random_maps(120)
def test_class_numbers_do_not_matter(mode, named, rng):
    for world in some_worlds(rng, named=named):
        order = rng.permutation(world.num_classes)
        other = renumbered(world, order)
        one, two = (match_image(*w.maps, **w.settings, mode=mode) for w in (world, other))
        moved = [(int(order[c]), *rest) for c, *rest in as_rows(one.table, named)]
        assert ordered(moved) == ordered(as_rows(two.table, named))
        assert sorted((int(order[c]), a) for c, a in as_blobs(one.blobs)) == as_blobs(two.blobs)
        assert np.array_equal(as_matrix(world, one), as_matrix(other, two)[np.ix_(order, order)])
        names = [f"class {c}" for c in range(world.num_classes)]
        turned = [names[c] for c in np.argsort(order)]
        figures = []
        for w, match, listed in ((world, one, names), (other, two, turned)):
            accumulator = Accumulator(**w.settings, mode=mode)
            accumulator.add("", match)
            figures.append(accumulator.summarize(listed, size_bins=TINY))
        for key, value in figures[0].items():
            assert figures[1][key] == pytest.approx(value, rel=1e-13, nan_ok=True), key


def mean(values):
    """The mean as a fraction of percent, None of nothing."""
    values = list(values)
    return 100 * sum(values, Fraction(0)) / len(values) if values else None


def worst_mean(values, share):
    """Mean of the lowest ``share`` percent, at least one."""
    values = sorted(values)
    return mean(values[: max(1, share * len(values) // 100)])


def expected_figures(images, stuff, classes, share):
    """The headline figures as fractions from (records, confusion matrix) of every image."""
    found = {}
    total = sum(confusion for _, confusion in images)
    per_image = []
    for confusion in [total, *(confusion for _, confusion in images)]:
        truth, guess = confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist()
        hit = confusion.diagonal().tolist()
        per_image.append(
            {c: Fraction(hit[c], truth[c] + guess[c] - hit[c]) for c in classes if truth[c]}
        )
    found["mIoU"] = mean(per_image[0].values())
    rows = [row for records, _ in images for row in records]
    iou = [(c, a, h / (g + q - h)) for c, _, a, g, h, q, *_ in rows]
    bins = {"S": (0, 3), "M": (3, 12), "L": (12, 10**6)}
    groups_of = {
        "": [(c, v) for c, _, v in iou],
        "_fg": [(c, v) for c, _, v in iou if c not in stuff],
    }
    for name, (low, high) in bins.items():
        groups_of[f"_{name}"] = [(c, v) for c, a, v in iou if low <= a < high and c not in stuff]

    def class_mean(pairs):
        kept = [[v for c, v in pairs if c == k] for k in classes]
        return mean(mean(v) / 100 for v in kept if v)

    found |= {f"IA-mIoU{name}": class_mean(pairs) for name, pairs in groups_of.items()}
    by_image = [mean(ious.values()) / 100 for ious in per_image[1:] if ious]
    by_class = [[ious[c] for ious in per_image[1:] if c in ious] for c in classes]
    by_class = [values for values in by_class if values]
    found["mIoU_I"] = mean(by_image)
    found["mIoU_C"] = mean(mean(values) / 100 for values in by_class)
    found[f"mIoU_I@{share}"] = worst_mean(by_image, share)
    found[f"mIoU_C@{share}"] = mean(worst_mean(values, share) / 100 for values in by_class)
    groups_of[""] = groups_of.pop("_fg")
    half = {
        name: [(c, Fraction(2 * v >= 1)) for c, v in groups_of[name]]
        for name in ("", "_S", "_M", "_L")
    }
    found |= {f"recall{name}": mean(v for _, v in pairs) for name, pairs in half.items()}
    found |= {f"mRecall{name}": class_mean(pairs) for name, pairs in half.items()}
    return found


@pytest.mark.parametrize("share", [1, 5, 25, 50, 100])
@on_random_maps(600)
def test_headline_figures_equal_fractions(share, rng):
    kind = random_kind(rng)
    pool = [random_world(rng, kind=kind) for _ in range(rng.integers(1, 7))]
    # More images than were drawn, so that the worst ones are several.
    images = [pool[rng.integers(len(pool))] for _ in range(rng.integers(0, 31))]
    accumulator = Accumulator(**World([], *kind).settings)
    for number, world in enumerate(images):
        accumulator.update(f"{number:03d}", *world.maps)
    classes = range(kind[0])
    names = [f"class {c}" for c in classes]
    figures = accumulator.summarize(names, size_bins=TINY, worst=share)
    done = {id(world): oracle(world, "exact")[:2] for world in pool}
    pairs = [done[id(world)] for world in images]
    blank = [([], np.zeros((kind[0], kind[0]), np.int64))]
    expected = expected_figures(pairs or blank, kind[1], classes, share)
    assert list(figures)[: len(expected)] == list(expected) == list(headline_names(TINY, share))
    for name, value in expected.items():
        value = math.nan if value is None else float(value)
        assert figures[name] == pytest.approx(value, rel=1e-13, nan_ok=True), name
    things = [row for rows, _ in pairs for row in rows if row[0] not in kind[1]]
    assert figures["images"] == len(images)
    assert figures["instances"] == len(things)
    assert figures["instances_S"] == sum(row[2] < 3 for row in things)
    for c in kind[1]:
        assert f"IA-IoU-class {c}" in figures
        assert f"IA-IoU_S-class {c}" not in figures
    assert np.array_equal(accumulator.confusion, sum((p[1] for p in pairs), blank[0][1]))
    assert as_pixel_rows(accumulator.pixels) == [
        (f"{number:03d}", c, *(int(part[c]) for part in counts))
        for number, (_, matrix) in enumerate(pairs)
        for counts in [(matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0))]
        for c in classes
        if counts[1][c] or counts[2][c]
    ]


@MODES
@on_random_maps(120)
def test_mirrored_and_transposed_maps_give_the_same_bits(mode, rng):
    for world in some_worlds(rng, kind=PLAIN):
        expected = match_image(*world.maps, num_classes=4, mode=mode)
        for turn in (np.fliplr, np.flipud, np.transpose, np.rot90):
            found = match_image(*map(turn, world.maps), num_classes=4, mode=mode)
            assert as_rows(found.table) == as_rows(expected.table)
            assert as_blobs(found.blobs) == as_blobs(expected.blobs)
            assert np.array_equal(as_matrix(world, found), as_matrix(world, expected))


@on_random_maps(120)
def test_instance_numbers_do_not_matter(rng):
    for world in some_worlds(rng, kind=PLAIN):
        prediction, semantic, instances = world.maps
        old, place = np.unique(instances, return_inverse=True)
        # New numbers with wide gaps, beyond 8 and 16 bits, in another order.
        new = rng.choice(np.arange(256, 90000), len(old), replace=False)
        new = np.where((old == 0) | (old == 255), old, new)
        expected = match_image(prediction, semantic, instances, num_classes=4).table
        moved = new[place].reshape(instances.shape)
        found = match_image(prediction, semantic, moved, num_classes=4).table
        back = {0: 0, **dict(zip(new.tolist(), old.tolist()))}
        renamed = sorted((c, back[t], *rest) for c, t, *rest in as_rows(found))
        assert renamed == sorted(as_rows(expected))


@on_random_maps(120)
def test_values_under_ignored_pixels(rng):
    """What holds exactly: under ignored pixels, a prediction may change between labels of which
    the image has no instance (background, absent classes, nonsense), and an instance id may be
    anything. Between classes that do have instances it may not: components are found on the raw
    prediction, so a change there can join or split them (next test).
    """
    for world in some_worlds(rng, kind=PLAIN, used=3):
        prediction, semantic, instances = world.maps
        void = (semantic == 255) | (instances == 255)
        first, second = (np.where(void, rng.choice([0, 3], void.shape), prediction) for _ in "ab")
        # Where the semantic map ignores as well, even values that are no class.
        second = np.where(semantic == 255, rng.choice([0, 200, 255], void.shape), second)
        scrambled = np.where(semantic == 255, rng.integers(0, 255, void.shape), instances)
        one = match_image(first, semantic, instances, num_classes=4).table
        two = match_image(second, semantic, instances, num_classes=4).table
        assert as_rows(one) == as_rows(two)
        three = match_image(second, semantic, scrambled, num_classes=4).table
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


@on_random_maps(600)
def test_order_and_sharding_leave_no_trace(rng):
    images = [random_world(rng, kind=PLAIN) for _ in range(rng.integers(1, 7))]
    whole = Accumulator(4)
    for number, world in enumerate(images):
        whole.update(number, *world.maps)
    shards = [Accumulator(4) for _ in range(3)]
    for number in rng.permutation(len(images)).tolist():
        shards[rng.integers(3)].update(number, *images[number].maps)
    merged = Accumulator(4)
    for shard in rng.permutation(3):
        merged.merge(Accumulator.from_state(shards[shard].state()))
    expected, found = (x.summarize(list("abcd")) for x in (whole, merged))
    assert list(found) == list(expected)
    assert np.array(list(found.values())).tobytes() == np.array(list(expected.values())).tobytes()
    assert as_rows(merged.table) == as_rows(whole.table)
    assert merged.table.image_id.tolist() == whole.table.image_id.tolist()
    for name, column in whole.blobs.columns().items():
        assert np.array_equal(merged.blobs.columns()[name], column)
    assert as_pixel_rows(merged.pixels) == as_pixel_rows(whole.pixels)
