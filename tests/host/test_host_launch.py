"""Several processes on the CPU, and what a new process knows of the host."""

import json

import host_toy
import pytest
import torch

import d2_smallobj
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import create_ddp_model, launch
from detectron2.utils import comm

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

PARENT = """
import importlib, json, multiprocessing, pkgutil, random, sys

import d2_smallobj, host_toy, numpy, torch, two_processes
import detectron2
from detectron2.engine import default_argument_parser, default_setup, launch

found = {}
if d2_smallobj.host().name == "embedded":
    modules = list(pkgutil.walk_packages(detectron2.__path__, "detectron2."))
    for module in modules:
        importlib.import_module(module.name)
    found["modules"] = len(modules)
launch(two_processes.main, 2, dist_url="auto", args=(sys.argv[1], "hello"))

multiprocessing.set_start_method("spawn", force=True)
cfg = host_toy.config("out")
cfg.DATALOADER.NUM_WORKERS = 1
batch = next(iter(host_toy.HostToyTrainer.build_train_loader(cfg)))
found["labels"] = [x["label"].item() for x in batch]

cfg.SEED = 5
args = default_argument_parser().parse_args(["SEED", "5"])
found["drawn"] = []
for _ in range(2):
    default_setup(cfg, args)
    found["drawn"].append([torch.rand(1).item(), numpy.random.rand(), random.random()])
with open(f"{sys.argv[1]}/found.json", "w") as stream:
    json.dump(found, stream)
"""


@pytest.fixture(scope="module")
def run(run_python_in, tmp_path_factory):
    """Folder of one process that starts two others, and then a loader worker.

    Given with -c, the main module is not imported again by its children: they learn of the
    embedded host from what they unpickle, or not at all.
    """
    folder = tmp_path_factory.mktemp("processes")
    (folder / "two_processes.py").write_text(WORKER)
    mode = d2_smallobj.host().name
    run_python_in(folder, PARENT, host=mode, path=[folder], arguments=[folder])
    return folder


@pytest.mark.slow
def test_modules_spawned_workers_and_the_set_up(run):
    found = json.loads((run / "found.json").read_text())
    assert found.get("modules", 29) >= 29
    order = iter(TrainingSampler(host_toy.SIZE, seed=3))
    assert found["labels"] == [next(order) for _ in range(4)], "from a spawned loader worker"
    assert found["drawn"][0] == found["drawn"][1]
    assert "SEED: 5" in (run / "out" / "config.yaml").read_text()
    assert (run / "out" / "log.txt").read_text().count("config.yaml") == 2


@pytest.mark.slow
def test_two_processes_work_together(run):
    ranks = [json.loads((run / f"{rank}.json").read_text()) for rank in (0, 1)]
    generator = torch.Generator().manual_seed(1)
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
    seen = []
    launch(seen.append, 1, args=("called",))
    assert seen == ["called"]
    assert (comm.get_rank(), comm.get_world_size(), comm.get_local_rank()) == (0, 1, 0)
    assert comm.gather(3) == [3]
    comm.synchronize()
    model = object()
    assert create_ddp_model(model) is model


def test_launches_that_are_refused(monkeypatch, embedded_only):
    with pytest.raises(ValueError, match="dist_url"):
        launch(print, 1, num_machines=2, dist_url="auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"has 1 GPU\(s\), got 2"):
        launch(print, 2, dist_url="auto")
    monkeypatch.setattr(comm, "_initialized", lambda: True)
    with pytest.raises(RuntimeError, match=r"launch\(\)"):
        comm.get_local_rank()
