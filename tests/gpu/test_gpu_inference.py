"""Inference on a GPU against the CPU: evaluation with threads, CRF, pictures, predictions.

Figures of the same predictions are equal, digit for digit. Predictions of the two devices differ
where two classes have one score up to rounding: on at most 2 pixels in 1,000 of an untrained net,
whose scores lie closest, and by half a percent in its figures.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks import inference
from PIL import Image
from tiny_runs import events_of, saved

from d2_smallobj.commands import train_net
from d2_smallobj.engine.trainer import TwoTaskTrainer
from d2_smallobj.evaluation import SmallObjectEvaluator
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset

pytestmark = pytest.mark.gpu


class NoModel(torch.nn.Module):
    """A model without layers: its device is all that is asked of it."""

    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device)

    def forward(self, batch):
        return batch


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    return inference.make_batches(str(tmp_path_factory.mktemp("drawn")), 6, 0)


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_evaluation_with_threads_and_copies(device, batches, workers):
    """Labels are copied while the next image is computed; the figures are the plain CPU's."""
    name = inference._DATASET
    names = inference.VOC_CLASS_NAMES
    MetadataCatalog.get(name).set(stuff_classes=list(names), ignore_label=255)
    try:
        found = [
            inference_on_dataset(
                inference._Replay(NoModel(where), batches),
                batches,
                SmallObjectEvaluator(name, distributed=False, num_workers=count),
            )
            for where, count in (("cpu", 0), (device, workers))
        ]
    finally:
        MetadataCatalog.pop(name)
    assert found[0] == found[1]
    assert len(str(found[0])) > 100


@pytest.fixture
def weights(make_trainer, tmp_path):
    """A trained checkpoint of the tiny net."""
    folder = tmp_path / "weights"
    make_trainer({"SMALLOBJ.PICTURES.PERIOD": 0}, folder=folder).train()
    return folder / "model_final.pth"


INFERENCES = {
    "plain": {},
    "scales": {"SMALLOBJ.TEST.SCALES": "[0.75, 1.0]", "SMALLOBJ.TEST.FLIP": True},
    "crf": {"SMALLOBJ.TEST.CRF.ENABLED": True, "SMALLOBJ.TEST.CRF.ITERATIONS": 3},
}


@pytest.mark.parametrize("options", INFERENCES.values(), ids=INFERENCES)
def test_figures_of_a_net(make_trainer, device, weights, options):
    found = []
    for where in ("cpu", device):
        trainer = make_trainer(options, {"MODEL.DEVICE": where, "MODEL.WEIGHTS": weights})
        (figures,) = TwoTaskTrainer.test(trainer.cfg, trainer.model).values()
        found.append({k: v for k, v in figures.items() if isinstance(v, float)})
        assert next(trainer.model.parameters()).device.type == where
    assert len(found[0]) > 5
    for key in ("mIoU", "IA-mIoU", "IA-mIoU_S"):
        assert found[1][key] == pytest.approx(found[0][key], abs=0.5, nan_ok=True)


@pytest.mark.parametrize("crf", [(), ("--crf",)], ids=["plain", "crf"])
def test_predictions_of_files(make_trainer, tiny, device, weights, demo_root, tmp_path, crf):
    maps = []
    for where in ("cpu", device):
        output = tmp_path / f"{where}{len(maps)}"
        options = tiny.as_options(tiny.options, {"MODEL.DEVICE": where, "MODEL.WEIGHTS": weights})
        given = ["--config-file", tiny.config_file, "--output", str(output), "--overlay", *crf]
        train_net.predict([*given, *options])
        files = sorted(output.glob("*.png"))
        assert len(files) == 4
        assert len(list((output / "overlay").glob("*"))) == 4
        maps.append(np.stack([np.asarray(Image.open(path)) for path in files]))
    assert (maps[0] != maps[1]).mean() < 0.002


def test_pictures(make_trainer, device, tmp_path):
    options = {"SMALLOBJ.PICTURES.PERIOD": 3, "SMALLOBJ.PICTURES.NUM_IMAGES": 2}
    make_trainer(options, {"MODEL.DEVICE": device}, folder=tmp_path).train()
    assert len(events_of(tmp_path).Tags()["images"]) == 1
    assert saved(tmp_path)["iteration"] == 7
