"""The shapes that the paper claims for Fig. 4 and Fig. 5, on drawn scenes and real ground truth."""

import csv
import dataclasses

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.classes import COCO_CLASS_NAMES, VOC_CLASS_NAMES
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.annotations.truth import folder_truth
from d2_smallobj.metrics import SizeBins
from d2_smallobj.report import labelled_images, sensitivity
from d2_smallobj.report.labelled_images import drawn_pair, drawn_sizes, find_pair, truth_images
from d2_smallobj.report.sensitivity import corner_cases, removal_curve

NAMES = ("background", "disc")


@pytest.fixture(scope="module")
def voc_images(realdata):
    folder = realdata / "voc" / "VOC2012"
    truth = folder_truth(folder / "SegmentationClass", folder / "SegmentationObject")
    return truth_images(truth, 21)


@pytest.fixture(scope="module", params=["drawn", "voc"])
def pair(request):
    if request.param == "drawn":
        return find_pair([drawn_pair()], NAMES)
    return find_pair(request.getfixturevalue("voc_images"), VOC_CLASS_NAMES)


@pytest.fixture(scope="module")
def removal():
    return removal_curve(drawn_sizes(), NAMES, "disc")


@pytest.fixture(scope="module")
def cases(pair):
    return {curve.name: curve for curve in corner_cases(pair, steps=10)}


def parts(curve):
    """Steps of IoU and IA-IoU, by the instance that grew."""
    stage = np.array(curve.columns["stage"])[1:]
    return {
        name: {key: np.diff(curve.figures[key])[stage == name] for key in ("IoU", "IA-IoU", "mIoU")}
        for name in np.unique(stage).tolist()
    }


@pytest.mark.parametrize("case", "ABCD")
def test_ia_rises_steadily_and_iou_with_the_large_one_only(pair, cases, case):
    assert pair.areas["large"] > 20 * pair.areas["small"] >= 20 * 256
    steps = np.diff(cases[case].figures["IA-IoU"])
    # 10 steps fill one of two instances: 5 percent each, to the pixel of the small one.
    assert steps == pytest.approx(np.full(len(steps), 5.0), abs=50 / pair.areas["small"])
    # Over all classes, background included, too.
    assert (np.diff(cases[case].figures["IA-mIoU"]) > 1).all()
    share = 100 * pair.areas["small"] / sum(pair.areas.values())
    assert share < 5
    for name, steps in parts(cases[case]).items():
        moved = share if name == "small" else 100 - share
        assert steps["IoU"].sum() == pytest.approx(moved)
        # mIoU, with background: what the small one does is lost in what the large one does.
        total = steps["mIoU"].sum()
        assert total < 3 if name == "small" else total > 50


def test_cases_end_where_they_should(cases):
    ends = {case: curve.figures["IA-IoU"][[0, -1]].tolist() for case, curve in cases.items()}
    assert ends == {"A": [0, 50], "B": [0, 50], "C": [0, 100], "D": [0, 100]}
    assert cases["A"].figures["IoU"][-1] > 95 > 5 > cases["B"].figures["IoU"][-1]
    filled = cases["C"].columns["small"][10:] + cases["D"].columns["large"][10:]
    assert filled == [100.0] * 22
    # "increase exponentially": with background in it, the curve bends upwards.
    for case in "AC":
        assert (np.diff(parts(cases[case])["large"]["mIoU"]) > 0).all()


