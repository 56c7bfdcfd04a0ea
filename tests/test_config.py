"""Config: every key is read and has a rule, nothing leaks into detectron2's nodes, files load."""

from __future__ import annotations

import contextlib
import functools
import math
import pathlib
import re

import pytest
import torch

import d2_smallobj
from d2_smallobj.config import add_smallobj_config, has_penalty, task_a_iterations
from d2_smallobj.config_rules import validate_config
from d2_smallobj.engine import build_config
from d2_smallobj.engine.setup import check_architecture
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

_CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
CONFIGS = sorted(path.stem for path in _CONFIGS.glob("*.yaml"))
OF_THE_REAL_HOST = ("deeplabv3plus", "semfpn")
NAN, INF = math.nan, math.inf
ONCE = "a list of factors > 0, each given once and none 1"
PAIR = "two integers (height, width), at least one output stride (8) each"


def config():
    cfg = get_cfg()
    add_smallobj_config(cfg)
    return cfg


def leaves(node, path=()):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


KEYS = tuple(leaves(config().SMALLOBJ))


def test_nothing_is_written_into_shared_nodes():
    cfg = config()
    del cfg["SMALLOBJ"]
    assert cfg.dump() == get_cfg().dump()


NUMBERS = {  # some keys with values that break the rule, and values at its limits
    "OUTPUT_STRIDE": ("4, 8, 16 or 32", (0, 12, 8.0), (4, 32)),
    "ASPP_DILATIONS": ("a list of integers >= 1", ([], [0], [1.5], 6), ([1], (6, 12))),
    "ASPP_INIT_STD": ("> 0", (0.0, -1.0, NAN, INF, "x"), (1e-9,)),
    "MSC.SCALES": (ONCE, ([], [0.0], [NAN], ["a"], [1.0], [0.5, 0.5], 0.5), ([0.5], [0.5, 1.25])),
    "TAU": ("a finite number >= 1", (0.999, NAN, INF, "5"), (1, 1.0, 1e6)),
    "TASK_A.ITERS": ("between 0 and SOLVER.MAX_ITER = 100", (-2, 101, 1.5), (-1, 0, 100)),
    "EWC.LAMBDA": ("a finite number >= 0", (-0.001, NAN, INF), (0, 0.0, 1e9)),
    "EWC.ALPHA": ("in [0, 1)", (-0.1, 1.0, NAN), (0, 0.999)),
    "EWC.NUM_IMAGES": ("an integer >= 1", (0, -1, 1.5, True), (1,)),
    "CROP_SIZE": (PAIR, ([8], [8, 8, 3], [7, 8], [8.5, 8], 8), ([8, 8], (321, 500))),
    "FLIP_PROB": ("in [0, 1]", (-0.1, 1.1, NAN), (0, 1, 1.0)),
    "SUPERVISION.MASK_FRACTION": ("in (0, 1]", (0, 1.1, NAN), (1e-3, 1)),
    "SUPERVISION.SPLIT_SEED": ("an integer >= -1", (-2, 1.5, True), (-1, 7)),
    "PICTURES.PERIOD": ("an integer >= 0", (-1, 1.5, True), (0,)),
}


def check(key, value):
    """Validate a config with one value changed, whose type yacs would not check."""
    cfg = config()
    *path, name = key.split(".")
    node = functools.reduce(getattr, path, cfg.SMALLOBJ)
    assert name in node
    node[name] = value
    cfg.SOLVER.MAX_ITER = 100
    validate_config(cfg)


