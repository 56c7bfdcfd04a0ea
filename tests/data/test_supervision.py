"""Mixed supervision: flags, boxes in place of masks, what the mapper makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from d2_smallobj.annotations.label_rules import identity_rule
from d2_smallobj.data import build_train_loader
from d2_smallobj.data.mapper import SemSegMapper
from d2_smallobj.data.supervision import (
    apply_supervision,
    boxes_of,
    check_supervision,
    classes_of,
    read_supervision,
    stratified_split,
)
from d2_smallobj.losses.size_weights import size_weights

FRACTION = ("SMALLOBJ.SUPERVISION.MASK_FRACTION", 0.5)


@pytest.fixture
def instance_dicts(tiny_dicts, tmp_path):
    """The tiny data set with instance maps: the object of each class is one instance."""
    for i, record in enumerate(tiny_dicts):
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        instances = np.where(labels == 255, 255, np.where(labels > 0, labels + 10, 0))
        record["ins_seg_file_name"] = str(tmp_path / f"instances_{i}.png")
        Image.fromarray(instances.astype(np.uint8)).save(record["ins_seg_file_name"])
    return tiny_dicts


# ---- Flags -------------------------------------------------------------------------------------


def test_the_split_flags_every_image(tiny_cfg, instance_dicts):
    assert apply_supervision(tiny_cfg(), instance_dicts) == instance_dicts
    # Seven images of classes 1..6 and again 1, all with class 2: the background is 2.
    for record in instance_dicts:
        record["boxes"] = [(2, 0, 0, 5, 5)]
    names = {x["file_name"] for x in instance_dicts}
    cases = (("REST", "boxes", 4, 3), ("REST", "none", 4, 0), ("MASK_REPEAT", 3, 12, 3))
    for key, value, masks, boxes in cases:
        cfg = tiny_cfg(*FRACTION, f"SMALLOBJ.SUPERVISION.{key}", value)
        images = apply_supervision(cfg, instance_dicts)
        assert [x["supervision"] for x in images] == ["mask"] * masks + ["boxes"] * boxes
        assert value == "none" or {x["file_name"] for x in images} == names
    assert "supervision" not in instance_dicts[0]


def test_a_number_of_images_is_drawn_by_class(tiny_cfg, instance_dicts):
    for number, record in enumerate(instance_dicts):
        record["boxes"] = [(1 + number % 2, 0, 0, 5, 5)]
    key = "SMALLOBJ.SUPERVISION.NUM_IMAGES"
    chosen = apply_supervision(tiny_cfg(key, 4), instance_dicts)
    assert len(chosen) == 4
    assert all(x in instance_dicts for x in chosen)
    assert {x["boxes"][0][0] for x in chosen} == {1, 2}
    split = apply_supervision(tiny_cfg(key, 4, *FRACTION), instance_dicts)
    assert [x["supervision"] for x in split] == ["mask"] * 2 + ["boxes"] * 2
    # The same images, with all masks or few.
    assert {x["file_name"] for x in split} == {x["file_name"] for x in chosen}
    with pytest.raises(ValueError, match=r"NUM_IMAGES is 8, but DATASETS\.TRAIN has 7 image\(s\)"):
        apply_supervision(tiny_cfg(key, 8), instance_dicts)
    with pytest.raises(ValueError, match=r"SUPERVISION\.NUM_IMAGES: fraction .* without any: 2"):
        apply_supervision(tiny_cfg(key, 1), instance_dicts)


def test_the_split_follows_its_seed(tiny_cfg, instance_dicts):
    def chosen(*options):
        images = apply_supervision(tiny_cfg(*FRACTION, *options), many)
        return [x["image_id"] for x in images if x["supervision"] == "mask"]

    many = [{**instance_dicts[0], "image_id": i, "boxes": [(1, 0, 0, 2, 2)]} for i in range(40)]
    key = "SMALLOBJ.SUPERVISION.SPLIT_SEED"
    assert chosen("SEED", 1) == chosen("SEED", 1) != chosen("SEED", 2)
    assert chosen("SEED", 1, key, 5) == chosen("SEED", 2, key, 5) == chosen("SEED", 5)


LACKING = r"fraction 0\.3 of 7 .*without any"
BEYOND = r"^1 image\(s\) with classes beyond the model's 0\.\.\d+: .*image_\d\.\w+ \(77\)$"


@pytest.mark.parametrize(
    ("key", "value", "boxes", "message"),
    [
        ("MASK_FRACTION", 0.3, None, rf"^SMALLOBJ\.SUPERVISION\.MASK_FRACTION: {LACKING}"),
        ("MASK_FRACTION", 0.5, [(77, 0, 0, 5, 5)], BEYOND),
        ("NUM_IMAGES", 5, [(77, 0, 0, 5, 5)], BEYOND),
    ],
)
def test_classes_that_cannot_be_split(tiny_cfg, instance_dicts, key, value, boxes, message):
    if boxes:
        instance_dicts[-1]["boxes"] = boxes
    with pytest.raises(ValueError, match=message):
        apply_supervision(tiny_cfg(f"SMALLOBJ.SUPERVISION.{key}", value), instance_dicts)


def test_flags_of_their_own_are_not_split(tiny_cfg, tiny_dicts):
    tiny_dicts[0]["supervision"] = "mask"
    with pytest.raises(ValueError, match=r"MASK_FRACTION is 0\.5, but 1 image\(s\) .*set it to 1"):
        apply_supervision(tiny_cfg(*FRACTION), tiny_dicts)
    tiny_dicts[0].update(supervision="boxes", boxes=[])
    flags = [x["supervision"] for x in apply_supervision(tiny_cfg(), tiny_dicts)]
    assert flags == ["boxes"] + ["mask"] * 6


@pytest.mark.parametrize(
    ("flag", "number", "message"),
    [
        ("mask", 11, r"^11 image\(s\) flagged 'mask' without a mask .*: 0\.jpg.* and 1 more$"),
        ("boxes", 1, r"^1 image\(s\) flagged 'boxes' without boxes .*0\.jpg"),
        ("masks", 1, r"0\.jpg: supervision: unknown value 'masks'.*'mask'\?"),
    ],
)
def test_flags_that_images_do_not_keep(flag, number, message):
    dicts = [{"file_name": f"{i}.jpg", "supervision": flag} for i in range(number)]
    with pytest.raises(ValueError, match=message):
        check_supervision(dicts)
    check_supervision([{"file_name": "0.jpg", "supervision": "boxes", "boxes": []}])


def test_classes_come_from_boxes_or_masks(tiny_dicts):
    assert classes_of(tiny_dicts[2]) == {2, 3}
    assert classes_of({**tiny_dicts[2], "boxes": [(5, 0, 0, 1, 1), (-4, 0, 0, 1, 1)]}) == {5}
    rule = identity_rule(7).only(3)
    assert classes_of({**tiny_dicts[2], "label_rule": rule}) == {1}
    with pytest.raises(ValueError, match=r"x\.jpg: it has neither boxes nor a mask to be split by"):
        classes_of({"file_name": "x.jpg"})


# ---- Painted labels ----------------------------------------------------------------------------


def box_record(record, **more):
    width, height = Image.open(record["sem_seg_file_name"]).size
    return {**record, "supervision": "boxes", "height": height, "width": width, **more}


def painted(x):
    """The labels and box numbers of an image that has boxes."""
    labels, maps = read_supervision({"supervision": "boxes", **x}, 7, 255, False)
    assert labels.dtype == maps["doubtable"].dtype == np.int32
    return labels, maps["doubtable"]


def test_boxes_of_a_table():
    x = {
        "file_name": "a.jpg",
        "height": 4,
        "width": 5,
        "boxes": [(2, 1, 1, 99, 3), (2, 0, 0, 1, 1)],
    }
    labels, numbers = painted(x)
    assert labels.tolist() == [[2, 0, 0, 0, 0], [0, 2, 2, 2, 2], [0, 2, 2, 2, 2], [0] * 5]
    assert numbers.tolist() == [[2, 0, 0, 0, 0], [0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0] * 5]
    with pytest.raises(ValueError, match=r"^a\.jpg: boxes: 1 bad box\(es\): .* is inverted"):
        boxes_of({**x, "boxes": [(2, 3, 1, 2, 3)]})
    # Crowds have the ignore label of the config.
    x |= {"height": 1, "boxes": [(-2, 0, 0, 2, 1)], "supervision": "boxes"}
    assert read_supervision(x, 7, -1, False)[0].tolist() == [[-1, -1, 0, 0, 0]]


OVERLAPPING = [(1, 0, 0, 6, 1), (2, 2, 0, 8, 1), (2, 4, 0, 7, 1), (-3, 0, 0, 9, 1)]


@pytest.mark.parametrize(
    ("overlaps", "expected"),
    [
        ("smaller", [1, 1, 2, 2, 2, 2, 2, 2, 255]),
        ("model", [1, 1, 2, 2, 2, 2, 2, 2, 255]),
        # The middle of the first box is between columns 2 and 3, that of the second at 5.
        ("interior", [1, 1, 1, 1, 2, 2, 2, 2, 255]),
        ("ignore", [1, 1, 255, 255, 255, 255, 2, 2, 255]),
    ],
)
def test_pixels_in_boxes_of_several_classes(overlaps, expected):
    x = {"file_name": "a.jpg", "height": 1, "width": 9, "boxes": OVERLAPPING}
    x["supervision"] = "boxes"
    labels, maps = read_supervision(x, 7, 255, False, overlaps)
    assert labels[0].tolist() == expected
    bits = [[1, 1, 3, 3, 3, 3, 2, 2, 0]] if overlaps == "model" else None
    assert (maps["box_classes"].tolist() if bits else maps.get("box_classes")) == bits


def test_classes_of_boxes_go_through_the_mapper(mapper, instance_dicts):
    augment = mapper("SMALLOBJ.SUPERVISION.OVERLAPS", "model")
    x = augment({**instance_dicts[3], "supervision": "boxes", "stream_position": 3})
    labels = x["sem_seg"]
    bits = torch.where((labels > 0) & (labels != 255), 2 ** (labels.clamp(min=1) - 1), 0)
    assert torch.equal(x["box_classes"], bits)
    assert bits.any()
    x = augment({**instance_dicts[3], "supervision": "mask"})
    assert not x["box_classes"].any()


@pytest.mark.parametrize("only", [None, 4])
def test_boxes_are_derived_from_instances(instance_dicts, only):
    """Rows 3..11, columns 4..19 have class 1 + i; a small object of class 2 lies below."""
    more = {} if only is None else {"label_rule": identity_rule(7).only(only)}
    labels, numbers = painted(box_record(instance_dicts[3], **more))
    expected = np.zeros_like(labels)
    expected[3:12, 4:20] = 4 if only is None else 1
    expected[14:17, 8:11] = 2 if only is None else 0
    # No pixel is 255: a mask's ignored pixels would tell outlines.
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(numbers, expected // 2 if only is None else expected)
    # An instance map of another size.
    x = box_record(instance_dicts[3], ins_seg_file_name=instance_dicts[4]["ins_seg_file_name"])
    with pytest.raises(ValueError, match=r"instances_4\.png: the instance map is 32x32, .* 34x29"):
        boxes_of(x)


# ---- The mapper --------------------------------------------------------------------------------


@pytest.fixture
def mapper(tiny_cfg):
    def make(*options):
        return SemSegMapper(tiny_cfg(*options), True)

    return make


def test_a_box_image_is_augmented_alike(mapper, instance_dicts):
    """Labels, mask of doubtable pixels and true labels go through the same transforms."""
    augment = mapper()
    for position in range(12):
        plain = {**instance_dicts[3], "stream_position": position}
        x, true = augment({**plain, "supervision": "boxes"}), augment(plain)
        mask = augment({**plain, "supervision": "mask"})
        assert "doubtable" not in true
        assert torch.equal(true["sem_seg"], mask["sem_seg"])
        assert not mask["doubtable"].any()
        assert x["doubtable"].dtype == torch.int64
        assert torch.equal(x["image"], true["image"])
        assert torch.equal(x["true_sem_seg"], true["sem_seg"])
        # The objects are rectangles, so that boxes and masks agree but for the void line above.
        known = true["sem_seg"] != 255
        assert torch.equal(x["sem_seg"][known], true["sem_seg"][known])
        # Box 1 has class 2, box 2 class 4, and the padding belongs to none.
        numbers = torch.zeros_like(x["sem_seg"])
        numbers[x["sem_seg"] == 2], numbers[x["sem_seg"] == 4] = 1, 2
        assert torch.equal(x["doubtable"], numbers)
        assert x["doubtable"].any()


def test_true_labels_are_read_only_to_be_logged(mapper, instance_dicts):
    off = mapper("SMALLOBJ.SUPERVISION.LOG_ACCURACY", False)
    x = {**instance_dicts[3], "supervision": "boxes", "boxes": [(1, 0, 0, 5, 5)]}
    # Size weights are those of the painted boxes.
    y = mapper("SMALLOBJ.TASK_A.LOSS", "size_weighted")({**x, "stream_position": 0})
    np.testing.assert_array_equal(y["size_weights"].numpy(), size_weights(y["sem_seg"].numpy()))
    assert "true_sem_seg" not in off(x)
    del x["sem_seg_file_name"]
    assert (mapper()(x)["true_sem_seg"] == 255).all(), "unknown"
    with pytest.raises(ValueError, match=r"image_3\.\w+: its boxes: label values .*found 30 in 25"):
        mapper()({**x, "boxes": [(30, 0, 0, 5, 5)]})


def test_the_loader_mixes_masks_and_boxes(tiny_cfg, tiny, instance_dicts):
    for record in instance_dicts:
        record["boxes"] = [(2, 0, 0, 50, 50)]
    loader = iter(build_train_loader(tiny_cfg(*FRACTION)))
    seen = [x for _ in range(7) for x in next(loader)]
    # 21 samples: three times around 4 masks and 3 boxes.
    assert sum(x["supervision"] == "mask" for x in seen) == 12
    for x in seen:
        assert x["doubtable"].any() == (x["supervision"] == "boxes")
    # Masks alone up to a step of two batches; a resumed loader goes on alike.
    cfg = tiny_cfg(*FRACTION, "SMALLOBJ.SUPERVISION.BOXES_FROM", 0.1, "SMALLOBJ.ACCUMULATE", 2)
    whole, resumed = iter(build_train_loader(cfg)), iter(build_train_loader(cfg, start_iter=1))
    batches = [next(whole) for _ in range(7)]
    assert all(x["supervision"] == "mask" for batch in batches[:4] for x in batch)
    assert any(x["supervision"] == "boxes" for batch in batches[4:] for x in batch)
    for batch in batches[2:]:
        again = next(resumed)
        assert [x["image_id"] for x in again] == [x["image_id"] for x in batch]
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(again, batch))


# ---- The split ---------------------------------------------------------------------------------


def random_classes(seed=0, images=200, classes=6):
    rng = np.random.default_rng(seed)
    weights = rng.random(classes) * 0.5 + 0.05
    return [
        set((np.flatnonzero(rng.random(classes) < weights) + 1).tolist()) for _ in range(images)
    ]


@pytest.mark.parametrize("fraction", [0.18, 0.5, 0.9])
def test_every_class_keeps_about_its_share(fraction):
    classes = random_classes()
    chosen = stratified_split(classes, fraction, seed=0)
    assert chosen.dtype == bool
    assert chosen.sum() == round(fraction * len(classes))
    for c in range(1, 7):
        total = sum(c in image for image in classes)
        kept = sum(c in image for image, keep in zip(classes, chosen) if keep)
        assert abs(kept - fraction * total) <= 2, c


def test_a_rare_class_is_not_left_to_chance():
    """3 of 300 images have class 9; a draw of 100 without regard to it misses it in 3 of 10."""
    classes = [{9, 1} if i in (7, 150, 299) else {1} for i in range(300)]
    for seed in range(20):
        assert stratified_split(classes, 1 / 3, seed)[[7, 150, 299]].sum() == 1


def test_images_without_classes_are_split_too_and_the_seed_decides():
    chosen = stratified_split([set()] * 80 + [{1}] * 20, 0.5, seed=0)
    assert (chosen[:80].sum(), chosen[80:].sum()) == (40, 10)
    classes = random_classes()
    first, again, other = (stratified_split(classes, 0.18, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0.1, 1.0))
def test_the_size_is_exact(seed, images, fraction):
    # One class that all images have, so that none can be left out.
    classes = [{1}] * images
    number = round(fraction * images)
    if number == 0:
        with pytest.raises(ValueError, match=r"of \d+ image\(s\) is no image at all"):
            stratified_split(classes, fraction, seed)
    else:
        assert stratified_split(classes, fraction, seed).sum() == number


@pytest.mark.parametrize(
    ("classes", "fraction", "message"),
    [
        *(([{1}], x, r"fraction must be in \(0, 1\], got") for x in (0, -0.1, 1.1, float("nan"))),
        ([{1}] * 20 + [{2}] + [{3, 1}], 0.1,
         r"fraction 0\.1 of 22 image\(s\) leaves 2 class\(es\) without any: "
         r"2 \(in 1 image\(s\)\), 3 \(in 1 image\(s\)\); give a larger fraction"),
        ([{c} for c in range(1, 13)], 1 / 12, r"leaves 11 class\(es\).* and 1 more; give"),
    ],
)  # fmt: skip
def test_splits_that_cannot_be(classes, fraction, message):
    with pytest.raises(ValueError, match=message):
        stratified_split(classes, fraction, seed=0)
