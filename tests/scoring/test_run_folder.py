"""Folders of scored runs: what they hold, and what is refused when they are damaged or mixed."""

from __future__ import annotations

import csv
import json
import math
import shutil

import pytest

from d2_smallobj.metrics import OUTCOMES
from d2_smallobj.scoring import Inputs, Settings, evaluate, load_run, load_runs, merge, save_run
from d2_smallobj.scoring.run_tables import format_run
from d2_smallobj.scoring.scored_run import RUN_FILES, check_writable


@pytest.fixture
def run(dataset):
    return evaluate(Inputs(**dataset.options), Settings(samples=30, seed=4))


@pytest.fixture
def folder(run, tmp_path):
    save_run(tmp_path / "run", run)
    return tmp_path / "run"


def test_metrics(run, folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("mIoU", "IA-mIoU", "IA-mIoU_fg", "IA-mIoU_S"):
        interval = metrics["intervals"][name]
        assert interval["low"] <= metrics[name] == interval["estimate"] == run.figures[name]
    # Undefined is null: NaN is no JSON.
    assert metrics["IA-mIoU_M"] is metrics["IA-mIoU_L"] is None
    assert list(metrics["classes"]) == ["background", "cat", "dog", "bird"]
    cat = metrics["classes"]["cat"]
    assert cat["IA-IoU_S"] == run.figures["IA-IoU_S-cat"]
    assert (cat["instances"], cat["instances_S"], cat["IA-IoU_L"]) == (14, 14, None)
    assert set(metrics["classes"]["background"]) == {"IoU", "IA-IoU", "instances"}
    counts = metrics["counts"]
    assert (counts["images"], counts["instances"], counts["instances_S"]) == (7, 21, 21)
    assert (counts["images_all_ignored"], counts["classes_in_ground_truth"]) == (0, 3)
    assert counts["pixels"] == sum(40 * (49 + index) for index in range(7))
    outcomes = metrics["outcomes"]["all"]
    assert sum(row["instances"] for row in outcomes.values()) == 21
    assert metrics["blobs"]["all"]["blobs"] == counts["blobs"] == len(run.blobs) > 0
    assert {"category": "bird", "size": "S", "instances": 0} in metrics["few_instances"]
    assert any("IA-mIoU_S rests on fewer than 10" in line for line in metrics["warnings"])
    assert "IA-mIoU leaves out 1 class(es) without an instance: bird." in metrics["warnings"]
    assert metrics["options"]["bootstrap"] == 30
    assert metrics["options"]["size_bins"] == "S:1024,M:9216,L:inf"
    assert set(metrics["versions"]) == {"d2_smallobj", "python", "numpy", "opencv"}


def test_instances_file(run, folder):
    lines = (folder / "instances.csv").read_text().splitlines()
    header = "image_id,instance_id,category_id,area,size,iou,intersection,charged,components"
    assert lines[0] == f"{header},outcome"
    rows = list(csv.DictReader(lines))
    assert len(rows) == 28
    cats = [float(row["iou"]) for row in rows if row["category_id"] == "1"]
    assert 100 * math.fsum(cats) / len(cats) == run.figures["IA-IoU-cat"]
    assert [row["size"] for row in rows[:4]] == ["", "S", "S", "S"]
    assert [row["instance_id"] for row in rows[:4]] == ["0", "2", "7", "300"]
    assert rows[0]["outcome"] == ""
    assert {row["outcome"] for row in rows} <= {"", *OUTCOMES}
    with open(folder / "instance_details.csv", newline="") as file:
        details = list(csv.DictReader(file))
    assert len(details) == len(rows)
    for row, more in zip(rows, details):
        assert (row["image_id"], row["instance_id"]) == (more["image_id"], more["instance_id"])
        union = int(more["pixels"]) + float(row["charged"]) - int(row["intersection"])
        assert float(row["iou"]) == int(row["intersection"]) / union


def test_the_text_table(run):
    text = format_run(run)
    parts = (
        f"| {run.figures['mIoU']:.2f} ",
        "| 95 %",
        "| false-positive components |",
        "| missed ",
    )
    assert [part for part in parts if part not in text] == []
    # A class that does not occur has no row.
    assert "| bird" not in text


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"run: no scored run, {name} missing \(give"):
        load_run(folder)


