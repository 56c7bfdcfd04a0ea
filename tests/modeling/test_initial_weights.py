"""Initial weights in the layouts that they are published in, with their real names and shapes."""

import copy
import logging
import pickle
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from d2_smallobj.engine import SafeCheckpointer
from d2_smallobj.modeling import initial_weights, weight_layouts
from d2_smallobj.modeling.initial_weights import load_weights, match_weights
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
FULL = {"stem": 64, "middle": 64, "out": 256}
NARROW = {"stem": 4, "middle": 4, "out": 8}  # narrow_cfg's widths
RATES = 4
STATISTICS = {p: p for p in ("weight", "bias", "running_mean", "running_var")}
NAN = float("nan")


def convolutions(depth, stem, middle, out):
    """(stage, block, layer, shape) of every convolution of a bottleneck ResNet but the first."""
    channels = stem
    for stage, blocks in enumerate(BLOCKS[depth], start=2):
        width, wide = middle * 2 ** (stage - 2), out * 2 ** (stage - 2)
        for block in range(blocks):
            if block == 0:
                yield stage, block, "shortcut", (wide, channels, 1, 1)
            yield stage, block, "conv1", (width, channels, 1, 1)
            yield stage, block, "conv2", (width, width, 3, 3)
            yield stage, block, "conv3", (wide, width, 1, 1)
            channels = wide


def resnet(depth, widths, stem, name, parts):
    """(name in the file, model's key or None, shape) of every tensor.

    ``stem`` and ``name(stage, block, layer)`` are a weight's name, and its norm's with a ``{}``.
    """
    rows = [(stem, "backbone.stem.conv1", (widths["stem"], 3, 7, 7))]
    for *layer, shape in convolutions(depth, **widths):
        rows.append((name(*layer), "backbone.res{}.{}.{}".format(*layer), shape))
    for (weight, norm), key, shape in rows:
        yield weight, f"{key}.weight", shape
        for part, own in parts.items():
            yield norm.format(part), own and f"{key}.norm.{own}", shape[:1] if own else ()


def caffe2(depth, widths, style):
    parts = {"s": "weight", "b": "bias"}
    if style == "detectron2":
        parts = {"gamma": "weight", "beta": "bias", **{p: p for p in [*STATISTICS][2:]}}
    branches = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}

    def name(stage, block, layer):
        start = f"res{stage}_{block}_branch{branches[layer]}"
        return f"{start}_w", f"{start}_bn_{{}}"

    yield from resnet(depth, widths, ("conv1_w", "res_conv1_bn_{}"), name, parts)
    yield "conv1_b", None, (widths["stem"],)
    yield "fc1000_w", None, (1000, 8 * widths["out"])
    yield "fc1000_b", None, (1000,)


def torchvision(depth, widths, style="plain"):
    prefix = {"plain": "", "parallel": "module.", "segmentation": "backbone."}[style]

    def name(stage, block, layer):
        start = f"{prefix}layer{stage - 1}.{block}."
        if layer == "shortcut":
            return f"{start}downsample.0.weight", f"{start}downsample.1.{{}}"
        return f"{start}{layer}.weight", f"{start}bn{layer[-1]}.{{}}"

    parts = STATISTICS if style == "plain" else {**STATISTICS, "num_batches_tracked": None}
    stem = f"{prefix}conv1.weight", f"{prefix}bn1.{{}}"
    yield from resnet(depth, widths, stem, name, parts)
    yield f"{prefix}fc.weight", None, (1000, 8 * widths["out"])
    yield f"{prefix}fc.bias", None, (1000,)


def kazuto(depth, widths, style):
    prefix = {"v1 coco": "", "v2 msc": "base.", "v2 old": "scale."}[style]
    units = {"conv1": "reduce", "conv2": "conv3x3", "conv3": "increase"}
    units["shortcut"] = "proj" if style == "v2 old" else "shortcut"

    def name(stage, block, layer):
        start = f"{prefix}layer{stage}.block{block + 1}.{units[layer]}"
        return f"{start}.conv.weight", f"{start}.bn.{{}}"

    stem = f"{prefix}layer1.conv1.conv.weight", f"{prefix}layer1.conv1.bn.{{}}"
    parts = {**STATISTICS, "num_batches_tracked": None}
    yield from resnet(depth, widths, stem, name, parts)
    channels = 8 * widths["out"]
    if style == "v1 coco":
        yield "fc.weight", None, (91, channels, 1, 1)
        yield "fc.bias", None, (91,)
        return
    classes = 21 if widths is FULL else 5
    aspp = "aspp.stages" if style == "v2 old" else "aspp"
    for i in range(RATES):
        key = f"sem_seg_head.aspp.{i}"
        yield f"{prefix}{aspp}.c{i}.weight", f"{key}.weight", (classes, channels, 3, 3)
        yield f"{prefix}{aspp}.c{i}.bias", f"{key}.bias", (classes,)


