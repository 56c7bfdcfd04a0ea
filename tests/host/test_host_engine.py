"""Trainers, hooks, events, optimisers and the set-up of a training."""

import json
import logging
import math
from pathlib import Path

import host_toy
import pytest
import torch
from fvcore.common.param_scheduler import LinearParamScheduler, PolynomialDecayParamScheduler
from torch import nn

from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    default_writers,
    hooks,
)
from detectron2.solver import LRMultiplier
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter, get_event_storage
from detectron2.utils.logger import setup_logger


class Recorder(HookBase):
    def __init__(self, calls):
        for moment in ("before_train", "after_train", "before_step", "after_step"):
            setattr(self, moment, lambda m=moment: calls.append((m, self.trainer.iter)))


class Nothing(TrainerBase):
    def __init__(self, fail_at=None):
        super().__init__()
        self.fail_at = fail_at

    def run_step(self):
        assert get_event_storage() is self.storage
        assert self.storage.iter == self.iter
        if self.iter == self.fail_at:
            raise RuntimeError("failed step")


def test_hooks_are_called_in_order():
    calls = []
    trainer = Nothing()
    trainer.register_hooks([Recorder(calls)])
    trainer.train(3, 5)
    steps = [(moment, i) for i in (3, 4) for moment in ("before_step", "after_step")]
    assert calls == [("before_train", 3), *steps, ("after_train", 5)]
    assert (trainer.start_iter, trainer.max_iter) == (3, 5)
    # After an exception too.
    calls = []
    trainer = Nothing(fail_at=1)
    trainer.register_hooks([Recorder(calls)])
    with pytest.raises(RuntimeError, match="failed step"):
        trainer.train(0, 5)
    assert calls[-1] == ("after_train", 1)
    with pytest.raises((RuntimeError, AssertionError), match="EventStorage"):
        get_event_storage()


class Stateful(HookBase):
    def __init__(self, value):
        self.value = value
        self.state_dict = lambda: {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_the_first_hook_of_a_class_keeps_its_state():
    trainer, other, fresh = Nothing(), Nothing(), [Stateful(0), Stateful(0)]
    trainer.register_hooks([Stateful(1), Stateful(2)])
    trainer.iter = 7
    state = trainer.state_dict()
    assert state == {"iteration": 7, "hooks": {"Stateful": {"value": 1}}}
    other.register_hooks(fresh)
    other.load_state_dict({**state, "hooks": {**state["hooks"], "Gone": {}}})
    assert (other.iter, fresh[0].value, fresh[1].value) == (7, 1, 0)


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return {"loss_a": self.weight * x, "loss_b": self.weight * 2 * x}


def simple_trainer(data):
    model = Loss()
    return SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.1))


def test_simple_trainer_steps_and_logs():
    trainer = simple_trainer([1.0, 2.0])
    trainer.train(0, 2)
    histories = trainer.storage.histories()
    assert trainer.model.weight.item() == pytest.approx(1 - 0.3 - 0.6)
    logged = {k: v.values() for k, v in histories.items() if "time" not in k}
    expected = {
        "loss_a": [(1.0, 0), (1.4, 1)],
        "loss_b": [(2.0, 0), (2.8, 1)],
        "total_loss": [(3.0, 0), (4.2, 1)],
    }
    assert logged.keys() == expected.keys()
    for name, values in expected.items():
        assert logged[name] == [(pytest.approx(value), i) for value, i in values]
    assert set(histories) - set(logged) == {"data_time", "rank_data_time"}
    with pytest.raises(FloatingPointError, match="iteration=1"):
        simple_trainer([1.0, math.nan]).train(0, 2)


