"""Saving, resuming, foreign weights, and files that must be refused."""

import os
import pickle

import pytest
import torch
from torch import nn

from d2_smallobj.engine import SafeCheckpointer
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.utils.file_io import PathManager


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def same(a, b):
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_save_and_resume(tmp_path):
    beside, other, fresh = net(2), net(3), net(4)
    checkpointer = DetectionCheckpointer(net(0), str(tmp_path), beside=beside)
    assert not checkpointer.has_checkpoint()
    checkpointer.save("model_a", iteration=3)
    nn.init.constant_(beside[0].bias, 6.0)
    checkpointer.save("model_b", iteration=4)
    assert (tmp_path / "last_checkpoint").read_text() == "model_b.pth"

    resumed = DetectionCheckpointer(net(1), str(tmp_path), beside=other)
    assert resumed.resume_or_load("ignored.pth", resume=True)["iteration"] == 4
    assert same(other, beside)
    assert same(resumed.model, checkpointer.model)

    loaded = DetectionCheckpointer(net(1), str(tmp_path), beside=fresh)
    loaded.resume_or_load(str(tmp_path / "model_a.pth"), resume=False)
    assert same(fresh, net(4))  # the weights only
    assert same(loaded.model, checkpointer.model)
    assert loaded.load("") == {}


def test_periodic_checkpointer(tmp_path):
    checkpointer = DetectionCheckpointer(net(), str(tmp_path))
    periodic = PeriodicCheckpointer(checkpointer, 2, max_to_keep=1)
    periodic.max_iter = 5
    for iteration in range(5):
        periodic.step(iteration)
    found = sorted(name for name in os.listdir(tmp_path) if name.endswith(".pth"))
    assert found == ["model_0000003.pth", "model_final.pth"]


def test_bare_state_dicts_and_other_shapes_load(tmp_path):
    DetectionCheckpointer(net(), str(tmp_path), save_to_disk=False).save("a")
    assert not list(tmp_path.iterdir())
    source = net(0).state_dict()
    source["0.weight"] = torch.zeros(7, 3, 1, 1)
    torch.save(source, tmp_path / "bare.pth")
    model = net(1)
    before = model[0].weight.clone()
    DetectionCheckpointer(model).load(str(tmp_path / "bare.pth"))
    assert torch.equal(model[0].weight, before)
    assert torch.equal(model[0].bias, source["0.bias"])
    with pytest.raises((OSError, AssertionError), match=r"gone\.pth"):
        DetectionCheckpointer(net()).load(str(tmp_path / "gone.pth"))
    source = net(0)
    prefixed = {f"module.{k}": v for k, v in source.state_dict().items()}
    torch.save({"model": prefixed}, tmp_path / "parallel.pth")
    model = net(1)
    DetectionCheckpointer(nn.DataParallel(model)).load(str(tmp_path / "parallel.pth"))
    assert same(model, source)


class Command:
    """Pickles as a call of ``os.mkdir``."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_a_checkpoint_cannot_execute_code(tmp_path, suffix, embedded_only):
    target = tmp_path / "executed"
    data = {"model": {}, "__author__": Command(str(target))}
    path = tmp_path / f"evil.{suffix}"
    torch.save(data, path) if suffix == "pth" else path.write_bytes(pickle.dumps(data))
    for kind in (DetectionCheckpointer, SafeCheckpointer):
        with pytest.raises((ValueError, pickle.UnpicklingError), match=r"evil|[Ww]eights"):
            kind(net()).load(str(path))
    assert not target.exists()


def test_the_model_zoo_is_fetched_or_the_error_says_what_to_do(monkeypatch, embedded_only):
    from iopath.common import file_io

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(file_io, "download", offline)
    with pytest.raises(
        OSError, match=r"dl\.fbaipublicfiles\.com/detectron2/x/y\.pkl .*download it"
    ):
        PathManager.get_local_path("detectron2://x/y.pkl")
