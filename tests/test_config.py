"""Config: every key is read and checked, nothing leaks into detectron2's nodes, files load."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch

import d2_smallobj
from d2_smallobj.config import (
    add_smallobj_config,
    has_penalty,
    task_a_iterations,
    validate_config,
)
from d2_smallobj.engine import build_config
from d2_smallobj.engine.setup import check_architecture
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

CONFIGS = (
    "Base-DeepLabV2-R101",
    "Base-Demo",
    "coco_sbce",
    "demo_ce",
    "demo_gpu_sbce",
    "demo_mixed",
    "demo_mixed_binary",
    "demo_sbce",
    "demo_sbce_deeplabv3plus",
    "demo_sbce_semfpn",
    "mixed_cityscapes",
    "mixed_coco_person",
    "pascalb_sbce",
    "voc_ce",
    "voc_sbce",
    "voc_sbce_deeplabv3plus",
    "voc_sbce_semfpn",
    "voc_sbce_released",
)
OF_THE_REAL_HOST = ("deeplabv3plus", "semfpn")
NAN, INF = math.nan, math.inf


def config(**values):
    """A config with values set at dotted keys below SMALLOBJ, unchecked."""
    cfg = get_cfg()
    add_smallobj_config(cfg)
    for key, value in values.items():
        node, *path = cfg.SMALLOBJ, *key.split("__")
        for part in path[:-1]:
            node = node[part]
        assert path[-1] in node, key
        node[path[-1]] = value
    return cfg


def leaves(node, path=()):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


KEYS = tuple(leaves(config().SMALLOBJ))


# ---- The node ----------------------------------------------------------------------------------


def test_nothing_is_written_into_shared_nodes():
    cfg = config()
    del cfg["SMALLOBJ"]
    assert cfg.dump() == get_cfg().dump()


def test_the_papers_values_are_the_defaults():
    node = config().SMALLOBJ
    assert (node.TAU, node.EWC.LAMBDA, node.EWC.ALPHA) == (5.0, 500.0, 0.9)
    assert (node.TOTAL, node.NORMALIZE, node.COMPONENT_SIZE) == ("foreground", "weights", "exact")
    assert (node.EWC.FISHER, node.SCHEDULE, node.POLY_POWER) == ("online", "joint", 0.9)
    assert (node.OUTPUT_STRIDE, node.ASPP_DILATIONS) == (8, [6, 12, 18, 24])
    assert (node.HEAD_LR_FACTOR, node.HEAD_BIAS_LR_FACTOR, node.BIAS_WEIGHT_DECAY) == (10, 20, 0)
    assert (node.SCALES, node.CROP_SIZE) == ([0.5, 0.75, 1.0, 1.25, 1.5], [321, 321])
    assert (node.MSC.SCALES, node.METRIC_MODE) == ([0.5, 0.75], "exact")


def read_keys(sources):
    """Keys of SMALLOBJ that the sources read: through the node, a sub-node or a name for one."""
    found = set()
    for text in sources:
        names = [("cfg.SMALLOBJ", ())]
        if re.search(r"\bnode = .*cfg\.SMALLOBJ\b(?!\.)", text):
            names.append(("node", ()))
        for name, part in re.findall(r"\b(\w+) = .*?cfg\.SMALLOBJ\.([A-Z_]+)\b(?!\.)", text):
            names.append((name, (part,)))
        for key, (name, prefix) in itertools.product(KEYS, names):
            rest = re.escape(".".join((name, *key[len(prefix) :])))
            if key[: len(prefix)] == prefix and re.search(rf"\b{rest}\b(?!\.[A-Z])", text):
                found.add(key)
    return found


@pytest.fixture(scope="module")
def sources(repository):
    """The package's own modules, but for the one that declares and checks the keys."""
    package = repository / "d2_smallobj"
    files = [p for p in package.rglob("*.py") if "_embedded" not in p.parts]
    config_file = package / "config.py"
    # config.py counts from where it interprets keys; declaring and checking is not reading.
    interpreted = config_file.read_text(encoding="utf-8").split("def task_a_iterations")[1]
    return [interpreted, *(p.read_text(encoding="utf-8") for p in files if p != config_file)]