@pytest.mark.parametrize("key", KEYS, ids=".".join)
def test_every_key_has_a_rule(key):
    """Booleans aside: yacs refuses other types for them."""
    default = functools.reduce(getattr, key, config().SMALLOBJ)
    key = ".".join(key)
    if isinstance(default, bool):
        return
    with pytest.raises(ValueError, match=rf"SMALLOBJ\.{re.escape(key)}(:| must be) .*None"):
        check(key, None)
    if isinstance(default, str):
        told = rf"unknown value '{default}x'.*did you mean '{default}'"
        with pytest.raises(ValueError, match=told):
            check(key, f"{default}x")


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers(key):
    rule, broken, legal = NUMBERS[key]
    for value in broken:
        message = rf"^SMALLOBJ\.{re.escape(key)} must be .*{re.escape(rule)}.*, got "
        with pytest.raises(ValueError, match=message + re.escape(repr(value)) + "$"):
            check(key, value)
    for value in legal:
        check(key, value)


def test_task_lengths():
    cfg = config()
    cfg.SOLVER.MAX_ITER = 100
    expected = {-1: (100, False), 0: (0, True), 40: (40, True), 100: (100, False)}
    for iterations, (task_a, penalty) in expected.items():
        cfg.SMALLOBJ.TASK_A.ITERS = iterations
        assert (task_a_iterations(cfg), has_penalty(cfg)) == (task_a, penalty)
    cfg.SMALLOBJ.TASK_A.ITERS = 40
    cfg.SMALLOBJ.EWC.LAMBDA = 0.0
    assert not has_penalty(cfg)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_files_load(repository, name):
    if name.endswith(OF_THE_REAL_HOST) and d2_smallobj.host().name == "embedded":
        pytest.skip("needs the real detectron2")
    cfg = build_config(str(repository / "configs" / f"{name}.yaml"))
    architecture = "UncertainSegmentor" if "mixed" in name else "SizeBalancedSegmentor"
    assert architecture == cfg.MODEL.META_ARCHITECTURE
    assert cfg.VERSION == 2
    if not name.startswith("Base"):
        assert cfg.DATASETS.TRAIN
        assert cfg.DATASETS.TEST
        assert f"output/{name}" == cfg.OUTPUT_DIR
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert device == cfg.MODEL.DEVICE


def test_the_recipe(repository):
    """The config files hold the values of docs/method.md#recipe."""
    base = build_config(str(repository / "configs/Base-DeepLabV2-R101.yaml"))
    assert base.MODEL.RESNETS.DEPTH == 101
    assert (base.MODEL.RESNETS.NORM, base.MODEL.RESNETS.STRIDE_IN_1X1) == ("FrozenBN", True)
    assert base.MODEL.PIXEL_MEAN == [104.008, 116.669, 122.675]
    assert base.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]
    assert base.INPUT.FORMAT == "BGR"
    solver = base.SOLVER
    assert (solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY) == (2.5e-4, 0.9, 5e-4)
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.WARMUP_ITERS) == (10, 20000, 0)
    assert task_a_iterations(base) == 20000
    for name in ("voc_sbce", "pascalb_sbce", "coco_sbce"):
        cfg = build_config(str(repository / f"configs/{name}.yaml"))
        assert (cfg.SMALLOBJ.TASK_A.ITERS, cfg.SOLVER.MAX_ITER) == (15000, 30000)
        assert (cfg.SMALLOBJ.TAU, cfg.SMALLOBJ.EWC.LAMBDA) == (5.0, 500.0)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 81
    pascal_b = build_config(str(repository / "configs/pascalb_sbce.yaml"))
    assert pascal_b.DATASETS.TRAIN == ("voc_2012_trainaug_irn",)
    assert pascal_b.DATASETS.TEST == ("voc_2012_seg_val", "pascal_b_val")


def test_the_demo_pair_differs_in_the_second_task_only(repository):
    ce, sbce = (build_config(str(repository / f"configs/demo_{x}.yaml")) for x in ("ce", "sbce"))
    assert (ce.SMALLOBJ.TASK_A.ITERS, sbce.SMALLOBJ.TASK_A.ITERS * 2) == (-1, ce.SOLVER.MAX_ITER)
    for cfg in (ce, sbce):
        del cfg["OUTPUT_DIR"]
        del cfg.SMALLOBJ["TASK_A"]
        del cfg.SMALLOBJ["EWC"]
    assert ce.dump() == sbce.dump()


