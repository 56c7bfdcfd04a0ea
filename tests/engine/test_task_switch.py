"""From task A to task B: what changes at the switch, what does not, and what is written."""

from __future__ import annotations

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from d2_smallobj.engine import TwoTaskTrainer
from d2_smallobj.engine.tasks import check_switchable
from d2_smallobj.losses.size_balanced import SizeWeightedCrossEntropy

NO_PENALTY = {"SMALLOBJ.EWC.LAMBDA": 0.0}


def load(folder, name):
    return torch.load(folder / f"{name}.pth", weights_only=True)


@pytest.fixture
def losses(monkeypatch):
    """Every call of the loss: (size-weighted, whether the loader gave a weight map)."""
    calls = []
    original = SizeWeightedCrossEntropy.forward

    def forward(self, logits, labels, size_weights=None):
        calls.append((self.size_weighted, size_weights is not None))
        return original(self, logits, labels, size_weights)

    monkeypatch.setattr(SizeWeightedCrossEntropy, "forward", forward)
    return calls


def test_loss_switches_at_the_end_of_task_a(make_trainer, losses):
    make_trainer(NO_PENALTY).train()
    assert losses == [(False, False)] * 4 + [(True, True)] * 4


def test_fisher_is_taken_with_the_plain_loss(make_trainer, tiny, losses):
    make_trainer(tiny.EMPIRICAL).train()
    assert [weighted for weighted, _ in losses] == [False] * (4 + 4) + [True] * 4


def test_tasks_may_have_either_loss(make_trainer, losses):
    swapped = {"SMALLOBJ.TASK_A.LOSS": "size_weighted", "SMALLOBJ.TASK_B.LOSS": "cross_entropy"}
    make_trainer(NO_PENALTY, swapped).train()
    assert losses == [(True, True)] * 4 + [(False, True)] * 4


def test_rate_and_momentum_run_through(make_trainer, tmp_path, assert_same):
    """Two tasks of one loss are the same run as one long task, bit for bit."""
    two = {**NO_PENALTY, "SMALLOBJ.TASK_B.LOSS": "cross_entropy"}
    trainer = make_trainer(two, folder=tmp_path / "two")
    trainer.train()
    make_trainer({"SMALLOBJ.TASK_A.ITERS": -1}, folder=tmp_path / "one").train()
    finals = [load(tmp_path / run, "model_final") for run in ("two", "one")]
    assert finals[0].pop("config") != finals[1].pop("config")
    assert_same(*finals)
    assert not (tmp_path / "one" / "model_task_a.pth").exists()
    rates = [value for value, _ in trainer.storage.history("lr").values()]
    assert rates == pytest.approx([0.02 * (1 - t / 8) ** 0.9 for t in range(8)])


def test_state_at_the_end_of_task_a_is_saved(make_trainer, tmp_path, assert_same):
    make_trainer({"SOLVER.CHECKPOINT_PERIOD": 1}, folder=tmp_path).train()
    saved = load(tmp_path, "model_task_a")
    assert saved["trainer"]["iteration"] == 3
    assert not saved["ewc"]["anchored"]
    assert_same(saved["model"], load(tmp_path, "model_0000003")["model"])
    after = load(tmp_path, "model_0000004")["ewc"]
    assert after["anchored"]
    for name, value in after["anchor"].items():
        assert torch.equal(value, saved["model"][name])


def test_both_tasks_are_evaluated(make_trainer, tmp_path, log):
    trainer = make_trainer(folder=tmp_path)
    final = trainer.train()
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["A", "B"]
    assert results["B"]["smallobj_demo_val"]["mIoU"] == final["small_objects"]["mIoU"]
    assert results["A"] != results["B"]
    assert "task A | smallobj_demo_val" in log.text
    assert "task B | smallobj_demo_val" in log.text
    # Task A's figures are those of its checkpoint.
    cfg = trainer.cfg.clone()
    model = TwoTaskTrainer.build_model(cfg)
    model.load_state_dict(load(tmp_path, "model_task_a")["model"])
    again = TwoTaskTrainer.test(cfg, model)["small_objects"]
    noted = results["A"]["smallobj_demo_val"]
    assert noted["IA-mIoU"] == again["IA-mIoU"]


