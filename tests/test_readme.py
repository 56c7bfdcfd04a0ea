"""What the README shows must run."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import runpy
import sys
from operator import attrgetter
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import d2_smallobj
from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.commands import smallobj
from d2_smallobj.config import add_smallobj_config
from d2_smallobj.data import dataset_dicts
from d2_smallobj.demo.dataset import make_demo
from detectron2.config import get_cfg
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators


def _block(repository, marker: str, page: str = "README.md") -> str:
    text = (repository / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found, f"{page} has no block after <!-- {marker} -->"
    return found.group(1)


@pytest.fixture
def demo_datasets(tmp_path, registration):
    make_demo(tmp_path / "smallobj_demo", num_train=2, num_val=3, size=96)
    registration(tmp_path)


def test_evaluator_example(repository, tmp_path, monkeypatch, capsys, demo_datasets):
    class Perfect(torch.nn.Module):
        """Answers with the ground truth."""

        def forward(self, inputs):
            labels = [read_label_map(x["sem_seg_file_name"]).astype(np.int64) for x in inputs]
            return [{"sem_seg": torch.from_numpy(np.where(x == 255, 0, x))} for x in labels]

    monkeypatch.chdir(tmp_path)
    code = _block(repository, "evaluator example").replace("voc_2012_seg_val", "smallobj_demo_val")
    loader = [[x] for x in dataset_dicts(["smallobj_demo_val"])]
    others = DatasetEvaluators([])
    exec(code, {"model": Perfect(), "data_loader": loader, "evaluators": others})
    # Void borders are predicted as background here, which IA-mIoU leaves out.
    assert float(capsys.readouterr().out.strip().splitlines()[-1]) == pytest.approx(100.0)
    folder = tmp_path / "output" / "eval" / "small_objects" / "smallobj_demo_val"
    assert (folder / "instances.csv").exists()


EVALUATOR_PAGE = "docs/evaluator.md"


def test_the_two_lines_of_a_train_net(repository, tmp_path, demo_datasets):
    class Other(DatasetEvaluator):
        def __init__(self, dataset_name, output_dir):
            self.output_dir = output_dir

    names = {"DefaultTrainer": object, "os": os, "SemSegEvaluator": Other}
    exec(_block(repository, "two lines", EVALUATOR_PAGE), names)
    cfg = SimpleNamespace(OUTPUT_DIR=str(tmp_path))
    evaluators = names["Trainer"].build_evaluator(cfg, "smallobj_demo_val")
    theirs, ours = evaluators._evaluators
    assert theirs.output_dir == str(tmp_path / "inference")
    ours.evaluate()
    assert (tmp_path / "inference" / "small_objects" / "smallobj_demo_val").is_dir()


def test_prediction_examples(repository, tmp_path, demo_datasets):
    name = "smallobj_demo_val"
    record = dataset_dicts([name])[0]
    shape = (96, 96)
    seen = []

    def post_process(scores, image):
        seen.append(image.shape)
        return scores[:7]

    names = {"d2_smallobj": d2_smallobj, "dataset_name": name, "evaluators": []}
    names.update(np=np, Image=Image, dense_crf_post_process=post_process)
    # As many classes as the network has, of which the last ones are one class of the set.
    fold = _block(repository, "fold example", EVALUATOR_PAGE).replace("20", "6")
    crf = _block(repository, "crf example", EVALUATOR_PAGE)
    for code in (fold, crf):
        exec(code, {**names}, local := {})
        local["evaluators"].process([record], [{"sem_seg": torch.rand(60, *shape)}])
        assert local["evaluators"].evaluate()["small_objects"]["images"] == 1
    assert seen == [(*shape, 3)]


def test_metric_example(repository, capsys):
    semantic = np.zeros((40, 40), dtype=np.uint8)
    semantic[5:15, 5:15] = 3
    names = ["background", *(f"class {index}" for index in range(1, 21))]
    maps = {"prediction": semantic.astype(int), "semantic": semantic}
    maps["instances"] = (semantic == 3).astype(np.uint8)
    exec(_block(repository, "metric example"), {**maps, "class_names": names})
    assert float(capsys.readouterr().out) == pytest.approx(100.0)


def test_loss_example(repository):
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (2, 6, 7))
    tensors = {
        "logits": torch.randn(2, 4, 6, 7),
        "labels": labels,
        "sigma_raw": torch.full((2, 1, 6, 7), 3.0),
        "box_numbers": torch.where(labels > 0, 1, 0),
    }
    exec(_block(repository, "loss example", "docs/mixed.md"), tensors)
    plain = torch.nn.functional.cross_entropy(tensors["logits"], labels)
    assert 0 < tensors["value"] != plain


PAGES = ["README.md", "CONTRIBUTING.md", "datasets/README.md"]
PAGES += [
    f"docs/{name}.md"
    for name in ["detectron2", "evaluator", "method", "metric", "mixed", "results", "training"]
]
# A command in a block or in backticks, up to its end or its comment.
COMMAND = re.compile(
    r"\b(tools|datasets|docs)/(\w+)\.py([^`\n#]*)|-m (d2_smallobj\.data)([^`\n#]*)"
    r"|\bsmallobj ((?:prepare )?(?:weak-labels )?[a-z][\w-]*)(?= -|[ `\n])([^`\n#]*)"
)


@pytest.fixture(scope="module")
def help_of(repository):
    """``help_of(script, *names)``: the help that a script or one of its commands prints."""

    @functools.lru_cache
    def run(script, *names):
        with (
            mock.patch.object(sys, "argv", [script, *names, "--help"]),
            mock.patch.object(sys, "path", [str((repository / script).parent), *sys.path]),
            contextlib.redirect_stdout(io.StringIO()) as shown,
            contextlib.suppress(SystemExit),
        ):
            if script.startswith("smallobj "):
                smallobj.main([*script.split()[1:], *names, "--help"])
            elif script.endswith(".py"):
                runpy.run_path(str(repository / script), run_name="__main__")
            else:
                runpy.run_module(script, run_name="__main__")
        return shown.getvalue()

    return run


@pytest.mark.parametrize("page", PAGES)
def test_files_commands_and_options_exist(repository, help_of, page):
    text = (repository / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/])(?:tools|configs|datasets|docs)/[\w./-]+\.\w+", text))
    named |= {
        os.path.join(os.path.dirname(page), x) for x in re.findall(r"\]\(([\w./]+\.\w+)", text)
    }
    assert named
    assert not [name for name in named if not (repository / name).exists()]
    for folder, tool, arguments, module, more, name, last in COMMAND.findall(text):
        script, arguments = (module, more) if module else (f"{folder}/{tool}.py", arguments)
        if name:
            assert name in {*smallobj.SUBCOMMANDS, *smallobj.GROUPS}
            script, arguments = f"smallobj {name}", last
        options = set(re.findall(r"(?<![-\w])--[a-z][\w-]*", arguments)) - {"--help"}
        if options:
            known = help_of(script, *arguments.split()[: tool == "benchmark"])
            assert "--help" in known, script
            assert not [x for x in options if not re.search(rf"{x}(?![\w-])", known)], script
    add_smallobj_config(cfg := get_cfg())
    for key in re.findall(r"\bSMALLOBJ(?:\.[A-Z_]+)+\b", text):
        attrgetter(key)(cfg)
