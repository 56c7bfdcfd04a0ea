"""Mixed supervision: flags, boxes in place of masks, what the mapper makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from d2_smallobj.annotations.label_rules import identity_rule
from d2_smallobj.data import build_train_loader
from d2_smallobj.data.loaders import StreamDataset, SupervisedStream, first_box_position
from d2_smallobj.data.mapper import SemSegMapper
from d2_smallobj.data.supervision import (
    apply_supervision,
    boxes_of,
    check_supervision,
    classes_of,
    supervised_labels,
)

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


def labels_of(record):
    return np.asarray(Image.open(record["sem_seg_file_name"]))


# ---- Flags -------------------------------------------------------------------------------------


def test_without_a_fraction_nothing_changes(tiny_cfg, tiny_dicts):
    assert apply_supervision(tiny_cfg(), tiny_dicts) == tiny_dicts


def test_the_split_flags_every_image(tiny_cfg, instance_dicts):
    # Seven images of classes 1..6 and again 1, all with class 2: the background is 2.
    for record in instance_dicts:
        record["boxes"] = [(2, 0, 0, 5, 5)]
    images = apply_supervision(tiny_cfg(*FRACTION), instance_dicts)
    flags = [x["supervision"] for x in images]
    assert flags == ["mask"] * 4 + ["boxes"] * 3
    names = {x["file_name"] for x in images}
    assert names == {x["file_name"] for x in instance_dicts}
    assert "supervision" not in instance_dicts[0]


def test_masks_alone_and_masks_more_often(tiny_cfg, instance_dicts):
    for record in instance_dicts:
        record["boxes"] = [(2, 0, 0, 5, 5)]
    node = "SMALLOBJ.SUPERVISION."
    masks = apply_supervision(tiny_cfg(*FRACTION, f"{node}REST", "none"), instance_dicts)
    assert [x["supervision"] for x in masks] == ["mask"] * 4
    both = apply_supervision(tiny_cfg(*FRACTION, f"{node}MASK_REPEAT", 3), instance_dicts)
    assert [x["supervision"] for x in both] == ["mask"] * 12 + ["boxes"] * 3


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


def test_a_class_without_a_mask(tiny_cfg, instance_dicts):
    with pytest.raises(
        ValueError, match=r"^SMALLOBJ\.SUPERVISION\.MASK_FRACTION: fraction 0\.3 of 7 .*without any"
    ):
        apply_supervision(tiny_cfg("SMALLOBJ.SUPERVISION.MASK_FRACTION", 0.3), instance_dicts)


def test_a_class_that_the_model_has_not_is_no_class_to_split_by(tiny_cfg, instance_dicts):
    boxed = [*instance_dicts[:-1], {**instance_dicts[-1], "boxes": [(77, 0, 0, 5, 5)]}]
    message = r"^1 image\(s\) with classes beyond the model's 0\.\.\d+: .*image_\d\.\w+ \(77\)$"
    for key, value in (("MASK_FRACTION", 0.5), ("NUM_IMAGES", 5)):
        with pytest.raises(ValueError, match=message):
            apply_supervision(tiny_cfg(f"SMALLOBJ.SUPERVISION.{key}", value), boxed)


def test_flags_of_their_own_are_not_split(tiny_cfg, tiny_dicts):
    tiny_dicts[0]["supervision"] = "mask"
    with pytest.raises(ValueError, match=r"MASK_FRACTION is 0\.5, but 1 image\(s\) .*set it to 1"):
        apply_supervision(tiny_cfg(*FRACTION), tiny_dicts)
    tiny_dicts[0].update(supervision="boxes", boxes=[])
    flags = [x["supervision"] for x in apply_supervision(tiny_cfg(), tiny_dicts)]
    assert flags == ["boxes"] + ["mask"] * 6


def test_a_mask_without_a_mask_is_an_error():
    dicts = [{"file_name": f"{i}.jpg", "supervision": "mask"} for i in range(11)]
    with pytest.raises(
        ValueError, match=r"^11 image\(s\) flagged 'mask' without a mask .*: 0\.jpg.* and 1 more$"
    ):
        check_supervision(dicts)


def test_boxes_without_boxes_are_an_error(tiny_dicts):
    dicts = [{**tiny_dicts[0], "supervision": "boxes"}]
    with pytest.raises(ValueError, match=r"^1 image\(s\) flagged 'boxes' without boxes .*image_0"):
        check_supervision(dicts)
    check_supervision([{**dicts[0], "boxes": []}])


def test_an_unknown_flag():
    with pytest.raises(ValueError, match=r"a\.jpg: supervision: unknown value 'masks'.*'mask'\?"):
        check_supervision([{"file_name": "a.jpg", "supervision": "masks"}])


def test_classes_come_from_boxes_or_masks(tiny_dicts):
    assert classes_of(tiny_dicts[2]) == {2, 3}
    assert classes_of({**tiny_dicts[2], "boxes": [(5, 0, 0, 1, 1), (-4, 0, 0, 1, 1)]}) == {5}
    rule = identity_rule(7).only(3)
    assert classes_of({**tiny_dicts[2], "label_rule": rule}) == {1}
    with pytest.raises(ValueError, match=r"x\.jpg: it has neither boxes nor a mask to be split by"):
        classes_of({"file_name": "x.jpg"})


# ---- Painted labels ----------------------------------------------------------------------------


def box_record(record, **more):
    labels = labels_of(record)
    height, width = labels.shape
    return {**record, "supervision": "boxes", "height": height, "width": width, **more}


def painted(x):
    """The labels and box numbers of an image that has boxes."""
    labels, maps = supervised_labels(
        {"supervision": "boxes", **x}, lambda x: None, keep_true=False, ignore_label=255
    )
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


def test_crowds_have_the_ignore_label_of_the_config():
    x = {"file_name": "a.jpg", "height": 1, "width": 3, "boxes": [(-2, 0, 0, 2, 1)]}
    labels, _ = supervised_labels(
        {**x, "supervision": "boxes"}, lambda x: None, keep_true=False, ignore_label=-1
    )
    assert labels.tolist() == [[-1, -1, 0]]


def test_boxes_are_derived_from_instances(instance_dicts):
    """Rows 3..11, columns 4..19 have class 1 + i; a small object of class 2 lies below."""
    labels, numbers = painted(box_record(instance_dicts[3]))
    expected = np.zeros_like(labels)
    expected[3:12, 4:20] = 4
    expected[14:17, 8:11] = 2
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(numbers, expected // 2)
    assert not (labels == 255).any(), "a mask's ignored pixels would tell outlines"


def test_boxes_of_one_class(instance_dicts):
    labels, _ = painted(box_record(instance_dicts[3], label_rule=identity_rule(7).only(4)))
    expected = np.zeros_like(labels)
    expected[3:12, 4:20] = 1
    np.testing.assert_array_equal(labels, expected)


def test_an_instance_map_of_another_size(instance_dicts):
    x = box_record(instance_dicts[3], ins_seg_file_name=instance_dicts[4]["ins_seg_file_name"])
    with pytest.raises(ValueError, match=r"instances_4\.png: the instance map is 32x32, .* 34x29"):
        boxes_of(x)


# ---- The mapper --------------------------------------------------------------------------------


@pytest.fixture
def mapper(tiny_cfg):
    def make(*options):
        return SemSegMapper(tiny_cfg(*options), True)

    return make


def test_a_mask_image_has_certain_labels(mapper, instance_dicts):
    plain = mapper()({**instance_dicts[0], "stream_position": 3})
    x = mapper()({**instance_dicts[0], "stream_position": 3, "supervision": "mask"})
    assert "doubtable" not in plain
    assert torch.equal(plain["sem_seg"], x["sem_seg"])
    assert not x["doubtable"].any()


def test_a_box_image_is_augmented_alike(mapper, instance_dicts):
    """Labels, mask of doubtable pixels and true labels go through the same transforms."""
    for position in range(12):
        x = mapper()({**instance_dicts[3], "stream_position": position, "supervision": "boxes"})
        true = mapper()({**instance_dicts[3], "stream_position": position})
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


def test_a_box_of_a_class_that_the_model_has_not(mapper, instance_dicts):
    x = {**instance_dicts[3], "supervision": "boxes", "boxes": [(30, 0, 0, 5, 5)]}
    with pytest.raises(ValueError, match=r"image_3\.\w+: its boxes: label values .*found 30 in 25"):
        mapper()(x)


def test_true_labels_are_read_only_to_be_logged(mapper, instance_dicts, monkeypatch):
    off = mapper("SMALLOBJ.SUPERVISION.LOG_ACCURACY", False)
    x = {**instance_dicts[3], "supervision": "boxes", "boxes": [(1, 0, 0, 5, 5)]}
    assert "true_sem_seg" not in off(x)
    del x["sem_seg_file_name"]
    assert (mapper()(x)["true_sem_seg"] == 255).all(), "unknown"


def test_size_weights_are_those_of_the_painted_boxes(mapper, instance_dicts):
    from d2_smallobj.losses.size_weights import size_weights

    x = mapper("SMALLOBJ.TASK_A.LOSS", "size_weighted")(
        {**instance_dicts[3], "supervision": "boxes", "stream_position": 0}
    )
    expected = size_weights(x["sem_seg"].numpy())
    np.testing.assert_array_equal(x["size_weights"].numpy(), expected)


def test_the_loader_mixes_masks_and_boxes(tiny_cfg, tiny, instance_dicts):
    for record in instance_dicts:
        record["boxes"] = [(2, 0, 0, 50, 50)]
    loader = iter(build_train_loader(tiny_cfg(*FRACTION)))
    seen = [x for _ in range(7) for x in next(loader)]
    # 21 samples: three times around 4 masks and 3 boxes.
    assert sum(x["supervision"] == "mask" for x in seen) == 12
    for x in seen:
        assert x["doubtable"].any() == (x["supervision"] == "boxes")


# ---- Boxes from a position on ------------------------------------------------------------------


def flagged(masks, boxes):
    flags = ["mask"] * masks + ["boxes"] * boxes
    return [{"image_id": i, "supervision": flag} for i, flag in enumerate(flags)]


def test_masks_stand_in_for_boxes_up_to_a_position():
    dicts = flagged(3, 7)
    stream = SupervisedStream(dicts, boxes_from=20)
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
        seen = [SupervisedStream(dicts, 60)[p * 10 + index]["image_id"] for p in (0, 10, 20)]
        assert sorted(seen) == [0, 1, 2]


def test_without_a_position_it_is_the_plain_stream():
    dicts = flagged(0, 4)
    stream, plain = SupervisedStream(dicts, 0), StreamDataset(dicts)
    assert [stream[code] for code in range(12)] == [plain[code] for code in range(12)]


def test_images_without_a_flag_have_masks():
    stream = SupervisedStream([{"image_id": 0}, {"image_id": 1, "supervision": "boxes"}], 5)
    assert [stream[code]["image_id"] for code in range(8)] == [0] * 8


def test_there_must_be_masks_to_begin_with():
    with pytest.raises(
        ValueError, match=r"BOXES_FROM is above 0, but no training image has a mask"
    ):
        SupervisedStream(flagged(0, 2), 1)


def test_the_position_counts_all_images_of_a_step(tiny_cfg):
    cfg = tiny_cfg("SMALLOBJ.SUPERVISION.BOXES_FROM", 0.5, "SMALLOBJ.ACCUMULATE", 2)
    assert first_box_position(cfg) == 10 * 2 * 3


def test_a_resumed_loader_goes_on_alike(tiny_cfg, tiny, instance_dicts):
    for record in instance_dicts:
        record["boxes"] = [(2, 0, 0, 50, 50)]
    cfg = tiny_cfg(*FRACTION, "SMALLOBJ.SUPERVISION.BOXES_FROM", 0.25)
    whole, resumed = iter(build_train_loader(cfg)), iter(build_train_loader(cfg, start_iter=3))
    batches = [next(whole) for _ in range(8)]
    assert all(x["supervision"] == "mask" for batch in batches[:5] for x in batch)
    assert any(x["supervision"] == "boxes" for batch in batches[5:] for x in batch)
    for batch in batches[3:]:
        again = next(resumed)
        assert [x["image_id"] for x in again] == [x["image_id"] for x in batch]
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(again, batch))
