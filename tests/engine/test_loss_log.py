"""The log of losses, and the errors of a run: NaN, dead workers, overflow."""

from __future__ import annotations

import functools
import json
import math
import re
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from tiny_runs import ONLINE, saved

from d2_smallobj.config import add_smallobj_config
from d2_smallobj.data.mapper import SemSegMapper
from d2_smallobj.engine import loss_log
from d2_smallobj.engine.loss_log import LossLog, explain_dead_worker, explained_errors, samples_of
from d2_smallobj.utils.cli import user_message
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage


def sample(position):
    return {"file_name": f"{position}.jpg", "stream_position": position, "image": torch.zeros(1)}


def log_steps(log, values, start=0, storage=None):
    """Log one step a value; returns the storage."""
    with storage or EventStorage(start) as storage:
        for iteration, losses in enumerate(values, start):
            storage.iter = iteration
            tensors = {name: torch.tensor(value) for name, value in losses.items()}
            log.add(iteration, tensors, 0.5 * iteration, samples_of([sample(iteration)]))
    return storage


def histories(storage):
    return {name: history.values() for name, history in storage.histories().items()}


STEPS = [{"a": 1.0 + i, "b": 10.0 * i} for i in range(5)] + [
    {"a": 7.0 + i, "b": 1.0, "loss_ewc": 0.5} for i in range(4)
]


@pytest.mark.parametrize("period", [2, 4, 20])
def test_what_is_logged_does_not_depend_on_the_period(period):
    log = LossLog(period)
    storage = log_steps(log, STEPS)
    with storage:
        log.flush()
    expected = log_steps(LossLog(), STEPS)
    assert histories(storage) == histories(expected)
    assert storage.iter == 8
    assert storage.history("total_loss").values()[-1] == (10.0 + 1.0 + 0.5, 8)
    assert storage.history("loss_ewc").values()[0] == (0.5, 5)
    assert storage.history("data_time").values()[3] == (1.5, 3)


def test_losses_are_read_when_they_are_due():
    lengths = []
    for stop in range(1, 8):
        storage = log_steps(LossLog(3), [{"a": 1.0}] * stop)
        lengths.append(len(histories(storage).get("total_loss", ())))
    assert lengths == [0, 0, 3, 3, 3, 6, 6]
    # A resumed run reads at the same iterations.
    storage = log_steps(LossLog(4), [{"a": 1.0}] * 3, start=6)
    assert [step for _, step in storage.history("total_loss").values()] == [6, 7]

    storage = log_steps(LossLog(), [{"loss": 2.0}])
    assert set(storage.histories()) == {"rank_data_time", "data_time", "total_loss"}


def test_what_is_kept_of_the_samples():
    samples = samples_of([{**sample(3), "sem_seg_file_name": "3.png", "height": 5}, (1, 2)])
    assert samples == [{"file_name": "3.jpg", "sem_seg_file_name": "3.png", "stream_position": 3}]


def nan_batch(folder):
    return json.loads((folder / "nan_batch.json").read_text())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_step_is_named_and_its_files_are_saved(tmp_path, bad):
    steps = [dict(step) for step in STEPS]
    steps[6]["b"] = bad
    log, storage = LossLog(20, str(tmp_path)), EventStorage()
    log_steps(log, steps, storage=storage)
    assert not (tmp_path / "nan_batch.json").exists()
    match = r"loss is not finite at iteration=6: \{'a': 8.0, 'b': '-?(nan|inf)'.*nan_batch\.json"
    with pytest.raises(FloatingPointError, match=match), storage:
        log.flush()
    # What was logged before stays, the steps after it are not.
    assert [step for _, step in storage.history("total_loss").values()] == [0, 1, 2, 3, 4, 5]
    found = nan_batch(tmp_path)
    assert found["iteration"] == 6
    assert found["losses"] == {"a": 8.0, "b": str(bad), "loss_ewc": 0.5}
    (process,) = found["processes"]
    assert process["rank"] == 0
    assert process["step"]["samples"] == [{"file_name": "6.jpg", "stream_position": 6}]
    assert process["before"]["iteration"] == 5
    assert process["before"]["samples"] == [{"file_name": "5.jpg", "stream_position": 5}]