def detectron2(depth, widths, style):
    prefix = {"backbone": "", "model": "backbone."}[style]

    def name(stage, block, layer):
        start = f"{prefix}res{stage}.{block}.{layer}"
        return f"{start}.weight", f"{start}.norm.{{}}"

    stem = f"{prefix}stem.conv1.weight", f"{prefix}stem.conv1.norm.{{}}"
    yield from resnet(depth, widths, stem, name, STATISTICS)


FILES = {
    "detectron2's MSRA": (caffe2, "detectron2", weight_layouts.CAFFE2),
    "Detectron's MSRA": (caffe2, "detectron", weight_layouts.CAFFE2),
    "torchvision": (torchvision, "plain", weight_layouts.TORCHVISION),
    "torchvision, parallel": (torchvision, "parallel", weight_layouts.TORCHVISION),
    "torchvision, segmentation": (torchvision, "segmentation", weight_layouts.TORCHVISION),
    "kazuto, COCO": (kazuto, "v1 coco", weight_layouts.KAZUTO),
    "kazuto, VOC": (kazuto, "v2 msc", weight_layouts.KAZUTO),
    "kazuto, 2018": (kazuto, "v2 old", weight_layouts.KAZUTO),
    "detectron2, backbone": (detectron2, "backbone", weight_layouts.DETECTRON2),
    "detectron2, model": (detectron2, "model", weight_layouts.DETECTRON2),
}


@pytest.fixture(params=FILES)
def file(request):
    return FILES[request.param]


def values_of(rows, seed=0):
    """Random values by name in the file, and what the model must hold afterwards by key."""
    random = np.random.default_rng(seed)
    values, expected = OrderedDict(), {}
    for name, key, shape in rows:
        value = random.uniform(0.5, 1.5, shape).astype(np.float32)
        values[name] = torch.from_numpy(np.asarray(value))
        if key is not None:
            expected[key] = values[name]
    return values, expected


def as_arrays(values):
    return {name: value.numpy() for name, value in values.items()}


@pytest.fixture(scope="module")
def built(narrow_cfg):
    """Narrow models by depth, built once."""
    torch.manual_seed(0)
    return {depth: build_model(narrow_cfg("MODEL.RESNETS.DEPTH", depth)) for depth in (50, 101)}


@pytest.fixture
def resnet101(built):
    return copy.deepcopy(built[101])


@pytest.fixture
def model(built):
    """A ResNet-50, where the depth does not matter."""
    return copy.deepcopy(built[50])


@pytest.fixture
def log(monkeypatch):
    """The messages by level, whatever another test has set the loggers to."""
    told = SimpleNamespace(info=[], warning=[])
    for level, messages in vars(told).items():
        monkeypatch.setattr(initial_weights.logger, level, messages.append)
    return told


def unchanged(model, before, names):
    return all(torch.equal(model.state_dict()[name], before[name]) for name in names)


def test_every_tensor_of_the_full_resnet101_finds_its_place(narrow_cfg, file):
    """Names and shapes at full width; tensors of the meta device have no memory."""
    rows, style, expected = file
    cfg = narrow_cfg(
        *("MODEL.RESNETS.DEPTH", 101, "MODEL.RESNETS.STEM_OUT_CHANNELS", 64),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", 256, "MODEL.RESNETS.WIDTH_PER_GROUP", 64),
    )
    with torch.device("meta"):
        backbone = BACKBONE_REGISTRY.get("build_dilated_resnet_backbone")(cfg, ShapeSpec(3))
        aspp = nn.ModuleList(nn.Conv2d(2048, 21, 3) for _ in range(RATES))
        state = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
        state.update({f"sem_seg_head.aspp.{k}": v for k, v in aspp.state_dict().items()})
        table = [(name, key, torch.empty(shape)) for name, key, shape in rows(101, FULL, style)]
    layout = weight_layouts.detect_layout([name for name, *_ in table])
    assert layout is expected
    strips = layout is not weight_layouts.DETECTRON2
    bare = [weight_layouts.strip_wrappers(name) if strips else name for name, *_ in table]
    renamed = {layout.rename(name): value for name, (*_, value) in zip(bare, table)}
    match = match_weights(state, renamed, by_suffix=True)
    assert set(match.pairs) == {key for _, key, _ in table if key}
    assert match.wrong_shape == {}
    assert all("sem_seg_head" in key for key in match.missing)
    assert sum(key.startswith("backbone.") for key in match.pairs) >= 104 * 3