def test_options_override_the_file(repository):
    options = ["SMALLOBJ.TAU", "2.5", "SMALLOBJ.EWC.FISHER", "online", "SEED", "7"]
    cfg = build_config(str(repository / "configs/demo_sbce.yaml"), options)
    assert (cfg.SMALLOBJ.TAU, cfg.SMALLOBJ.EWC.FISHER, cfg.SEED) == (2.5, "online", 7)


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(f"{text}\nVERSION: 2\n", encoding="utf-8")
        return str(path)

    return write


NOT_A_KEY = r"^{path}: .*Non-existent config key: "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SMALLOBJ:\n  TUA: 3.0", NOT_A_KEY + r"SMALLOBJ\.TUA"),
        ("SMALLOBJ:\n  EWC:\n    LAMDA: 3.0", NOT_A_KEY + r"SMALLOBJ\.EWC\.LAMDA"),
        ("SMALLOBJECT:\n  TAU: 3.0", NOT_A_KEY + "SMALLOBJECT"),
        ('SMALLOBJ:\n  TAU: "five"', r"{path}.*mismatch.*SMALLOBJ\.TAU"),
        (
            "MODEL:\n  META_ARCHITECTURE: SizeBalancedSegmenter",
            r"MODEL\.META_ARCHITECTURE: unknown .*did you mean 'SizeBalancedSegmentor'\?",
        ),
    ],
)
def test_files_that_are_refused(write, text, message):
    path = write(text)
    with pytest.raises(ValueError, match=message.replace("{path}", re.escape(path))):
        build_config(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("SMALLOBJ.TUA 3.0", r"command-line options .*Non-existent key: SMALLOBJ\.TUA"),
        ("SMALLOBJ.TAU", r"KEY VALUE pairs, got 1: \['SMALLOBJ\.TAU'\]"),
        ("SMALLOBJ.TAU five", r"command-line options .*mismatch.*SMALLOBJ\.TAU"),
        ("SMALLOBJ.TAU True", "mismatch"),
        ("SMALLOBJ.POLY_HOLD 1.5", "mismatch"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_config("", options.split())


def test_integers_stand_for_decimals(write):
    """yacs takes a decimal for a decimal only."""
    path = write("SMALLOBJ:\n  TAU: 3\n  EWC:\n    LAMBDA: 50\nSOLVER:\n  BASE_LR: 1")
    cfg = build_config(path, ["SMALLOBJ.POLY_POWER", "1", "SMALLOBJ.TASK_A.ITERS", "7"])
    found = [cfg.SMALLOBJ.TAU, cfg.SMALLOBJ.EWC.LAMBDA, cfg.SOLVER.BASE_LR, cfg.SMALLOBJ.POLY_POWER]
    assert found == [3.0, 50.0, 1.0, 1.0]
    assert {type(value) for value in found} == {float}
    assert type(cfg.SMALLOBJ.TASK_A.ITERS) is int
    assert build_config(path, ["SMALLOBJ.TAU", "4"]).SMALLOBJ.TAU == 4.0
    with pytest.raises(ValueError, match=r"SMALLOBJ\.TAU must be .* >= 1 .*got 0\.0"):
        build_config(path, ["SMALLOBJ.TAU", "0"])


def test_the_hosts_own_default_architecture_is_left_to_the_run():
    """Without a config file the config can still be built, on either host."""
    cfg = build_config()
    known = cfg.MODEL.META_ARCHITECTURE in [name for name, _ in META_ARCH_REGISTRY]
    told = r"META_ARCHITECTURE: unknown value 'GeneralizedRCNN'"
    with contextlib.nullcontext() if known else pytest.raises(ValueError, match=told):
        check_architecture(cfg)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--config-file .*nowhere\.yaml does not exist"):
        build_config(str(tmp_path / "nowhere.yaml"))
