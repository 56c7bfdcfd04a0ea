"""Losses that are read some steps later: logged as if at once, and stopped at the right step."""

from __future__ import annotations

import json
import math

import pytest
import torch

from d2_smallobj.engine import loss_log
from d2_smallobj.engine.loss_log import LossLog, samples_of
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
    log = LossLog(3)
    lengths = []
    for stop in range(1, 8):
        log = LossLog(3)
        storage = log_steps(log, [{"a": 1.0}] * stop)
        lengths.append(len(storage.histories().get("total_loss", [1]).values()) if stop > 2 else 0)
    assert lengths == [0, 0, 3, 3, 3, 6, 6]


def test_a_resumed_run_reads_at_the_same_iterations():
    storage = log_steps(LossLog(4), [{"a": 1.0}] * 3, start=6)
    assert [step for _, step in storage.history("total_loss").values()] == [6, 7]


def test_one_loss_is_logged_as_the_total():
    storage = log_steps(LossLog(), [{"loss": 2.0}])
    assert set(storage.histories()) == {"rank_data_time", "data_time", "total_loss"}


def test_what_is_kept_of_the_samples():
    samples = samples_of([{**sample(3), "sem_seg_file_name": "3.png", "height": 5}, (1, 2)])
    assert samples == [{"file_name": "3.jpg", "sem_seg_file_name": "3.png", "stream_position": 3}]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_step_is_named_and_its_files_are_saved(tmp_path, bad):
    steps = [dict(step) for step in STEPS]
    steps[6]["b"] = bad
    log, storage = LossLog(20, str(tmp_path)), EventStorage()
    log_steps(log, steps, storage=storage)
    assert not (tmp_path / "nan_batch.json").exists()
    match = (
        r"the loss is not finite at iteration=6: \{'a': 8.0, 'b': '-?(nan|inf)'.*nan_batch\.json"
    )
    with pytest.raises(FloatingPointError, match=match), storage:
        log.flush()
    # What was logged before stays, the steps after it are not.
    assert [step for _, step in storage.history("total_loss").values()] == [0, 1, 2, 3, 4, 5]
    saved = json.loads((tmp_path / "nan_batch.json").read_text())
    assert saved["iteration"] == 6
    assert saved["losses"] == {"a": 8.0, "b": str(bad), "loss_ewc": 0.5}
    (process,) = saved["processes"]
    assert process["rank"] == 0
    assert process["step"]["samples"] == [{"file_name": "6.jpg", "stream_position": 6}]
    assert process["before"]["iteration"] == 5
    assert process["before"]["samples"] == [{"file_name": "5.jpg", "stream_position": 5}]


def test_the_step_before_may_have_been_read_already(tmp_path):
    log, storage = LossLog(2, str(tmp_path)), EventStorage()
    with pytest.raises(FloatingPointError, match="iteration=2"):
        log_steps(log, [{"a": 1.0}, {"a": 2.0}, {"a": math.nan}, {"a": 3.0}], storage=storage)
    process = json.loads((tmp_path / "nan_batch.json").read_text())["processes"][0]
    assert process["before"]["losses"] == {"a": 2.0}


def test_no_step_before_the_first(tmp_path):
    with pytest.raises(FloatingPointError, match="iteration=0"):
        log_steps(LossLog(1, str(tmp_path)), [{"a": math.nan}])
    assert json.loads((tmp_path / "nan_batch.json").read_text())["processes"][0]["before"] is None


def test_a_full_disk_does_not_hide_the_loss(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, f"could not write {path}")

    monkeypatch.setattr(loss_log, "atomic_write_text", full)
    with pytest.raises(FloatingPointError, match=r"iteration=0: .*lost: .*could not write .*nan_b"):
        log_steps(LossLog(1, str(tmp_path)), [{"a": math.nan}])


def test_without_a_folder_nothing_is_written():
    with pytest.raises(FloatingPointError, match=r"iteration=0: \{'a': 'nan'\}$"):
        log_steps(LossLog(), [{"a": math.nan}])
