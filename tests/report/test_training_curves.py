"""Curves of trainings: undisturbed, killed, resumed, still going."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2_smallobj.report.training_curves import draw_training_curves, run_curves, task_loss
from d2_smallobj.report.training_runs import Series, TrainingRun, read_run, read_runs

PERIOD = 20


def line(iteration, **scalars):
    return json.dumps({"iteration": iteration, **scalars}) + "\n"


def row(iteration, task_a=100):
    """What detectron2 notes at an iteration of a run that never stops."""
    scalars = {"total_loss": 5.0 / (iteration + 1), "lr": 0.1 - iteration / 1e4, "time": 0.5}
    if iteration >= task_a:
        scalars["loss_ewc"] = 0.01 * iteration
        scalars["total_loss"] += scalars["loss_ewc"]
    return {"task": 1 + (iteration >= task_a), **scalars}


def rows(start, stop):
    """Lines of the iterations [start, stop), evaluations after every 50th in lines of their own."""
    text = ""
    for iteration in range(start, stop):
        if (iteration + 1) % PERIOD == 0:
            text += line(iteration, **row(iteration))
        if (iteration + 1) % 50 == 0:
            text += line(iteration, **{"sem_seg/mIoU": iteration / 10, "sem_seg/IoU-a": 1.0})
    return text


def read(folder, text, results=None, config=None, name="run"):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(text, encoding="utf-8")
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    if config is not None:
        (folder / "config.yaml").write_text(config, encoding="utf-8")
    return read_run(folder, name)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def test_an_undisturbed_run(folder):
    run = read(folder, rows(0, 200))
    assert run.scalars["lr"].iterations == list(range(19, 200, 20))
    assert run.scalars["lr"].values[:2] == [0.1 - 19e-4, 0.1 - 39e-4]
    assert run.scalars["loss_ewc"].iterations == [119, 139, 159, 179, 199]
    assert run.evaluations == {("", "mIoU"): Series([49, 99, 149, 199], [4.9, 9.9, 14.9, 19.9])}
    assert run.task_b == 119
    assert run.broken_lines == 0
    # The penalty is taken off again.
    np.testing.assert_allclose(task_loss(run).values, [5 / (i + 1) for i in range(19, 200, 20)])


@settings(max_examples=60, deadline=None)
@given(
    killed=st.integers(40, 199),
    checkpoint=st.integers(0, 199),
    torn=st.integers(0, 200),
    newline=st.booleans(),
)
def test_a_killed_and_resumed_run_is_the_undisturbed_one(
    tmp_path_factory, killed, checkpoint, torn, newline
):
    folder = tmp_path_factory.mktemp("run")
    first = rows(0, killed)
    first = first[: len(first) - min(torn, len(first) - 1)]
    resumed = min(checkpoint, killed)
    # What the torn line would have told must come again for the runs to be equal.
    complete = first.rpartition("\n")[0]
    last = max((json.loads(x)["iteration"] for x in complete.splitlines()), default=0)
    resumed = min(resumed, last)
    run = read(folder, first + "\n" * newline + rows(resumed, 200))
    expected = read(folder, rows(0, 200))
    assert run.scalars == expected.scalars
    assert run.evaluations == expected.evaluations
    assert run.task_b == expected.task_b
    assert run.broken_lines <= 1


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        (line(19, lr=1.0) + line(39, lr=2.0), 0),
        (line(19, lr=1.0) + line(39, lr=2.0) + '{"iteration": 59, "lr": 3', 1),
        (line(19, lr=1.0) + '{"iteration": 59, "l' + line(39, lr=2.0), 1),
        (line(19, lr=1.0) + "nonsense\n[1]\n{}\n" + '{"iteration": "x"}\n' + line(39, lr=2.0), 4),
        (line(19, lr=1.0) + line(39, lr=9.0) + line(59, lr=9.0) + line(39, lr=2.0), 0),
        ("\n" + line(19, lr=1.0) + "\n\n" + line(39, lr=2.0, note="text", flag=[1]), 0),
    ],
    ids=["whole", "torn", "resumed on the torn line", "foreign", "repeated", "blank"],
)
def test_lines(folder, text, broken):
    run = read(folder, text)
    assert run.scalars == {"lr": Series([19, 39], [1.0, 2.0])}
    assert run.broken_lines == broken


def test_an_evaluation_noted_late_discards_nothing(folder):
    """detectron2 writes what is new, iteration by iteration, not always in order."""
    text = line(59, lr=1.0) + line(49, **{"sem_seg/mIoU": 3.0}) + line(79, lr=2.0)
    run = read(folder, text)
    assert run.scalars["lr"] == Series([59, 79], [1.0, 2.0])
    assert run.evaluations["", "mIoU"] == Series([49], [3.0])


RESULTS = {
    "A": {"val": {"mIoU": 1.0, "IA-mIoU": 2.0, "IA-mIoU_S": math.nan}},
    "B": {"val": {"mIoU": 3.0, "IA-mIoU": 4.0}},
}


def test_results_add_the_end_of_task_a(folder):
    text = rows(0, 200) + line(200, **{"sem_seg/mIoU": 3.0, "sem_seg/IA-mIoU": 4.0})
    run = read(folder, text, RESULTS, "SMALLOBJ:\n  TASK_A:\n    ITERS: 100\n")
    assert run.task_b == 100
    assert run.evaluations["val", "mIoU"].iterations == [49, 99, 100, 149, 199, 200]
    assert run.evaluations["val", "mIoU"].values[2] == 1.0
    assert run.evaluations["val", "IA-mIoU"] == Series([100, 200], [2.0, 4.0])
    assert run.evaluations["val", "IA-mIoU_S"].iterations == [100]
    assert list(run_curves(run)) == [
        *("loss without penalty", "EWC penalty", "learning rate"),
        *("mIoU, percent, val", "IA-mIoU, percent, val", "IA-mIoU_S, percent, val"),
    ]


def test_the_evaluators_key_of_today_and_of_old(folder):
    text = line(19, **{"sem_seg/mIoU": 1.0, "val/sem_seg/IA-mIoU_S": 2.0})
    # Another evaluator of the same training, whose figure is the same but for rounding.
    text += line(39, **{"sem_seg/mIoU": 2.9, "small_objects/mIoU": 3.0, "sem_seg/fwIoU": 4.0})
    text += line(39, **{"val/small_objects/IA-mIoU_S": 5.0, "small_objects/IoU-cat": 6.0})
    run = read(folder, text)
    assert run.evaluations == {
        ("", "mIoU"): Series([19, 39], [1.0, 3.0]),
        ("val", "IA-mIoU_S"): Series([19, 39], [2.0, 5.0]),
    }
    assert set(run.scalars) == {"sem_seg/fwIoU", "small_objects/IoU-cat"}


def test_several_data_sets(folder):
    text = line(19, **{"val/sem_seg/mIoU": 5.0, "pascal_b/sem_seg/mIoU": 6.0})
    sets = {"val": {"mIoU": 3.0}, "pascal_b": {"mIoU": 4.0}}
    run = read(folder, text + line(39, lr=1.0), {"A": sets})
    assert run.evaluations == {
        ("val", "mIoU"): Series([19, 39], [5.0, 3.0]),
        ("pascal_b", "mIoU"): Series([19, 39], [6.0, 4.0]),
    }


@pytest.mark.parametrize(
    "config", ["SMALLOBJ: 3", ": :\n\t", "SMALLOBJ:\n  TASK_A:\n    ITERS: 150"]
)
def test_a_config_that_does_not_fit_is_not_used(folder, config):
    assert read(folder, rows(0, 200), config=config).task_b == 119


def test_bad_input(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"2 folder.*without a metrics\.json:\n.*/empty\n"):
        read_runs([str(tmp_path / "empty"), f"x={tmp_path / 'nowhere'}"])
    with pytest.raises(ValueError, match=r"metrics\.json: no line of training metrics .*1 broken"):
        read(folder, '{"iteration"')
    read(folder, rows(0, 40))
    with pytest.raises(ValueError, match=r"different names, got \['run'\] .*NAME=FOLDER"):
        read_runs([str(folder), str(folder)])
    assert [run.name for run in read_runs([str(folder), f"b={folder}"])] == ["run", "b"]
    for text in ("[1]", '{"A": 3}', '{"A": {"val": 3}}', "{"):
        (folder / "results.json").write_text(text)
        with pytest.raises(ValueError, match=r"results\.json: no results of a training"):
            read_runs([str(folder)])


def test_a_folder_may_have_an_equals_sign(tmp_path):
    read(tmp_path / "lr=0.1", rows(0, 40))
    assert read_runs([str(tmp_path / "lr=0.1")])[0].name == "lr=0.1"


def test_drawing(tmp_path, folder):
    pytest.importorskip("matplotlib")
    runs = [
        read(folder, rows(0, 200), RESULTS, name="a"),
        read(tmp_path / "b", rows(0, 60), name="$b_$"),
    ]
    draw_training_curves(tmp_path / "curves.png", runs)
    picture = np.array(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
    for colour in ((0x19, 0x71, 0xC2), (0xD9, 0x48, 0x0F)):
        assert (np.abs(picture - colour).sum(axis=2) < 30).sum() > 200
    content = (tmp_path / "curves.png").read_bytes()
    draw_training_curves(tmp_path / "curves.png", runs)
    assert (tmp_path / "curves.png").read_bytes() == content
    with pytest.raises(ValueError, match=r"nothing to draw: .*\['c'\]"):
        draw_training_curves(tmp_path / "c.png", [TrainingRun("c", {}, {}, None, 0)])
    assert not (tmp_path / "c.png").exists()