def train(cfg, kind=host_toy.EveryIteration, resume=False, stop=None):
    seed_all_rng(0)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    trainer = kind(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.max_iter = stop or trainer.max_iter
    trainer.train()
    return trainer


def test_default_trainer_logs_every_iteration_and_evaluates(toy_cfg):
    toy_cfg.TEST.EVAL_PERIOD = 3
    toy_cfg.TEST.EXPECTED_RESULTS = [["toy", "seen", 12.0, 0.0]]
    trainer = train(toy_cfg)
    rows = host_toy.metrics(toy_cfg.OUTPUT_DIR)
    losses = [row for row in rows if "total_loss" in row]
    assert [row["iteration"] for row in losses] == list(range(8))
    for row in losses:
        assert row["total_loss"] == pytest.approx(row["loss_square"] + row["loss_half"])
    rates = [0.001 * (1 - i / 8) ** 0.9 for i in range(8)]
    assert [row["lr"] for row in losses] == pytest.approx(rates)
    assert [row["iteration"] for row in rows if "toy/seen" in row] == [2, 5, 8]
    assert trainer._last_eval_results == {"toy": {"seen": 12.0}}
    assert trainer.iter == 8


class OneBatch(host_toy.EveryIteration):
    """Sees one batch for ever, so that a resumed run sees the same data."""

    @classmethod
    def build_train_loader(cls, cfg):
        generator = torch.Generator().manual_seed(1)
        images = torch.rand(4, 3, 8, 8, generator=generator)
        return [[{"image": x, "label": torch.ones(1)} for x in images]] * 100


def test_default_trainer_resumes_iteration_rate_and_momentum(toy_cfg, tmp_path):
    def rows(output, resume, stop):
        toy_cfg.OUTPUT_DIR = str(tmp_path / output)
        trainer = train(toy_cfg, OneBatch, resume, stop)
        written = host_toy.metrics(toy_cfg.OUTPUT_DIR)
        return trainer.start_iter, {r["iteration"]: r for r in written if "total_loss" in r}

    _, straight = rows("straight", False, 8)
    assert rows("halved", False, 4)[0] == 0
    start, resumed = rows("halved", True, 8)
    assert start == 4
    assert sorted(resumed) == sorted(straight) == list(range(8))
    for i in range(8):
        assert resumed[i]["total_loss"] == straight[i]["total_loss"]
        assert resumed[i]["lr"] == straight[i]["lr"]
    state = torch.load(f"{toy_cfg.OUTPUT_DIR}/model_final.pth", weights_only=True)
    assert set(state) == {"model", "trainer", "iteration"}
    assert state["iteration"] == state["trainer"]["iteration"] == 7
    assert set(state["trainer"]) == {"iteration", "hooks", "_trainer"}
    assert set(state["trainer"]["hooks"]["LRScheduler"]) == {"base_lrs", "last_epoch"}
    assert set(state["trainer"]["_trainer"]) == {"iteration", "optimizer"}
    assert {"conv.weight", "conv.norm.running_var", "linear.bias"} < set(state["model"])


def test_several_test_sets_and_given_evaluators(toy_cfg):
    class Two(host_toy.HostToyTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            assert dataset_name in ("a", "b")
            return host_toy.HostToyEvaluator()

    model = Two.build_model(toy_cfg)
    toy_cfg.DATASETS.TEST = ("a", "b")
    expected = {"toy": {"seen": 12.0}}
    assert Two.test(toy_cfg, model) == {"a": expected, "b": expected}
    toy_cfg.DATASETS.TEST = ("c",)
    assert Two.test(toy_cfg, model, [host_toy.HostToyEvaluator()]) == expected


def test_configs_scale_with_the_processes(toy_cfg):
    toy_cfg.merge_from_list(
        ["SOLVER.REFERENCE_WORLD_SIZE", 2, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 100,
         "SOLVER.STEPS", (60, 90), "SOLVER.WARMUP_ITERS", 10, "TEST.EVAL_PERIOD", 50]
    )  # fmt: skip
    toy_cfg.freeze()
    assert DefaultTrainer.auto_scale_workers(toy_cfg, 2) is toy_cfg
    scaled = DefaultTrainer.auto_scale_workers(toy_cfg, 4)
    solver = scaled.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.STEPS) == (8, 50, (30, 45))
    assert (solver.BASE_LR, solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD) == (0.002, 5, 2)
    assert (scaled.TEST.EVAL_PERIOD, solver.REFERENCE_WORLD_SIZE) == (25, 4)
    assert scaled.is_frozen()
    toy_cfg.defrost()
    toy_cfg.SOLVER.IMS_PER_BATCH = 3
    with pytest.raises((ValueError, AssertionError), match="REFERENCE_WORLD_SIZE"):
        DefaultTrainer.auto_scale_workers(toy_cfg, 4)


def test_eval_hook_periods():
    for period, expected in ((2, [1, 3, 5]), (0, [5]), (5, [5])):
        trainer = Nothing()
        trainer.register_hooks([hooks.EvalHook(period, lambda: {"a": {"b": 1}})])
        trainer.train(0, 5)
        assert [step for _, step in trainer.storage.history("a/b").values()] == expected


def test_the_logged_rate_is_that_of_the_largest_group():
    one = [nn.Parameter(torch.ones(1)) for _ in range(5)]
    uneven = [{"params": one[:1], "lr": 1.0}, {"params": one[1:3], "lr": 2.0}]
    single = [{"params": [p], "lr": lr} for p, lr in zip(one, (1.0, 3.0, 3.0, 2.0, 3.0))]
    for groups, expected in ((uneven, 2.0), (single, 3.0)):
        trainer = Nothing()
        trainer.optimizer = torch.optim.SGD(groups, lr=1.0)
        trainer.scheduler = LRMultiplier(trainer.optimizer, LinearParamScheduler(1, 0), 4)
        trainer.register_hooks([hooks.LRScheduler()])
        trainer.optimizer.step()
        trainer.train(0, 4)
        rates = trainer.storage.history("lr").values()
        assert [r for r, _ in rates] == [pytest.approx(expected * (1 - i / 4)) for i in range(4)]
        assert trainer.state_dict()["hooks"]["LRScheduler"]["last_epoch"] == 4


def test_iteration_timer_logs_times():
    trainer = Nothing()
    trainer.register_hooks([hooks.IterationTimer(warmup_iter=2)])
    trainer.train(0, 4)
    assert [step for _, step in trainer.storage.history("time").values()] == [1, 2, 3]


def test_event_storage():
    with EventStorage(10) as storage:
        assert get_event_storage() is storage
        storage.put_scalars(a=1, b=2.5)
        storage.iter = 11
        storage.put_scalar("c", torch.tensor(3.0), smoothing_hint=False)
        storage.iter = 40
        storage.put_scalar("a", 5)
        assert storage.latest() == {"a": (5.0, 40), "b": (2.5, 10), "c": (3.0, 11)}
        smoothed = storage.latest_with_smoothing_hint(20)
        assert smoothed["a"] == (5.0, 40)  # the value at 10 lies outside the window
        assert storage.latest_with_smoothing_hint(31)["a"] == (3.0, 40)
        assert storage.history("a").values() == [(1.0, 10), (5.0, 40)]
        with pytest.raises(KeyError, match="nothing"):
            storage.history("nothing")
        with EventStorage() as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is storage
    with pytest.raises((RuntimeError, AssertionError), match="EventStorage"):
        get_event_storage()


def test_json_writer_appends_what_is_new(tmp_path):
    with EventStorage(0) as storage:
        writer = JSONWriter(str(tmp_path / "m.json"))
        storage.put_scalars(a=1.0, b=2.0)
        writer.write()
        storage.iter = 5
        storage.put_scalars(a=3.0)
        writer.write()
        writer.write()
        writer.close()
    rows = [json.loads(line) for line in (tmp_path / "m.json").read_text().splitlines()]
    assert rows == [{"a": 1.0, "b": 2.0, "iteration": 0}, {"a": 2.0, "iteration": 5}]


def test_metric_printer(captured):
    printer = CommonMetricPrinter(max_iter=10)
    with EventStorage(3) as storage:
        storage.put_scalars(total_loss=1.5, time=2.0, data_time=0.5, other=7.0)
        storage.put_scalar("lr", 0.01, smoothing_hint=False)
        printer.write()
        assert storage.latest()["eta_seconds"][0] == 12.0
        storage.iter = 10
        printer.write()
    assert len(captured) == 1
    for part in ("eta: 0:00:12", "iter: 3", "total_loss: 1.5", "lr: 0.01", "data_time: 0.5000"):
        assert part in captured[0]
    assert "other" not in captured[0]


def test_tensorboard_gets_scalars(tmp_path):
    writer = default_writers(str(tmp_path), 5)[2]
    with EventStorage(0) as storage:
        storage.put_scalars(a=1.0)
        writer.write()
        writer.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a")] == [(0, 1.0)]


def test_setup_logger_writes_files_per_rank(tmp_path):
    for rank, name in ((0, "log.txt"), (2, "log.txt.rank2")):
        logger = setup_logger(str(tmp_path), rank, name=f"host_test_{rank}")
        logger.info("hello")
        logger.handlers[-1].flush()
        assert "hello" in (tmp_path / name).read_text()
    assert setup_logger(str(tmp_path), 0, name="host_test_0").handlers
    assert len(logging.getLogger("host_test_0").handlers) == 2  # stdout and file, once


@pytest.mark.parametrize(("kind", "expected"), [("value", [0.5, -0.5]), ("norm", [0.3, -0.4])])
def test_gradients_are_clipped_per_parameter(toy_cfg, kind, expected):
    toy_cfg.SOLVER.CLIP_GRADIENTS.update(ENABLED=True, CLIP_TYPE=kind, CLIP_VALUE=0.5)
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = maybe_add_gradient_clipping(toy_cfg, torch.optim.SGD)([first, second], lr=1.0)
    assert isinstance(optimizer, torch.optim.SGD)
    first.grad, second.grad = torch.tensor([3.0, -4.0]), torch.tensor([0.0, 0.1])
    optimizer.step()
    torch.testing.assert_close(first.data, -torch.tensor(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(second.data, torch.tensor([0.0, -0.1]))


def test_lr_multiplier_scales_every_group():
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (1.0, 10.0)]
    optimizer = torch.optim.SGD(groups, lr=5.0)
    scheduler = LRMultiplier(optimizer, PolynomialDecayParamScheduler(1.0, 0.9), max_iter=10)
    for i in range(10):
        rate = (1 - i / 10) ** 0.9
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([rate, 10 * rate])
        optimizer.step()
        scheduler.step()
    assert set(scheduler.state_dict()) == {"base_lrs", "last_epoch"}
