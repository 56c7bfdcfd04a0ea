"""The training recipe against a second statement of it, in plain PyTorch (docs/method.md#recipe).

Nothing of the package is used in the restatement: convolutions by name from a dict of tensors,
labels resized by PIL, components from SciPy, and SGD written out.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from d2_smallobj.data import SemSegMapper
from d2_smallobj.engine import TwoTaskTrainer, build_config
from d2_smallobj.engine.solver import build_lr_scheduler, build_optimizer
from d2_smallobj.engine.step import TaskStepTrainer
from detectron2.utils.events import EventStorage

MEAN = (104.008, 116.669, 122.675)
BLOCKS = (3, 4, 6, 3)
LR, MOMENTUM, DECAY, POWER = 2.5e-4, 0.9, 5e-4, 0.9
CLASSES, SIDE, ITERATIONS, HOLD = 5, 97, 20, 2
STEPS = 3

# ---- The restatement ---------------------------------------------------------------------------


def unit(x, w, name, **options):
    """Convolution and frozen BatchNorm."""
    x = F.conv2d(x, w[f"{name}.weight"], **options)
    parts = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (w[f"{name}.norm.{part}"][:, None, None] for part in parts)
    return gamma * (x - mean) / torch.sqrt(variance + 1e-5) + beta


def network(x, w):
    """DeepLabV2-ResNet50 at output stride 8: logits of normalised images."""
    x = F.relu(unit(x, w, "backbone.stem.conv1", stride=2, padding=3))
    x = F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True)
    for stage, (stride, dilation) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4))):
        for block in range(BLOCKS[stage]):
            name = f"backbone.res{stage + 2}.{block}"
            s = stride if block == 0 else 1
            y = F.relu(unit(x, w, f"{name}.conv1", stride=s))
            y = F.relu(unit(y, w, f"{name}.conv2", padding=dilation, dilation=dilation))
            y = unit(y, w, f"{name}.conv3")
            x = F.relu(y + (unit(x, w, f"{name}.shortcut", stride=s) if block == 0 else x))
    logits = 0
    for i, rate in enumerate((6, 12, 18, 24)):
        branch = (w[f"sem_seg_head.aspp.{i}.{part}"] for part in ("weight", "bias"))
        logits = logits + F.conv2d(x, *branch, padding=rate, dilation=rate)
    return logits


def bilinear(x, **size):
    return F.interpolate(x, mode="bilinear", align_corners=False, **size)


def logit_maps(x, w, msc):
    """One map, or those at 1, 0.5 and 0.75 and their pixel-wise maximum."""
    maps = [network(x, w)]
    if msc:
        maps += [network(bilinear(x, scale_factor=scale), w) for scale in (0.5, 0.75)]
        resized = [bilinear(m, size=maps[0].shape[-2:]) for m in maps]
        maps.append(torch.max(torch.stack(resized), dim=0).values)
    return maps


def component_weights(labels):
    """``min(5, S_fg / S_k)``, 8-connected, per class; background 1, ignored 0."""
    weights = np.where(labels == 255, 0.0, 1.0)
    foreground = ((labels != 0) & (labels != 255)).sum()
    for value in set(np.unique(labels)) - {0, 255}:
        found, count = ndimage.label(labels == value, structure=np.ones((3, 3)))
        for k in range(1, count + 1):
            weights[found == k] = min(5.0, foreground / (found == k).sum())
    return weights


def loss_of(logits, labels, *, weighted, resolution):
    """Cross-entropy of one logit map on label maps (N, H, W)."""
    if resolution == "input":
        logits = bilinear(logits, size=labels.shape[-2:])
    else:
        size = (logits.shape[3], logits.shape[2])
        small = [Image.fromarray(x.astype(np.float32)).resize(size, Image.NEAREST) for x in labels]
        labels = np.stack([np.asarray(x).astype(np.int64) for x in small])
    weights = [component_weights(x) if weighted else np.where(x == 255, 0.0, 1.0) for x in labels]
    weights = torch.from_numpy(np.stack(weights))
    target = torch.from_numpy(np.where(labels == 255, 0, labels))
    log_p = torch.log_softmax(logits, dim=1).gather(1, target[:, None])[:, 0]
    return -(weights * log_p).sum() / weights.sum()


def group_of(name):
    """(factor of the learning rate, weight decay) of a trained tensor, None for a fixed one."""
    if ".norm." in name:
        return None
    if name.startswith("sem_seg_head"):
        return (20, 0.0) if name.endswith("bias") else (10, DECAY)
    return (1, DECAY)


class Recipe:
    """The weights, and one optimiser step after the other."""

    def __init__(self, weights, *, weighted, resolution, msc, accumulate):
        self.weights = {name: value.clone() for name, value in weights.items()}
        self.trained = {name: group_of(name) for name in weights if group_of(name)}
        self.velocity = dict.fromkeys(self.trained, 0.0)
        self.loss = {"weighted": weighted, "resolution": resolution}
        self.msc, self.accumulate = msc, accumulate

    def step(self, t, batches):
        """Returns the loss and the gradients."""
        for name in self.trained:
            self.weights[name] = self.weights[name].detach().requires_grad_()
        total = 0.0
        for images, labels in batches:
            x = images - torch.tensor(MEAN, dtype=images.dtype)[:, None, None]
            maps = logit_maps(x, self.weights, self.msc)
            loss = sum(loss_of(m, labels, **self.loss) for m in maps) / self.accumulate
            loss.backward()
            total += loss.item()
        gradients = {name: self.weights[name].grad for name in self.trained}
        rate = LR * (1 - t // HOLD * HOLD / ITERATIONS) ** POWER
        for name, (factor, decay) in self.trained.items():
            value = self.weights[name].detach()
            change = gradients[name] + decay * value
            self.velocity[name] = MOMENTUM * self.velocity[name] + change
            self.weights[name] = value - factor * rate * self.velocity[name]
        return total, gradients


# ---- Ours --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make_cfg(repository):
    def make(*options):
        narrow = (
            *("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "50"),
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
            *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES),
            *("SOLVER.MAX_ITER", ITERATIONS, "SMALLOBJ.POLY_HOLD", HOLD),
        )
        path = repository / "configs/Base-DeepLabV2-R101.yaml"
        return build_config(str(path), [str(x) for x in (*narrow, *options)])

    return make


def randomized(cfg):
    """The model in float64, with weights and statistics that all matter."""
    model = TwoTaskTrainer.build_model(cfg).double()
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.ndim == 4:
            # Images of 0..255 become logits of about 1: ours are rounded to float32.
            gain = 0.02 if "stem" in name else 1.0
            value.normal_(0, gain / value[0].numel() ** 0.5, generator=generator)
        elif name.endswith(("norm.weight", "running_var")):
            value.uniform_(0.5, 1.5, generator=generator)
        else:
            value.normal_(0, 0.2, generator=generator)
    return model


def make_batches(count, images=2):
    """``count`` batches of float64 images in 0..255 and label maps with many components."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        labels = np.zeros((images, SIDE, SIDE), np.int64)
        for label_map in labels:
            for _ in range(12):
                top, left = rng.integers(0, SIDE - 8, 2)
                height, width = rng.integers(2, 30, 2)
                value = rng.choice([1, 2, 3, 4, 255])
                label_map[top : top + height, left : left + width] = value
        pictures = torch.from_numpy(rng.uniform(0, 255, (images, 3, SIDE, SIDE)))
        batches.append((pictures, labels))
    return batches


