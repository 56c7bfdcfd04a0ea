"""Checkpoints: whole or not at all, nothing in them is run, and damage is one clear error."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from iopath.common import file_io
from tiny_runs import EMPIRICAL, ONLINE, saved
from torch import nn

from d2_smallobj.engine import SafeCheckpointer
from d2_smallobj.engine.weight_files import load_torch_file

KILLED = -9


class RunsCode:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


@pytest.fixture
def written(model, tmp_path):
    SafeCheckpointer(model, str(tmp_path)).save("model_0", iteration=3)
    return tmp_path / "model_0.pth"


def hidden_files(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_round_trip(model, written, assert_same):
    other = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    checkpointer = SafeCheckpointer(other, str(written.parent))
    assert checkpointer.get_checkpoint_file() == str(written)
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 3
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    assert hidden_files(written.parent) == []


def test_weights_without_a_run_load(model, tmp_path, assert_same):
    """A bare state dict, one matched by the ends of its names, and a model-zoo pickle."""
    weights = dict(model.state_dict())
    torch.save(weights, tmp_path / "bare.pth")
    arrays = {name: value.numpy() for name, value in weights.items()}
    content = pickle.dumps({"model": arrays, "__author__": "test"}, protocol=2)
    (tmp_path / "zoo.pkl").write_bytes(content)
    for name in ("bare.pth", "zoo.pkl"):
        other = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        SafeCheckpointer(other).load(str(tmp_path / name))
        assert_same(dict(other.state_dict()), weights)
    wrapped = nn.Module()
    wrapped.backbone = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    SafeCheckpointer(wrapped).load(f"{tmp_path / 'bare.pth'}?matching_heuristics=True")
    assert_same(dict(wrapped.backbone.state_dict()), weights)


def test_missing_file_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*nowhere\.pth does not exist"):
        SafeCheckpointer(model).load(str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_truncated_file_is_named(model, written, keep):
    content = written.read_bytes()
    written.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=r"model_0\.pth cannot be read as a checkpoint"):
        SafeCheckpointer(model, str(written.parent)).resume_or_load("", resume=True)


def content_of(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


GARBAGE = {
    "text": b"garbage" * 100,
    "old pickle": b"\x80\x02}q\x00.",
    "random": np.random.default_rng(0).bytes(5000),
    "zip": content_of(lambda file: zipfile.ZipFile(file, "w").close()),
    "html": b"<html>404</html>",
}
NO_DICT = {"pth": content_of(lambda file: torch.save([torch.zeros(1)], file))}
NO_DICT["pkl"] = pickle.dumps([1])


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("kind", [*GARBAGE, "list"])
def test_other_contents_are_named(model, tmp_path, kind, suffix):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(GARBAGE.get(kind, NO_DICT[suffix]))
    told = "(cannot be read|holds no weights)" if kind in GARBAGE else "holds a list, expected a d"
    with pytest.raises(ValueError, match=rf"weights\.{suffix} {told}"):
        SafeCheckpointer(model).load(str(path))


def test_damaged_bytes_never_pass_as_another_error(model, written):
    """Whatever byte is damaged: the file still loads, or the error is ours and names it."""
    content = written.read_bytes()
    draw = np.random.default_rng(0)
    refused = []
    for position in draw.integers(0, len(content), 300):
        damaged = bytearray(content)
        damaged[position] ^= int(draw.integers(1, 256))
        written.write_bytes(bytes(damaged))
        try:
            load_torch_file(str(written))
        except ValueError as error:
            refused.append(str(error))
    assert refused
    assert all(message.startswith(f"{written} ") for message in refused)


def test_code_in_a_file_is_not_run(model, tmp_path):
    evil = {"model": RunsCode(tmp_path / "pwned"), "__author__": "x"}
    torch.save(evil, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(evil))
    with pytest.raises(ValueError, match=r"evil\.pth .*could run code") as caught:
        SafeCheckpointer(model).load(str(tmp_path / "evil.pth"))
    assert "weights_only" not in str(caught.value)  # torch's advice to load it unsafely
    with pytest.raises(ValueError, match=r"evil\.pkl .*mkdir, which no array needs \(refused"):
        SafeCheckpointer(model).load(str(tmp_path / "evil.pkl"))
    assert not (tmp_path / "pwned").exists()


def test_failed_write_keeps_what_was_there(model, written, monkeypatch):
    before = written.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    checkpointer = SafeCheckpointer(model, str(written.parent))
    for name in ("model_0", "model_1"):
        with pytest.raises(OSError, match=rf"could not write .*{name}\.pth: No space left"):
            checkpointer.save(name)
    assert written.read_bytes() == before
    assert checkpointer.get_checkpoint_file() == str(written)
    assert sorted(os.listdir(written.parent)) == ["last_checkpoint", "model_0.pth"]


@pytest.mark.parametrize("limited", [False, True], ids=["full disk", "limited size"])
def test_a_checkpoint_that_cannot_be_written(
    train_server, undisturbed, tmp_path, assert_same, limited
):
    """With a limit of the files' size the kernel refuses the write in the middle of the file."""
    if limited:
        strikes = [["d2_smallobj.losses.ewc:ElasticWeightConsolidation.add_gradient_", 1, "kill"]]
        assert train_server.train(tmp_path, ONLINE, strikes=strikes).code == KILLED
        job = {"fsize": int(0.9 * (tmp_path / "model_task_a.pth").stat().st_size)}
        # The limit is for the checkpoint; a log that goes on might meet it first.
        (tmp_path / "log.txt").unlink()
    else:
        job = {"strikes": [["os:replace", 1, "full disk", "model_0000005.pth"]]}
    answer = train_server.train(tmp_path, ONLINE, arguments=["--resume"], **job)
    reason = "File too large" if limited else "No space left"
    assert answer.code == 1
    assert answer.error.startswith("error: ")
    assert f"could not write {tmp_path}/model_0000005.pth: {reason}" in answer.error
    assert (tmp_path / "last_checkpoint").read_text() == "model_task_a.pth"
    assert hidden_files(tmp_path) == []
    train_server.finish(tmp_path, ONLINE, arguments=["--resume"])
    assert_same(saved(tmp_path), saved(undisturbed(ONLINE)[0]))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("strikes", [[], [["os:replace", 1, "full disk"]]], ids=["log", "both"])
