"""The torchmetrics wrapper gives the accumulator's numbers, in one process and in two."""

import doctest
import importlib
import json
import pathlib
import pickle
import sys

import numpy as np
import pytest
import torch

from d2_smallobj.metrics import Accumulator

pytest.importorskip("torchmetrics")
from d2_smallobj.integrations import torchmetrics as integration
from d2_smallobj.integrations.torchmetrics import InstanceAwareIoU

NAMES = ["background", "a", "b"]


def scene(number):
    rng = np.random.default_rng(number)
    instances = rng.integers(0, 4, (6, 8)).repeat(4, 0).repeat(4, 1)
    semantic = np.array([0, 1, 2, 1])[instances]
    semantic[:2] = 255
    scores = rng.normal(size=(3, 24, 32)) + 1.5 * (np.arange(3)[:, None, None] == semantic)
    return torch.tensor(scores), torch.tensor(semantic), torch.tensor(instances)


def batch(numbers):
    return [torch.stack(maps) for maps in zip(*(scene(number) for number in numbers))]


def reference(numbers, *, named=True, **options):
    accumulator = Accumulator(3, **options)
    for number in numbers:
        scores, semantic, instances = scene(number)
        maps = scores.argmax(0).numpy(), semantic.numpy(), instances.numpy() if named else None
        accumulator.update(f"image ä{number}", *maps)
    return accumulator


def ids(numbers):
    return [f"image ä{number}" for number in numbers]


def bits(figures):
    return {name: float(value).hex() for name, value in figures.items()}


def fill(metric, numbers):
    metric.update(*batch(numbers), image_ids=ids(numbers))
    return metric


@pytest.mark.parametrize("mode", ["exact", "official"])
def test_the_numbers_are_the_accumulators(mode):
    metric = InstanceAwareIoU(3, NAMES, mode=mode)
    fill(metric, [3, 1])
    fill(metric, [2])
    expected = reference([1, 2, 3], mode=mode)
    found = metric.compute()
    assert [*bits(found).items()] == [*bits(expected.summarize(NAMES)).items()]
    assert {value.dtype for value in found.values()} == {torch.float64}


def test_records_blobs_and_counts_come_through():
    found, expected = fill(InstanceAwareIoU(3), [1, 2, 3]).accumulator(), reference([1, 2, 3])
    for table in ("table", "blobs"):
        columns = getattr(found, table).columns()
        for name, column in getattr(expected, table).columns().items():
            assert columns[name].dtype.kind == column.dtype.kind
            assert columns[name].tolist() == column.tolist()
    assert len(expected.blobs) > 0
    for name, column in expected.pixels.columns().items():
        assert np.array_equal(found.pixels.columns()[name], column)
    assert np.array_equal(found.confusion, expected.confusion)


def test_labels_instead_of_scores_and_components_instead_of_instances():
    scores, semantic, _ = batch([1, 2])
    metric = InstanceAwareIoU(3, NAMES)
    metric.update(scores.argmax(1), semantic)
    found = metric.compute()
    assert bits(found) == bits(reference([1, 2], named=False).summarize(NAMES))


def test_forward_gives_the_batch_and_keeps_the_data_set():
    metric = InstanceAwareIoU(3, NAMES)
    for numbers in ([1], [2, 3]):
        value = metric(*batch(numbers), image_ids=ids(numbers))
        assert bits(value) == bits(reference(numbers).summarize(NAMES))
    assert bits(metric.compute()) == bits(reference([1, 2, 3]).summarize(NAMES))
    metric.reset()
    assert metric.accumulator().images == []


NO_VOID, ANOTHER = {"void_instance": None}, {"stuff": (0, 2), "void_instance": 3}


@pytest.mark.parametrize("options", [{"stuff": ()}, {"stuff": (2,)}, NO_VOID, ANOTHER])
def test_stuff_and_void_as_the_accumulator(options):
    stuff = options.get("stuff", (0,))
    # 255 in an instance map is an instance like any other where nothing is void.
    numbers = np.array([7, 255, 2, 3])

    def maps(number):
        scores, semantic, instances = scene(number)
        instances = torch.tensor(numbers)[instances]
        instances[torch.isin(semantic, torch.tensor(stuff))] = 0
        return scores, semantic, instances

    if stuff == (0,):
        numbers[0] = 0
    metric = InstanceAwareIoU(3, NAMES, **options)
    expected = Accumulator(3, **options)
    for chosen in ([3, 1], [2]):
        metric.update(*map(torch.stack, zip(*map(maps, chosen))), image_ids=ids(chosen))
        for number in chosen:
            scores, semantic, instances = (m.numpy() for m in maps(number))
            expected.update(f"image ä{number}", scores.argmax(0), semantic, instances)
    found = metric.compute()
    assert bits(found) == bits(expected.summarize(NAMES))
    assert metric.accumulator().stuff == expected.stuff == stuff
    assert metric.accumulator().void_instance == expected.void_instance
    identities = set(metric.accumulator().table.instance_id.tolist())
    assert (255 in identities) == (options.get("void_instance", 255) != 255)
    assert (0 in identities) == bool(stuff)


