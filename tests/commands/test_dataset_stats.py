"""The command that counts instances by class and size."""

from __future__ import annotations

import csv
import os
import re

import numpy as np
import pytest

from d2_smallobj.annotations.classes import DEMO_CLASS_NAMES
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.demo.dataset import make_demo


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Demo scenes in a data root of their own."""
    root = tmp_path_factory.mktemp("datasets")
    make_demo(root / "smallobj_demo", num_train=1, num_val=8, size=128)
    return root


@pytest.fixture
def folders(data):
    """Options that name the demo's validation scenes as folders."""
    root = data / "smallobj_demo/VOCdevkit/VOC2012"
    classes = data / "classes.txt"
    classes.write_text("\n".join(DEMO_CLASS_NAMES))
    options = ["--semantic", f"demo={root}/SegmentationClass"]
    options += ["--instances", f"{root}/SegmentationObject", "--classes", str(classes)]
    return [*options, "--list", f"{root}/ImageSets/Segmentation/val.txt"]


@pytest.fixture
def run(run_tool, tmp_path):
    """Run the command; returns its stdout and the rows of its tables."""

    def call(*arguments):
        output = tmp_path / "stats"
        done = run_tool("dataset_stats", "--output", output, *arguments)
        assert done.returncode == 0, done.stderr
        tables = [
            list(csv.DictReader((output / name).read_text().splitlines()))
            for name in ("counts.csv", "balance.csv")
        ]
        return done.stdout, *tables

    return call


def annotations(data):
    return data / "smallobj_demo/annotations/instances_val.json"


def test_files_and_figures(run_tool, tmp_path, folders):
    done = run_tool("dataset_stats", *folders, "--output", tmp_path / "stats")
    assert done.returncode == 0, done.stderr
    expected = ["balance.csv", "classes.png", "counts.csv", "sizes.png"]
    assert sorted(os.listdir(tmp_path / "stats")) == expected
    assert "| all classes |" in done.stdout
    assert "normalised entropy" in done.stdout
    assert "8/8" in done.stderr


def test_files_and_annotations_of_the_same_scenes_agree(run, data, folders):
    # The demo's PNGs have void borders around objects, its annotations have none.
    _, counts, balance = run(*folders, "--coco-json", f"json={annotations(data)}", "--no-figures")
    by_set = {name: [row for row in counts if row["data set"] == name] for name in ("demo", "json")}
    assert [row["class"] for row in by_set["json"]] == list(DEMO_CLASS_NAMES[1:])
    for one, other in zip(by_set["demo"], by_set["json"]):
        assert (one["class"], one["all"]) == (other["class"], other["all"])
    found = InstanceAnnotations(annotations(data))
    seen = sum(len(np.setdiff1d(found.maps(image_id)[1], [0, 255])) for image_id in found.image_ids)
    assert [row["instances"] for row in balance] == [str(seen)] * 2
    assert [row["images"] for row in balance] == ["8", "8"]


def test_registered_sets(run, data, folders, registration):
    _, expected, _ = run(*folders, "--no-figures")
    registration(data)
    text, counts, _ = run("--dataset", "smallobj_demo_val", "--no-figures")
    found, wanted = ([list(row.values())[1:] for row in rows] for rows in (counts, expected))
    assert found == wanted
    assert "| smallobj_demo_val" in text


def test_real_pieces(run, realdata):
    voc = realdata / "voc/VOC2012"
    text, counts, balance = run(
        *("--semantic", f"VOC={voc}/SegmentationClass"),
        *("--instances", f"{voc}/SegmentationObject"),
        *("--coco-json", realdata / "coco/tinycoco50_val2017.json"),
        *("--lvis-json", f"LVIS={realdata}/lvis/lvis_v05_val_100.json"),
        "--no-figures",
    )
    assert [row["data set"] for row in balance] == ["VOC", "tinycoco50_val2017", "LVIS"]
    assert [row["images"] for row in balance] == ["24", "50", "100"]
    assert [row["classes"] for row in balance] == ["20", "80", "1230"]
    assert [len(counts), balance[2]["instances"]] == [20 + 80 + 1230, "977"]
    assert "more classes" in text


def test_sizes_and_quiet(run, data):
    options = ("--size-bins", "tiny:50,rest:500", "--no-figures", "--quiet")
    text, counts, balance = run("--coco-json", annotations(data), *options)
    assert text == ""
    assert list(counts[0])[2:] == ["tiny", "rest", "all"]
    assert int(balance[0]["beyond"]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no data set: give --dataset"),
        (["--instances", "x"], "--instances x: must follow the --semantic"),
        (["--coco-json", "a.json", "--instances", "x"], "--instances x: must follow"),
        (["--coco-json", "A=x.json", "--coco-json", "A=y.json"], "two data sets are called 'A'"),
        (["--coco-json", "{absent}.json"], "absent.json"),
        (["--coco-json", "{half}"], "half: not a complete JSON file"),
        (["--semantic", "{absent}"], "no such folder of label maps"),
        (["--coco-json", "{json}", "--category-map", "m.json"], "--category-map needs --classes"),
        (["--coco-json", "{json}", "--size-bins", "S:9,M:5"], "ascending"),
        (["--coco-json", "{json}", "--jobs", "0"], "--jobs: expected an integer >= 1, got '0'"),
        (["--semantic", "x", "--classes", "999999999999"], "so 1..10000; got 999999999999"),
        (["--dataset", "voc_2012_seg_vul"], "did you mean 'voc_2012_seg_val'"),
        (["--dataset", "smallobj_demo_val", "--classes", "voc"], "--classes goes with --semantic"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_no_file(run_tool, data, tmp_path, arguments, message):
    if message.startswith("did you mean"):
        pytest.importorskip("torch")
    places = {"absent": tmp_path / "absent", "json": annotations(data), "half": tmp_path / "half"}
    places["half"].write_bytes(annotations(data).read_bytes()[:-100])
    output = tmp_path / "stats"
    arguments = [argument.format(**places) for argument in arguments]
    done = run_tool("dataset_stats", "--output", output, *arguments)
    assert done.returncode in (1, 2)
    assert "error: " in done.stderr
    assert message in done.stderr
    assert not output.exists() or not os.listdir(output)


def test_without_matplotlib_the_way_out_is_told(run_tool, data, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = run_tool("dataset_stats", "--output", tmp_path, "--coco-json", annotations(data))
    assert re.search(r"pip install .*\[plots\].* --no-figures", done.stderr)