def test_several_test_sets_are_noted_by_name(make_trainer, tmp_path):
    sets = {"DATASETS.TEST": "('smallobj_demo_val', 'smallobj_demo_train_gt')"}
    make_trainer(sets, folder=tmp_path).train()
    results = json.loads((tmp_path / "results.json").read_text())
    for task in "AB":
        images = {name: figures["images"] for name, figures in results[task].items()}
        assert images == {"smallobj_demo_val": 4, "smallobj_demo_train_gt": 12}


def test_without_evaluation_of_task_a(make_trainer, tmp_path):
    make_trainer({"SMALLOBJ.EVAL_TASK_A": False}, folder=tmp_path).train()
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["B"]


def test_a_new_run_forgets_an_older_ones_results(make_trainer, tmp_path):
    make_trainer(folder=tmp_path).train()
    trainer = make_trainer({"SMALLOBJ.TASK_A.ITERS": -1}, folder=tmp_path)
    trainer.train()
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["A"]
    assert list(trainer._results) == ["A"]


def test_stage_and_penalty_are_in_every_log(train_server, tiny, tmp_path):
    long = {**tiny.ONLINE, "SOLVER.MAX_ITER": 40, "SMALLOBJ.TASK_A.ITERS": 20}
    answer = train_server.train(tmp_path, long)
    assert answer.code == 0, answer.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    a, b = (next(row for row in rows if row["iteration"] == i and "task" in row) for i in (19, 39))
    assert (a["task"], b["task"]) == (1, 2)
    assert "loss_ewc" not in a
    assert b["loss_ewc"] > 0
    line = next(x for x in answer.stdout.splitlines() if "iter: 39 " in x)
    assert "loss_ewc: " in line
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("task")] == [(19, 1), (39, 2)]
    (penalty,) = events.Scalars("loss_ewc")
    assert penalty.step == 39
    assert penalty.value == pytest.approx(b["loss_ewc"], rel=1e-5)


def test_task_b_from_a_checkpoint(make_trainer, tiny, tmp_path, losses):
    make_trainer({"SMALLOBJ.TASK_A.ITERS": -1}, folder=tmp_path / "ce").train()
    weights = tmp_path / "ce" / "model_final.pth"
    losses.clear()
    start = {**tiny.EMPIRICAL, "SMALLOBJ.TASK_A.ITERS": 0, "MODEL.WEIGHTS": weights}
    trainer = make_trainer(start, folder=tmp_path / "sb")
    trainer.train()
    assert [weighted for weighted, _ in losses] == [False] * 4 + [True] * 8
    values = [value for value, _ in trainer.storage.history("loss_ewc").values()]
    assert values[0] == 0
    assert min(values[1:]) > 0
    model = torch.load(weights, weights_only=True)["model"]
    for name, value in trainer._trainer.ewc.anchor_values.items():
        assert torch.equal(value, model[name])
    assert list(json.loads((tmp_path / "sb" / "results.json").read_text())) == ["B"]


def test_online_fisher_needs_task_a(make_trainer, tiny):
    trainer = make_trainer(tiny.ONLINE, {"SMALLOBJ.TASK_A.ITERS": 0})
    with pytest.raises(ValueError, match=r"'online'.*no task A.*'empirical'"):
        trainer.train()


def test_without_strength_there_is_no_penalty(make_trainer, tmp_path, log):
    make_trainer(NO_PENALTY, folder=tmp_path).train()
    assert "ewc" not in load(tmp_path, "model_final")
    assert "no EWC penalty" in log.text
    assert "matched" not in log.text


