"""``tools/ablation.py``: every variant apart, task A once a seed, nothing done twice."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import time

import pytest
import torch

from d2_smallobj.engine.trainer import HEADLINE
from d2_smallobj.experiments.ablation import (
    KINDS,
    Ablation,
    build_variants,
    final_results,
    run_all,
    seed_table,
    write_tables,
)

SEEDS = (0, 1)
ORDER = ("ce", "sw", "ce_sw", "ce_sb_online_1", "ce_sb_empirical_2")
PROXIMAL = {"SMALLOBJ.EWC.STEP": "proximal"}
SHARING = tuple(name for name in ORDER if name != "sw")


@pytest.fixture
def make(tiny, tmp_path):
    """Function: an ablation of the tiny net."""

    def build(*overrides, kinds=KINDS, seeds=SEEDS):
        return Ablation(
            config_file=tiny.config_file,
            output_dir=tmp_path / "ablation",
            variants=build_variants([1.0], [2.0], kinds),
            seeds=seeds,
            options=tuple(tiny.as_options(tiny.options, PROXIMAL, *overrides)),
        )

    return build


def trained_task_a(folder):
    """Whether a run's own log says that it saved the end of task A."""
    log = (folder / "log.txt").read_text()
    return re.search(r"Saving checkpoint to \S+/model_task_a\.pth", log) is not None


def test_ablation(make, runner, train_server, tiny, tmp_path, assert_same):
    ablation = make()
    run_all([ablation])
    table = write_tables([ablation], ablation.output_dir)
    folder = ablation.output_dir
    assert sorted(runner.started) == sorted(f"{n}_seed{s}" for n in ORDER for s in SEEDS)

    # Task A ran once a seed, in the variant that needs its online Fisher information.
    for seed in SEEDS:
        ran = [name for name in SHARING if trained_task_a(folder / f"{name}_seed{seed}")]
        assert ran == ["ce_sb_online_1"]
        states = {
            name: torch.load(folder / f"{name}_seed{seed}" / "model_task_a.pth", weights_only=True)
            for name in SHARING
        }
        for name, state in states.items():
            assert_same(state["model"], states["ce_sb_online_1"]["model"])
            assert ("ewc" in state) == (name == "ce_sb_online_1")
    assert not (folder / "sw_seed0" / "model_task_a.pth").exists()

    rows = list(csv.DictReader((folder / "ablation.csv").read_text().splitlines()))
    assert len(rows) == len(ORDER) * len(SEEDS)
    assert list(rows[0]) == ["variant", "seed", "data set", *HEADLINE]
    for row, (name, seed) in zip(rows, ((n, s) for n in ORDER for s in SEEDS)):
        noted = json.loads((folder / f"{name}_seed{seed}" / "results.json").read_text())
        assert float(row["mIoU"]) == noted["B"]["smallobj_demo_val"]["mIoU"]
        assert int(row["seed"]) == seed
    assert len({row["mIoU"] for row in rows}) > 2
    assert table == (folder / "ablation.md").read_text()
    assert len(table.splitlines()) == 2 + len(ORDER)
    assert "| smallobj_demo_val | CE → L_SB, empirical Fisher, λ = 2 |" in table

    # Complete runs are not repeated, and the figures stay.
    runner.started.clear()
    run_all([make()])
    assert runner.started == []
    assert write_tables([make()], folder) == table

    # Sharing task A changes no figure.
    for variant in ablation.variants:
        alone = tmp_path / f"alone_{variant.name}"
        options = dict(zip(variant.options[::2], variant.options[1::2]))
        own_options = {"SEED": 1, "SMALLOBJ.EVAL_TASK_A": False}
        answer = train_server.train(alone, options, PROXIMAL, own_options)
        assert answer.code == 0, answer.stderr
        final, own = (
            torch.load(f / "model_final.pth", weights_only=True)
            for f in (ablation.folder(variant, 1), alone)
        )
        assert_same(final["model"], own["model"], variant.name)


@pytest.mark.slow
def test_interrupted_ablation_goes_on(make, runner, assert_same):
    step = "d2_smallobj.engine.step:TaskStepTrainer._optimizer_step"
    # The first run is cut off in task A, before its first checkpoint; a later one in task B.
    # The runs that need its task A do not begin; the one that needs none does.
    runner.pending[:] = [{"strikes": [[step, 2, "kill"]]}]
    ablation = make(seeds=[0])
    match = r"1 run\(s\) failed:\n  variant ce_sb_online_1, seed 0 ended with code -9"
    match += r"[^\n]*console\.txt\)\n3 more depend on them"
    with pytest.raises(RuntimeError, match=match):
        run_all([ablation])
    assert {row["variant"] for row in ablation.rows()} == {"L_SW from the start"}
    runner.pending[:] = [{}, {}, {"strikes": [[step, 3, "kill"]]}]
    with pytest.raises(RuntimeError, match=r"variant ce_sw, seed 0 ended with code -9"):
        run_all([ablation])
    assert len(list(ablation.rows())) == len(ORDER) - 1
    before = list(runner.started)
    run_all([ablation])
    assert runner.started[len(before) :] == ["ce_sw_seed0"]
    assert len(list(ablation.rows())) == len(ORDER)


def test_pieces_of_limited_time(make, runner):
    """What time ends is resumed by the next call; what has not begun is not begun."""
    step = "d2_smallobj.engine.step:TaskStepTrainer._optimizer_step"
    runner.pending[:] = [{"strikes": [[step, 5, "kill"]]}]
    ablation = make(kinds=["ce"], seeds=[0])
    for deadline, told in ((3600, "was ended before its end"), (0, "has not begun")):
        piece = dataclasses.replace(ablation, deadline=time.monotonic() + deadline)
        with pytest.raises(RuntimeError, match=f"variant ce, seed 0 {told}: time is up"):
            run_all([piece])
    assert len(runner.started) == 1
    run_all([dataclasses.replace(ablation, deadline=time.monotonic() + 3600)])
    assert len(list(ablation.rows())) == 1
    log = (ablation.output_dir / "ce_seed0" / "log.txt").read_text()
    assert "Resumed at iteration 4" in log


