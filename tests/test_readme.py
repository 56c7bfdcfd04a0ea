"""What the README shows must run."""

from __future__ import annotations

import re

import numpy as np
import pytest

from d2_smallobj import SmallObjectEvaluator
from d2_smallobj.annotations.demo import make_demo
from d2_smallobj.data import dataset_dicts


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
    import torch

    from d2_smallobj.annotations.label_maps import read_label_map

    class Perfect(torch.nn.Module):
        """Answers with the ground truth."""

        def forward(self, inputs):
            labels = [read_label_map(x["sem_seg_file_name"]) for x in inputs]
            return [
                {"sem_seg": torch.from_numpy(np.where(x == 255, 0, x).astype(np.int64))}
                for x in labels
            ]

    monkeypatch.chdir(tmp_path)
    code = _block(repository, "evaluator example").replace("voc_2012_seg_val", "smallobj_demo_val")
    loader = [[x] for x in dataset_dicts(["smallobj_demo_val"])] * 1
    # inference_on_dataset warms up on the first images, of which three are enough here.
    exec(code, {"model": Perfect(), "data_loader": loader})
    # Void borders are predicted as background here, which IA-mIoU leaves out.
    assert float(capsys.readouterr().out.strip().splitlines()[-1]) == pytest.approx(100.0)
    assert (tmp_path / "output" / "eval" / "instances.csv").exists()
    assert SmallObjectEvaluator is not None


def test_metric_example(repository, capsys):
    semantic = np.zeros((40, 40), dtype=np.uint8)
    semantic[5:15, 5:15] = 3
    names = ["background", *(f"class {index}" for index in range(1, 21))]
    exec(
        _block(repository, "metric example"),
        {
            "prediction": np.where(semantic == 3, 3, 0),
            "semantic": semantic,
            "instances": (semantic == 3).astype(np.uint8),
            "class_names": names,
        },
    )
    assert float(capsys.readouterr().out) == pytest.approx(100.0)


def test_loss_example(repository):
    import torch

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


@pytest.mark.parametrize("page", ["README.md", "docs/mixed.md", "docs/training.md"])
def test_commands_name_files_that_exist(repository, page):
    text = (repository / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:tools|configs|datasets|docs)/[\w./-]+\.\w+", text))
    assert named
    missing = [name for name in named if not (repository / name).exists()]
    assert not missing
