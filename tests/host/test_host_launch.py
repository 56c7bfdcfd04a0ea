"""Two processes on the CPU."""

from __future__ import annotations

import json

import pytest

import d2_smallobj

WORKER = """
import json

import torch
from detectron2.data import build_detection_test_loader
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.engine import create_ddp_model
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm


def main(folder, word):
    import host_toy  # not above: this module must be importable before d2_smallobj is

    class Gather(host_toy.HostToyEvaluator):
        def evaluate(self):
            seen = comm.gather(self.seen)
            return {"toy": {"seen": sum(seen)}} if comm.is_main_process() else None

    rank = comm.get_rank()
    ddp = create_ddp_model(torch.nn.Linear(1, 1), broadcast_buffers=False, device_ids=None)
    ddp(torch.full((1, 1), float(rank))).sum().backward()
    loader = build_detection_test_loader(host_toy.samples()[:7], mapper=lambda x: x)
    it = iter(TrainingSampler(5, seed=1))
    out = {
        "word": word,
        "rank": rank,
        "local": [comm.get_local_rank(), comm.get_world_size()],
        "gather": comm.gather({"r": rank}),
        "gather_to_1": comm.gather(rank, dst=1),
        "inference": list(InferenceSampler(5)),
        "training": [next(it) for _ in range(5)],
        "gradient": ddp.module.weight.grad.item(),
        "results": inference_on_dataset(lambda batch: batch, loader, Gather()),
    }
    comm.synchronize()
    with open(f"{folder}/{rank}.json", "w") as stream:
        json.dump(out, stream)
"""

LAUNCH = """
import sys

import d2_smallobj
from detectron2.engine import launch
import two_processes

launch(two_processes.main, 2, dist_url="auto", args=(sys.argv[1], "hello"))
"""


@pytest.fixture
def ranks(run_python, tmp_path):
    # Given with -c, the main module is not imported again by the children: they learn of the
    # embedded host from the function that they are told to run, or not at all.
    (tmp_path / "two_processes.py").write_text(WORKER)
    mode = d2_smallobj.host().name
    run_python(LAUNCH, host=mode, path=[tmp_path], arguments=[tmp_path])
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_work_together(ranks):
    import torch

    generator = torch.Generator()
    generator.manual_seed(1)
    order = [i for _ in range(2) for i in torch.randperm(5, generator=generator).tolist()]
    for rank, out in enumerate(ranks):
        assert (out["word"], out["rank"], out["local"]) == ("hello", rank, [rank, 2])
        assert out["training"] == order[rank::2]
        assert out["gradient"] == 0.5  # the mean of 0 and 1
    assert ranks[0]["gather"] == [{"r": 0}, {"r": 1}]
    assert ranks[1]["gather"] == []
    assert (ranks[0]["gather_to_1"], ranks[1]["gather_to_1"]) == ([], [0, 1])
    assert (ranks[0]["inference"], ranks[1]["inference"]) == ([0, 1, 2], [3, 4])
    assert (ranks[0]["results"], ranks[1]["results"]) == ({"toy": {"seen": 7}}, {})


def test_one_process_is_the_function_itself(tmp_path):
    from detectron2.engine import create_ddp_model, launch
    from detectron2.utils import comm

    seen = []
    launch(seen.append, 1, args=("called",))
    assert seen == ["called"]
    assert (comm.get_rank(), comm.get_world_size(), comm.get_local_rank()) == (0, 1, 0)
    assert comm.gather(3) == [3]
    comm.synchronize()
    model = object()
    assert create_ddp_model(model) is model


def test_auto_is_for_one_machine():
    from detectron2.engine import launch

    with pytest.raises((ValueError, AssertionError), match="dist_url"):
        launch(print, 1, num_machines=2, dist_url="auto")


def test_more_processes_than_gpus_are_an_error(monkeypatch, embedded_only):
    import torch

    from detectron2.engine import launch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"has 1 GPU\(s\), got 2"):
        launch(print, 2, dist_url="auto")


def test_a_local_rank_needs_launch(monkeypatch, embedded_only):
    from detectron2.utils import comm

    monkeypatch.setattr(comm, "_initialized", lambda: True)
    with pytest.raises(RuntimeError, match=r"launch\(\)"):
        comm.get_local_rank()