def test_values_arrive(resnet101, file, tmp_path):
    rows, style, _ = file
    values, expected = values_of(rows(101, NARROW, style))
    torch.save(values, tmp_path / "weights.pth")
    before = {k: v.clone() for k, v in resnet101.state_dict().items()}
    SafeCheckpointer(resnet101).load(str(tmp_path / "weights.pth"))
    state = resnet101.state_dict()
    assert len(expected) >= 104 * 3
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
    # Detectron's norms come with their statistics folded in: mean 0, variance 1.
    for key in set(state) - set(expected):
        if key.endswith("running_var"):
            torch.testing.assert_close(state[key], torch.ones_like(state[key]), atol=2e-5, rtol=0)
        else:
            assert torch.equal(state[key], before[key]), key


def pickled(values, tmp_path, protocol=2):
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(values, protocol=protocol))
    return tmp_path / "weights.pkl"


MOMENTUM = {"conv1_w_momentum": np.zeros(3)}
CONTAINERS = {
    "pkl": lambda v, to: pickled(as_arrays(v), to),
    "pkl, blobs": lambda v, to: pickled({"blobs": {**as_arrays(v), **MOMENTUM}}, to),
    "pkl, author": lambda v, to: pickled(
        {"model": as_arrays(v), "__author__": "x"}, to, protocol=4
    ),
    "pth, model": lambda v, to: saved({"model": v, "iteration": 7}, to),
    "pth, state_dict": lambda v, to: saved({"state_dict": v, "epoch": 7}, to),
    "pth of 2019": lambda v, to: saved(v, to, _use_new_zipfile_serialization=False),
}


def saved(values, tmp_path, **options):
    torch.save(values, tmp_path / "weights.pth", **options)
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("name", ["Detectron's MSRA", "torchvision", "kazuto, VOC"])
def test_every_container_is_read(model, tmp_path, name):
    rows, style, _ = FILES[name]
    values, expected = values_of(rows(50, NARROW, style))
    for container, write in CONTAINERS.items():
        for value in model.state_dict().values():
            value.zero_()
        SafeCheckpointer(model).load(str(write(values, tmp_path)))
        state = model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.items()), container


def test_arrays_of_any_byte_order_and_of_half_precision(model):
    values, expected = values_of(torchvision(50, NARROW))
    swapped = {n: v.numpy().astype(">f4") for n, v in values.items()}
    swapped["conv1.weight"] = values["conv1.weight"].half()
    load_weights(model, swapped, source="file")
    for key, value in expected.items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-3, atol=0)


def test_a_cut_resnet_starts_from_a_whole_one(narrow_cfg):
    cfg = narrow_cfg(
        *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.OUT_FEATURES", "['res3']"),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res3']"),
    )
    cut = build_model(cfg)
    values, expected = values_of(kazuto(50, NARROW, "v1 coco"))
    load_weights(cut, values, source="file")
    key = "backbone.res3.3.conv3.weight"
    assert torch.equal(cut.state_dict()[key], expected[key])


