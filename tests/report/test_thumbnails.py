"""Which objects are pictured, and what the pictures show."""

import base64
import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.report.html import render_report
from d2_smallobj.report.methods import make_methods
from d2_smallobj.report.scored_pixels import SourceError, read_map, read_scored_pixels
from d2_smallobj.report.thumbnails import OBJECT_COLOUR, crop_window, make_thumbnails, worst_small

NAMES = ("background", "x", "y")


def two_objects():
    """Semantic map with a small x, a small y and a large x, instances 1, 2, 300."""
    semantic, instances = np.zeros((120, 160), np.uint8), np.zeros((120, 160), np.uint16)
    windows = np.s_[10:20, 10:20], np.s_[50:60, 100:130], np.s_[70:115, 20:80]
    for window, label, identity in zip(windows, (1, 2, 1), (1, 2, 300)):
        semantic[window], instances[window] = label, identity
    return semantic, instances


def worst(*runs):
    return worst_small(make_methods(runs, None))


def decode(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def is_near(pixel, colour, by=60):
    return np.abs(pixel.astype(int) - np.array(colour)).max() <= by


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_crop_holds_the_object_and_stays_inside(data):
    size = height, width = [data.draw(st.integers(1, 90)) for _ in range(2)]
    top, left = (data.draw(st.integers(0, length - 1)) for length in size)
    bottom, right = data.draw(st.integers(top, height - 1)), data.draw(st.integers(left, width - 1))
    mask = np.zeros(size, bool)
    mask[top : bottom + 1, left : right + 1] = True
    rows, columns = crop_window(mask)
    assert mask[rows, columns].sum() == mask.sum()
    side = max(3 * max(bottom - top + 1, right - left + 1), 56)
    assert rows.stop - rows.start == min(side, height)
    assert columns.stop - columns.start == min(side, width)
    assert 0 <= rows.start <= rows.stop <= height
    assert 0 <= columns.start <= columns.stop <= width


def test_missed_by_most_comes_first_then_low_iou(make_run):
    semantic, instances = two_objects()
    missed = np.where(semantic == 1, 0, semantic)
    partial = missed.copy()
    partial[50:60, 104:130] = 0
    first, second = (
        make_run(name, {"a": (prediction, semantic, instances)}, NAMES)
        for name, prediction in (("first", missed), ("second", partial))
    )
    # The large object is none; y has a mean IoU of (1 + 4/30) / 2 over both.
    assert [(one.category, one.instance) for one in worst(first, second)] == [(1, 1)]
    found = worst(second)
    assert [(one.category, one.instance) for one in found] == [(1, 1), (2, 2)]
    assert [one.outcomes for one in found] == [{0: "missed"}, {0: "partial"}]
    assert found[1].ious == {0: pytest.approx(40 / 300)}


def test_the_number_of_methods_that_missed_it_counts_before_the_mean(make_run):
    def draw(heights):
        labels = np.zeros((100, 100), np.uint8)
        for number, height in heights.items():
            top = 22 * (number - 1)
            labels[top : top + height, : 4 + number] = number
        return labels

    instances = draw(dict.fromkeys(range(1, 5), 20))
    # IoU in twentieths, by instance: 1 is missed twice, 2 and 4 once, 3 never.
    runs = [
        make_run(name, {"a": ((draw(heights) > 0) * 1, (instances > 0) * 1, instances)}, NAMES)
        for name, heights in (("m", {3: 2}), ("n", {2: 1, 3: 2, 4: 10}))
    ]
    assert [one.instance for one in worst(*runs)] == [1, 2, 4, 3]


def test_images_and_classes_take_turns(make_run):
    maps = {}
    for index, sides in enumerate(([9, 8, 7], [5, 4])):
        semantic = np.zeros((60, 60), np.uint8)
        for number, side in enumerate(sides):
            semantic[2 : 2 + side, 20 * number : 20 * number + side] = 1 + number % 2
        maps[str(index)] = (np.zeros_like(semantic), semantic, None)
    found = worst(make_run("m", maps, NAMES))
    # One of every image first (the largest); then the classes that had no turn.
    turns = " ".join(f"{one.image_id}:{one.category}:{one.area}" for one in found)
    assert turns == "0:1:81 1:1:25 0:2:64 1:2:16 0:1:49"


def test_pictures_show_image_truth_and_prediction(make_run, tmp_path):
    semantic, instances = two_objects()
    prediction = np.where(semantic == 2, 2, 0).astype(np.uint8)
    prediction[10:20, 10:17] = 2
    image = np.zeros((*semantic.shape, 3), np.uint8)
    image[instances == 1] = (0, 255, 0)
    files = {kind: tmp_path / f"{kind}.png" for kind in ("image", "semantic", "instances")}
    Image.fromarray(image).save(files["image"])
    write_label_map(files["semantic"], semantic)
    write_label_map(files["instances"], instances)
    files["prediction"] = tmp_path / "prediction.npy"
    np.save(files["prediction"], prediction.astype(np.int64))
    run = make_run("m", {"a": (prediction, semantic, instances)}, NAMES, sources={"a": files})
    methods = make_methods([run], None)
    drawn, reasons = make_thumbnails(methods, worst_small(methods), 5)
    (one,) = drawn
    assert (one.shown.instance, dict(reasons)) == (1, {})
    pictures = [decode(one.image), decode(one.truth), decode(one.predictions[0][1])]
    assert {picture.shape for picture in pictures} == {(208, 208, 3)}
    # The crop begins in the corner; (14, 14) lies on the object and (14, 18.5) right of the 2s.
    scale = 208 / 56
    on, beside = ((round(14.5 * scale), round(x * scale)) for x in (14.5, 18))
    assert is_near(pictures[0][on], (0, 255, 0))
    assert is_near(pictures[1][on], OBJECT_COLOUR)
    assert is_near(pictures[2][on], (0, 114, 178))
    assert np.ptp(pictures[2][beside].astype(int)) < 30
    assert one.predictions[0][2] == "70 % y, 30 % background"
    assert one.colours[0] == ("x", OBJECT_COLOUR)


def test_components_are_the_instances_without_a_map(make_run):
    semantic = np.zeros((64, 64), np.uint8)
    semantic[::3, ::3] = 1
    none = np.zeros_like(semantic)
    sources = {"a": {"semantic": lambda: semantic, "prediction": lambda: none}}
    run = make_run("m", {"a": (none, semantic, None)}, NAMES, sources=sources)
    methods = make_methods([run], None)
    drawn, reasons = make_thumbnails(methods, worst_small(methods), 5)
    assert (len(drawn), dict(reasons)) == (5, {})
    assert all(one.image is None for one in drawn)
    # Many are numbered as the metric does.
    ids = set(np.unique(read_scored_pixels(run, "a").instances).tolist()) - {0}
    assert ids == set(run.table.instance_id.tolist()) - {0}
    assert 255 not in ids


def test_the_report_says_why_pictures_are_missing(scenes):
    text = render_report(scenes, max_thumbnails=3)
    assert text.count('<article class="thumb"') == 3
    assert "no pictures were asked for" in render_report(scenes, max_thumbnails=0)
    run = scenes[0]
    for missing in ("semantic", "prediction", "all"):
        sources = {
            image: {kind: file for kind, file in files.items() if kind != missing}
            for image, files in run.sources.items()
            if missing != "all"
        }
        text = render_report([dataclasses.replace(run, sources=sources)])
        what = "predictions" if missing == "prediction" else "semantic maps"
        assert f"objects): the run does not say where its {what} are." in text
        assert "but they cannot be shown" in text
        assert "<img" not in text


def test_changed_files_are_noticed(scenes, tmp_path):
    run = scenes[0]
    first = run.images[0]
    blank = np.zeros((224, 224), np.uint8)
    write_label_map(tmp_path / "blank.png", blank)
    write_label_map(tmp_path / "small.png", blank[:50])
    (tmp_path / "bad.png").write_bytes(b"no image")
    candidates = [one for one in worst(run) if one.image_id == first]
    assert candidates
    for kind, name, reason in (
        ("instances", "blank.png", "no longer those that were scored"),
        ("semantic", "small.png", "differ in size"),
        ("prediction", "small.png", "no longer has the size of the ground truth"),
        ("image", "bad.png", None),
    ):
        files = {**run.sources[first], kind: str(tmp_path / name)}
        broken = dataclasses.replace(run, sources={first: files})
        drawn, reasons = make_thumbnails(make_methods([broken], None), candidates[:1], 1)
        if reason is not None:
            assert drawn == []
            assert reason in next(iter(reasons))
    # A picture that cannot be read is done without.
    assert drawn[0].image is None


def test_unreadable_sources_are_told_with_their_cause(scenes, tmp_path):
    def gone():
        raise FileNotFoundError(2, "no such file", "annotations.json")

    np.save(tmp_path / "scores.npy", np.zeros((2, 3, 3)))
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}]), allow_pickle=True)
    for source, message in (
        (str(tmp_path / "x.png"), r"cannot be read: .*x\.png"),
        (gone, r"cannot be read: .*annotations\.json"),
        (str(tmp_path / "scores.npy"), r"cannot be read: .*scores\.npy: a label map is .*integer"),
        (str(tmp_path / "pickled.npy"), "cannot be read: .*plain numbers, but of object"),
        (lambda: np.zeros((2, 3, 3)), r"must be integers \(H, W\), got float64 \(2, 3, 3\)"),
    ):
        run = dataclasses.replace(scenes[0], sources={"a": {"prediction": source}})
        with pytest.raises(SourceError, match=f"predictions {message}"):
            read_map(run, "a", "prediction")