def test_every_key_is_read_somewhere(sources):
    assert set(KEYS) - read_keys(sources) == set()


def test_the_search_for_readers_can_fail():
    assert read_keys(["cfg.SMALLOBJ.EWC.LAMBDA\nnode.LAMBDA\n# cfg.SMALLOBJ.TAUS"]) == {
        ("EWC", "LAMBDA")
    }
    assert ("SCALES",) not in read_keys(["node = cfg.SMALLOBJ\nnode.MSC.SCALES\n"])


def test_every_key_is_commented(repository):
    text = (repository / "d2_smallobj/config.py").read_text(encoding="utf-8")
    body = text.split("node = cfg.SMALLOBJ\n")[1].split("def validate_config")[0]
    blocks = re.split(r"(?=^ +#)", body, flags=re.MULTILINE)
    commented = {key for block in blocks[1:] for key in re.findall(r"node\.([A-Z_.]+) = ", block)}
    assert commented >= {".".join(key) for key in KEYS}


# ---- The rules ---------------------------------------------------------------------------------

OPTIONS = {
    "LOSS_RESOLUTION": ("input", "logits"),
    "TOTAL": ("foreground", "class"),
    "COMPONENT_SIZE": ("exact", "contour"),
    "NORMALIZE": ("weights", "pixels"),
    "TASK_A__LOSS": ("cross_entropy", "size_weighted"),
    "TASK_B__LOSS": ("cross_entropy", "size_weighted"),
    "EWC__FISHER": ("online", "empirical"),
    "EWC__STEP": ("gradient", "proximal"),
    "SCHEDULE": ("joint", "separate"),
    "METRIC_MODE": ("exact", "official"),
    "AMP_DTYPE": ("float16", "bfloat16"),
    "SPEED__MEMORY_FORMAT": ("auto", "contiguous", "channels_last"),
    "TEST__AVERAGE": ("softmax", "logits"),
    "SUPERVISION__REST": ("boxes", "none"),
    "UNCERTAINTY__FORM": ("per_class", "shared", "object"),
    "UNCERTAINTY__BOOTSTRAP__MEASURE": ("label", "own", "largest", "mean"),
    "UNCERTAINTY__BOOTSTRAP__RELABELLED": ("certain", "doubted"),
}