def as_dicts(batch):
    return [{"image": x, "sem_seg": torch.from_numpy(y)} for x, y in zip(*batch)]


VARIANTS = {
    "CE, input": (),
    "CE, logits": ("logits",),
    "L_SW, input": ("weighted",),
    "L_SW, logits": ("weighted", "logits"),
    "CE, input, MSC": ("msc",),
    "L_SW, input, MSC": ("weighted", "msc"),
    "L_SW, logits, MSC, 2 passes": ("weighted", "logits", "msc", "accumulate"),
}


def build_pair(make_cfg, flags):
    """Our trainer and the restatement with the same weights, and the batches of all steps."""
    accumulate = 2 if "accumulate" in flags else 1
    resolution = "logits" if "logits" in flags else "input"
    cfg = make_cfg(
        *("SMALLOBJ.MSC.ENABLED", "msc" in flags, "SMALLOBJ.LOSS_RESOLUTION", resolution),
        *("SMALLOBJ.TASK_A.LOSS", "size_weighted" if "weighted" in flags else "cross_entropy"),
        *("SMALLOBJ.ACCUMULATE", accumulate),
    )
    model = randomized(cfg)
    same = {"weighted": "weighted" in flags, "resolution": resolution, "msc": "msc" in flags}
    recipe = Recipe(model.state_dict(), **same, accumulate=accumulate)
    batches = make_batches(STEPS * accumulate)
    optimizer = build_optimizer(cfg, model)
    ours = SimpleNamespace(
        model=model,
        step=TaskStepTrainer(model, map(as_dicts, batches), optimizer, accumulate=accumulate),
        scheduler=build_lr_scheduler(cfg, optimizer),
    )
    return ours, recipe, batches