def test_growth_covers_the_mask_once_from_the_inside():
    mask = np.zeros((9, 12), bool)
    mask[1:8, 2:11] = True
    order = labelled_images.growth_order(mask)
    assert sorted(order.tolist()) == np.flatnonzero(mask).tolist()
    distance = [(p // 12 - order[0] // 12) ** 2 + (p % 12 - order[0] % 12) ** 2 for p in order]
    assert distance == sorted(distance)
    assert order[0] // 12 == 4
    # Also where the mask fills the image.
    assert labelled_images.growth_order(np.ones((5, 5), bool))[0] == 12


@pytest.mark.parametrize("source", ["drawn", "voc", "coco"])
def test_removal_falls_by_equal_steps_and_iou_collapses(source, request, realdata):
    if source == "drawn":
        curve = request.getfixturevalue("removal")
    elif source == "voc":
        curve = removal_curve(request.getfixturevalue("voc_images"), VOC_CLASS_NAMES, "person")
    else:
        from d2_smallobj.scoring.inputs import Inputs

        file = realdata / "coco" / "tinycoco50_val2017.json"
        truth = Inputs(predictions="", coco_json=str(file)).open_truth()
        images = truth_images(truth, 81)[:20]
        curve = removal_curve(images, COCO_CLASS_NAMES, "person", points=5)
    removed, figures = np.array(curve.columns["removed"]), curve.figures
    count = removed[-1]
    assert len(removed) == min(count, 5 if source == "coco" else 25) + 1
    assert figures["IA-IoU"] == pytest.approx(100 * (1 - removed / count))
    assert figures["IoU"][[0, -1]].tolist() == [100.0, 0.0]
    # Each deletion costs at least what the one before did, for areas ascend.
    assert (np.diff(np.diff(figures["IoU"]) / np.diff(removed)) < 1e-9).all()
    # Half of the instances are gone, of IoU hardly anything; the last tenth costs a quarter.
    assert np.interp(count / 2, removed, figures["IoU"]) > 90
    assert np.interp(0.9 * count, removed, figures["IoU"]) > 25
    assert list(curve.columns["area"]) == sorted(curve.columns["area"])


def test_removal_by_size(removal, monkeypatch):
    sizes = removal.columns["size"]
    assert list(dict.fromkeys(sizes)) == ["", "S", "M", "L"]
    small, medium = (sizes.count(size) for size in "SM")
    expected = np.clip(100 * (1 - np.array(removal.columns["removed"]) / small), 0, 100)
    assert removal.figures["IA-IoU_S"] == pytest.approx(expected)
    assert removal.figures["IA-IoU_L"][: small + 1].tolist() == [100.0] * (small + 1)
    figures = []
    monkeypatch.setattr(sensitivity, "save_figure", lambda figure, _: figures.append(figure))
    undefined = {**removal.figures, "IA-IoU_M": np.full(25, np.nan)}
    sensitivity.draw_removal("unused.png", dataclasses.replace(removal, figures=undefined))
    # Red dashes after the last S and after the last M.
    red = [line for line in figures[0].axes[0].lines if line.get_color() == "#e03131"]
    assert [line.get_xdata()[0] for line in red] == [small, small + medium]


def test_points_thin_the_curve_without_changing_it():
    whole, some = (removal_curve(drawn_sizes(6), NAMES, "disc", points=n) for n in (6, 3))
    assert some.columns["removed"] == [0, 2, 4, 6]
    for key, values in some.figures.items():
        np.testing.assert_array_equal(values, whole.figures[key][::2])


def test_several_instances_classes_and_sizes_of_an_image():
    image = labelled_images.drawn_discs(
        [(0.2, 0.2, 0.1), (0.6, 0.6, 0.3), (0.1, 0.8, 0.05)], 100, "three"
    )
    bins = SizeBins({"tiny": 0.01, "rest": 1}, relative=True)
    curve = removal_curve([image, drawn_pair()], NAMES, "disc", size_bins=bins)
    assert curve.figures["IA-IoU"] == pytest.approx([100, 80, 60, 40, 20, 0])
    assert {*curve.columns["size"]} == {"", "tiny", "rest"}
    assert "IA-IoU_tiny" in curve.figures
    # Other classes stay perfect.
    semantic = np.array([[1, 1, 0, 2], [1, 1, 0, 2], [0, 0, 0, 255]], np.uint8)
    image = labelled_images.LabelledImage(
        "a", lambda: (semantic, labelled_images.component_instances(semantic))
    )
    curve = removal_curve([image], ("background", "a", "b"), "a")
    assert curve.figures["IA-mIoU_fg"].tolist() == [100.0, 50.0]
    assert curve.figures["IA-IoU"].tolist() == [100.0, 0.0]


@pytest.mark.parametrize(
    ("names", "class_name", "points", "message"),
    [
        (NAMES, "disk", 9, "class_name: unknown value 'disk'.*did you mean 'disc'"),
        (NAMES, "background", 9, "class_name: unknown value 'background'"),
        (NAMES, "disc", 0, "points must be at least 1, got 0"),
        ((*NAMES, "b"), "b", 9, "class 'b' has no instance in these 2 images"),
    ],
)
def test_removal_errors(names, class_name, points, message):
    with pytest.raises(ValueError, match=message):
        removal_curve(drawn_sizes(2), names, class_name, points=points)


def test_corner_errors():
    with pytest.raises(ValueError, match="no image has two instances of disc of at least 256"):
        find_pair(drawn_sizes(3), NAMES, class_name="disc")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        corner_cases(find_pair([drawn_pair(120)], NAMES, min_area=64), steps=0)


def test_components_skip_the_void_id():
    semantic = np.zeros((40, 40), np.uint8)
    semantic[::2, ::2] = 1
    semantic[39, 39] = 255
    found = labelled_images.component_instances(semantic)
    assert {*np.unique(found[semantic == 1]).tolist()} == {*range(1, 402)} - {255}
    assert found[39, 39] == 255


def test_bad_maps_are_named(tmp_path):
    for semantic, instances, message in (
        (np.ones((4, 5)), np.ones((5, 4)), r"must have the size of .*\(4, 5\), got \(5, 4\)"),
        (np.full((4, 5), 7), np.ones((4, 5)), r"label values must be 0\.\.1"),
    ):
        for folder, labels in (("semantic", semantic), ("instances", instances)):
            write_label_map(tmp_path / folder / "a.png", labels.astype(np.uint8))
        truth = folder_truth(tmp_path / "semantic", tmp_path / "instances")
        with pytest.raises(ValueError, match=rf"a\.png: {message}"):
            truth_images(truth, 2)[0].load()


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_tool_on_folders(run_tool, tmp_path, realdata):
    folder = realdata / "voc" / "VOC2012"
    listed = tmp_path / "list.txt"
    listed.write_text("2007_000170\n2007_000648\n2007_000793\n")
    result = run_tool(
        "sensitivity",
        *("--output", tmp_path, "--class", "person", "--steps", 4, "--points", 5),
        *("--list", listed),
        *("--experiments", "corner", "removal", "conventions"),
        *("--semantic", folder / "SegmentationClass"),
        *("--instances", folder / "SegmentationObject"),
        *("--predictions", f"truth={folder / 'SegmentationClass'}"),
    )
    assert result.returncode == 0, result.stderr
    corner = rows(tmp_path / "corner_cases.csv")
    assert [row["curve"] for row in corner] == [*"A" * 5, *"B" * 5, *"C" * 9, *"D" * 9]
    removed = rows(tmp_path / "removal.csv")
    assert [row["removed"] for row in removed] == ["0", "3", "6", "8", "11", "14"]
    assert [row["IA-IoU"] for row in removed][-1] == "0.000000"
    # Undefined figures are empty: no class has a small instance among those two.
    assert {row["IA-IoU_S"] for row in corner} == {""}
    scored = [row for row in rows(tmp_path / "conventions.csv") if row["figure"] == "IA-mIoU"]
    assert {row["percent"] for row in scored} == {"100.000000"}
    assert "| truth | 23 | 0 | 0.00 |" in " ".join(result.stdout.split())
    for name in ("corner_cases.png", "removal.png"):
        assert Image.open(tmp_path / name).size[0] > 400


def test_tool_draws_scenes_of_its_own_the_same_every_time(run_tool, tmp_path):
    result = run_tool("sensitivity", "--output", tmp_path / "1", "--steps", 2, "--points", 3)
    assert result.returncode == 0, result.stderr
    again = tmp_path / "2"
    pair = find_pair([drawn_pair()], NAMES)
    curves = corner_cases(pair, steps=2)
    sensitivity.draw_corner_cases(again / "corner_cases.png", pair, curves)
    sensitivity.write_curves(again / "corner_cases.csv", curves)
    curve = removal_curve(drawn_sizes(), NAMES, "disc", points=3)
    sensitivity.draw_removal(again / "removal.png", curve)
    sensitivity.write_curves(again / "removal.csv", [curve])
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / n).iterdir()} for n in "12"
    )
    assert first == second