POSITIVE = (0.0, -1.0, NAN, INF, None, "x")
COUNT = (0, -1, 1.5, True, None)
BAD_VALUES = {
    "OUTPUT_STRIDE": ((0, 2, 12, 64, 8.0, None), "4, 8, 16 or 32"),
    "ASPP_DILATIONS": (([], [0], [6, -1], [1.5], ["6"], 6, None), "a list of integers >= 1"),
    "ASPP_INIT_STD": (POSITIVE, "> 0"),
    "MSC__SCALES": (
        ([], [0.0], [-0.5], [NAN], ["a"], [1.0], [0.5, 1], [0.5, 0.5], 0.5, None),
        "a list of factors > 0, each given once and none 1",
    ),
    "TAU": ((0.999, 0, -5.0, NAN, INF, None, "5"), "a finite number >= 1"),
    "TASK_A__ITERS": ((-2, 101, 1.5, None), "between 0 and SOLVER.MAX_ITER = 100"),
    "TASK_A__LR_FACTOR": (POSITIVE, "> 0"),
    "TASK_B__LR_FACTOR": (POSITIVE, "> 0"),
    "EWC__LAMBDA": ((-0.001, -500.0, NAN, INF, None), "a finite number >= 0"),
    "EWC__ALPHA": ((-0.1, 1.0, 2.0, NAN, None), "in [0, 1)"),
    "EWC__NUM_IMAGES": (COUNT, "an integer >= 1"),
    "POLY_POWER": (POSITIVE, "> 0"),
    "POLY_HOLD": (COUNT, "an integer >= 1"),
    "HEAD_LR_FACTOR": (POSITIVE, "> 0"),
    "HEAD_BIAS_LR_FACTOR": (POSITIVE, "> 0"),
    "BIAS_WEIGHT_DECAY": ((-1e-9, NAN, INF, None), "a finite number >= 0"),
    "ACCUMULATE": (COUNT, "an integer >= 1"),
    "SPEED__LOSS_PERIOD": (COUNT, "an integer >= 1"),
    "SCALES": (([], [0.0], [1.0, -1], [INF], ["a"], 1.0, None), "a list of factors > 0"),
    "CROP_SIZE": (
        ([321], [321, 321, 3], [7, 321], [321.5, 321], ["a", "b"], 321, None),
        "two integers (height, width), at least one output stride (8) each",
    ),
    "FLIP_PROB": ((-0.1, 1.1, NAN, None), "in [0, 1]"),
    "TEST__SCALES": (([], [0.0], [1.0, -1], [INF], 1.0, None), "a list of factors > 0"),
    "TEST__CRF__ITERATIONS": (COUNT, "an integer >= 1"),
    "TEST__CRF__GAUSSIAN_SXY": (POSITIVE, "> 0"),
    "TEST__CRF__GAUSSIAN_WEIGHT": ((-0.1, NAN, INF, None), "a finite number >= 0"),
    "TEST__CRF__BILATERAL_SXY": (POSITIVE, "> 0"),
    "TEST__CRF__BILATERAL_SRGB": (POSITIVE, "> 0"),
    "TEST__CRF__BILATERAL_WEIGHT": ((-0.1, NAN, INF, None), "a finite number >= 0"),
    "SUPERVISION__MASK_FRACTION": ((0, 0.0, -0.1, 1.1, NAN, None), "in (0, 1]"),
    "SUPERVISION__NUM_IMAGES": ((-1, 1.5, True, None), "an integer >= 0"),
    "SUPERVISION__BOXES_FROM": ((-0.1, 1.0, 2, NAN, None), "in [0, 1)"),
    "SUPERVISION__SPLIT_SEED": ((-2, 1.5, True, None), "an integer >= -1"),
    "SUPERVISION__MASK_REPEAT": (COUNT, "an integer >= 1"),
    "UNCERTAINTY__SIGMA_INIT": (POSITIVE, "> 0"),
    "UNCERTAINTY__PENALTY": ((-0.1, NAN, INF, None), "a finite number >= 0"),
    "UNCERTAINTY__BOOTSTRAP__WARMUP": ((-0.1, 1.1, NAN, None), "in [0, 1]"),
    "UNCERTAINTY__BOOTSTRAP__THRESHOLD": (POSITIVE, "> 0"),
    "UNCERTAINTY__BOOTSTRAP__MIN_OBJECT": ((-0.1, 1.0, NAN, None), "in [0, 1)"),
    "PICTURES__PERIOD": ((-1, 1.5, True, None), "an integer >= 0"),
    "PICTURES__NUM_IMAGES": (COUNT, "an integer >= 1"),
}
GOOD_VALUES = {
    "OUTPUT_STRIDE": (4, 8, 16, 32),
    "ASPP_DILATIONS": ([1], (6, 12)),
    "MSC__SCALES": ([0.5], [0.5, 0.75, 1.25]),
    "TAU": (1, 1.0, 1e6),
    "TASK_A__ITERS": (-1, 0, 1, 100),
    "EWC__LAMBDA": (0, 0.0, 1e9),
    "EWC__ALPHA": (0, 0.0, 0.999),
    "BIAS_WEIGHT_DECAY": (0, 1e-4),
    "CROP_SIZE": ([8, 8], (321, 500)),
    "FLIP_PROB": (0, 0.0, 1, 1.0),
    "SUPERVISION__MASK_FRACTION": (1, 1.0, 1e-3),
    "SUPERVISION__BOXES_FROM": (0, 0.0, 0.999),
    "SUPERVISION__SPLIT_SEED": (-1, 0, 7),
    "UNCERTAINTY__PENALTY": (0, 0.0, 1e3),
    "UNCERTAINTY__BOOTSTRAP__WARMUP": (0, 0.0, 1, 1.0),
}
FREE = {
    "EVAL_TASK_A",
    "SUPERVISION__LOG_ACCURACY",
    "MSC__ENABLED",
    "STEM_POOL_CEIL",
    "GLOBAL_DIVISOR",
    *("SPEED__FOLD_FROZEN_BN", "SPEED__PREFETCH"),
    *("TEST__FLIP", "TEST__PER_CLASS", "TEST__CRF__ENABLED"),
}  # booleans; yacs refuses other types


