"""tools/evaluate.py as a user runs it."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from d2_smallobj.annotations.classes import DEMO_CLASS_NAMES
from d2_smallobj.annotations.label_maps import read_label_map, write_label_map
from d2_smallobj.demo.dataset import make_demo
from d2_smallobj.scoring import Inputs, Settings, evaluate, load_run, pipeline
from d2_smallobj.scoring.scored_run import RUN_FILES


@pytest.fixture
def command(run_tool):
    return functools.partial(run_tool, "evaluate")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Demo scenes, and arguments that score their pseudo labels."""
    root = tmp_path_factory.mktemp("demo") / "smallobj_demo"
    make_demo(root, num_train=1, num_val=14, size=128)
    folder = root / "VOCdevkit" / "VOC2012"
    (root / "classes.txt").write_text("\n".join(DEMO_CLASS_NAMES))
    arguments = [
        *("--predictions", folder / "PseudoLabels" / "demo"),
        *("--semantic", folder / "SegmentationClass"),
        *("--instances", folder / "SegmentationObject"),
        *("--list", folder / "ImageSets" / "Segmentation" / "val.txt"),
        *("--classes", root / "classes.txt"),
        *("--images", folder / "JPEGImages"),
    ]
    return folder, arguments


def contents(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(RUN_FILES)
    return {name: (folder / name).read_bytes() for name in RUN_FILES}


def test_the_demo_whole_in_jobs_and_in_shards(command, demo, tmp_path):
    _, arguments = demo
    done = command(*arguments, "--output", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    whole = contents(tmp_path / "whole")
    metrics = json.loads(whole["metrics.json"])
    assert 0 < metrics["IA-mIoU_S"] < metrics["IA-mIoU"] < metrics["mIoU"] < 100
    assert set(metrics["intervals"]) >= {"mIoU", "IA-mIoU", "IA-mIoU_fg", "IA-mIoU_S"}
    assert f"| {metrics['mIoU']:.2f} " in done.stdout
    assert "14/14" in done.stderr
    done = command(*arguments, "--output", tmp_path / "jobs", "--jobs", "2", "--quiet")
    assert (done.returncode, done.stdout) == (0, "")
    assert "14/14" not in done.stderr
    assert contents(tmp_path / "jobs") == whole
    shards = [tmp_path / "one", tmp_path / "two"]
    for number, folder in enumerate(shards, start=1):
        done = command(*arguments, "--output", folder, "--shard", f"{number}/2")
        assert done.returncode == 0, done.stderr
        assert f"warning: These are the figures of shard {number}/2 alone" in done.stderr
    done = command("merge", *shards[::-1], "--output", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "merged") == whole


def test_comparison_and_report(command, demo, tmp_path):
    folder, arguments = demo
    command(*arguments, "--output", tmp_path / "a")
    # Perfect on every second image, the same on the others.
    better = tmp_path / "better"
    for number, path in enumerate(sorted((folder / "SegmentationClass").glob("val*.png"))):
        perfect = read_label_map(path)
        same = read_label_map(folder / "PseudoLabels" / "demo" / path.name)
        labels = same if number % 2 else np.where(perfect == 255, 0, perfect)
        write_label_map(better / path.name, labels)
    done = command(
        *arguments,
        *("--predictions", better, "--output", tmp_path / "b", "--bootstrap", "50"),
        *("--compare", tmp_path / "a", "--report", tmp_path / "report.html"),
    )
    assert done.returncode == 0, done.stderr
    before, after = (load_run(tmp_path / name).figures["IA-mIoU"] for name in "ab")
    assert before < after < 100
    assert re.search(rf"\| b − a +\| IA-mIoU +\| +\+{after - before:.2f} \|", done.stdout)
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    # Pictures of what was missed: image, ground truth and predictions were found again.
    assert page.count("data:image/") >= 4


def test_real_voc_scored_against_itself(command, realdata, tmp_path):
    voc = realdata / "voc" / "VOC2012"
    for path in (voc / "SegmentationClass").glob("*.png"):
        labels = read_label_map(path)
        write_label_map(tmp_path / "preds" / path.name, np.where(labels == 255, 0, labels))
    done = command(
        *("--predictions", tmp_path / "preds", "--semantic", voc / "SegmentationClass"),
        *("--instances", voc / "SegmentationObject", "--output", tmp_path / "run"),
        *("--jobs", 2, "--bootstrap", 10, "--worst", 40),
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    headline = {name: value for name, value in metrics.items() if isinstance(value, float)}
    assert len(headline) == 18
    assert set(headline.values()) == {100.0}
    # The share of the worst images is in the names of the figures.
    assert load_run(tmp_path / "run").worst == metrics["options"]["worst"] == 40
    assert {"mIoU_I@40", "mIoU_C@40"} <= set(metrics["intervals"]) & set(headline)
    assert metrics["classes"]["aeroplane"]["IA-IoU"] == 100.0
    assert metrics["counts"]["images"] == 24
    assert "warning: IA-mIoU_S rests on fewer than 10 instances" in done.stderr


def test_errors_list_the_files_and_leave_nothing(command, demo, tmp_path):
    folder, arguments = demo
    some = tmp_path / "some"
    for path in sorted((folder / "PseudoLabels" / "demo").glob("val*.png"))[:2]:
        write_label_map(some / path.name, read_label_map(path))
    done = command(*arguments, "--predictions", some, "--output", tmp_path / "run")
    assert "looking for more problems: 100%" in done.stderr
    assert done.returncode == 1
    assert "\nerror: 12 image(s) without a prediction:\n  val_00002\n" in done.stderr
    assert done.stderr.endswith("\n  and 2 more\n")
    assert not (tmp_path / "run").exists()


def test_the_output_is_tried_before_the_work(command, demo, tmp_path):
    _, arguments = demo
    (tmp_path / "file").write_text("in the way")
    done = command(*arguments, "--output", tmp_path / "file" / "run")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot write to the output folder {tmp_path}")
    assert "scoring" not in done.stderr
    done = command(*arguments, "--output", tmp_path / "run", "--compare", tmp_path / "nope")
    assert "nope: no scored run" in done.stderr
    assert not (tmp_path / "run").exists()


REQUIRED = ["--predictions", "x", "--semantic", "x", "--output", "x"]


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "--predictions, --output"),
    (["--shard", "3/2"], "--shard must be i/n with i in 1..n, e.g. 1/4, got '3/2'"),
    (["--jobs", "0"], "argument --jobs: expected an integer >= 1, got '0'"),
    (["--bootstrap", "x"], "argument --bootstrap: expected an integer >= 0, got 'x'"),
    (["--size-bins", "S:x"], "size bins: expected 'coco'"),
    (["--mode", "oficial"], "invalid choice: 'oficial'"),
    (["--worst", "0"], "argument --worst: worst must be a whole number of percent in 1..100"),
    (["--worst", "2.5"], "argument --worst: worst must be a whole number of percent"),
    ([*REQUIRED, "--shard", "1/2", "--report", "a.html"], "give them to merge"),
    ([*REQUIRED, "--import", "their_data"], "--import goes with --dataset"),
])  # fmt: skip
def test_options_are_checked(command, arguments, message):
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