@pytest.mark.parametrize("depth", [18, 50])
def test_features_are_torchvisions(narrow_cfg, depth):
    """Through the converter, our net computes what torchvision's does."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = getattr(models, f"resnet{depth}")(weights=None).eval()
    for name, value in theirs.state_dict().items():
        if "running_var" in name or ("bn" in name and name.endswith("weight")):
            value.uniform_(0.5, 1.5)
        elif "running_mean" in name:
            value.normal_(0, 0.1)
    width = 64 if depth == 18 else 256
    cfg = narrow_cfg(
        *("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.STEM_OUT_CHANNELS", 64),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", width, "MODEL.RESNETS.WIDTH_PER_GROUP", 64),
        *("MODEL.RESNETS.STRIDE_IN_1X1", False, "SMALLOBJ.OUTPUT_STRIDE", 32),
    )
    ours = build_model(cfg).eval()
    load_weights(ours, theirs.state_dict(), source="file")
    x = torch.randn(2, 3, 70, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            y = stage(y)
        features = ours.backbone(x)["res5"]
    assert features.shape == y.shape
    torch.testing.assert_close(features, y, rtol=1e-4, atol=1e-4 * y.abs().max().item())


def test_the_log_counts_what_was_loaded(model, log):
    values, expected = values_of(kazuto(50, NARROW, "v2 msc"))
    load_weights(model, values, source="voc.pth", complete=True)
    (text,) = log.info
    assert f"{len(expected)} of the model's {len(expected)} tensors" in text
    assert len(text.splitlines()) == 1
    log.info.clear()
    values, expected = values_of(kazuto(50, NARROW, "v1 coco"))
    values["lr"] = 0.1
    load_weights(model, values, source="coco.pth")
    total = len(expected) + 2 * RATES
    (text,) = log.info
    assert f"coco.pth (kazuto1011/deeplab-pytorch): {len(expected)} of the model's {total}" in text
    assert "backbone.stem (5), backbone.res2 (50), backbone.res3 (65), backbone.res4 (95)" in text
    assert "not in the file, left as initialised: sem_seg_head.aspp.0.weight" in text
    assert "in the file, not used: fc.weight, fc.bias, lr" in text
    assert "num_batches_tracked" not in text
    assert len(text.splitlines()) == 3


CAFFE_INPUT = ("MODEL.PIXEL_MEAN", "[104.008, 116.669, 122.675]")
TORCH_INPUT = (
    *("INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]"),
    *("MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]", "MODEL.RESNETS.STRIDE_IN_1X1", False),
)
WRONG_FOR_CAFFE = [
    "INPUT.FORMAT is RGB, they need BGR",
    "MODEL.PIXEL_MEAN is [123.675, 116.28, 103.53], they need [103.53, 116.28, 123.675]",
    "MODEL.PIXEL_STD is [58.395, 57.12, 57.375], they need [1.0, 1.0, 1.0]",
    "MODEL.RESNETS.STRIDE_IN_1X1 is False, they need True",
]
WRONG_FOR_TORCH = [
    "INPUT.FORMAT is BGR, they need RGB",
    "MODEL.PIXEL_MEAN is [104.008, 116.669, 122.675], they need [123.675, 116.28, 103.53]",
    "MODEL.PIXEL_STD is [1.0, 1.0, 1.0], they need [58.395, 57.12, 57.375]",
    "MODEL.RESNETS.STRIDE_IN_1X1 is True, they need False",
]
CEIL = "SMALLOBJ.STEM_POOL_CEIL is False, they need True"


@pytest.mark.parametrize(
    ("name", "author", "options", "told"),
    [
        ("torchvision", "", CAFFE_INPUT, WRONG_FOR_TORCH),
        ("torchvision", "", TORCH_INPUT, []),
        ("detectron2's MSRA", "", CAFFE_INPUT, []),
        ("detectron2's MSRA", "", TORCH_INPUT, WRONG_FOR_CAFFE),
        ("kazuto, COCO", "", TORCH_INPUT, [*WRONG_FOR_CAFFE, CEIL]),
        ("kazuto, COCO", "", (*CAFFE_INPUT, "SMALLOBJ.STEM_POOL_CEIL", True), []),
        ("detectron2, backbone", "torchvision", CAFFE_INPUT, WRONG_FOR_TORCH),
        ("detectron2, backbone", "someone", TORCH_INPUT, []),
    ],
)
def test_an_input_that_the_weights_do_not_know_is_told(
    narrow_cfg, model, log, name, author, options, told
):
    cfg = narrow_cfg("MODEL.RESNETS.DEPTH", 50, *options)
    rows, style, _ = FILES[name]
    values, _ = values_of(rows(50, NARROW, style))
    load_weights(model, values, source="file", author=author, cfg=cfg)
    assert [w.split("gives them: ")[1] for w in log.warning] == ["; ".join(told)] * bool(told)


def test_a_head_for_other_classes_is_left_out(narrow_cfg, log):
    for classes in (4, 7):
        torch.manual_seed(0)
        model = build_model(
            narrow_cfg("MODEL.RESNETS.DEPTH", 50, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", classes)
        )
        before = {k: v.clone() for k, v in model.state_dict().items()}
        values, expected = values_of(kazuto(50, NARROW, "v2 msc"))
        log.warning.clear()
        load_weights(model, values, source="voc.pth")
        heads = [key for key in expected if "aspp" in key]
        assert unchanged(model, before, heads)
        (text,) = log.warning
        assert "aspp.0.weight (5, 64, 3, 3) in the file" in text
        assert f"a head for 5 classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is {classes}" in text
        assert "start from their random initialisation" in text
        key = "backbone.res5.2.conv3.weight"
        assert torch.equal(model.state_dict()[key], expected[key])
        with pytest.raises(ValueError, match="not hold the whole model: shapes differ: sem_seg_he"):
            load_weights(model, values, source="voc.pth", complete=True)


def test_a_missing_head_is_an_error_in_an_evaluation(model):
    values, _ = values_of(kazuto(50, NARROW, "v1 coco"))
    with pytest.raises(
        ValueError, match=r"coco\.pth does not hold the whole model: it lacks sem_s"
    ):
        load_weights(model, values, source="coco.pth", complete=True)


@pytest.mark.parametrize(
    ("depths", "told"),
    [
        ((101, 50), r"\(the file's is DEPTH 50, \[3, 4, 6, 3\] blocks, the model's DEPTH 101, \["),
        ((50, 101), r"\(the file's is DEPTH 101, \[3, 4, 23, 3\] blocks, the model's DEPTH 50, \["),
    ],
)
def test_another_depth_is_refused_without_a_list_of_tensors(built, depths, told):
    model = built[depths[0]]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    values, expected = values_of(torchvision(depths[1], NARROW))
    for complete in (False, True):
        match = rf"holds another ResNet.*{told}[\d, ]+\] blocks\)\. MODEL\.RESNETS"
        with pytest.raises(ValueError, match=match) as caught:
            load_weights(model, values, source="file", complete=complete)
        assert "conv" not in str(caught.value)
    assert unchanged(model, before, set(expected) & set(before))


def test_zoo_pickles_match_by_the_ends_of_names(model, tmp_path):
    weights = {k: torch.full_like(v, 2) for k, v in model.backbone.state_dict().items()}
    data = {"model": as_arrays(weights), "__author__": "us", "matching_heuristics": True}
    SafeCheckpointer(model).load(str(pickled(data, tmp_path)))
    assert all(torch.all(v == 2) for v in model.backbone.state_dict().values())
    two = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    data["model"] = {"weight": np.zeros((2, 2))}
    with pytest.raises(ValueError, match=r"'weight' in the file matches both 'a\.weight' and 'b"):
        SafeCheckpointer(two).load(str(pickled(data, tmp_path)))


def test_files_that_are_refused(model):
    three = torch.zeros(3)
    features = {f"features.{i}.weight": three for i in range(5)}
    not_finite = {"layer1.0.conv1.weight": three, "layer2.0.conv1.w": torch.tensor(NAN)}
    twice = {f"res2_0_branch2a_{x}": three for x in ("w", "bn_s", "bn_gamma")}
    wider = values_of(torchvision(50, {**NARROW, "out": 16}))[0]
    for values, message in (
        (
            features,
            r"file \(detectron2's names\) fits nothing in the model: it has features\.0\.we",
        ),
        (features, r"it has features.* and 2 more; the model has backbone\.stem"),
        ({"backbone.stem.conv1.weight": three}, r"another ResNet .*other shapes: backbone\.stem"),
        (not_finite, r"file holds values that are not finite in layer2\.0\.co"),
        ({"a": "text", "b": np.array(["x"], dtype=object)}, "holds no weights, but a, b"),
        (twice, r"'res2_0_branch2a_bn_s' and 'res2_0_branch2a_bn_gamma' are both 'res2"),
        (wider, r"another ResNet.*with other shapes: backbone\.res2\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(model, values, source="file")
    with pytest.raises(ValueError, match=r"file fits the model nowhere: shapes differ: weight \(3"):
        load_weights(nn.Linear(2, 2), {"weight": torch.zeros(3)}, source="file")


def test_a_pickle_of_other_objects_is_refused(model, tmp_path):
    values, _ = values_of(caffe2(50, NARROW, "detectron"))
    path = pickled({**as_arrays(values), "cfg": logging.getLogger("x")}, tmp_path)
    with pytest.raises(ValueError, match=r"s\.pkl cannot be read .*logging\.getLogger, which"):
        SafeCheckpointer(model).load(str(path))