def test_every_key_has_a_rule_here():
    assert {*OPTIONS, *BAD_VALUES, *FREE} == {"__".join(key) for key in KEYS}


def check(key, value):
    cfg = config(**{key: value})
    cfg.SOLVER.MAX_ITER = 100
    validate_config(cfg)


@pytest.mark.parametrize("key", OPTIONS)
def test_an_unknown_option_is_an_error_with_a_hint(key):
    for value in OPTIONS[key]:
        check(key, value)
    typo = OPTIONS[key][1][:-1]
    dotted = re.escape(f"SMALLOBJ.{key.replace('__', '.')}: unknown value '{typo}'")
    with pytest.raises(ValueError, match=rf"{dotted}.*did you mean '{OPTIONS[key][1]}'\?"):
        check(key, typo)
    with pytest.raises(ValueError, match="unknown value None; expected one of"):
        check(key, None)


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, (values, _) in BAD_VALUES.items() for value in values]
)
def test_a_broken_rule_is_an_error_with_key_rule_and_value(key, value):
    rule = re.escape(BAD_VALUES[key][1])
    dotted = re.escape(key.replace("__", "."))
    with pytest.raises(
        ValueError, match=rf"SMALLOBJ\.{dotted} must be .*{rule}.*, got {re.escape(repr(value))}$"
    ):
        check(key, value)


@pytest.mark.parametrize("key", GOOD_VALUES)
def test_the_limits_of_the_rules_are_legal(key):
    for value in GOOD_VALUES[key]:
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


# ---- Files and command line --------------------------------------------------------------------


def test_all_config_files_are_listed_here(repository):
    assert sorted(p.stem for p in (repository / "configs").glob("*.yaml")) == sorted(CONFIGS)


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
    cfg = build_config(
        str(repository / "configs/demo_sbce.yaml"),
        ["SMALLOBJ.TAU", "2.5", "SMALLOBJ.EWC.FISHER", "online", "SEED", "7"],
    )
    assert (cfg.SMALLOBJ.TAU, cfg.SMALLOBJ.EWC.FISHER, cfg.SEED) == (2.5, "online", 7)


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("SMALLOBJ:\n  TUA: 3.0\nVERSION: 2\n", "SMALLOBJ.TUA"),
        ("SMALLOBJ:\n  EWC:\n    LAMDA: 3.0\nVERSION: 2\n", "SMALLOBJ.EWC.LAMDA"),
        ("SMALLOBJECT:\n  TAU: 3.0\nVERSION: 2\n", "SMALLOBJECT"),
    ],
)
def test_an_unknown_key_in_a_file(write, text, key):
    path = write(text)
    with pytest.raises(
        ValueError, match=rf"^{re.escape(path)}: .*Non-existent config key: {re.escape(key)}"
    ):
        build_config(path)