SCRIPT = """
import json, runpy, sys
for command in json.loads(sys.argv[1]):
    sys.argv, code = command, 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    heavy = ("torch", "detectron2", "matplotlib", "scipy", "lvis")
    print(json.dumps([code, [name for name in heavy if name in sys.modules]]))
"""


def test_neither_torch_nor_detectron2_is_needed(demo, repository, tmp_path):
    """As on a machine that has neither: only registered data sets fail."""
    (tmp_path / "torch.py").write_text("print('torch wanted')\nraise ImportError('no torch here')")
    evaluate = ["tools/evaluate.py", *demo[1], "--quiet", "--output"]
    commands = [
        [*evaluate, tmp_path / "run", "--jobs", 2, "--report", tmp_path / "report.html"],
        [*evaluate, tmp_path / "same", "--bootstrap", 0],
        ["tools/compare.py", tmp_path / "run", tmp_path / "same", "--samples", 5],
        [*evaluate[:3], "--dataset", "smallobj_demo_val", "--output", tmp_path / "other"],
    ]
    path = os.pathsep.join([str(tmp_path), str(repository)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([list(map(str, one)) for one in commands])],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = done.stdout.splitlines()
    assert [json.loads(line) for line in lines if line.startswith("[")][:3] == [[0, []]] * 3
    assert [line for line in lines if line == "torch wanted"] == lines[-2:-1]
    message = json.loads(lines[-1])[0]
    assert message.startswith("error: --dataset: registered data sets need torch (no torch here)")
    assert "--semantic" in message


def test_an_interrupt_is_no_traceback(command, demo, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "read_prediction", stop)
    done = command(*demo[1], "--output", tmp_path / "run", "--quiet")
    assert (done.returncode, done.stderr) == (130, "")
    assert not (tmp_path / "run").exists()


def test_a_projects_own_data_set(command, dataset, tmp_path, monkeypatch):
    """--import: the module registers; with processes, which do not import it again."""
    pytest.importorskip("torch")
    import d2_smallobj  # noqa: F401 (makes the embedded host importable)
    from detectron2.data import DatasetCatalog, MetadataCatalog

    (tmp_path / "their_data.py").write_text(
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        f"root, names = {str(tmp_path)!r}, {dataset.names!r}\n"
        "def load():\n"
        "    return [{'file_name': f'{root}/{n}.jpg', 'image_id': n,\n"
        "             'sem_seg_file_name': f'{root}/semantic/{n}.png',\n"
        "             'ins_seg_file_name': f'{root}/instances/{n}.png'} for n in names]\n"
        "DatasetCatalog.register('their_val', load)\n"
        "MetadataCatalog.get('their_val').set(\n"
        "    stuff_classes=['background', 'cat', 'dog', 'bird'], ignore_label=255)\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    common = ["--bootstrap", "0", "--predictions", dataset.preds, "--quiet"]
    common += ["--output", tmp_path / "run", "--jobs", 2]
    for arguments, message in (
        (("--dataset", "their_val"), r"error: --dataset: unknown value 'their_val'"),
        (("--dataset", "x", "--import", "broken"), r"--import broken: ZeroDivisionError: "),
        (("--dataset", "x", "--import", "no_such"), r"--import no_such: ModuleNotFound"),
    ):
        done = command(*arguments, *common)
        assert done.returncode == 1
        assert re.search(message, done.stderr), done.stderr
    try:
        done = command("--dataset", "their_val", "--import", "their_data", *common)
    finally:
        DatasetCatalog.pop("their_val", None)
        MetadataCatalog.pop("their_val", None)
        sys.modules.pop("their_data", None)
    assert done.returncode == 0, done.stderr
    expected = evaluate(Inputs(**dataset.options), Settings(samples=0))
    assert load_run(tmp_path / "run").figures == pytest.approx(expected.figures, nan_ok=True)
    # No file of a run leads to code.
    assert "their_data" not in (tmp_path / "run" / "metrics.json").read_text()