@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS.keys())
def test_steps_from_equal_weights(make_cfg, flags):
    """The same loss, gradients and weights to 1e-5, over a change of the held rate."""
    ours, recipe, batches = build_pair(make_cfg, flags)
    with EventStorage() as storage:
        for t in range(STEPS):
            ours.step.iter = storage.iter = t
            ours.step.run_step()
            ours.scheduler.step()
            n = recipe.accumulate
            loss, gradients = recipe.step(t, batches[n * t : n * (t + 1)])
            assert storage.history("total_loss").latest() == pytest.approx(loss, rel=1e-5)
            state = ours.model.state_dict()
            found = {k: p.grad for k, p in ours.model.named_parameters()}
            assert set(found) == set(gradients)
            for name, gradient in gradients.items():
                scale = gradient.abs().max()
                assert scale > 0, name
                limits = {"rtol": 1e-5, "atol": 1e-5 * scale.item()}
                torch.testing.assert_close(found[name], gradient, **limits, msg=name)
                moved = state[name] - recipe.weights[name]
                assert moved.abs().max() <= 1e-5 * LR * max(scale.item(), 1), name
            for name in set(state) - set(gradients):
                assert torch.equal(state[name], recipe.weights[name]), name


def test_the_restatement_can_differ(make_cfg):
    """The comparison above notices what is easily got wrong."""
    ours, recipe, (batch,) = (*build_pair(make_cfg, ("msc",))[:2], make_batches(1))
    with EventStorage():
        ours.step.run_step()
    right, gradients = recipe.step(0, [batch])
    for change in ({"weighted": True}, {"resolution": "logits"}):
        other = Recipe(recipe.weights, weighted=False, resolution="input", msc=True, accumulate=1)
        other.loss.update(change)
        assert abs(other.step(0, [batch])[0] - right) > 1e-3 * right
    assert gradients["backbone.stem.conv1.weight"].abs().sum() > 0


def test_the_test_image_is_predicted_at_full_size(make_cfg):
    """No crop, no resizing, no padding: the maximum map, upsampled to the image."""
    model = randomized(make_cfg("SMALLOBJ.MSC.ENABLED", True)).eval()
    image = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (3, 75, 101)))
    with torch.no_grad():
        (output,) = model([{"image": image, "height": 75, "width": 101}])
        x = (image - torch.tensor(MEAN, dtype=image.dtype)[:, None, None])[None]
        expected = bilinear(logit_maps(x, model.state_dict(), True)[-1], size=(75, 101))[0]
    torch.testing.assert_close(output["sem_seg"].double(), expected, rtol=1e-5, atol=1e-5)


