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
def saved(model, tmp_path):
    SafeCheckpointer(model, str(tmp_path)).save("model_0", iteration=3)
    return tmp_path / "model_0.pth"


def hidden_files(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_round_trip(model, saved, assert_same):
    other = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    checkpointer = SafeCheckpointer(other, str(saved.parent))
    assert checkpointer.get_checkpoint_file() == str(saved)
    rest = checkpointer.resume_or_load("", resume=True)
    assert rest["iteration"] == 3
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    assert hidden_files(saved.parent) == []


def test_bare_state_dict_loads(model, tmp_path, assert_same):
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    other = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    SafeCheckpointer(other).load(str(tmp_path / "weights.pth"))
    assert_same(dict(other.state_dict()), dict(model.state_dict()))


def test_matching_by_the_ends_of_names(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(3, 2))

    source = nn.Sequential(nn.Linear(3, 2))
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    other = Wrapped()
    SafeCheckpointer(other).load(f"{tmp_path / 'weights.pth'}?matching_heuristics=True")
    assert torch.equal(other.backbone[0].weight, source[0].weight)


def test_missing_file_is_named(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*nowhere\.pth does not exist"):
        SafeCheckpointer(model).load(str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_truncated_file_is_named(model, saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=r"model_0\.pth cannot be read as a checkpoint"):
        SafeCheckpointer(model, str(saved.parent)).resume_or_load("", resume=True)


def random_bytes():
    return np.random.default_rng(0).bytes(5000)


def empty_zip():
    file = io.BytesIO()
    zipfile.ZipFile(file, "w").close()
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"garbage" * 100, b"\x80\x02}q\x00.", random_bytes(), empty_zip(), b"<html>404</html>"],
    ids=["text", "old pickle", "random", "zip", "html"],
)
@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_garbage_is_named(model, tmp_path, content, suffix):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights\.{suffix} (cannot be read|holds no weights)"):
        SafeCheckpointer(model).load(str(path))


def test_damaged_bytes_never_pass_as_another_error(model, saved):
    """Whatever byte is damaged: the file still loads, or the error is ours and names it."""
    content = saved.read_bytes()
    draw = np.random.default_rng(0)
    refused = []
    for position in draw.integers(0, len(content), 300):
        damaged = bytearray(content)
        damaged[position] ^= int(draw.integers(1, 256))
        saved.write_bytes(bytes(damaged))
        try:
            load_torch_file(str(saved))
        except ValueError as error:
            refused.append(str(error))
    assert refused
    assert all(message.startswith(f"{saved} ") for message in refused)


def test_code_in_a_pth_is_not_run(model, tmp_path):
    torch.save({"model": RunsCode(tmp_path / "pwned")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth .*could run code") as caught:
        SafeCheckpointer(model).load(str(tmp_path / "evil.pth"))
    assert "weights_only" not in str(caught.value)  # torch's advice to load it unsafely
    assert not (tmp_path / "pwned").exists()


def test_code_in_a_pkl_is_not_run(model, tmp_path):
    content = pickle.dumps({"model": RunsCode(tmp_path / "pwned"), "__author__": "x"})
    (tmp_path / "evil.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"evil\.pkl .*mkdir, which is refused"):
        SafeCheckpointer(model).load(str(tmp_path / "evil.pkl"))
    assert not (tmp_path / "pwned").exists()


def test_model_zoo_pickle_loads(model, tmp_path):
    weights = {n: v.numpy() + 1 for n, v in model.state_dict().items()}
    content = pickle.dumps({"model": weights, "__author__": "test"}, protocol=2)
    (tmp_path / "weights.pkl").write_bytes(content)
    SafeCheckpointer(model).load(str(tmp_path / "weights.pkl"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, torch.from_numpy(weights[name]))


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_other_contents_are_named(model, tmp_path, suffix):
    path = tmp_path / f"list.{suffix}"
    if suffix == "pth":
        torch.save([torch.zeros(1)], path)
    else:
        path.write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match=rf"list\.{suffix} holds a list, expected a dict"):
        SafeCheckpointer(model).load(str(path))


def test_failed_write_keeps_what_was_there(model, saved, monkeypatch):
    before = saved.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    checkpointer = SafeCheckpointer(model, str(saved.parent))
    for name in ("model_0", "model_1"):
        with pytest.raises(OSError, match=rf"could not write .*{name}\.pth: No space left"):
            checkpointer.save(name)
    assert saved.read_bytes() == before
    assert checkpointer.get_checkpoint_file() == str(saved)
    assert sorted(os.listdir(saved.parent)) == ["last_checkpoint", "model_0.pth"]


@pytest.fixture(scope="module")
def undisturbed(train_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train_server.train(folder, {"SMALLOBJ.EWC.FISHER": "online"}).code == 0
    return torch.load(folder / "model_final.pth", weights_only=True)


def test_full_disk_in_a_run(train_server, tiny, tmp_path, undisturbed, assert_same):
    answer = train_server.train(
        tmp_path, tiny.ONLINE, strikes=[["os:replace", 1, "full disk", "model_0000005.pth"]]
    )
    assert answer.code == 1
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert f"could not write {tmp_path}/model_0000005.pth: No space left" in last
    assert (tmp_path / "last_checkpoint").read_text() == "model_task_a.pth"
    assert hidden_files(tmp_path) == []
    answer = train_server.train(tmp_path, tiny.ONLINE, arguments=["--resume"])
    assert answer.code == 0, answer.stderr
    assert_same(torch.load(tmp_path / "model_final.pth", weights_only=True), undisturbed)


def test_file_size_limit_in_a_run(train_server, tiny, tmp_path, undisturbed, assert_same):
    """The kernel refuses the write in the middle of the file."""
    strikes = [["d2_smallobj.losses.ewc:ElasticWeightConsolidation.add_gradient_", 1, "kill"]]
    assert train_server.train(tmp_path, tiny.ONLINE, strikes=strikes).code == KILLED
    size = (tmp_path / "model_task_a.pth").stat().st_size
    # The limit is for the checkpoint; a log that goes on might meet it first.
    (tmp_path / "log.txt").unlink()
    answer = train_server.train(
        tmp_path, tiny.ONLINE, arguments=["--resume"], fsize=int(0.9 * size)
    )
    assert answer.code == 1
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert f"could not write {tmp_path}/model_0000005.pth: File too large" in last
    assert (tmp_path / "last_checkpoint").read_text() == "model_task_a.pth"
    assert hidden_files(tmp_path) == []
    answer = train_server.train(tmp_path, tiny.ONLINE, arguments=["--resume"])
    assert answer.code == 0, answer.stderr
    assert_same(torch.load(tmp_path / "model_final.pth", weights_only=True), undisturbed)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk_under_the_log_of_metrics(train_server, tmp_path):
    (tmp_path / "metrics.json").symlink_to("/dev/full")
    answer = train_server.train(tmp_path)
    assert answer.code == 1
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert f"could not write to {tmp_path}: No space left" in last


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_what_fails_at_the_end_does_not_hide_the_first_error(train_server, tmp_path):
    (tmp_path / "metrics.json").symlink_to("/dev/full")
    answer = train_server.train(tmp_path, strikes=[["os:replace", 1, "full disk"]])
    assert answer.code == 1
    assert "could not write" in answer.stderr.strip().splitlines()[-1]
    assert "model_0000002.pth" in answer.stderr.strip().splitlines()[-1]


def test_results_are_whole_after_a_full_disk(train_server, tmp_path):
    """The second text that the trainer writes is task B's results: task A's stay."""
    strikes = [["d2_smallobj.engine.trainer:atomic_write_text", 2, "full disk"]]
    answer = train_server.train(tmp_path, strikes=strikes)
    assert answer.code == 1
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"A"}