def test_full_disk_under_the_log_of_metrics(train_server, tmp_path, strikes):
    """It does not hide the first error, if there was one before."""
    (tmp_path / "metrics.json").symlink_to("/dev/full")
    answer = train_server.train(tmp_path, strikes=strikes)
    assert answer.code == 1
    place = f"{tmp_path}/model_0000002.pth" if strikes else f"to {tmp_path}"
    assert answer.error.startswith("error: ")
    assert f"could not write {place}: No space left" in answer.error


def test_results_are_whole_after_a_full_disk(train_server, tmp_path):
    """The second text that the trainer writes is task B's results: task A's stay."""
    strikes = [["d2_smallobj.engine.trainer:atomic_write_text", 2, "full disk"]]
    assert train_server.train(tmp_path, strikes=strikes).code == 1
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"A"}


# ---- MODEL.WEIGHTS (all layouts of files: tests/modeling/test_initial_weights.py) ----------------


def test_a_head_for_other_classes_trains_but_is_not_evaluated(train_server, undisturbed, tmp_path):
    path = undisturbed(ONLINE)[0] / "model_final.pth"
    nine = {"MODEL.WEIGHTS": path, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9, "DATASETS.TEST": "()"}
    answer = train_server.finish(tmp_path / "b", nine)
    assert f"Initial weights: {path}" in answer.stdout
    assert "a head for 7 classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is 9" in answer.stdout
    assert "start from their random initialisation" in answer.stdout
    answer = train_server.train(tmp_path / "c", nine, arguments=["--eval-only"])
    assert answer.code == 1
    assert answer.error.startswith(f"error: {path} does not hold the whole model")
    assert "a head for 7 classes" in answer.error


def test_task_b_from_the_start_needs_the_whole_model(make_trainer, undisturbed, tmp_path):
    """Its penalty would hold a head of random weights."""
    weights = saved(undisturbed(ONLINE)[0])["model"]
    torch.save({k: v for k, v in weights.items() if "backbone" in k}, tmp_path / "weights.pth")
    start = {"SMALLOBJ.TASK_A.ITERS": 0, "MODEL.WEIGHTS": tmp_path / "weights.pth"}
    told = r"weights\.pth does not hold the whole model: it lacks se"
    with pytest.raises(ValueError, match=told):
        make_trainer(EMPIRICAL, start)


def test_weights_that_cannot_be_fetched(make_trainer, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(file_io, "download", offline)
    weights = {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/nothing.pkl"}
    told = r"detectron2://.*nothing\.pkl.*download it elsewhere and giv"
    with pytest.raises(OSError, match=told):
        make_trainer(weights)
