"""``tools/train_net.py`` as its users meet it: mistakes are one readable error."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

IRN = {"DATASETS.TRAIN": "('voc_2012_trainaug_irn',)"}


def error_of(answer):
    """The error message of a run that failed, everything after ``error: `` included."""
    assert answer.code == 1, answer.stderr
    # The log file may have it.
    assert "Traceback" not in answer.stderr + answer.stdout
    _, _, message = answer.stderr.partition("error: ")
    assert message, answer.stderr
    assert "error: " not in message
    return message.strip()


@pytest.fixture
def train(train_server, tmp_path):
    """Function: ``train_net.py`` into a fresh folder."""

    def run(*overrides, **job):
        return train_server.train(tmp_path / "output", *overrides, **job)

    return run


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("SMALLOBJ.TAUU", 3, "SMALLOBJ.TAUU"),
        ("SMALLOBJ.TAU", 0.5, "SMALLOBJ.TAU must be .*>= 1.*got 0.5"),
        ("SMALLOBJ.TASK_A.ITERS", 9, "TASK_A.ITERS must be .*MAX_ITER = 8, got 9"),
        ("DATASETS.TRAIN", "('smallobj_demo_trian',)", "did you mean 'smallobj_demo_train'"),
        ("DATASETS.TEST", "('voc_2012_val_irn',)", "DATASETS: unknown value 'voc_2012_val_irn'"),
        ("MODEL.WEIGHTS", "/nowhere/weights.pth", "checkpoint /nowhere/weights.pth does not"),
        ("SOLVER.IMS_PER_BATCH", 0, "SOLVER.IMS_PER_BATCH must be a positive .*got 0"),
        ("MODEL.META_ARCHITECTURE", "SizeBalanced", "mean 'SizeBalancedSegmentor'"),
    ],
)
def test_wrong_option_is_named(train, option, value, told):
    message = error_of(train({option: value}))
    assert len(message.splitlines()) == 1
    assert re.search(told, message)


def test_what_is_missing_is_named(train):
    absent = error_of(train(config="/nowhere/c.yaml"))
    assert "--config-file /nowhere/c.yaml does not exist" in absent
    assert "give MODEL.WEIGHTS FILE, or --resume" in error_of(train(arguments=["--eval-only"]))
    message = error_of(train(arguments=["--eval-only", "--resume"]))
    assert "MODEL.WEIGHTS is empty" in message
    assert "no checkpoint to resume" in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SMALLOBJ: [1, 2\nB: {", "line 2"),
        ("_BASE_: nothere.yaml\n", "nothere.yaml"),
        ("OUTPUT_DIR: !!python/object/apply:os.mkdir ['{folder}/pwned']\n", "os.mkdir"),
    ],
)
def test_wrong_config_file_is_named(train, tmp_path, text, told):
    path = tmp_path / "wrong.yaml"
    path.write_text(text.replace("{folder}", str(tmp_path)))
    message = error_of(train(config=path))
    assert told in message
    assert told == "nothere.yaml" or "wrong.yaml" in message
    assert not (tmp_path / "pwned").exists()


URL = "http://127.0.0.1:9/R-101.pkl"


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (URL, rf"{URL}: cannot be fetched .*give the local file instead"),
        ("/nowhere/w.pth", "not ex"),
    ],
)
@pytest.mark.parametrize("tool", ["train", "predict", "ablation"])
def test_weights_are_looked_for_before_anything_is_built(
    train, train_server, tiny, tmp_path, weights, told, tool
):
    options = {"MODEL.WEIGHTS": weights}
    struck = {"strikes": [["d2_smallobj.engine.trainer:TwoTaskTrainer.build_model", 1, "built"]]}
    if tool == "train":
        answer = train(options, **struck)
    else:
        folder = ("--output", tmp_path / "output")
        script = tiny.repository / "tools" / f"{tool}.py"
        config = ("--config-file", tiny.config_file)
        given = tiny.as_options(tiny.options, options)
        answer = train_server.ask(script, *config, *folder, *given, **struck)
    assert re.search(told, error_of(answer))
    assert not (tmp_path / "output").exists()


def test_a_used_folder_is_refused(train, tmp_path):
    """A run that left nothing but its config and an empty log does not count."""
    output = tmp_path / "output"
    strikes = [["d2_smallobj.engine.step:TaskStepTrainer.run_step", 1, "full disk"]]
    assert train(strikes=strikes).code == 1
    assert train(strikes=strikes).code == 1
    for name in ("metrics.json", "last_checkpoint", "results.json", "model_0000002.pth"):
        (output / name).write_text("{}")
        before = sorted(path.name for path in output.iterdir())
        message = error_of(train())
        assert re.fullmatch(
            rf"{output} holds a begun or finished run \([\w., ]*{name}[\w., ]*\): choose another "
            "OUTPUT_DIR, or give --resume to continue that run",
            message,
        )
        assert sorted(path.name for path in output.iterdir()) == before
        (output / name).unlink()


def test_leftovers_of_killed_runs_are_removed(train, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    names = (".model_0000002.pth.a1b2c3d4", ".last_checkpoint.________", ".results.json.zzzzzzzz")
    mine = (".model_x.txt", ".git.abcdefgh", "model.pth.a1b2c3d4")
    for name in (*names, *mine):
        (output / name).touch()
    assert train().code == 0
    assert {name for name in (*names, *mine) if (output / name).exists()} == set(mine)


def test_a_folder_that_cannot_be_written_is_named(train, tmp_path):
    """As root, whom no permission stops: a file stands in its place."""
    (tmp_path / "output").touch()
    message = error_of(train())
    told = rf".*OUTPUT_DIR {tmp_path}/output cannot be written to: (File exists|Not a directory)"
    assert re.fullmatch(told, message)


def test_ctrl_c_names_the_checkpoint(train, tmp_path):
    strikes = [["d2_smallobj.engine.step:TaskStepTrainer.run_step", 6, "interrupt"]]
    answer = train(strikes=strikes)
    assert answer.code == 130
    assert answer.stderr == ""
    last = f"{tmp_path}/output/model_task_a.pth"
    assert f"Interrupted at iteration 5; the last checkpoint is {last}, where --re" in answer.stdout
    assert "Traceback" not in answer.stdout
    answer = train(arguments=["--resume"])
    assert answer.code == 0, answer.stderr
    assert "Resumed at iteration 4" in answer.stdout


def test_missing_data_set_names_paths_and_preparation(train, tmp_path):
    message = error_of(train(IRN, env={"DETECTRON2_DATASETS": str(tmp_path)}))
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    assert "'voc_2012_trainaug_irn'" in message
    for path in ("ImageSets/Segmentation/trainaug.txt", "JPEGImages", "PseudoLabels/irn"):
        assert str(folder / path) in message
    assert "datasets/README.md" in message.splitlines()[-1]


def test_incomplete_demo_names_the_command(train, demo_root, tmp_path):
    shutil.copytree(demo_root / "smallobj_demo", tmp_path / "smallobj_demo")
    list_file = tmp_path / "smallobj_demo/VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"
    list_file.write_text("train_00000\ntrain_99999\n")
    message = error_of(train(env={"DETECTRON2_DATASETS": str(tmp_path)}))
    assert "train_99999.jpg" in message
    assert "python datasets/prepare_demo.py" in message.splitlines()[-1]


def test_corrupt_checkpoint_is_named_and_not_run(train, tmp_path):
    class RunsCode:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"model": RunsCode()}, tmp_path / "evil.pth")
    assert "evil.pth" in error_of(train({"MODEL.WEIGHTS": tmp_path / "evil.pth"}))
    assert not (tmp_path / "pwned").exists()


@pytest.fixture
def broken_data(demo_root, tmp_path):
    """Function: a copy of the scenes in which every file of one folder was changed."""

    def make(folder, change):
        shutil.copytree(demo_root, tmp_path / "data")
        found = tmp_path / "data" / "smallobj_demo" / "VOCdevkit" / "VOC2012" / folder
        for path in found.iterdir():
            change(path)
        return {"DETECTRON2_DATASETS": str(tmp_path / "data")}

    return make


def out_of_range(path):
    Image.fromarray(np.full_like(np.array(Image.open(path)), 200)).save(path)


def other_size(path):
    Image.fromarray(np.zeros((60, 64), np.uint8)).save(path)


def cut(path):
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("folder", "change", "told"),
    [
        ("PseudoLabels/demo", out_of_range, "found 200"),
        ("PseudoLabels/demo", other_size, "64x60"),
        ("PseudoLabels/demo", cut, "corrupt or truncated"),
        ("JPEGImages", cut, "cannot be read"),
    ],
)
def test_bad_training_file_is_named(train, broken_data, workers, folder, change, told):
    environment = broken_data(folder, change)
    message = error_of(train({"DATALOADER.NUM_WORKERS": workers}, env=environment))
    assert len(message.splitlines()) == 1
    assert f"{folder}/train_000" in message.split(": ")[0]
    assert told in message


def test_bad_file_in_launched_processes_is_named(train, broken_data):
    environment = broken_data("PseudoLabels/demo", out_of_range)
    done = train(arguments=["--num-gpus", "2", "--dist-url", "auto"], env=environment)
    assert done.code == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"error: .*PseudoLabels/demo/train_000.*found 200", last)


@pytest.mark.parametrize("tool", ["train_net.py", "ablation.py"])
def test_unknown_host_is_named(tiny, tool):
    search = filter(None, [str(tiny.repository), os.environ.get("PYTHONPATH")])
    changes = {"PYTHONPATH": os.pathsep.join(search), "D2_SMALLOBJ_HOST": "detectron"}
    command = [sys.executable, str(tiny.repository / "tools" / tool)]
    environment = {**os.environ, **changes}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: D2_SMALLOBJ_HOST: unknown value 'detectron'")
    assert "did you mean 'detectron2'?" in done.stderr


def test_defects_keep_their_traceback(train):
    strikes = [["d2_smallobj.engine.step:TaskStepTrainer.run_step", 2, "a defect"]]
    answer = train(strikes=strikes)
    assert answer.code == 1
    assert "Traceback" in answer.stderr
    assert answer.stderr.strip().splitlines()[-1] == "LookupError: a defect"


def test_what_a_run_leaves(train, tmp_path):
    """It is evaluated alone and resumed, unless it is of another config or damaged."""
    answer = train()
    assert answer.code == 0
    assert "No GPU is used: everything runs on the CPU" in answer.stdout
    assert answer.stdout.count("Host: ") == 1
    output = tmp_path / "output"
    noted = json.loads((output / "results.json").read_text())["B"]["smallobj_demo_val"]
    message = error_of(train({"SOLVER.BASE_LR": 0.5}, arguments=["--resume"]))
    assert "model_final.pth was written by another config: SOLVER.BASE_LR 0.02 there" in message

    for path in ("results.json", "metrics.json"):
        (output / path).unlink()
    # The training set need not exist.
    answer = train(IRN, {"MODEL.WEIGHTS": output / "model_final.pth"}, arguments=["--eval-only"])
    assert answer.code == 0, answer.stderr
    found = output / "inference" / "smallobj_demo_val" / "metrics.json"
    figures = json.loads(found.read_text())["small_objects"]
    assert figures["mIoU"] == noted["mIoU"]
    assert figures["IA-mIoU_S"] == noted["IA-mIoU_S"]
    assert not (output / "results.json").exists()

    # Damaged checkpoints: one is survived (tests/engine/test_checkpoint_resume.py), all are not.
    for path in output.glob("*.pth"):
        path.write_bytes(path.read_bytes()[:-1000])
    message = error_of(train(arguments=["--resume"]))
    assert len(message.splitlines()) == 1
    for name in ("model_final", "model_0000005", "model_task_a", "model_0000002"):
        assert f"{output}/{name}.pth cannot be read" in message
    assert message.endswith("no checkpoint is left to resume from")
    # The figures of an earlier one are not what an evaluation was asked for.
    message = error_of(train(arguments=["--resume", "--eval-only"]))
    assert message.startswith(f"{output}/model_final.pth cannot be read")
    assert "model_task_a" not in message
