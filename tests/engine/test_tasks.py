"""From task A to task B: what changes at the switch, what the penalty adds, what is written."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny_runs import EMPIRICAL, ONLINE, events_of, metrics_rows, saved
from torch import nn

from d2_smallobj.engine import TwoTaskTrainer
from d2_smallobj.engine.tasks import build_ewc, check_switchable
from d2_smallobj.losses.size_balanced import SizeWeightedCrossEntropy
from d2_smallobj.modeling.inference import MultiViewInference

NO_PENALTY = {"SMALLOBJ.EWC.LAMBDA": 0.0}


SWAPPED = {"SMALLOBJ.TASK_A.LOSS": "size_weighted", "SMALLOBJ.TASK_B.LOSS": "cross_entropy"}


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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (NO_PENALTY, [(False, False)] * 4 + [(True, True)] * 4),
        # The Fisher information is taken with the plain loss.
        (EMPIRICAL, [(False, False)] * (4 + 4) + [(True, True)] * 4),
        ({**NO_PENALTY, **SWAPPED}, [(True, True)] * 4 + [(False, True)] * 4),
    ],
    ids=["plain", "EWC", "swapped"],
)
def test_loss_switches_at_the_end_of_task_a(make_trainer, losses, options, expected):
    make_trainer(options).train()
    assert losses == expected


def test_rate_and_momentum_run_through(make_trainer, tmp_path, assert_same):
    """Two tasks of one loss are the same run as one long task, bit for bit."""
    two = {**NO_PENALTY, "SMALLOBJ.TASK_B.LOSS": "cross_entropy"}
    trainer = make_trainer(two, folder=tmp_path / "two")
    trainer.train()
    make_trainer({"SMALLOBJ.TASK_A.ITERS": -1}, folder=tmp_path / "one").train()
    finals = [saved(tmp_path / run) for run in ("two", "one")]
    assert finals[0].pop("config") != finals[1].pop("config")
    assert_same(*finals)
    assert not (tmp_path / "one" / "model_task_a.pth").exists()
    rates = [value for value, _ in trainer.storage.history("lr").values()]
    assert rates == pytest.approx([0.02 * (1 - t / 8) ** 0.9 for t in range(8)])


def test_state_at_the_end_of_task_a_is_saved(make_trainer, tmp_path, assert_same):
    make_trainer({"SOLVER.CHECKPOINT_PERIOD": 1}, folder=tmp_path).train()
    state = saved(tmp_path, "model_task_a")
    assert state["trainer"]["iteration"] == 3
    assert not state["ewc"]["anchored"]
    assert_same(state["model"], saved(tmp_path, "model_0000003")["model"])
    after = saved(tmp_path, "model_0000004")["ewc"]
    assert after["anchored"]
    for name, value in after["anchor"].items():
        assert torch.equal(value, state["model"][name])


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
    model = TwoTaskTrainer.build_model(trainer.cfg)
    model.load_state_dict(saved(tmp_path, "model_task_a")["model"])
    again = TwoTaskTrainer.test(trainer.cfg, model)["small_objects"]
    assert results["A"]["smallobj_demo_val"]["IA-mIoU"] == again["IA-mIoU"]


def test_several_test_sets_are_noted_by_name(make_trainer, tmp_path):
    sets = {"DATASETS.TEST": "('smallobj_demo_val', 'smallobj_demo_train_gt')"}
    make_trainer(sets, folder=tmp_path).train()
    results = json.loads((tmp_path / "results.json").read_text())
    for task in "AB":
        images = {name: figures["images"] for name, figures in results[task].items()}
        assert images == {"smallobj_demo_val": 4, "smallobj_demo_train_gt": 12}


def test_a_new_run_forgets_an_older_ones_results(make_trainer, tmp_path):
    make_trainer({"SMALLOBJ.EVAL_TASK_A": False}, folder=tmp_path).train()
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["B"]
    make_trainer({"SMALLOBJ.TASK_A.ITERS": -1}, folder=tmp_path).train()
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["A"]


def test_stage_and_penalty_are_in_every_log(train_server, tmp_path):
    long = {**ONLINE, "SOLVER.MAX_ITER": 40, "SMALLOBJ.TASK_A.ITERS": 20}
    output = train_server.finish(tmp_path, long).stdout
    a, b = (row for row in metrics_rows(tmp_path) if "in_task_B" in row)
    assert [(row["iteration"], row["in_task_B"]) for row in (a, b)] == [(19, 0), (39, 1)]
    assert "loss_ewc" not in a
    assert b["loss_ewc"] > 0
    assert "loss_ewc: " in next(x for x in output.splitlines() if "iter: 39 " in x)
    events = events_of(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("in_task_B")] == [(19, 0), (39, 1)]
    (penalty,) = events.Scalars("loss_ewc")
    assert penalty.step == 39
    assert penalty.value == pytest.approx(b["loss_ewc"], rel=1e-5)


def test_task_b_from_a_checkpoint(make_trainer, undisturbed, tmp_path, losses):
    weights = undisturbed(ONLINE)[0] / "model_final.pth"
    start = {**EMPIRICAL, "SMALLOBJ.TASK_A.ITERS": 0, "MODEL.WEIGHTS": weights}
    trainer = make_trainer(start, folder=tmp_path)
    trainer.train()
    assert [weighted for weighted, _ in losses] == [False] * 4 + [True] * 8
    values = [value for value, _ in trainer.storage.history("loss_ewc").values()]
    assert values[0] == 0
    assert min(values[1:]) > 0
    model = saved(weights.parent)["model"]
    for name, value in trainer._trainer.ewc.anchor_values.items():
        assert torch.equal(value, model[name])
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["B"]


AT_ONCE = {"SMALLOBJ.TASK_A.ITERS": 0}
WARM = {"SOLVER.WARMUP_ITERS": 6, "SOLVER.WARMUP_FACTOR": 1e-6, "SMALLOBJ.EWC.LAMBDA": 1e6}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({**ONLINE, **AT_ONCE}, r"'online'.*no task A.*'empirical'"),
        # It is checked for the rate after the warm-up.
        ({**EMPIRICAL, **AT_ONCE, **WARM}, "makes the penalty unstable"),
    ],
    ids=["online", "unstable"],
)
def test_penalties_that_are_refused(make_trainer, options, told):
    trainer = make_trainer(options)
    with pytest.raises(ValueError, match=told):
        trainer.train()


def test_without_strength_there_is_no_penalty(make_trainer, tmp_path, log):
    make_trainer(NO_PENALTY, folder=tmp_path).train()
    assert "ewc" not in saved(tmp_path)
    assert "no EWC penalty" in log.text
    assert "matched" not in log.text


def test_unstable_strength_is_refused_at_the_switch(make_trainer, tmp_path):
    trainer = make_trainer(ONLINE, {"SMALLOBJ.EWC.LAMBDA": 500.0}, folder=tmp_path)
    with pytest.raises(ValueError, match=r"group \d \(.*Use a strength below [\d.]+") as caught:
        trainer.train()
    # Task A is not lost: with a strength that the message allows, the run goes on.
    allowed = float(str(caught.value).split("Use a strength below ")[1].split(",")[0])
    assert (tmp_path / "last_checkpoint").read_text() == "model_task_a.pth"
    just_below = {**ONLINE, "SMALLOBJ.EWC.LAMBDA": 0.99 * allowed}
    make_trainer(just_below, folder=tmp_path, resume=True).train()
    # The proximal step takes any strength.
    strong = {**ONLINE, "SMALLOBJ.EWC.LAMBDA": 1e6, "SMALLOBJ.EWC.STEP": "proximal"}
    trainer = make_trainer(strong)
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_what_cannot_resume(make_trainer, undisturbed, tmp_path):
    """Another strength that is unstable, another estimator, and task B without an anchor."""
    folder = shutil.copytree(undisturbed(ONLINE)[0], tmp_path / "run")
    (folder / "last_checkpoint").write_text("model_0000005.pth")
    strong = {**ONLINE, "SMALLOBJ.EWC.LAMBDA": 1e4}
    with pytest.raises(ValueError, match="makes the penalty unstable"):
        make_trainer(strong, folder=folder, resume=True).train()
    with pytest.raises(ValueError, match=r"EWC\.FISHER 'online' there, 'empirical' now"):
        make_trainer(EMPIRICAL, folder=folder, resume=True)
    make_trainer(NO_PENALTY, folder=tmp_path / "plain").train()
    (tmp_path / "plain" / "last_checkpoint").write_text("model_0000005.pth")
    trainer = make_trainer(folder=tmp_path / "plain", resume=True)
    with pytest.raises(ValueError, match=r"iteration 6 is inside task B.*no anchor"):
        trainer.train()


def test_size_weighted_task_needs_a_loss_that_can_be():
    model = nn.Linear(2, 2)
    check_switchable(model, {"SMALLOBJ.TASK_A.LOSS": "cross_entropy"})
    with pytest.raises(ValueError, match=r"TASK_B\.LOSS is 'size_weighted'.*\(Linear\)"):
        check_switchable(model, {"SMALLOBJ.TASK_B.LOSS": "size_weighted"})
    weighted = nn.Sequential(SizeWeightedCrossEntropy())
    check_switchable(weighted, {"SMALLOBJ.TASK_B.LOSS": "size_weighted"})


def test_scaling_to_more_processes_keeps_the_tasks_proportion(make_config):
    cfg = make_config({"SOLVER.REFERENCE_WORLD_SIZE": 1})
    scaled = TwoTaskTrainer.auto_scale_workers(cfg, 2)
    assert (scaled.SOLVER.MAX_ITER, scaled.SMALLOBJ.TASK_A.ITERS) == (4, 2)
    assert scaled.is_frozen()
    assert TwoTaskTrainer.auto_scale_workers(cfg, 1) is cfg
    one = make_config({"SOLVER.REFERENCE_WORLD_SIZE": 1, "SMALLOBJ.TASK_A.ITERS": -1})
    assert TwoTaskTrainer.auto_scale_workers(one, 2).SMALLOBJ.TASK_A.ITERS == -1


# ---- The penalty -------------------------------------------------------------------------------

LAMBDA = 1.0  # of the tiny run


def history(trainer, name):
    """``{iteration: value}`` of a logged scalar."""
    return {int(step): value for value, step in trainer.storage.history(name).values()}


@pytest.fixture
def in_task_b(make_trainer, undisturbed, tmp_path):
    """Function: the model of a run that took one step inside task B, and the state before."""

    def resume(name, *overrides):
        folder = shutil.copytree(undisturbed(ONLINE)[0], tmp_path / name)
        (folder / "last_checkpoint").write_text("model_0000005.pth")
        trainer = make_trainer(ONLINE, *overrides, folder=folder, resume=True)
        assert trainer.start_iter == 6
        rates = trainer._trainer.ewc and trainer._trainer.ewc.learning_rates(trainer.optimizer)
        trainer.max_iter = 7
        trainer.train()
        return trainer.model, rates

    return resume


@pytest.fixture
def before(undisturbed):
    """Parameters, Fisher information and anchor, by name, of the state before that step."""
    state = saved(undisturbed(ONLINE)[0], "model_0000005")
    return state["model"], state["ewc"]["fisher"], state["ewc"]["anchor"]


@pytest.mark.parametrize("step", ["gradient", "proximal"])
@pytest.mark.parametrize("estimator", ["online", "empirical"])
def test_penalty_is_zero_at_the_switch_and_grows(make_trainer, estimator, step):
    trainer = make_trainer({"SMALLOBJ.EWC.FISHER": estimator, "SMALLOBJ.EWC.STEP": step})
    trainer.train()
    values = history(trainer, "loss_ewc")
    assert list(values) == [4, 5, 6, 7]
    assert values[4] == 0
    assert 0 < values[5] < values[6] < values[7]
    totals, losses = history(trainer, "total_loss"), history(trainer, "loss_sem_seg")
    assert totals[6] == pytest.approx(losses[6] + values[6])


def test_gradient_is_that_of_autograd(in_task_b, before):
    penalised, _ = in_task_b("with")
    plain, _ = in_task_b("without", {"SMALLOBJ.EWC.LAMBDA": 0.0})
    weights, fisher, anchor = before
    largest = 0.0
    for (name, a), b in zip(penalised.named_parameters(), plain.parameters()):
        theta = weights[name].clone().requires_grad_()
        (LAMBDA * (fisher[name] * (theta - anchor[name]) ** 2).sum()).backward()
        torch.testing.assert_close(a.grad - b.grad, theta.grad, rtol=1e-3, atol=1e-7)
        largest = max(largest, theta.grad.abs().max().item())
    assert largest > 1e-4


def test_proximal_step_follows_the_optimisers_own(in_task_b, before):
    proximal, rates = in_task_b("with", {"SMALLOBJ.EWC.STEP": "proximal"})
    plain, _ = in_task_b("without", {"SMALLOBJ.EWC.LAMBDA": 0.0})
    _, fisher, anchor = before
    assert len(set(rates.values())) > 1
    moved = 0.0
    for (name, a), b in zip(proximal.named_parameters(), plain.parameters()):
        pull = 2 * LAMBDA * rates[name] * fisher[name]
        torch.testing.assert_close(a, (b + pull * anchor[name]) / (1 + pull), rtol=1e-5, atol=1e-7)
        moved = max(moved, (a - b).abs().max().item())
    assert moved > 1e-5


def test_matched_parameters_are_counted_in_the_log(make_trainer, log):
    """Frozen ones are left out."""
    trainer = make_trainer({"MODEL.BACKBONE.FREEZE_AT": 1})
    trainer.train()
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert set(trainer._trainer.ewc.names) == set(trained)
    weights = sum(p.numel() for p in trained.values())
    assert f"EWC matched {len(trained)} parameter tensors ({weights:,} weights)" in log.text
    assert not any("stem" in name for name in trained)
    assert any("stem" in name for name, _ in trainer.model.named_parameters())


def test_no_match_is_an_error(make_config):
    """The released code's mistake: names that fit nothing. Here it cannot pass unseen."""
    cfg = make_config()
    model = TwoTaskTrainer.build_model(cfg)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="holds no parameter that requires a gradient"):
        build_ewc(cfg, model, other)


# ---- Views in the evaluation -------------------------------------------------------------------

VIEWS = {"SMALLOBJ.TEST.SCALES": [0.5, 1.0], "SMALLOBJ.TEST.FLIP": True}


def test_evaluation_uses_views(make_trainer, monkeypatch):
    """Without cudnn's search for kernels, which is for training's one size of crops."""
    seen = []
    original = MultiViewInference.forward

    def forward(self, inputs):
        seen.append((set(self.views), torch.backends.cudnn.benchmark))
        return original(self, inputs)

    monkeypatch.setattr(MultiViewInference, "forward", forward)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    trainer = make_trainer(VIEWS)
    trainer.train()
    # Four images after either task.
    assert seen == [({(0.5, False), (0.5, True), (1.0, False), (1.0, True)}, False)] * 8
    assert torch.backends.cudnn.benchmark is True
    assert trainer._trainer.model.training
    assert set(trainer._results) == {"A", "B"}