def test_the_step_before(tmp_path):
    """It may have been read already; the first has none."""
    log, storage = LossLog(2, str(tmp_path)), EventStorage()
    with pytest.raises(FloatingPointError, match="iteration=2"):
        log_steps(log, [{"a": 1.0}, {"a": 2.0}, {"a": math.nan}, {"a": 3.0}], storage=storage)
    assert nan_batch(tmp_path)["processes"][0]["before"]["losses"] == {"a": 2.0}
    with pytest.raises(FloatingPointError, match="iteration=0"):
        log_steps(LossLog(1, str(tmp_path)), [{"a": math.nan}])
    assert nan_batch(tmp_path)["processes"][0]["before"] is None


def test_the_loss_is_told_without_a_file_too(tmp_path, monkeypatch):
    """There is no folder, or a disk that is full."""
    with pytest.raises(FloatingPointError, match=r"iteration=0: \{'a': 'nan'\}$"):
        log_steps(LossLog(), [{"a": math.nan}])

    def full(path, text):
        raise OSError(28, f"could not write {path}")

    monkeypatch.setattr(loss_log, "atomic_write_text", full)
    with pytest.raises(FloatingPointError, match=r"iteration=0: .*lost: .*could not write .*nan_b"):
        log_steps(LossLog(1, str(tmp_path)), [{"a": math.nan}])


@pytest.mark.parametrize("first", [0, 5, 19])
def test_labels_that_are_all_ignored(first):
    """Twenty iterations without any loss from the start on are no chance."""
    named = {**sample(0), "sem_seg_file_name": "labels/0.png"}
    steps = [{"loss": 1.0 if i < first else 0.0, "loss_ewc": 0.0} for i in range(41)]
    log, storage = LossLog(), EventStorage()
    with storage:
        for iteration, losses in enumerate(steps):
            tensors = {name: torch.tensor(value) for name, value in losses.items()}
            if first == 0 and iteration == 19:
                match = r"first 20 iterations was 0: all labels .e\.g\. of labels/0\.png. are the"
                with pytest.raises(ValueError, match=match):
                    log.add(iteration, tensors, 0.0, samples_of([named]))
                return
            log.add(iteration, tensors, 0.0, samples_of([named]))
    assert first > 0


@pytest.mark.parametrize(
    "text",
    [
        "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:47000",
        "[Rank 1] NCCL ... ncclRemoteError: A call failed possibly due to a network error",
    ],
)
def test_a_lost_process_is_told_after_it_has_told_itself(monkeypatch, text):
    waits = []
    monkeypatch.setattr(loss_log.time, "sleep", waits.append)
    match = r"another process of this training has ended or was killed, .*--resume"
    with pytest.raises(ConnectionError, match=match), explained_errors("output"):
        raise RuntimeError(text)
    assert waits == [loss_log._PATIENCE]


def spoil(monkeypatch, position):
    """The image at a position of the stream becomes NaN."""
    original = SemSegMapper.__call__

    def spoiled(self, dataset_dict):
        x = original(self, dataset_dict)
        if x.get("stream_position") == position:
            x["image"].fill_(math.nan)
        return x

    monkeypatch.setattr(SemSegMapper, "__call__", spoiled)