def edit(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


@pytest.mark.parametrize(("name", "old", "new", "message"), [
    ("metrics.json", '"mIoU": ', '"mIoU": 1', r"run: .*metrics\.json has another mIoU than"),
    ("metrics.json", '"format": 3', '"format": 4', r"metrics\.json: no metrics .* got 4: score"),
    ("metrics.json", "{", "", r"metrics\.json: not a complete JSON file"),
    ("instances.csv", "iou", "iuo", r"instances\.csv: its columns must be image_id"),
    ("instances.csv", "image0,2,", "image0,x,", r"instances\.csv: a cell holds no number"),
    ("instances.csv", "image0,2,", "image0,2,7,", r"instances\.csv: row 3 has 11 cells"),
    ("blobs.csv", "image1,", "stranger,", r"blobs\.csv has images that images\.csv lacks"),
    ("instance_details.csv", "image0,2,", "image0,3,", r"must be of the same instances as"),
    ("instance_details.csv", "shared", "share", r"instance_details\.csv: its columns must be"),
    ("images.csv", "image3", "image9", r"image ids must ascend"),
    ("pixels.csv", "image0,0,", "image0,4,", r"category_id must be in 0\.\.3"),
    ("pixels.csv", "image0,0,", "stranger,0,", r"pixels\.csv: 'stranger' is not among"),
    ("pixels.csv", "image1,0,1", "image1,0,2", r"pixels\.csv does not add up to confusion"),
    ("confusion.csv", "cat", "dogs", r"confusion\.csv: its columns must be"),
])  # fmt: skip
def test_damaged_files(folder, name, old, new, message):
    edit(folder / name, old, new)
    with pytest.raises(ValueError, match=message):
        load_run(folder)


@pytest.mark.parametrize(("name", "old", "new"), [
    ("blobs.csv", None, None),  # its last row is missing
    ("blobs.csv", "image1,", "image2,"),
    ("instance_details.csv", "0\n", "1\n"),
    ("images.csv", "/image0", "/image1"),
    ("pixels.csv", "\n", "\r\n"),
])  # fmt: skip
def test_a_change_that_leaves_the_figures_is_noticed(folder, name, old, new):
    path = folder / name
    if old is None:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    else:
        edit(path, old, new)
    with pytest.raises(ValueError, match=rf"run: changed or cut short .*: {name}; score") as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)
    # Runs of earlier versions have no checksums.
    metrics = json.loads((folder / "metrics.json").read_text())
    assert sorted(metrics.pop("files")) == sorted(RUN_FILES[:-1])
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert load_run(folder).images


@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        ([], [1], "no metrics of a scored run of format 3, got None"),
        ([], "[" * 100_000, "not a complete JSON file"),
        (["extra"], "[" * 900 + "]" * 900, ""),
        (["mIoU"], "1" * 1000, "a figure is no number"),
        (["mIoU"], "1" * 9000, "not a complete JSON file"),
        (["mIoU"], {}, "a figure is no number"),
        (["format"], "3" * 1000, "of format 3, got 333"),
        (["intervals", "mIoU"], {"low": 1, "high": 2}, "missing required field `estimate`"),
        (["intervals", "mIoU", "low"], "1" * 1000, "out of range"),
        (["intervals", "mIoU"], [1, 2, 3], r"Expected `object`, got `array` - at `\$.intervals"),
        (["intervals"], None, r"got `null` - at `\$.intervals`"),
        (["classes"], ["cat"], r"got `array` - at `\$.classes`"),
        (["remarks"], [5], r"got `int` - at `\$.remarks"),
        (["options", "size_bins"], ["S:1024"], r"got `array` - at `\$.options.size_bins`"),
        (["options", "size_bins"], "S:1024,M:9", "bins must map names to ascending"),
        (["options", "size_bins"], {"S": "x"}, "Expected `float`, got `str`"),
        (["options", "stuff"], [-1], "Expected `int` >= 0"),
        (["options", "stuff"], "1" * 1000, "options.stuff"),
        (["options", "worst"], 0, "Expected `int` >= 1"),
        (["options", "seed"], 0.5, "options.seed"),
        (["options", "level"], 95, "Expected `float` < 1.0"),
        (["options", "inputs"], {"semantic": 5}, "options.inputs"),
        (["files"], [1], r"Expected `object`, got `array` - at `\$.files`"),
    ],
)
def test_malformed_metrics_name_file_and_key(folder, keys, value, told):
    path = folder / "metrics.json"
    document = json.loads(path.read_text())
    mark = "MARK"
    place = document
    for key in keys[:-1]:
        place = place[key]
    if keys:
        place[keys[-1]] = mark
    text = json.dumps(document if keys else mark)
    # Text is JSON as it stands when it is a number or a nest.
    raw = isinstance(value, str) and value[0] in "[13"
    path.write_text(text.replace('"MARK"', value if raw else json.dumps(value)))
    if not told:
        load_run(folder)
        return
    with pytest.raises(ValueError, match=told) as raised:
        load_run(folder)
    assert str(raised.value).startswith(f"{path}: ")
    assert len(str(raised.value)) < 400


