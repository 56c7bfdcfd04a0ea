"""The evaluator in another project: beside its evaluators, in its log, under a key of its own."""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
import math

import numpy as np
import pytest
import torch

import detectron2.evaluation
from d2_smallobj import SmallObjectEvaluator, add_small_objects
from d2_smallobj.metrics import Accumulator
from d2_smallobj.scoring import load_run
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
)


class Pixels(DatasetEvaluator):
    """Stands for a project's own evaluator."""

    def __init__(self, key="sem_seg"):
        self.key = key

    def reset(self):
        self.right = self.all = 0

    def process(self, inputs, outputs):
        self.all += sum(output["sem_seg"].numel() for output in outputs)

    def evaluate(self):
        return {self.key: {"pixels": self.all}}


class CityscapesSemSegEvaluator(Pixels):
    """Imports, as detectron2's does, what only its authors have, once there is an image."""

    def process(self, inputs, outputs):
        import deeplearning.projects.cityscapes as missing

        raise AssertionError(missing)


class Several(DatasetEvaluators):
    """A project's own kind, which must be kept as it is."""

    def process(self, inputs, outputs):
        super().process(inputs, outputs)
        self.seen = len(inputs)


def infer(dataset, evaluators):
    """Run the host's loop with the data set's predictions."""
    guesses = {r["image_id"]: labels for r, labels in zip(dataset.records, dataset.guesses)}
    return inference_on_dataset(
        lambda batch: [{"sem_seg": torch.as_tensor(guesses[r["image_id"]])} for r in batch],
        [[record] for record in dataset.records],
        evaluators,
    )


@pytest.mark.parametrize("form", ["one", "list", "several", "their own", "nested"])
def test_beside_what_a_project_has(dataset, form):
    theirs = {
        "one": Pixels(),
        "list": [Pixels(), Pixels("pixels")],
        "several": DatasetEvaluators([Pixels(), Pixels("pixels")]),
        "their own": Several([Pixels()]),
        "nested": DatasetEvaluators([DatasetEvaluators([Pixels()]), Pixels("pixels")]),
    }[form]
    evaluators = add_small_objects(theirs, dataset.name)
    assert isinstance(evaluators, DatasetEvaluators)
    results = infer(dataset, evaluators)
    more = set() if form in ("one", "their own") else {"pixels"}
    assert set(results) == {"sem_seg", "small_objects"} | more
    assert results["sem_seg"]["pixels"] == sum(labels.size for labels in dataset.guesses)
    assert results["small_objects"]["instances"] == 15
    assert form != "their own" or theirs.seen == 1


def test_the_name_of_the_results(dataset):
    for nothing in (None, [], DatasetEvaluators([])):
        assert list(infer(dataset, add_small_objects(nothing, dataset.name))) == ["small_objects"]
    both = add_small_objects(add_small_objects([], dataset.name), dataset.name, task="ours.2")
    results = infer(dataset, both)
    assert list(results) == ["small_objects", "ours.2"]
    assert repr(results["small_objects"]) == repr(results["ours.2"])
    # A name that is taken.
    ours = add_small_objects(Several([Pixels()]), dataset.name)
    with pytest.raises(ValueError, match=r"'small_objects': SmallObjectEvaluator reports under"):
        add_small_objects(ours, dataset.name)
    # Known by its name: detectron2 has no list of the keys.
    kind = type("SemSegEvaluator", (Pixels,), {})
    with pytest.raises(ValueError, match=r"task 'sem_seg': SemSegEvaluator reports .* task="):
        add_small_objects(kind(), dataset.name, task="sem_seg")


def test_no_evaluators(dataset):
    for wrong in (Pixels, "sem_seg", [Pixels(), {}]):
        with pytest.raises(TypeError, match=r"what build_evaluator returns\), got (type|str|dict)"):
            add_small_objects(wrong, dataset.name)
    with pytest.raises(TypeError, match="unexpected keyword"):
        add_small_objects([], dataset.name, no_such_option=1)