def test_nan_stops_the_run_before_it_is_saved(make_trainer, tmp_path, monkeypatch):
    """Batches of two: position 9 is in iteration 4, the first of task B; saved is after 2, 3, 5."""
    spoil(monkeypatch, 9)
    trainer = make_trainer(ONLINE, folder=tmp_path)
    with pytest.raises(FloatingPointError, match="not finite at iteration=4: ") as caught:
        trainer.train()
    assert trainer.iter == 5  # it went on until the losses were read
    message = user_message(caught.value)
    assert str(tmp_path / "nan_batch.json") in message
    assert "--resume" in message
    found = nan_batch(tmp_path)
    assert found["iteration"] == 4
    samples = found["processes"][0]["step"]["samples"]
    assert [x["stream_position"] for x in samples] == [8, 9]
    assert all(x["file_name"].endswith(".jpg") for x in samples)
    assert all("PseudoLabels/demo" in x["sem_seg_file_name"] for x in samples)
    names = sorted(path.stem for path in tmp_path.glob("model_*.pth"))
    assert names == ["model_0000002", "model_task_a"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_task_a.pth"
    for name in names:
        state = saved(tmp_path, name)
        for values in (state["model"], state["ewc"]["fisher"]):
            assert all(torch.isfinite(value).all() for value in values.values())
    # The run goes on when the cause is gone.
    monkeypatch.undo()
    make_trainer(ONLINE, folder=tmp_path, resume=True).train()
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_a_dead_worker_is_named(train_server, tmp_path):
    """The mapper runs in the one worker only, until pictures are drawn at the end."""
    strikes = [["d2_smallobj.data.mapper:SemSegMapper.__call__", 7, "kill"]]
    answer = train_server.train(tmp_path, {"DATALOADER.NUM_WORKERS": 1}, strikes=strikes)
    assert answer.code == 1, answer.stdout
    assert answer.error.startswith("error: the data-loading worker with process id ")
    assert "SIGKILL" in answer.error or "unexpectedly" in answer.error
    assert "fewer DATALOADER.NUM_WORKERS" in answer.error
    assert "--resume" in answer.error
    train_server.finish(tmp_path, arguments=["--resume"])


MEMORY = "It is possible that dataloader's workers are out of shared memory."


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("(pid 17) is killed by signal: Killed. ", "id 17 was killed by signal"),
        (f"(pid 17) is killed by signal: Bus error. {MEMORY}", r"signal SIGBUS \(Bus error\)"),
        ("(pid 17) exited unexpectedly with exit code 3. Details", "id 17 ended with exit code 3"),
        ("(pid(s) 17, 18) exited unexpectedly", "id 17, 18 ended unexpectedly"),
    ],
)
def test_what_torch_says_of_dead_workers(text, told):
    with pytest.raises(ChildProcessError, match=told), explained_errors("output"):
        raise RuntimeError(f"DataLoader worker {text}")


@pytest.mark.parametrize(
    ("code", "told"),
    [(-9, "id 41 was killed by signal SIGKILL"), (3, "id 41 ended with exit code 3")],
)
def test_a_batch_of_a_dead_worker_that_cannot_be_fetched(code, told):
    worker = SimpleNamespace(pid=41, exitcode=code, join=lambda timeout: None)

    class Iterator:
        _workers: ClassVar = [worker]

        def fetch(self):
            raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ChildProcessError, match=told), explained_errors("output"):
        Iterator().fetch()
    worker.exitcode = None  # it lives: the connection broke for another reason
    with pytest.raises(ConnectionResetError, match="reset by peer"), explained_errors("output"):
        Iterator().fetch()


def test_other_errors_pass():
    assert explain_dead_worker(RuntimeError("a defect")) is None
    for error in (RuntimeError("x"), ValueError("y"), OSError(2, "no such file", "z")):
        with pytest.raises(type(error)) as caught, explained_errors("output"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda: torch.empty(1 << 60), r"is used up \(when 4611\d+ bytes more were wanted\)"),
        (lambda: _raise("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0"), r"2\.50 GiB"),
        (lambda: _raise("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "memory is used up: lower"),
    ],
)
def test_memory_used_up_is_one_line_that_names_the_keys(work, told):
    with pytest.raises(MemoryError, match=told) as caught, explained_errors("output"):
        work()
    message = user_message(caught.value)
    assert "\n" not in message
    names = re.findall(r"(?:SOLVER|SMALLOBJ)\.[A-Z_.]+", message)
    assert names[0] == "SOLVER.IMS_PER_BATCH"
    assert len(names) == 6
    cfg = get_cfg()
    add_smallobj_config(cfg)
    for name in names:
        functools.reduce(getattr, name.split("."), cfg)  # they exist
    assert user_message(MemoryError()) == "memory is used up"


def _raise(text):
    raise RuntimeError(text)
