"""The evaluator: same figures from every form of input, and errors that name files."""

from __future__ import annotations

import json
import logging
import math
import threading

import numpy as np
import pytest
import torch

from d2_smallobj import TwoTaskTrainer
from d2_smallobj.config import add_smallobj_config
from d2_smallobj.data.ground_truth import RegisteredTruth
from d2_smallobj.evaluation import SmallObjectEvaluator
from d2_smallobj.evaluation.model_outputs import to_labels
from d2_smallobj.metrics import Accumulator
from d2_smallobj.scoring import load_run
from d2_smallobj.scoring.scored_run import RUN_FILES
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog


def run(dataset, outputs=None, per_class=True, **options):
    evaluator = SmallObjectEvaluator(dataset.name, per_class=per_class, **options)
    outputs = dataset.guesses if outputs is None else outputs
    evaluator.reset()
    for record, output in zip(dataset.records, outputs):
        evaluator.process([record], [{"sem_seg": torch.as_tensor(output)}])
    return evaluator.evaluate()["small_objects"]


def core(dataset, with_instances=True, mode="exact"):
    """The same figures from the numeric core alone."""
    accumulator = Accumulator(4, mode=mode)
    for record, labels, maps in zip(dataset.records, dataset.guesses, dataset.scenes):
        accumulator.update(record["image_id"], labels, *maps[: 1 + with_instances])
    return accumulator.summarize(["background", "cat", "dog", "bird"])


def bits(figures):
    return {key: repr(value) for key, value in figures.items()}


def scores(labels):
    """Logits whose maximum is at the label."""
    noise = torch.rand((4, *labels.shape), generator=torch.Generator().manual_seed(0))
    labels = torch.as_tensor(labels).long()
    return noise.scatter(0, labels[None], 2.0)


@pytest.mark.parametrize("mode", ["exact", "official"])
def test_figures_are_the_cores(dataset, mode):
    figures = run(dataset, mode=mode)
    assert bits(figures) == bits(core(dataset, mode=mode))
    assert list(figures) == list(core(dataset))
    assert 0 < figures["IA-mIoU"] < 100
    assert (figures["images"], figures["instances"]) == (5, 15)
    other = {"exact": "official", "official": "exact"}[mode]
    assert figures["IA-mIoU"] != core(dataset, mode=other)["IA-mIoU"]


def test_scores_and_labels_give_the_same(dataset):
    expected = bits(core(dataset))
    logits = [scores(labels) for labels in dataset.guesses]
    for outputs in (logits, [x.double().softmax(0) for x in logits], [x.half() for x in logits]):
        assert bits(run(dataset, outputs)) == expected
    for dtype in (torch.uint8, torch.int32, torch.int64):
        labels = [torch.as_tensor(labels).to(dtype) for labels in dataset.guesses]
        assert bits(run(dataset, labels)) == expected


def test_without_instance_files_components_are_the_instances(dataset):
    for record in dataset.records:
        del record["ins_seg_file_name"]
    figures = run(dataset)
    assert bits(figures) == bits(core(dataset, with_instances=False))


@pytest.mark.parametrize("kept", [["file_name"], ["file_name", "image_id", "sem_seg_file_name"]])
def test_keys_dropped_by_a_mapper_come_from_the_catalog(dataset, kept):
    """detectron2's DatasetMapper pops sem_seg_file_name when not training; batches and reset."""
    evaluator = SmallObjectEvaluator(dataset.name, per_class=True)
    records = [{key: record[key] for key in kept} for record in dataset.records]
    outputs = [{"sem_seg": torch.as_tensor(labels)} for labels in dataset.guesses]
    for _ in range(2):
        evaluator.process(records[:3], outputs[:3])
        evaluator.process(records[3:], outputs[3:])
        assert bits(evaluator.evaluate()["small_objects"]) == bits(core(dataset))
        evaluator.reset()