def test_a_crop_of_321_gives_the_recipes_maps(make_cfg):
    model = TwoTaskTrainer.build_model(make_cfg("SMALLOBJ.MSC.ENABLED", True)).eval()
    with torch.no_grad():
        maps = model.logits(torch.zeros(1, 3, 321, 321))
    assert [tuple(m.shape[2:]) for m in maps.values()] == [(41, 41), (21, 21), (31, 31), (41, 41)]


def test_the_released_config_is_the_recipe(repository):
    cfg = build_config(str(repository / "configs/voc_sbce_released.yaml"))
    node, solver = cfg.SMALLOBJ, cfg.SOLVER
    assert (solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY) == (LR, MOMENTUM, DECAY)
    assert (solver.IMS_PER_BATCH, node.ACCUMULATE, node.POLY_HOLD) == (5, 2, 10)
    assert (solver.MAX_ITER, node.TASK_A.ITERS, node.POLY_POWER) == (30000, 15000, POWER)
    assert (node.MSC.ENABLED, node.LOSS_RESOLUTION, node.STEM_POOL_CEIL) == (True, "logits", True)
    assert tuple(cfg.MODEL.PIXEL_MEAN) == MEAN
    assert cfg.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]
    assert (cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1) == ("BGR", True)
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM) == (101, "FrozenBN")


# ---- Augmentation ------------------------------------------------------------------------------

CROP = 29
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)


def restated_crops(image, labels):
    """Every outcome of scaling, padding, cropping and flipping, in this order."""
    for scale in SCALES:
        height, width = (int(side * scale) for side in labels.shape)
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
        scaled = bilinear(tensor, size=(height, width))[0].numpy()
        small = np.asarray(Image.fromarray(labels).resize((width, height), Image.NEAREST))
        below, right = max(CROP - height, 0), max(CROP - width, 0)
        channels = [np.pad(c, ((0, below), (0, right)), constant_values=m)
                    for c, m in zip(scaled, MEAN)]  # fmt: skip
        padded = np.stack(channels)
        small = np.pad(small, ((0, below), (0, right)), constant_values=255)
        rows, columns = (range(side - CROP + 1) for side in small.shape)
        for top, left, flip in itertools.product(rows, columns, (1, -1)):
            window = np.s_[..., top : top + CROP, left : left + CROP]
            drawn = (scale, top, left, flip)
            yield drawn, padded[window][..., ::flip], small[window][:, ::flip]


def test_augmentation(repository, tmp_path, make_cfg):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (23, 31, 3), np.uint8)
    labels = rng.choice(np.array([0, 1, 2, 3, 4, 255], np.uint8), (23, 31))
    Image.fromarray(picture).save(tmp_path / "image.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    bgr = picture[..., ::-1].astype(np.float32)
    outcomes = {y.tobytes(): (drawn, x) for drawn, x, y in restated_crops(bgr, labels)}
    mapper = SemSegMapper(make_cfg("SMALLOBJ.CROP_SIZE", [CROP, CROP]), True)
    names = {"file_name": "image.png", "sem_seg_file_name": "labels.png"}
    files = {key: str(tmp_path / name) for key, name in names.items()}
    seen = []
    for position in range(300):
        sample = mapper({**files, "stream_position": position})
        drawn, expected = outcomes[sample["sem_seg"].numpy().astype(np.uint8).tobytes()]
        np.testing.assert_allclose(sample["image"].numpy(), expected, atol=2e-3, err_msg=str(drawn))
        seen.append(drawn)
    for scale in SCALES:
        assert 30 < sum(s == scale for s, *_ in seen) < 90  # 60 expected, sd 7
    assert 110 < sum(flip == 1 for *_, flip in seen) < 190  # 150 expected, sd 9
    largest = {(top, left) for scale, top, left, _ in seen if scale == 1.5}
    assert {top for top, _ in largest} == set(range(34 - CROP + 1))
    assert len({left for _, left in largest}) > 12  # of 18
