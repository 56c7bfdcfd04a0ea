"""``tools/predict.py`` writes what the model predicts, for the commands that score folders."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import torch

from d2_smallobj import TwoTaskTrainer
from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.engine import build_config


def run(tiny, demo_root, *arguments):
    tool = str(tiny.repository / "tools" / "predict.py")
    command = [sys.executable, tool, "--config-file", tiny.config_file, *map(str, arguments)]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(demo_root)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_label_maps_are_what_the_model_says(tiny, demo_root, tmp_path):
    model = TwoTaskTrainer.build_model(
        build_config(tiny.config_file, tiny.as_options(tiny.options))
    )
    with torch.no_grad():
        # A head that always answers class 3, whatever it sees.
        for name, value in model.named_parameters():
            if "sem_seg_head" in name:
                value.zero_()
                if name.endswith("bias"):
                    value[3] = 1.0
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    options = tiny.as_options(tiny.options, {"MODEL.WEIGHTS": tmp_path / "model.pth"})
    result = run(tiny, demo_root, "--output", tmp_path / "predictions", *options)
    assert result.returncode == 0, result.stderr
    files = sorted((tmp_path / "predictions").iterdir())
    assert [file.name for file in files] == [f"val_{number:05d}.png" for number in range(4)]
    for file in files:
        labels = read_label_map(file)
        assert labels.shape == (64, 64)
        assert np.unique(labels).tolist() == [3]
    assert "wrote 4 label maps" in result.stdout


def test_a_missing_checkpoint_is_one_line(tiny, demo_root, tmp_path):
    options = tiny.as_options(tiny.options, {"MODEL.WEIGHTS": "/nowhere/model.pth"})
    result = run(tiny, demo_root, "--output", tmp_path / "predictions", *options)
    assert result.returncode == 1
    assert "/nowhere/model.pth" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "predictions").exists()
