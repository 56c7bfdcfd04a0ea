"""Check the values of the config keys under ``SMALLOBJ``."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from d2_smallobj.utils.messages import look_up_option
from detectron2.config import CfgNode as CN

AVERAGES = ("softmax", "logits")
_LOSSES = ("cross_entropy", "size_weighted")


def validate_config(cfg: CN) -> None:
    """Check every value of ``SMALLOBJ`` that has a rule, and what it needs from other nodes.

    Raises:
        ValueError: names the key, the rule and the received value.
    """
    node = cfg.SMALLOBJ
    if not _integer(cfg.SOLVER.MAX_ITER):  # the rules compare with it
        raise ValueError(f"SOLVER.MAX_ITER must be an integer, got {cfg.SOLVER.MAX_ITER!r}")
    for key, choices in _choices().items():
        look_up_option(f"SMALLOBJ.{key}", _get(node, key), choices)
    for key, rule, holds in _numeric_rules(cfg):
        if not holds(value := _get(node, key)):
            raise ValueError(f"SMALLOBJ.{key} must be {rule}, got {value!r}")


def _choices() -> dict[str, Sequence[str]]:
    """The legal values of each key that names an option."""
    # Imported here: the losses need torch, and declaring the keys does not.
    from d2_smallobj.losses.fisher import FISHER_ESTIMATORS
    from d2_smallobj.losses.size_balanced import NORMALIZATIONS, RESOLUTIONS
    from d2_smallobj.losses.size_weights import COMPATS, TOTALS
    from d2_smallobj.losses.uncertainty import SIGMA_FORMS

    return {
        "LOSS_RESOLUTION": RESOLUTIONS,
        "TOTAL": TOTALS,
        "COMPONENT_SIZE": COMPATS,
        "NORMALIZE": NORMALIZATIONS,
        "TASK_A.LOSS": _LOSSES,
        "TASK_B.LOSS": _LOSSES,
        "EWC.FISHER": FISHER_ESTIMATORS,
        "EWC.STEP": ("gradient", "proximal"),
        "SCHEDULE": ("joint", "separate"),
        "METRIC_MODE": ("exact", "official"),
        "AMP_DTYPE": ("float16", "bfloat16"),
        "SPEED.MEMORY_FORMAT": ("auto", "contiguous", "channels_last"),
        "SPEED.COMPILE": ("off", "default", "reduce-overhead"),
        "TEST.AVERAGE": AVERAGES,
        "SUPERVISION.REST": ("boxes", "none"),
        "SUPERVISION.OVERLAPS": ("smaller", "interior", "ignore", "model"),
        "UNCERTAINTY.FORM": SIGMA_FORMS,
    }


def _numeric_rules(cfg: CN) -> Iterator[tuple[str, str, Callable[[Any], bool]]]:
    """Yield (key, rule in words, whether a value keeps it)."""
    max_iter, stride = cfg.SOLVER.MAX_ITER, cfg.SMALLOBJ.OUTPUT_STRIDE
    finite, factors = "a finite number", "a list of factors > 0"
    for rule, holds, keys in (
        ("> 0", _positive, "ASPP_INIT_STD TASK_A.LR_FACTOR TASK_B.LR_FACTOR POLY_POWER"),
        ("> 0", _positive, "HEAD_LR_FACTOR HEAD_BIAS_LR_FACTOR MOBILENET.WIDTH"),
        ("> 0", _positive, "UNCERTAINTY.SIGMA_INIT UNCERTAINTY.BOOTSTRAP.THRESHOLD"),
        ("> 0", _positive, "TEST.CRF.GAUSSIAN_SXY TEST.CRF.BILATERAL_SXY TEST.CRF.BILATERAL_SRGB"),
        (f"{finite} >= 0", _not_negative, "EWC.LAMBDA BIAS_WEIGHT_DECAY TEST.CRF.GAUSSIAN_WEIGHT"),
        (f"{finite} >= 0", _not_negative, "TEST.CRF.BILATERAL_WEIGHT"),
        ("an integer >= 1", _integer_from(1), "EWC.NUM_IMAGES POLY_HOLD ACCUMULATE"),
        ("an integer >= 1", _integer_from(1), "SUPERVISION.MASK_REPEAT SPEED.LOSS_PERIOD"),
        ("an integer >= 1", _integer_from(1), "TEST.CRF.ITERATIONS PICTURES.NUM_IMAGES"),
        ("an integer >= 0", _integer_from(0), "SUPERVISION.NUM_IMAGES PICTURES.PERIOD"),
        ("an integer >= 0", _integer_from(0), "SPEED.LOSS_IMAGES"),
        ("an integer >= -1", _integer_from(-1), "SUPERVISION.SPLIT_SEED"),
        ("in [0, 1]", _share, "FLIP_PROB UNCERTAINTY.BOOTSTRAP.WARMUP"),
        ("in [0, 1)", lambda v: _share(v) and v < 1, "EWC.ALPHA SUPERVISION.BOXES_FROM"),
        ("in [0, 1)", lambda v: _share(v) and v < 1, "UNCERTAINTY.BOOTSTRAP.MIN_OBJECT"),
        ("in (0, 1]", lambda v: _share(v) and v > 0, "SUPERVISION.MASK_FRACTION"),
        ("a list of factors in (0, 16]", _list_of(_scale), "SCALES TEST.SCALES"),
        ("a list of integers >= 1", _list_of(_integer_from(1)), "ASPP_DILATIONS"),
        ("4, 8, 16 or 32", lambda v: _integer(v) and v in (4, 8, 16, 32), "OUTPUT_STRIDE"),
        (f"{finite} >= 1 (1 is the plain cross-entropy)", lambda v: _number(v) and v >= 1, "TAU"),
    ):
        for key in keys.split():
            yield key, rule, holds
    # Scale 1 is always there, and a scale given twice would have one loss name for two maps.
    yield (
        "MSC.SCALES",
        f"{factors}, each given once and none 1 (always included)",
        lambda v: _list_of(_positive)(v) and len({"1", *(f"{x:g}" for x in v)}) == len(v) + 1,
    )
    yield (
        "TASK_A.ITERS",
        f"-1 (the whole run) or between 0 and SOLVER.MAX_ITER = {max_iter}",
        lambda v: _integer(v) and -1 <= v <= max_iter,
    )
    yield (
        "CROP_SIZE",
        f"two integers (height, width), at least one output stride ({stride}) each",
        lambda v: _list_of(_integer_from(stride))(v) and len(v) == 2,
    )


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer_from(least: int) -> Callable[[Any], bool]:
    return lambda value: _integer(value) and value >= least


def _number(value: Any) -> bool:
    return _integer(value) or (isinstance(value, float) and math.isfinite(value))


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _scale(value: Any) -> bool:
    return _positive(value) and value <= 16  # beyond it an image hardly fits into memory


def _not_negative(value: Any) -> bool:
    return _number(value) and value >= 0


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A rule for a list: not empty, and every element keeps the rule."""
    return lambda v: isinstance(v, (list, tuple)) and len(v) > 0 and all(map(holds, v))


def _get(node: CN, key: str) -> Any:
    """The value at a dotted key."""
    return functools.reduce(operator.getitem, key.split("."), node)
