"""Scales, mirrored copies and the CRF around a model: each against the same thing by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from d2_smallobj.modeling.inference import MultiViewInference, build_crf, build_inference
from d2_smallobj.postprocessing import CrfOptions, DenseCrf
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import sem_seg_postprocess

SCALES = ("SMALLOBJ.TEST.SCALES", [0.5, 1.0, 1.25])
FLIP = ("SMALLOBJ.TEST.FLIP", True)
CRF = ("SMALLOBJ.TEST.CRF.ENABLED", True)


class Lopsided(nn.Module):
    """Not ours: logits of 3 classes that depend on place and colour, as detectron2 answers."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, inputs):
        if self.training:
            return {"loss_sem_seg": torch.zeros(())}
        self.seen.append([tuple(x["image"].shape) for x in inputs])
        outputs = []
        for x in inputs:
            image = x["image"].float() / 255
            size = image.shape[-2:]
            ramp = torch.linspace(-1, 1, size[1]).expand(size)
            logits = torch.stack([image[0] + ramp, image[1] * 2 - ramp, image[2]]) * 3
            logits = sem_seg_postprocess(logits, size, x["height"], x["width"])
            outputs.append({"sem_seg": logits, "note": size})
        return outputs


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 5, 7, generator=generator) * 255
    return F.interpolate(coarse, size=(40, 56), mode="bicubic")[0].clamp(0, 255).round()


@pytest.fixture
def model():
    return Lopsided().eval()


def ask(model, image, size=(40, 56)):
    return model([{"image": image, "height": size[0], "width": size[1]}])[0]["sem_seg"]


def resized(image, size):
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def test_nothing_asked_for_is_the_model_itself(narrow_cfg, model):
    assert build_inference(narrow_cfg(), model) is model
    assert build_inference(narrow_cfg("SMALLOBJ.TEST.SCALES", [1]), model) is model
    for asked in (("SMALLOBJ.TEST.SCALES", [1.0, 0.5]), ("SMALLOBJ.TEST.SCALES", [2.0]), FLIP, CRF):
        assert isinstance(build_inference(narrow_cfg(*asked), model), MultiViewInference)


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_views_are_averaged(model, image, average):
    one = MultiViewInference(model, average=average)
    torch.testing.assert_close(ask(one, image), ask(model, image).softmax(0))
    model.seen.clear()
    wrapped = MultiViewInference(model, scales=(0.5, 1, 1.25), flip=True, average=average)
    found = ask(wrapped, image, (60, 70))
    assert model.seen == [[(3, h, w)] for h, w in ((20, 28), (40, 56), (50, 70)) for _ in range(2)]
    views = []
    for size in ((20, 28), (40, 56), (50, 70)):
        scaled = resized(image, size)
        views.append(ask(model, scaled, (60, 70)))
        views.append(ask(model, scaled.flip(2), (60, 70)).flip(2))
    if average == "softmax":
        expected = torch.stack([view.softmax(0) for view in views]).mean(0)
    else:
        expected = torch.stack(views).mean(0).softmax(0)
    torch.testing.assert_close(found, expected)
    # The other average is another result: the option decides.
    other = {"softmax": "logits", "logits": "softmax"}[average]
    wrapped = MultiViewInference(model, scales=(0.5, 1, 1.25), flip=True, average=other)
    assert (ask(wrapped, image, (60, 70)) - found).abs().max() > 1e-3


def test_batches_of_different_sizes(model, image):
    wrapped = MultiViewInference(model, scales=(0.5, 1), flip=True)
    inputs = [{"image": image}, {"image": image[:, :31, :45], "height": 62, "width": 90}]
    together = wrapped(inputs)
    assert [tuple(x["sem_seg"].shape) for x in together] == [(3, 40, 56), (3, 62, 90)]
    for x, output in zip(inputs, together):
        torch.testing.assert_close(wrapped([x])[0]["sem_seg"], output["sem_seg"])
        assert output["note"] == tuple(round(side / 2) for side in x["image"].shape[1:])
    assert set(inputs[0]) == {"image"}


def test_flips_are_symmetric_and_tiny_scales_keep_a_pixel(model, image):
    wrapped = MultiViewInference(model, flip=True)
    torch.testing.assert_close(ask(wrapped, image.flip(2)).flip(2), ask(wrapped, image))
    assert not torch.allclose(ask(model, image.flip(2)).flip(2), ask(model, image))
    model.seen.clear()
    wrapped = MultiViewInference(model, scales=(0.01,))
    assert ask(wrapped, torch.zeros(3, 5, 7), (5, 7)).shape == (3, 5, 7)
    assert model.seen == [[(3, 1, 1)]]


def test_crf_refines_the_mean(model, image):
    refine = DenseCrf(CrfOptions(iterations=3))
    mean = ask(MultiViewInference(model, flip=True), image)
    refined = ask(MultiViewInference(model, flip=True, refine=refine), image)
    pixels = image.numpy().astype(np.uint8).transpose(1, 2, 0)
    expected = refine(mean.numpy(), pixels)
    np.testing.assert_allclose(refined.numpy(), expected, atol=1e-6)
    assert (refined - mean).abs().max() > 0.1
    # It sees the image at the size of the output.
    shapes = []

    def refine(probabilities, pixels):
        shapes.append((probabilities.shape, pixels.shape, pixels.dtype))
        return probabilities

    ask(MultiViewInference(model, refine=refine), image, (80, 100))
    assert shapes == [((3, 80, 100), (80, 100, 3), np.uint8)]


def test_the_config_decides(narrow_cfg, randomize, batch):
    cfg = narrow_cfg(*SCALES, *FLIP, *CRF, "SMALLOBJ.TEST.CRF.ITERATIONS", 2)
    model = randomize(build_model(cfg)).eval()
    x = {"image": batch[0]["image"]}
    with torch.no_grad():
        found = build_inference(cfg, model)([x])[0]["sem_seg"]
        expected = MultiViewInference(
            model, scales=[0.5, 1, 1.25], flip=True, refine=DenseCrf(CrfOptions(iterations=2))
        )([x])[0]["sem_seg"]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(0), torch.ones(found.shape[1:]), atol=1e-4, rtol=0)


def test_crf_options_come_from_the_config(narrow_cfg):
    cfg = narrow_cfg()
    assert build_crf(cfg).options == CrfOptions()
    cfg.SMALLOBJ.TEST.CRF.update(ITERATIONS=7, GAUSSIAN_SXY=2.0, GAUSSIAN_WEIGHT=1.0)
    cfg.SMALLOBJ.TEST.CRF.update(BILATERAL_SXY=30.0, BILATERAL_SRGB=5.0, BILATERAL_WEIGHT=6.0)
    assert build_crf(cfg).options == CrfOptions(7, 2.0, 1.0, 30.0, 5.0, 6.0)


def test_training_passes_through_and_modes_are_kept():
    model = Lopsided().train()
    wrapped = MultiViewInference(model, flip=True)
    assert wrapped.training
    assert set(wrapped([{"image": torch.zeros(3, 4, 4)}])) == {"loss_sem_seg"}
    model.eval()
    assert not MultiViewInference(model).training
    with pytest.raises(ValueError, match=r"average: unknown value 'softmx'.*mean 'softmax'"):
        MultiViewInference(model, average="softmx")