def test_runs_that_exist(make, runner):
    runner.pending[:] = [{"strikes": [["os:replace", 1, "full disk"]]}]
    ablation = make(kinds=["ce"])
    with pytest.raises(RuntimeError, match=r"seed 0 ended with code 1: error: .*could not write"):
        run_all([ablation])
    # A failed seed does not stop the others.
    assert runner.started == ["ce_seed0", "ce_seed1"]
    assert [row["seed"] for row in ablation.rows()] == [1]

    # Other settings are not mixed in.
    match = r"ce_seed1 holds a run with other settings \(SOLVER\.BASE_LR 0\.02"
    with pytest.raises(ValueError, match=match):
        run_all([make({"SOLVER.BASE_LR": 0.01}, kinds=["ce"], seeds=[1])])
    run_all([make({"DATALOADER.NUM_WORKERS": 1}, kinds=["ce"], seeds=[1])])
    assert len(runner.started) == 2

    # Nor are those of a run of which nothing is known, or of a damaged file.
    config = make().output_dir / "ce_seed1" / "config.yaml"
    content = config.read_bytes()
    for change, told in (
        (config.unlink, r"ce_seed1 holds a run without its config\.yaml, .*another --output"),
        (lambda: config.write_text("[1"), r"config\.yaml: not plain YAML: .*line 2"),
    ):
        change()
        with pytest.raises(ValueError, match=told):
            run_all([make(kinds=["ce"], seeds=[1])])
    config.write_bytes(content)

    # Task A of a plain run holds no Fisher information that the online variant could use.
    later = make(kinds=["ce", "ce_sb_online"], seeds=[1])
    run_all([later])
    assert trained_task_a(later.output_dir / "ce_sb_online_1_seed1")
    assert len(list(later.rows())) == 2


def test_incomplete_runs_have_no_results(tmp_path):
    assert final_results(tmp_path) == {}
    (tmp_path / "model_final.pth").touch()
    for noted in ({"A": {"set": {"mIoU": 1.0}}}, {"A": {}, "B": {"set": {"mIoU": 2.0}}}):
        assert final_results(tmp_path) == {}
        (tmp_path / "results.json").write_text(json.dumps(noted))
    assert final_results(tmp_path) == {"set": {"mIoU": 2.0}}


def test_markdown_gives_mean_and_sample_deviation():
    def row(variant, value, last=None):
        figures = {**dict.fromkeys(HEADLINE, value), HEADLINE[-1]: last or value}
        return {"data set": "set", "variant": variant, **figures}

    rows = [row("a", 1.0), row("b", 5.0), row("a", 2.0), row("a", 6.0)]
    rows += [row(variant, 5.0, math.nan) for variant in "cdd"]
    lines = seed_table(rows).splitlines()
    # Mean 3, squared deviations 4 + 1 + 9 over n - 1 = 2: 7.
    assert lines[2] == "| set | a |" + " 3.0 ± 2.6 |" * len(HEADLINE) + " 3 |"
    assert lines[3] == "| set | b |" + " 5.0 |" * len(HEADLINE) + " 1 |"
    # An undefined figure is a dash.
    assert lines[4].endswith("| – | 1 |")
    assert lines[5].endswith("| – | 2 |")


@pytest.fixture
def command(run_tool, runner, registration, demo_root, tiny, tmp_path):
    """Function: ``tools/ablation.py`` into ``tmp_path/out``."""
    registration(demo_root)

    def run(*arguments, config="demo_sbce"):
        file = tiny.repository / "configs" / f"{config}.yaml"
        folder = ("--output", tmp_path / "out")
        return run_tool("ablation", *folder, "--config-file", file, *arguments)

    return run


def test_command(command, runner, tiny, tmp_path):
    arguments = ("--variants", "ce", "--seeds", "5", "--methods", "gt=smallobj_demo_train_gt")
    arguments += tuple(tiny.as_options(tiny.options))
    runner.pending[:] = [{"strikes": [["os:replace", 1, "full disk"]]}]
    done = command(*arguments)
    assert done.returncode == 1
    assert "error: 1 run(s) failed:\n  gt, variant ce, seed 5 ended with code 1" in done.stderr
    assert done.stdout.startswith("| data set | variant |")
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert done.stdout == (out / "ablation.md").read_text() + "\n"
    assert "| smallobj_demo_val | gt | CE |" in done.stdout
    assert (out / "gt" / "ce_seed5" / "model_final.pth").exists()
    assert re.search(r"\| DeepLabV2 +\| full +\|", (out / "paper_tables.md").read_text())
    assert not (out / "fig8.png").exists()  # there is nothing to compare with


@pytest.mark.parametrize(
    ("arguments", "config", "told"),
    [
        ((), "demo_ce", "/demo_ce.yaml: the ablation needs two tasks; SMALLOBJ.TASK_A.ITERS must"),
        (("--methods", "x"), "demo_sbce", "--methods: unknown value 'smallobj_demo_x'"),
        (("--methods", "amn"), "voc_sbce", "'voc_2012_trainaug_amn'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(command, tmp_path, arguments, config, told):
    done = command(*arguments, config=config)
    assert done.returncode == 1
    assert told in done.stderr.partition("error: ")[2]
    assert not (tmp_path / "out").exists()