def test_an_impossible_experiment_does_not_end_the_other(run_tool, realdata, tmp_path):
    truth = realdata / "voc/VOC2012"
    given = ("--semantic", truth / "SegmentationClass", "--points", 2)
    given += ("--instances", truth / "SegmentationObject", "--class", "cat")
    result = run_tool("sensitivity", "--output", tmp_path, *given)
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("note: corner is left out: no image has two instances of cat")
    assert {path.name for path in tmp_path.iterdir()} == {"removal.csv", "removal.png"}
    for only, why in (
        (["corner"], "corner is left out: no image has two"),
        (["corner", "removal"], "; removal is left out: class 'cat' has no instance in"),
    ):
        shorter = tmp_path / "list.txt"
        shorter.write_text("2007_000032\n")
        more = ("--experiments", *only, "--list", shorter)
        result = run_tool("sensitivity", "--output", tmp_path / "none", *given, *more)
        assert (result.returncode, result.stderr.count("\n")) == (1, 1)
        assert why in result.stderr
        assert not (tmp_path / "none").exists()


def test_tool_errors_are_one_line(run_tool, tmp_path):
    for arguments, status, message in (
        (["--instances", "x"], 2, "error: --instances: of which ground truth?"),
        (["--semantic", "nowhere"], 1, "nowhere: --semantic: no such folder of label maps"),
        (["--experiments", "conventions", "--predictions", "a=b"], 2, "--predictions: of which"),
    ):
        result = run_tool("sensitivity", "--output", tmp_path, *arguments)
        assert (result.returncode, result.stderr.count("\n")) == (status, 1)
        assert message in result.stderr