def test_an_unknown_key_on_the_command_line():
    with pytest.raises(ValueError, match=r"command-line options .*Non-existent key: SMALLOBJ\.TUA"):
        build_config("", ["SMALLOBJ.TUA", "3.0"])


def test_options_without_a_value():
    with pytest.raises(ValueError, match=r"KEY VALUE pairs, got 1: \['SMALLOBJ\.TAU'\]"):
        build_config("", ["SMALLOBJ.TAU"])


def test_a_value_of_another_type(write):
    path = write('SMALLOBJ:\n  TAU: "five"\nVERSION: 2\n')
    with pytest.raises(ValueError, match=rf"{re.escape(path)}.*mismatch.*SMALLOBJ\.TAU"):
        build_config(path)
    with pytest.raises(ValueError, match=r"command-line options .*mismatch.*SMALLOBJ\.TAU"):
        build_config("", ["SMALLOBJ.TAU", "five"])


def test_integers_stand_for_decimals(write):
    """yacs takes a decimal for a decimal only."""
    path = write("SMALLOBJ:\n  TAU: 3\n  EWC:\n    LAMBDA: 50\nSOLVER:\n  BASE_LR: 1\nVERSION: 2\n")
    cfg = build_config(path, ["SMALLOBJ.POLY_POWER", "1", "SMALLOBJ.TASK_A.ITERS", "7"])
    found = [cfg.SMALLOBJ.TAU, cfg.SMALLOBJ.EWC.LAMBDA, cfg.SOLVER.BASE_LR, cfg.SMALLOBJ.POLY_POWER]
    assert found == [3.0, 50.0, 1.0, 1.0]
    assert {type(value) for value in found} == {float}
    assert type(cfg.SMALLOBJ.TASK_A.ITERS) is int
    assert build_config(path, ["SMALLOBJ.TAU", "4"]).SMALLOBJ.TAU == 4.0
    with pytest.raises(ValueError, match=r"SMALLOBJ\.TAU must be .* >= 1 .*got 0\.0"):
        build_config(path, ["SMALLOBJ.TAU", "0"])
    for option in (["SMALLOBJ.POLY_HOLD", "1.5"], ["SMALLOBJ.TAU", "True"]):
        with pytest.raises(ValueError, match="mismatch"):
            build_config("", option)


def test_an_unknown_architecture(write):
    path = write("MODEL:\n  META_ARCHITECTURE: SizeBalancedSegmenter\nVERSION: 2\n")
    with pytest.raises(
        ValueError,
        match=r"MODEL\.META_ARCHITECTURE: unknown value .*did you mean 'SizeBalancedSegmentor'\?",
    ):
        build_config(path)


def test_the_hosts_own_default_architecture_is_left_to_the_run():
    """Without a config file the config can still be built, on either host."""
    cfg = build_config()
    registered = [name for name, _ in META_ARCH_REGISTRY]
    if cfg.MODEL.META_ARCHITECTURE not in registered:
        with pytest.raises(ValueError, match=r"META_ARCHITECTURE: unknown value 'GeneralizedRCNN'"):
            check_architecture(cfg)
    else:
        check_architecture(cfg)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--config-file .*nowhere\.yaml does not exist"):
        build_config(str(tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SMALLOBJ.TAU", "0.5"], r"SMALLOBJ\.TAU must be a finite number >= 1 .*got 0\.5"),
        (["SMALLOBJ.EWC.LAMBDA", "-1.0"], r"SMALLOBJ\.EWC\.LAMBDA must be .*>= 0, got -1\.0"),
        (["SMALLOBJ.TAU", "None"], r"SMALLOBJ\.TAU must be .*got None"),
        (["SMALLOBJ.TASK_B.LOSS", "sbce"], r"SMALLOBJ\.TASK_B\.LOSS: unknown value 'sbce'"),
    ],
)
def test_values_from_the_command_line_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        build_config("", options)