@pytest.mark.skipif(importlib.util.find_spec("deeplearning") is not None, reason="its authors' own")
def test_a_cityscapes_evaluator_that_cannot_run_is_left_out(dataset, caplog):
    with caplog.at_level(logging.WARNING):
        evaluators = add_small_objects([CityscapesSemSegEvaluator(), Pixels("p")], dataset.name)
    (message,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "CityscapesSemSegEvaluator is left out" in message
    assert "needs the package deeplearning, which" in message
    assert "add_small_objects([], ...)" in message
    assert sorted(infer(dataset, evaluators)) == ["p", "small_objects"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_beside_detectron2s_own(dataset, tmp_path):
    theirs = getattr(detectron2.evaluation, "SemSegEvaluator", None)
    if theirs is None:
        pytest.skip("the embedded host has none")
    guesses = {r["image_id"]: labels for r, labels in zip(dataset.records, dataset.guesses)}
    results = inference_on_dataset(
        # It takes scores alone.
        lambda batch: [
            {"sem_seg": torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1).float()}
            for labels in (torch.as_tensor(guesses[r["image_id"]]).long() for r in batch)
        ],
        [[record] for record in dataset.records],
        add_small_objects(theirs(dataset.name, output_dir=str(tmp_path)), dataset.name),
    )
    assert sorted(results) == ["sem_seg", "small_objects"]
    mine, own = results["small_objects"]["mIoU"], results["sem_seg"]["mIoU"]
    assert mine == pytest.approx(own, abs=1e-9)


def test_detectron2s_own_cityscapes_evaluator(dataset, caplog):
    theirs = getattr(detectron2.evaluation, "CityscapesSemSegEvaluator", None)
    if theirs is None:
        pytest.skip("the embedded host has none")
    with caplog.at_level(logging.WARNING):
        evaluators = add_small_objects([theirs(dataset.name)], dataset.name)
    if "is left out" in caplog.text:
        assert list(infer(dataset, evaluators)) == ["small_objects"]
    else:
        assert len(evaluators._evaluators) == 2


def test_only_the_headline_unless_asked(dataset, tmp_path):
    results = infer(dataset, SmallObjectEvaluator(dataset.name, output_dir=tmp_path))
    figures = results["small_objects"]
    assert not [name for name in figures if name.endswith(("-cat", "-background"))]
    assert {"mIoU", "IA-mIoU", "IA-mIoU_fg", "IA-mIoU_S", "images", "instances_S"} <= set(figures)
    assert len(figures) < 30
    every = infer(dataset, SmallObjectEvaluator(dataset.name, per_class=True))["small_objects"]
    assert {"IoU-background", "IA-IoU_S-cat", "instances-dog"} <= set(every)
    assert list(every)[: len(figures)] == list(figures)
    # On disk there is everything.
    written = json.loads((tmp_path / "metrics.json").read_text())["small_objects"]
    assert {name: value for name, value in written.items() if value is not None} == {
        name: value for name, value in every.items() if not math.isnan(value)
    }


def copypaste(caplog):
    lines = [r.getMessage() for r in caplog.records]
    lines = [line for line in lines if line.startswith("copypaste: ")]
    return [line.removeprefix("copypaste: ") for line in lines]


def test_the_line_to_copy(dataset, caplog):
    with caplog.at_level(logging.INFO):
        results = infer(dataset, add_small_objects([], dataset.name, task="mine"))
    figures = results["mine"]
    task, names, values = copypaste(caplog)
    assert task == "Task: mine"
    assert names == (
        "mIoU,IA-mIoU,IA-mIoU_S,IA-mIoU_M,IA-mIoU_L,instances,instances_S,instances_M,instances_L"
    )
    assert values == ",".join(f"{figures[name]:.4f}" for name in names.split(","))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        print_csv_format(results)
    # Why ours logs a line of its own.
    assert "IA-mIoU" not in copypaste(caplog)[1]


def test_figures_appear_in_a_log_that_is_detectron2s(dataset, tmp_path, monkeypatch):
    logger = logging.getLogger("detectron2")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    # As its setup_logger leaves it; nothing sets up ours.
    with open(tmp_path / "log.txt", "w") as file:
        monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(file)])
        results = infer(dataset, add_small_objects([], dataset.name))
    figures, text = results["small_objects"], (tmp_path / "log.txt").read_text()
    assert "copypaste: Task: small_objects" in text
    assert f"| {figures['mIoU']:.2f}" in text
    assert any(line.startswith("| cat") and "| 10 " in line for line in text.splitlines())
    # A class that does not occur has no row.
    assert "| bird" not in text