def test_files_of_different_runs(dataset, folder, tmp_path):
    (dataset.preds / "image3.png").write_bytes((dataset.semantic / "image3.png").read_bytes())
    save_run(tmp_path / "other", evaluate(Inputs(**dataset.options), Settings(samples=0)))
    shutil.copy(tmp_path / "other" / "instances.csv", folder)
    with pytest.raises(ValueError, match=r"run: its files belong to different runs .*IA-mIoU"):
        load_run(folder)


def test_names_tell_runs_apart(run, tmp_path):
    for method in ("irn", "amn"):
        save_run(tmp_path / method / "val", run)
    loaded = load_runs([tmp_path / "irn" / "val", tmp_path / "amn" / "val"])
    assert [found.name for found in loaded] == ["irn/val", "amn/val"]
    assert [found.name for found in load_runs([tmp_path / "irn" / "val"])] == ["val"]
    assert load_runs([]) == []
    with pytest.raises(ValueError, match=r"given twice: .*irn/val"):
        load_runs([tmp_path / "irn" / "val", tmp_path / "amn" / ".." / "irn" / "val"])


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nothing"):
        with pytest.raises(OSError, match=rf"cannot write to the output folder {folder}: "):
            check_writable(folder)
    check_writable(tmp_path / "made" / "here")
    assert list((tmp_path / "made" / "here").iterdir()) == []


@pytest.fixture
def shards(dataset, tmp_path):
    folders = []
    for part in (1, 2, 3):
        folders.append(tmp_path / f"shard{part}")
        settings = Settings(samples=30, shard=(part, 3))
        save_run(folders[-1], evaluate(Inputs(**dataset.options), settings))
    return folders


def test_shards_that_do_not_belong_together(dataset, shards, folder, tmp_path):
    for folders, message in (
        (shards[1:2], r"merge: 2 shard\(s\) missing: 1/3, 3/3"),
        ([shards[1], *shards], r"merge: shard 2/3 is given twice: .*shard2 and .*shard2"),
        ([*shards, folder], r"merge: .*run is no shard"),
        ([], r"merge: give the folders of all shards, got none"),
        ([tmp_path / "nope"], r"nope: no scored run"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            merge(folders)
    other = tmp_path / "other"
    shutil.copytree(dataset.preds, other)
    for settings, inputs, message in (
        ({"mode": "official"}, {}, r"different runs: mode is 'exact' in .*'official' in"),
        ({"samples": 31}, {}, r"shards of different runs: bootstrap is 30"),
        ({}, {"predictions": str(other)}, r"merge: shards of different runs: inputs is"),
        ({"shard": (3, 4)}, {}, r"merge: shards of different numbers of shards, \[3, 4\]"),
    ):
        settings = Settings(**{"samples": 30, "shard": (3, 3), **settings})
        save_run(shards[2], evaluate(Inputs(**{**dataset.options, **inputs}), settings))
        with pytest.raises(ValueError, match=message):
            merge(shards)
    # A folder that has changed between two shards.
    for place in (dataset.preds, dataset.semantic, dataset.instances):
        shutil.copy(place / "image0.png", place / "added.png")
    settings = Settings(samples=30, shard=(2, 3))
    save_run(shards[1], evaluate(Inputs(**dataset.options), settings))
    with pytest.raises(ValueError, match=r"different runs: image_set is '7 images, .* '8 images"):
        merge(shards)
