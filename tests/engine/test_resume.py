"""A run killed at any moment and resumed ends as the run that nobody disturbed."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from tiny_runs import EMPIRICAL, ONLINE, metrics_rows, saved
from torch import nn

from d2_smallobj.engine import TwoTaskTrainer

KILLED = -9
VARIANTS = {
    "online": ONLINE,
    "proximal": {**EMPIRICAL, "SMALLOBJ.EWC.STEP": "proximal", "DATALOADER.NUM_WORKERS": 1},
}
EWC = "d2_smallobj.losses.ewc:ElasticWeightConsolidation"
# Every file of a run appears by os.replace, after its bytes were flushed to a temporary file:
# a kill there is one in the middle of writing a checkpoint (or a table of results).
FILES = (
    *(("model_0000002.pth", 1), ("model_task_a.pth", 1), ("model_0000005.pth", 1)),
    *(("model_final.pth", 1), ("results.json", 1), ("results.json", 2)),
    *(("metrics.json", 1), ("metrics.json", 2)),
    *(("last_checkpoint", time) for time in range(1, 5)),
)
KILLS = {
    **{f"{name} {time}": ("online", ["os:replace", time, "kill", name]) for name, time in FILES},
    **{
        name: ("proximal", [target, call, "kill"])
        for name, target, call in (
            ("evaluation", "d2_smallobj.engine.trainer:TwoTaskTrainer.evaluate_task", 1),
            ("Fisher", "d2_smallobj.engine.tasks:empirical_fisher", 1),
            ("anchor", f"{EWC}.anchor", 1),
            ("first step of B", f"{EWC}.proximal_step_", 1),
            ("end", "d2_smallobj.evaluation.evaluator:SmallObjectEvaluator.evaluate", 2),
        )
    },
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


@pytest.fixture
def assert_same_end(assert_same):
    """Compare weights, optimiser, schedule, EWC state and results of two folders."""

    def compare(folder, other):
        for name in ("model_task_a", "model_final"):
            ours, theirs = saved(folder, name), saved(other, name)
            assert set(ours) >= {"model", "trainer", "ewc"}
            assert_same(ours, theirs, name)
        a, b = (json.loads((f / "results.json").read_text()) for f in (folder, other))
        assert set(a) == {"A", "B"}
        assert_same(a, b, "results")
        assert (folder / "last_checkpoint").read_text() == "model_final.pth"

    return compare


def test_two_undisturbed_runs_agree(train_server, undisturbed, variant, tmp_path, assert_same_end):
    train_server.finish(tmp_path / "again", variant)
    assert_same_end(undisturbed(variant)[0], tmp_path / "again")


@pytest.mark.slow
def test_kills_at_random_moments(train_server, undisturbed, variant, tmp_path, assert_same_end):
    reference, seconds = undisturbed(variant)
    draw = random.Random(0)
    for chain in range(3):
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
        train_server.finish(folder, variant, arguments=["--resume"])
        assert_same_end(folder, reference)


@pytest.mark.slow
@pytest.mark.parametrize("kill", KILLS)
def test_a_kill_at_a_chosen_moment(train_server, undisturbed, tmp_path, assert_same_end, kill):
    variant = VARIANTS[KILLS[kill][0]]
    answer = train_server.train(tmp_path, variant, strikes=[KILLS[kill][1]])
    assert answer.code == KILLED, answer.stderr
    train_server.finish(tmp_path, variant, arguments=["--resume"])
    assert_same_end(tmp_path, undisturbed(variant)[0])


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_twenty_kills_while_checkpoints_are_written(train_server, tmp_path, assert_same_end, world):
    """Each when the temporary file appears; of ten runs, which are killed twice each."""
    reference = tmp_path / "reference"
    train_server.finish(reference, ONLINE, world=world)
    kills = 0
    for chain in range(10):
        folder, first = tmp_path / f"chain{chain}", 1 + chain % 4
        second = 2 if chain > 4 and first < 4 else 1  # four checkpoints in all
        for number, arguments in ((first, ()), (second, ["--resume"])):
            watch = {"kill_at_file": [str(folder), ".model_", number], "flush": 0.05}
            again = train_server.train(folder, ONLINE, arguments=arguments, world=world, **watch)
            left = list(folder.glob(".model_*"))
            assert again.codes == [KILLED] * world
            assert len(left) == 1
            kills += 1
        train_server.finish(folder, ONLINE, arguments=["--resume"], world=world)
        assert_same_end(folder, reference)
        assert not list(folder.glob(".model_*"))
    assert kills == 20


class WithDropout(TwoTaskTrainer):
    """Every step drops other features."""

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        model.sem_seg_head.aspp[0] = nn.Sequential(nn.Dropout2d(0.5), model.sem_seg_head.aspp[0])
        return model


@pytest.mark.slow
def test_resume_at_every_iteration(make_trainer, variant, tmp_path, assert_same):
    every = {**variant, "SOLVER.CHECKPOINT_PERIOD": 1, "DATALOADER.NUM_WORKERS": 0}
    make_trainer(every, folder=tmp_path, cls=WithDropout).train()
    reference = saved(tmp_path)
    for iteration in range(8):
        (tmp_path / "last_checkpoint").write_text(f"model_{iteration:07d}.pth")
        (tmp_path / "model_final.pth").unlink()
        trainer = make_trainer(every, folder=tmp_path, resume=True, cls=WithDropout)
        assert trainer.start_iter == iteration + 1
        if trainer.start_iter == 8:
            assert_same(trainer.checkpointer.model.state_dict(), reference["model"])
            break
        trainer.train()
        assert_same(saved(tmp_path), reference, f"resumed after {iteration}")


def test_resuming_a_finished_run_changes_nothing(
    train_server, undisturbed, assert_same_end, tmp_path
):
    reference = undisturbed(ONLINE)[0]
    folder = shutil.copytree(reference, tmp_path / "run")
    train_server.finish(folder, ONLINE, arguments=["--resume"])
    assert_same_end(folder, reference)


def test_metrics_survive_a_kill(train_server, tmp_path):
    long = {**ONLINE, "SOLVER.MAX_ITER": 44, "SMALLOBJ.TASK_A.ITERS": 22}
    strikes = [[f"{EWC}.add_gradient_", 1, "kill"]]
    assert train_server.train(tmp_path, long, strikes=strikes).code == KILLED
    train_server.finish(tmp_path, long, arguments=["--resume"])
    tasks = {
        row["iteration"]: row["in_task_B"] for row in metrics_rows(tmp_path) if "in_task_B" in row
    }
    assert tasks == {19: 0, 39: 1, 43: 1}
    assert "Resumed at iteration 22" in (tmp_path / "log.txt").read_text()