def test_decisions_are_logged_once(dataset, caplog):
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            evaluator = SmallObjectEvaluator(dataset.name)
            infer(dataset, evaluator)
    logged = [r.getMessage() for r in caplog.records]
    # Those about the instances are known once an image has been read.
    assert evaluator._truth.decided
    for sentence in evaluator._truth.decided:
        assert logged.count(sentence) == 1
    # All objects in one class is a warning.
    name = f"{dataset.name}_stuffonly"
    MetadataCatalog.get(name).set(stuff_classes=["things", "sky", "road", "tree"])
    SmallObjectEvaluator(name)
    MetadataCatalog.remove(name)
    (told,) = [r for r in caplog.records if "holds all objects in one" in r.getMessage()]
    assert told.levelname == "WARNING"


def test_a_folder_of_its_own(dataset, tmp_path):
    training = '{"iteration": 19, "total_loss": 1.0}\n{"iteration": 39, "total_loss": 0.5}\n'
    for text in (training, training.splitlines()[0], "torn {", "[1]"):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(ValueError, match=r"output_dir: .*metrics\.json is not of a scored run"):
            SmallObjectEvaluator(dataset.name, output_dir=tmp_path)
        assert (tmp_path / "metrics.json").read_text() == text
    # The call that takes a project's folder makes one in it, for each data set.
    for _ in range(2):
        infer(dataset, add_small_objects([], dataset.name, output_dir=tmp_path))
    assert load_run(tmp_path / "small_objects" / dataset.name).options["dataset"] == dataset.name
    assert (tmp_path / "metrics.json").read_text() == text
    evaluator = SmallObjectEvaluator(dataset.name, output_dir=tmp_path / "later")
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "metrics.json").write_text(training)
    with pytest.raises(ValueError, match="would be overwritten"):
        evaluator.evaluate()
    assert [path.name for path in (tmp_path / "later").iterdir()] == ["metrics.json"]


# ---- Models that number other classes ------------------------------------------------------------


def test_folded_and_shifted_labels(dataset):
    expected = infer(dataset, SmallObjectEvaluator(dataset.name))
    seen = []

    def fold(output, record):
        seen.append(record["image_id"])
        labels = output["sem_seg"] - 10
        labels[labels > 3] = 0
        return labels

    def scores(output, record):
        labels = torch.as_tensor(output["sem_seg"] - 10)
        labels[labels > 3] = 0
        return torch.nn.functional.one_hot(labels.long(), 4).permute(2, 0, 1)

    for function in (fold, scores):
        evaluator = SmallObjectEvaluator(dataset.name, prediction_fn=function)
        for record, labels in zip(dataset.records, dataset.guesses):
            numbered = np.where(labels == 0, 17, labels + 10)
            evaluator.process([record], [{"sem_seg": numbered}])
        assert repr(evaluator.evaluate()) == repr(expected)
    assert seen == [record["image_id"] for record in dataset.records]


def test_answers_without_sem_seg(dataset):
    record, labels = dataset.records[0], dataset.guesses[0]
    evaluator = SmallObjectEvaluator(dataset.name, prediction_fn=lambda output, _: output[0])
    evaluator.process([record], [(labels.astype(np.uint16),)])
    assert evaluator.evaluate()["small_objects"]["images"] == 1
    evaluator = SmallObjectEvaluator(dataset.name)
    for output, got in (({"instances": 1}, r"\['instances'\]"), (labels, "ndarray")):
        with pytest.raises(TypeError, match=rf"0\.jpg: .*dict with 'sem_seg', got {got}.*_fn"):
            evaluator.process([record], [output])


