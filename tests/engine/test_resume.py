"""A run killed at any moment and resumed ends as the run that nobody disturbed."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch

KILLED = -9
FILES = ("model_task_a", "model_final")


def variants(tiny):
    return {
        "online": tiny.ONLINE,
        "empirical": {
            **tiny.EMPIRICAL,
            "SMALLOBJ.EWC.STEP": "proximal",
            "DATALOADER.NUM_WORKERS": 1,
        },
    }


@pytest.fixture(params=["online", "empirical"])
def variant(request, tiny):
    return variants(tiny)[request.param]


@pytest.fixture(scope="module")
def undisturbed(train_server, tmp_path_factory):
    """Function from a variant to its folder after an undisturbed run, and its seconds."""
    done = {}

    def get(variant):
        key = json.dumps(variant)
        if key not in done:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            answer = train_server.train(folder, variant)
            assert answer.code == 0, answer.stderr
            done[key] = folder, answer.seconds
        return done[key]

    return get


def load(folder, name):
    return torch.load(folder / f"{name}.pth", weights_only=True)


@pytest.fixture
def assert_same_end(assert_same):
    """Compare weights, optimiser, schedule, EWC state and results of two folders."""

    def compare(folder, other):
        for name in FILES:
            ours, theirs = load(folder, name), load(other, name)
            assert set(ours) >= {"model", "trainer", "ewc"}
            assert_same(ours, theirs, name)
        a, b = (json.loads((f / "results.json").read_text()) for f in (folder, other))
        assert set(a) == {"A", "B"}
        assert_same(a, b, "results")
        assert (folder / "last_checkpoint").read_text() == "model_final.pth"

    return compare


def finish(train_server, folder, variant):
    answer = train_server.train(folder, variant, arguments=["--resume"])
    assert answer.code == 0, answer.stderr
    return answer


def test_two_undisturbed_runs_agree(train_server, undisturbed, variant, tmp_path, assert_same_end):
    folder, _ = undisturbed(variant)
    assert train_server.train(tmp_path / "again", variant).code == 0
    assert_same_end(folder, tmp_path / "again")


def test_kills_at_random_moments(train_server, undisturbed, variant, tmp_path, assert_same_end):
    reference, seconds = undisturbed(variant)
    draw = random.Random(0)
    for chain in range(5):
        folder = tmp_path / f"chain{chain}"
        moment = draw.uniform(0.1, 0.9) * seconds
        while train_server.train(folder, variant, kill_after=moment).code != KILLED:
            # This one was quicker than the undisturbed run that is the measure.
            shutil.rmtree(folder)
            moment /= 2
        # The resumed run is killed too, unless it ends before.
        moment = draw.uniform(0.1, 0.9) * seconds
        again = train_server.train(folder, variant, arguments=["--resume"], kill_after=moment)
        assert again.code in (0, KILLED), again.stderr
        finish(train_server, folder, variant)
        assert_same_end(folder, reference)


# Every file of a run appears by os.replace, after its bytes were flushed to a temporary file:
# a kill there is one in the middle of writing a checkpoint (or a table of results).
@pytest.mark.parametrize(
    ("name", "time"),
    [
        *(("model_0000002.pth", 1), ("model_task_a.pth", 1), ("model_0000005.pth", 1)),
        *(("model_final.pth", 1), ("results.json", 1), ("results.json", 2)),
        *(("metrics.json", 1), ("metrics.json", 2)),
        *(("last_checkpoint", time) for time in range(1, 5)),
    ],
)
def test_kill_while_writing_file(
    train_server, undisturbed, tiny, tmp_path, assert_same_end, name, time
):
    variant = variants(tiny)["online"]
    reference, _ = undisturbed(variant)
    strikes = [["os:replace", time, "kill", name]]
    answer = train_server.train(tmp_path, variant, strikes=strikes)
    assert answer.code == KILLED, answer.stderr
    finish(train_server, tmp_path, variant)
    assert_same_end(tmp_path, reference)


@pytest.mark.parametrize(
    ("target", "call"),
    [
        ("d2_smallobj.engine.trainer:TwoTaskTrainer.evaluate_task", 1),
        ("d2_smallobj.engine.tasks:empirical_fisher", 1),
        ("d2_smallobj.losses.ewc:ElasticWeightConsolidation.anchor", 1),
        ("d2_smallobj.losses.ewc:ElasticWeightConsolidation.proximal_step_", 1),
        ("d2_smallobj.evaluation.evaluator:SmallObjectEvaluator.evaluate", 2),
    ],
    ids=["evaluation of A", "Fisher", "anchor", "first step of B", "last evaluation"],
)
def test_kill_at_the_switch_and_after(
    train_server, undisturbed, tiny, tmp_path, assert_same_end, target, call
):
    variant = variants(tiny)["empirical"]
    reference, _ = undisturbed(variant)
    answer = train_server.train(tmp_path, variant, strikes=[[target, call, "kill"]])
    assert answer.code == KILLED, answer.stderr
    finish(train_server, tmp_path, variant)
    assert_same_end(tmp_path, reference)


def test_resume_at_every_iteration(make_trainer, variant, tmp_path, assert_same):
    every = {**variant, "SOLVER.CHECKPOINT_PERIOD": 1, "DATALOADER.NUM_WORKERS": 0}
    folder = tmp_path / "run"
    make_trainer(every, folder=folder).train()
    reference = load(folder, "model_final")
    for iteration in range(8):
        (folder / "last_checkpoint").write_text(f"model_{iteration:07d}.pth")
        (folder / "model_final.pth").unlink()
        trainer = make_trainer(every, folder=folder, resume=True)
        assert trainer.start_iter == iteration + 1
        if trainer.start_iter == 8:
            assert_same(trainer.checkpointer.model.state_dict(), reference["model"])
            break
        trainer.train()
        assert_same(load(folder, "model_final"), reference, f"resumed after {iteration}")


def test_resuming_a_finished_run_changes_nothing(
    train_server, undisturbed, tiny, assert_same_end, tmp_path
):
    variant = variants(tiny)["online"]
    assert train_server.train(tmp_path, variant).code == 0
    finish(train_server, tmp_path, variant)
    assert_same_end(tmp_path, undisturbed(variant)[0])


def test_metrics_survive_a_kill(train_server, tiny, tmp_path):
    long = {**tiny.ONLINE, "SOLVER.MAX_ITER": 44, "SMALLOBJ.TASK_A.ITERS": 22}
    strikes = [["d2_smallobj.losses.ewc:ElasticWeightConsolidation.add_gradient_", 1, "kill"]]
    assert train_server.train(tmp_path, long, strikes=strikes).code == KILLED
    finish(train_server, tmp_path, long)
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    tasks = {row["iteration"]: row["task"] for row in rows if "task" in row}
    assert tasks == {19: 1, 39: 2, 43: 2}
    log = (tmp_path / "log.txt").read_text()
    assert "Resumed at iteration 22" in log
