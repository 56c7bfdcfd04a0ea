"""A loss that is not finite, a loader worker that dies, float16 that overflows."""

from __future__ import annotations

import json
import math
from typing import ClassVar

import pytest
import torch

from d2_smallobj.data.mapper import SemSegMapper
from d2_smallobj.engine.loss_log import explain_dead_worker, explained_errors
from d2_smallobj.engine.step import check_loss_scale
from d2_smallobj.utils.cli import user_message


@pytest.fixture
def spoil(monkeypatch):
    """Function: the image at a position of the stream becomes NaN."""

    def make(position):
        original = SemSegMapper.__call__

        def spoiled(self, dataset_dict):
            x = original(self, dataset_dict)
            if x.get("stream_position") == position:
                x["image"].fill_(math.nan)
            return x

        monkeypatch.setattr(SemSegMapper, "__call__", spoiled)

    return make


def names(folder):
    return sorted(path.name for path in folder.glob("model_*.pth"))


def test_nan_stops_the_run_before_it_is_saved(make_trainer, tiny, tmp_path, spoil, log):
    """Batches of two: position 9 is in iteration 4, the first of task B; saved is after 2, 3, 5."""
    spoil(9)
    trainer = make_trainer(tiny.ONLINE, folder=tmp_path)
    with pytest.raises(FloatingPointError, match="not finite at iteration=4: ") as caught:
        trainer.train()
    assert trainer.iter == 5  # it went on until the losses were read
    message = user_message(caught.value)
    assert str(tmp_path / "nan_batch.json") in message
    assert "--resume" in message
    saved = json.loads((tmp_path / "nan_batch.json").read_text())
    assert saved["iteration"] == 4
    samples = saved["processes"][0]["step"]["samples"]
    assert [x["stream_position"] for x in samples] == [8, 9]
    assert all(x["file_name"].endswith(".jpg") for x in samples)
    assert all("PseudoLabels/demo" in x["sem_seg_file_name"] for x in samples)
    assert names(tmp_path) == ["model_0000002.pth", "model_task_a.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_task_a.pth"
    for name in names(tmp_path):
        state = torch.load(tmp_path / name, weights_only=True)
        for values in (state["model"], state["ewc"]["fisher"]):
            assert all(torch.isfinite(value).all() for value in values.values())


def test_the_run_goes_on_when_the_cause_is_gone(make_trainer, tiny, tmp_path, spoil, monkeypatch):
    spoil(9)
    with pytest.raises(FloatingPointError):
        make_trainer(tiny.ONLINE, folder=tmp_path).train()
    monkeypatch.undo()
    make_trainer(tiny.ONLINE, folder=tmp_path, resume=True).train()
    assert names(tmp_path)[-2:] == ["model_final.pth", "model_task_a.pth"]


def test_a_dead_worker_is_named(train_server, tmp_path):
    """The mapper runs in the one worker only, until pictures are drawn at the end."""
    strikes = [["d2_smallobj.data.mapper:SemSegMapper.__call__", 7, "kill"]]
    answer = train_server.train(tmp_path, {"DATALOADER.NUM_WORKERS": 1}, strikes=strikes)
    assert answer.code == 1, answer.stdout
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the data-loading worker with process id ")
    assert "SIGKILL" in last or "unexpectedly" in last
    assert "fewer DATALOADER.NUM_WORKERS" in last
    assert "--resume" in last
    again = train_server.train(tmp_path, arguments=["--resume"])
    assert again.code == 0, again.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("DataLoader worker (pid 17) is killed by signal: Killed. ", "id 17 was killed by signal"),
        (
            "DataLoader worker (pid 17) is killed by signal: Bus error. It is possible that "
            "dataloader's workers are out of shared memory.",
            r"signal SIGBUS \(Bus error\)",
        ),
        (
            "DataLoader worker (pid 17) exited unexpectedly with exit code 3. Details are lost",
            "id 17 ended with exit code 3",
        ),
        ("DataLoader worker (pid(s) 17, 18) exited unexpectedly", "id 17, 18 ended unexpectedly"),
    ],
)
def test_what_torch_says_of_dead_workers(text, told):
    with pytest.raises(ChildProcessError, match=told), explained_errors("output"):
        raise RuntimeError(text)


@pytest.mark.parametrize(
    ("code", "told"),
    [(-9, "id 41 was killed by signal SIGKILL"), (3, "id 41 ended with exit code 3")],
)
def test_a_batch_of_a_dead_worker_that_cannot_be_fetched(code, told):
    class Worker:
        pid, exitcode = 41, code

        def join(self, timeout):
            assert timeout > 0

    class Iterator:
        _workers: ClassVar = [Worker()]

        def fetch(self):
            raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ChildProcessError, match=told), explained_errors("output"):
        Iterator().fetch()
    Worker.exitcode = None  # it lives: the connection broke for another reason
    with pytest.raises(ConnectionResetError, match="reset by peer"), explained_errors("output"):
        Iterator().fetch()


def test_other_errors_pass():
    assert explain_dead_worker(RuntimeError("CUDA out of memory")) is None
    for error in (RuntimeError("x"), ValueError("y"), OSError(2, "no such file", "z")):
        with pytest.raises(type(error)) as caught, explained_errors("output"):
            raise error
        assert caught.value is error


def test_overflow_in_every_step_is_a_fault():
    for scale in (65536.0, 1.0, 2.0**-24):
        check_loss_scale(scale, 5)
    with pytest.raises(FloatingPointError, match=r"up to iteration=7 .*fallen to 2\.98.*bfloat16"):
        check_loss_scale(2.0**-25, 7)