def test_another_number_of_classes(dataset):
    has = f"data set '{dataset.name}' has 4 classes: .*prediction_fn, or give num_classes"
    made_by = {"sem_seg": None, "what prediction_fn returned": lambda output, _: output["sem_seg"]}
    for classes, (what, function) in itertools.product((3, 21), made_by.items()):
        got = rf"must be \(4, H, W\) scores .*got shape \({classes}, 40, 50\)"
        evaluator = SmallObjectEvaluator(dataset.name, prediction_fn=function)
        with pytest.raises(ValueError, match=rf"0\.jpg: {what} {got}.*{has}"):
            evaluator.process(dataset.records[:1], [{"sem_seg": torch.zeros(classes, 40, 50)}])
    record, labels = dataset.records[0], dataset.guesses[0].astype(np.int64)
    for value in (4, -1):
        labels[0, 0] = value
        message = rf"0\.jpg .*0\.\.3.*{value} .*has 4 classes: .*prediction_fn"
        with pytest.raises(ValueError, match=message):
            SmallObjectEvaluator(dataset.name).process([record], [{"sem_seg": labels}])
        evaluator = SmallObjectEvaluator(dataset.name, num_workers=2)
        evaluator.process([record], [{"sem_seg": labels}])
        with pytest.raises(ValueError, match=message):
            evaluator.evaluate()


@pytest.mark.parametrize("record", [0, {"file_name": "else.jpg"}])
def test_missing_ground_truth_does_not_hide_a_bad_prediction(dataset, record):
    (dataset.folder / "semantic" / "0.png").unlink()
    record = dataset.records[0] if record == 0 else record
    with pytest.raises(TypeError, match=r"(0|else)\.jpg: sem_seg: .*integer labels"):
        SmallObjectEvaluator(dataset.name).process([record], [{"sem_seg": torch.zeros(40, 50)}])


# ---- Options that lead to the ground truth and the metric ----------------------------------------


@pytest.mark.parametrize("stuff", [("background", "dog"), (0, 2), ()])
def test_stuff_is_what_the_user_says(dataset, tmp_path, stuff):
    ids = [{"background": 0, "dog": 2}.get(entry, entry) for entry in stuff]
    accumulator, maps = Accumulator(4, stuff=ids), {}
    for record, labels, (semantic, instances) in zip(
        dataset.records, dataset.guesses, dataset.scenes
    ):
        # Pixels of a stuff class belong to no instance.
        own = np.where(np.isin(semantic, accumulator.stuff), 0, instances)
        maps[record["image_id"]] = semantic, own if stuff else None
        accumulator.update(record["image_id"], labels, *maps[record["image_id"]])
    options = {"stuff": stuff, "reader": lambda record: maps[record["image_id"]]}
    options.update(per_class=True, output_dir=tmp_path / "run")
    figures = infer(dataset, SmallObjectEvaluator(dataset.name, **options))["small_objects"]
    assert repr(figures) == repr(accumulator.summarize(["background", "cat", "dog", "bird"]))
    assert list(load_run(tmp_path / "run").stuff) == ids


def test_own_bins_and_the_share_of_the_worst_images(dataset, tmp_path):
    options = {"worst": 40, "size_bins": {"tiny": 101, "rest": math.inf}}
    evaluator = SmallObjectEvaluator(dataset.name, output_dir=tmp_path / "run", **options)
    figures = infer(dataset, evaluator)["small_objects"]
    # Each image has areas of 100, 140 and at least 300.
    assert (figures["instances_tiny"], figures["instances_rest"]) == (5, 10)
    assert {"mIoU_I@40", "mIoU_C@40"} <= set(figures)
    assert "mIoU_I@5" not in figures
    assert figures["mIoU_I@40"] < figures["mIoU_I"]
    run = load_run(tmp_path / "run")
    assert run.options["worst"] == 40
    assert run.figures["mIoU_I@40"] == figures["mIoU_I@40"]