def test_own_size_bins_and_pickling():
    metric = fill(InstanceAwareIoU(3, NAMES, size_bins={"tiny": 100, "rest": 1e9}), [4])
    found = pickle.loads(pickle.dumps(metric)).compute()
    assert "IA-mIoU_tiny" in found
    assert bits(found) == bits(metric.compute())


def test_an_image_counts_once():
    metric = fill(InstanceAwareIoU(3), [1])
    fill(metric, [1])
    with pytest.raises(ValueError, match=r"evaluated once, got again image ä1 "):
        metric.compute()


LABELS = torch.zeros(2, 4, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("preds", "target", "image_ids", "message"),
    [
        (LABELS.float(), LABELS, None, r"preds must be \(B, 3, H, W\) .* shape \(2, 4, 4\)"),
        (torch.zeros(2, 5, 4, 4), LABELS, None, r"got torch.float32 of shape \(2, 5, 4, 4\)"),
        (LABELS, LABELS, ["a"], r"image_ids must have 2 entries, got 1"),
        (LABELS, LABELS[:1], None, r"target must have 2 entries, got 1"),
        (torch.stack([LABELS[0], LABELS[1] + 9]), LABELS, None, "prediction must hold 0..2"),
    ],
)
def test_a_refused_batch_leaves_nothing_behind(preds, target, image_ids, message):
    metric = InstanceAwareIoU(3)
    with pytest.raises(ValueError, match=message):
        metric.update(preds, target, image_ids=image_ids)
    assert metric.accumulator().images == []


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match=r"class_names must be 3 names, got 2: \['a', 'b'\]"):
        InstanceAwareIoU(3, ["a", "b"])
    with pytest.raises(ValueError, match=r"mode: unknown value 'exakt'.*did you mean 'exact'"):
        InstanceAwareIoU(3, mode="exakt")


CODE = """
import json, os, sys, torch
sys.path[:0] = [job["here"]]
import test_torchmetrics as t

# Forked here: torchmetrics is imported once.
rank, results = int(os.fork() == 0), []
store = "file://" + job["out"]
torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
for share in ([[1, 4, 2], [3]], [[1, 2, 3, 4], []]):
    metric = t.InstanceAwareIoU(3, t.NAMES)
    for number in share[rank]:
        t.fill(metric, [number])
    results.append(t.bits(metric.compute()))
    assert len(metric.accumulator().images) == len(share[rank])
metric = t.InstanceAwareIoU(3, t.NAMES)
metric.update(*t.batch([1 + rank]))
results.append(t.bits(metric.compute()))
metric = t.fill(t.InstanceAwareIoU(3, t.NAMES), [1])
try:
    metric.compute()
except ValueError as error:
    results.append(str(error))
with open(f"{job['out']}.{rank}", "w") as file:
    json.dump(results, file)
if rank == 0:
    assert os.wait()[1] == 0
"""


def test_two_processes(tmp_path, train_server):
    here = str(pathlib.Path(__file__).parent)
    answer = train_server.code(CODE, here=here, out=str(tmp_path / "out"))
    assert answer.code == 0, answer.stderr
    whole = bits(reference([1, 2, 3, 4]).summarize(NAMES))
    for rank in (0, 1):
        uneven, one_idle, unnamed, repeated = json.loads((tmp_path / f"out.{rank}").read_text())
        assert uneven == one_idle == whole
        assert unnamed == bits(reference([1, 2]).summarize(NAMES))
        assert "got again image ä1 " in repeated


def test_without_torchmetrics_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, integration.__name__)
    with pytest.raises(ImportError, match=r"torchmetrics: not .*pip install .*\[torchmetrics\]'"):
        importlib.import_module(integration.__name__)


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(integration)
    assert (result.failed, result.attempted) == (0, 4)