def test_unstable_strength_is_refused_at_the_switch(make_trainer, tiny, tmp_path):
    trainer = make_trainer(tiny.ONLINE, {"SMALLOBJ.EWC.LAMBDA": 500.0}, folder=tmp_path)
    with pytest.raises(ValueError, match=r"group \d \(.*Use a strength below [\d.]+") as caught:
        trainer.train()
    # Task A is not lost: with a strength that the message allows, the run goes on.
    allowed = float(str(caught.value).split("Use a strength below ")[1].split(",")[0])
    assert (tmp_path / "last_checkpoint").read_text() == "model_task_a.pth"
    just_below = {**tiny.ONLINE, "SMALLOBJ.EWC.LAMBDA": 0.99 * allowed}
    make_trainer(just_below, folder=tmp_path, resume=True).train()


def test_proximal_step_takes_any_strength(make_trainer, tiny):
    strong = {"SMALLOBJ.EWC.LAMBDA": 1e6, "SMALLOBJ.EWC.STEP": "proximal"}
    trainer = make_trainer(tiny.ONLINE, strong)
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_stability_is_checked_for_the_rate_after_a_warm_up(make_trainer, tiny):
    warm = {
        **tiny.EMPIRICAL,
        "SMALLOBJ.TASK_A.ITERS": 0,
        "SOLVER.WARMUP_ITERS": 6,
        "SOLVER.WARMUP_FACTOR": 1e-6,
        "SMALLOBJ.EWC.LAMBDA": 1e6,
    }
    with pytest.raises(ValueError, match="makes the penalty unstable"):
        make_trainer(warm).train()


def test_stability_is_checked_again_when_a_run_resumes_with_another_strength(
    make_trainer, tiny, tmp_path
):
    make_trainer(tiny.ONLINE, folder=tmp_path).train()
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    strong = {**tiny.ONLINE, "SMALLOBJ.EWC.LAMBDA": 1e4}
    with pytest.raises(ValueError, match="makes the penalty unstable"):
        make_trainer(strong, folder=tmp_path, resume=True).train()


def test_task_b_cannot_resume_without_an_anchor(make_trainer, tmp_path):
    make_trainer(NO_PENALTY, folder=tmp_path).train()
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    trainer = make_trainer(folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"iteration 6 is inside task B.*no anchor"):
        trainer.train()


def test_another_estimator_cannot_resume(make_trainer, tiny, tmp_path):
    make_trainer(tiny.ONLINE, folder=tmp_path).train()
    with pytest.raises(ValueError, match=r"EWC\.FISHER 'online' there, 'empirical' now"):
        make_trainer(tiny.EMPIRICAL, folder=tmp_path, resume=True)


def test_size_weighted_task_needs_a_loss_that_can_be():
    model = nn.Linear(2, 2)
    check_switchable(model, {"SMALLOBJ.TASK_A.LOSS": "cross_entropy"})
    with pytest.raises(ValueError, match=r"TASK_B\.LOSS is 'size_weighted'.*\(Linear\)"):
        check_switchable(model, {"SMALLOBJ.TASK_B.LOSS": "size_weighted"})
    check_switchable(
        nn.Sequential(SizeWeightedCrossEntropy()), {"SMALLOBJ.TASK_B.LOSS": "size_weighted"}
    )


def test_scaling_to_more_processes_keeps_the_tasks_proportion(make_config):
    cfg = make_config({"SOLVER.REFERENCE_WORLD_SIZE": 1})
    scaled = TwoTaskTrainer.auto_scale_workers(cfg, 2)
    assert (scaled.SOLVER.MAX_ITER, scaled.SMALLOBJ.TASK_A.ITERS) == (4, 2)
    assert scaled.is_frozen()
    assert TwoTaskTrainer.auto_scale_workers(cfg, 1) is cfg
    one = make_config({"SOLVER.REFERENCE_WORLD_SIZE": 1, "SMALLOBJ.TASK_A.ITERS": -1})
    assert TwoTaskTrainer.auto_scale_workers(one, 2).SMALLOBJ.TASK_A.ITERS == -1