def test_the_folder_is_a_scored_run(dataset, tmp_path):
    folder = tmp_path / "made" / "run"
    figures = run(dataset, output_dir=folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(RUN_FILES)
    written = json.loads((folder / "metrics.json").read_text())
    assert written["dataset"] == dataset.name
    assert written["IA-mIoU"] == written["small_objects"]["IA-mIoU"]
    loaded = load_run(folder)
    assert bits(loaded.figures) == bits(figures)
    assert (loaded.name, loaded.options["dataset"]) == ("run", dataset.name)
    assert list(loaded.class_names) == dataset.metadata.stuff_classes


def test_workers_give_the_same_files(dataset, tmp_path):
    before = sorted(dataset.folder.rglob("*"))
    alone = run(dataset)
    assert sorted(dataset.folder.rglob("*")) == before  # nothing is written unasked
    for workers in (0, 1, 3):
        folder = tmp_path / str(workers)
        assert bits(run(dataset, output_dir=folder, num_workers=workers)) == bits(alone)
        for name in RUN_FILES:
            assert (folder / name).read_bytes() == (tmp_path / "0" / name).read_bytes()


def test_the_trainer_matches_in_threads(dataset, tmp_path, monkeypatch):
    threads = []
    read = RegisteredTruth.read_record

    def note(truth, record):
        threads.append(threading.current_thread().name)
        return read(truth, record)

    monkeypatch.setattr(RegisteredTruth, "read_record", note)
    cfg = get_cfg()
    add_smallobj_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.SMALLOBJ.METRIC_MODE = "official"
    cfg.SMALLOBJ.TEST.PER_CLASS = True
    evaluator = TwoTaskTrainer.build_evaluator(cfg, dataset.name)
    for record, labels in zip(dataset.records, dataset.guesses):
        evaluator.process([record], [{"sem_seg": scores(labels)}])
    figures = evaluator.evaluate()["small_objects"]
    assert bits(figures) == bits(core(dataset, mode="official"))
    assert len(threads) == len(dataset.records)
    assert all(name.startswith("match") for name in threads)
    assert (tmp_path / "inference" / dataset.name / "metrics.json").is_file()


def test_workers_errors_are_raised(dataset):
    evaluator = SmallObjectEvaluator(dataset.name, num_workers=2)
    evaluator.process(dataset.records[:1], [{"sem_seg": dataset.guesses[0]}])
    evaluator.process(dataset.records[1:2], [{"sem_seg": dataset.guesses[2]}])
    with pytest.raises(ValueError, match=r"1\.jpg \(ground truth .*semantic/1\.png.*one shape"):
        evaluator.evaluate()
    # After a reset nothing of it is left.
    evaluator.reset()
    evaluator.process(dataset.records[:1], [{"sem_seg": dataset.guesses[0]}])
    assert evaluator.evaluate()["small_objects"]["images"] == 1


def test_no_image_at_all(dataset, caplog):
    with caplog.at_level(logging.WARNING, logger="d2_smallobj"):
        figures = SmallObjectEvaluator(dataset.name).evaluate()["small_objects"]
    assert "no image was evaluated" in caplog.text
    assert figures["images"] == 0
    assert math.isnan(figures["IA-mIoU"])


def test_class_numbers_where_there_are_no_names(dataset):
    del dataset.metadata.__dict__["stuff_classes"]
    assert run(dataset, num_classes=4)["instances-2"] == 5
    told = r"metadata of '{}' has no stuff_classes; register .*num_classes"
    for name in (dataset.name, "no_such_set"):
        with pytest.raises(ValueError, match=told.format(name)):
            SmallObjectEvaluator(name)
    MetadataCatalog.pop("no_such_set", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "official2"}, r"mode: unknown value 'official2'.*mean 'official'"),
        ({"num_classes": 5}, r"num_classes must be 4, .* got 5"),
        ({"num_workers": -1}, r"num_workers must be >= 0, got -1"),
        *(({"task": task}, rf"task must be a word .* got {task!r}") for task in ("", "a/b", None)),
        *(
            ({"worst": worst}, rf"worst must be .* in 1\.\.100, got {worst}")
            for worst in (0, 101, -5, 2.5, True, None)
        ),
    ],
)
def test_options_are_checked_at_once(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        SmallObjectEvaluator(dataset.name, **options)


def missing(dataset):
    (dataset.folder / "instances" / "0.png").unlink()


def corrupt(kind):
    def change(dataset):
        path = dataset.folder / kind / "0.png"
        path.write_bytes(path.read_bytes()[:60])

    return change


def swapped(dataset):
    dataset.records[0]["ins_seg_file_name"] = dataset.records[1]["ins_seg_file_name"]


def twice(dataset):
    dataset.records[1] = dataset.records[0]


def unknown(dataset):
    dataset.records[0] = {"file_name": "elsewhere.jpg", "image_id": "x"}


def nameless(dataset):
    dataset.records[0] = {"height": 40}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (missing, FileNotFoundError, r"instances/0\.png"),
        (corrupt("semantic"), ValueError, r"semantic/0\.png.*corrupt"),
        (corrupt("instances"), ValueError, r"instances/0\.png.*corrupt"),
        (swapped, ValueError, r"semantic/0\.png and .*instances/1\.png"),
        (twice, ValueError, r"0\.jpg .*evaluated once, got again image0 "),
        (unknown, ValueError, r"has no ground truth for 'elsewhere\.jpg'"),
        (nameless, ValueError, r"needs 'image_id' or 'file_name', got \['height'\]"),
    ],
)
def test_bad_ground_truth_is_named(dataset, change, error, message):
    change(dataset)
    outputs = [{"sem_seg": dataset.guesses[0]}] * 2
    with pytest.raises(error, match=message):
        SmallObjectEvaluator(dataset.name).process(dataset.records[:2], outputs)


@pytest.mark.parametrize(
    ("prediction", "error", "message"),
    [
        (torch.zeros(40, 51, dtype=int), ValueError, r"\(.*semantic/0\.png and .*shape"),
        (np.full((40, 50), 9), ValueError, r"\(.*must hold 0\.\.3 .*got 9 \("),
        (torch.zeros(21, 40, 50), ValueError, r": .*\(4, H, W\) scores .*\(21, 40, 50\)"),
        (torch.zeros(40, 50), TypeError, r": .*must hold integer labels, got torch\.float32"),
        (np.zeros((40, 50)), TypeError, r": .*must hold integer labels, got float64"),
    ],
)
def test_a_bad_prediction_is_named(dataset, prediction, error, message):
    with pytest.raises(error, match=rf"0\.jpg ?{message}"):
        SmallObjectEvaluator(dataset.name).process(dataset.records[:1], [{"sem_seg": prediction}])


@pytest.mark.parametrize(("classes", "dtype"), [(2, np.uint8), (256, np.uint8), (300, np.int32)])
def test_to_labels_keeps_every_class(classes, dtype):
    labels = torch.arange(classes).reshape(1, -1)
    one_hot = torch.nn.functional.one_hot(labels, classes).permute(2, 0, 1)
    found = to_labels(one_hot.float(), classes)
    assert found.dtype == dtype
    assert found.tolist() == labels.tolist()
    # The lowest of equal scores, as argmax.
    ties = torch.tensor([0.5, 1.0, 1.0] + [0.0] * classes)[:classes, None, None]
    assert to_labels(ties, classes).tolist() == [[1]]
