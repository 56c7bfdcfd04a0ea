"""Sizes of logit maps without computing any, and the size weights that workers make for them."""

import functools

import pytest
import torch

from d2_smallobj.data.mapper import SemSegMapper
from d2_smallobj.losses import size_balanced
from d2_smallobj.modeling import segmentor as module
from d2_smallobj.modeling.segmentor import LogitSizes, logit_sizes
from detectron2.modeling import build_model
from detectron2.modeling.backbone import ResNet


@pytest.fixture
def config(narrow_cfg):
    """Function: a narrow net's config with the loss on the logits."""
    where = ("SMALLOBJ.CROP_SIZE", [44, 53], "SMALLOBJ.LOSS_RESOLUTION", "logits")
    return functools.partial(narrow_cfg, *where, "SMALLOBJ.TASK_A.LOSS", "size_weighted")


def found_by_running(cfg, batch):
    model = build_model(cfg).eval()
    padded = model._pad([x["image"] for x in batch], 0.0).tensor
    with torch.no_grad():
        return [tuple(x.shape[-2:]) for x in model.logits(padded).values()]


def batch_of(count=2, size=(44, 53)):
    generator = torch.Generator().manual_seed(0)
    return [{"image": torch.rand(3, *size, generator=generator)} for _ in range(count)]


@pytest.mark.parametrize("scales", ["", "[0.5, 0.75]", "[0.3, 1.25]"])
def test_sizes_are_those_of_the_net(config, scales):
    options = ["SMALLOBJ.MSC.ENABLED", "True", "SMALLOBJ.MSC.SCALES", scales] if scales else []
    cfg = config(*options)
    sizes = logit_sizes(cfg)
    assert sizes.padded == (44, 53)
    assert list(sizes.maps) == list(dict.fromkeys(found_by_running(cfg, batch_of())))


def test_random_numbers_are_not_touched_and_nothing_is_built_twice(config, monkeypatch):
    module._known_sizes.clear()
    state = torch.get_rng_state()
    first = logit_sizes(config())
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(module, "_find_sizes", None)
    assert logit_sizes(config()) is first


def test_what_cannot_run_without_memory(config, monkeypatch):
    def forward(self, x):
        return {"res3": x if x.sum() > 0 else -x}

    monkeypatch.setattr(ResNet, "forward", forward)
    module._known_sizes.clear()
    assert logit_sizes(config()) == LogitSizes((44, 53), ())
    module._known_sizes.clear()


def mapped(cfg, batch):
    """The batch with labels, and the weights that the mapper makes of them."""
    mapper = SemSegMapper(cfg, True)
    generator = torch.Generator().manual_seed(1)
    for x in batch:
        labels = torch.zeros(44, 53, dtype=torch.long)
        for label in range(1, 5):
            size = int(torch.randint(2, 20, (), generator=generator))
            y, left = torch.randint(0, 44 - size, (2,), generator=generator).tolist()
            labels[y : y + size, left : left + size] = label
        labels[:, :5] = 255
        x["sem_seg"] = labels
        mapper._add_size_weights(x, labels.numpy().astype("int32"))
    return batch


@pytest.mark.parametrize("divisibility", [0, 32])
def test_the_loss_is_the_same_and_no_longer_weighs(config, monkeypatch, divisibility):
    """With a net that pads its input too: labels are padded before they are resized."""
    monkeypatch.setattr(ResNet, "size_divisibility", divisibility)
    module._known_sizes.clear()
    cfg = config("SMALLOBJ.MSC.ENABLED", "True")
    model = build_model(cfg).train()
    batch = mapped(cfg, batch_of())
    assert all("size_weights" not in x for x in batch)
    bare = [{k: v for k, v in x.items() if k != "logit_size_weights"} for x in batch]
    calls = []
    original = size_balanced.batch_size_weights
    monkeypatch.setattr(
        size_balanced, "batch_size_weights", lambda *a: calls.append(a) or original(*a)
    )
    torch.manual_seed(0)
    expected = model(bare)
    assert len(calls) == 4
    torch.manual_seed(0)
    found = model(batch)
    assert len(calls) == 4
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    module._known_sizes.clear()


def test_task_a_gets_no_weights(config):
    cfg = config("SMALLOBJ.TASK_A.LOSS", "cross_entropy", "SMALLOBJ.TASK_A.ITERS", "3")
    mapper = SemSegMapper(cfg, True)
    assert mapper.weights_from == 3 * cfg.SOLVER.IMS_PER_BATCH
    assert mapper.logit_sizes.maps
    plain = config("SMALLOBJ.LOSS_RESOLUTION", "input")
    assert SemSegMapper(plain, True).logit_sizes is None
    assert SemSegMapper(cfg, False).logit_sizes is None
