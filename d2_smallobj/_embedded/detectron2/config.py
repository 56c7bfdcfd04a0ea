"""CfgNode, the default config, and the decorator that lets a constructor take a config."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import yaml
from fvcore.common.config import CfgNode as _CfgNode


class CfgNode(_CfgNode):
    """fvcore's ``CfgNode``, which reads plain YAML only."""

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a YAML file, and the files that its ``_BASE_`` names, into this node.

        Code in a file is never executed: ``allow_unsafe`` has no effect.

        Raises:
            FileNotFoundError: if there is no such file.
            KeyError: if the file holds a key that this config has not.
            ValueError: if a value has the wrong type, the file is no plain YAML, or its version
                is another one.
        """
        try:
            loaded = type(self)(self.load_yaml_with_base(cfg_filename))
        except yaml.YAMLError as error:
            raise ValueError(f"{cfg_filename}: not plain YAML: {error}") from error
        version = loaded.get("VERSION", self.VERSION)
        if version != self.VERSION:
            raise ValueError(f"{cfg_filename}: VERSION must be {self.VERSION}, got {version!r}")
        self.merge_from_other_cfg(loaded)


def get_cfg() -> CfgNode:
    """Return a fresh copy of the default config."""
    return CfgNode(_default_tree())


def configurable(init_func: Callable[..., None]) -> Callable[..., None]:
    """Let a constructor also be called with a :class:`CfgNode` in front.

    The class's ``from_config(cfg, ...)`` classmethod turns the config into keyword arguments.
    Those that ``from_config`` does not take itself win over its values.
    """

    @functools.wraps(init_func)
    def construct(self: object, *args: Any, **kwargs: Any) -> None:
        if isinstance(args[0] if args else kwargs.get("cfg"), _CfgNode):
            translate = type(self).from_config
            known = inspect.signature(translate).parameters
            taken = {name: kwargs.pop(name) for name in list(kwargs) if name in known}
            kwargs = {**translate(*args, **taken), **kwargs}
            args = ()
        init_func(self, *args, **kwargs)

    return construct


def _default_tree() -> dict[str, Any]:
    """Return the default config as nested dicts; names and values are detectron2's."""
    return {
        "VERSION": 2,
        "MODEL": _model(),
        "INPUT": {
            "MIN_SIZE_TRAIN": (800,),
            "MIN_SIZE_TRAIN_SAMPLING": "choice",  # or "range"
            "MAX_SIZE_TRAIN": 1333,
            "MIN_SIZE_TEST": 800,  # 0: no resizing
            "MAX_SIZE_TEST": 1333,
            "RANDOM_FLIP": "horizontal",  # "vertical", "none"
            "CROP": {"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9]},
            "FORMAT": "BGR",
            "MASK_FORMAT": "polygon",
        },
        "DATASETS": {"TRAIN": (), "TEST": ()},
        "DATALOADER": {
            "NUM_WORKERS": 4,
            "ASPECT_RATIO_GROUPING": True,
            "SAMPLER_TRAIN": "TrainingSampler",
            "FILTER_EMPTY_ANNOTATIONS": True,
        },
        "SOLVER": _solver(),
        "TEST": {
            "EXPECTED_RESULTS": [],  # [task, metric, value, tolerance], ...
            "EVAL_PERIOD": 0,  # iterations; 0: only after training
            "AUG": {
                "ENABLED": False,
                "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
                "MAX_SIZE": 4000,
                "FLIP": True,
            },
        },
        "OUTPUT_DIR": "./output",
        "SEED": -1,  # negative: a random one
        "CUDNN_BENCHMARK": False,
        "FLOAT32_PRECISION": "",  # "highest", "high", "medium"; "": torch's default
        "VIS_PERIOD": 0,
    }


def _model() -> dict[str, Any]:
    return {
        "MASK_ON": False,
        "DEVICE": "cuda",
        "META_ARCHITECTURE": "GeneralizedRCNN",  # not part of this host: name one of yours
        "WEIGHTS": "",
        "PIXEL_MEAN": [103.530, 116.280, 123.675],  # in the order of INPUT.FORMAT
        "PIXEL_STD": [1.0, 1.0, 1.0],
        "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 2},
        "SEM_SEG_HEAD": {
            "NAME": "SemSegFPNHead",  # not part of this host: name one of yours
            "IN_FEATURES": ["p2", "p3", "p4", "p5"],
            "IGNORE_VALUE": 255,
            "NUM_CLASSES": 54,
            "CONVS_DIM": 128,
            "COMMON_STRIDE": 4,
            "NORM": "GN",
            "LOSS_WEIGHT": 1.0,
        },
        "RESNETS": {
            "DEPTH": 50,
            "OUT_FEATURES": ["res4"],
            "NUM_GROUPS": 1,
            "NORM": "FrozenBN",
            "WIDTH_PER_GROUP": 64,
            "STRIDE_IN_1X1": True,  # MSRA weights; False for torchvision's
            "RES5_DILATION": 1,
            "RES2_OUT_CHANNELS": 256,
            "STEM_OUT_CHANNELS": 64,
        },
    }


def _solver() -> dict[str, Any]:
    return {
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "MAX_ITER": 40000,
        "BASE_LR": 0.001,
        "BASE_LR_END": 0.0,
        "MOMENTUM": 0.9,
        "NESTEROV": False,
        "WEIGHT_DECAY": 0.0001,
        "WEIGHT_DECAY_NORM": 0.0,
        "GAMMA": 0.1,
        "STEPS": (30000,),
        "NUM_DECAYS": 3,
        "WARMUP_FACTOR": 1.0 / 1000,
        "WARMUP_ITERS": 1000,
        "WARMUP_METHOD": "linear",  # or "constant"
        "RESCALE_INTERVAL": False,
        "CHECKPOINT_PERIOD": 5000,
        "IMS_PER_BATCH": 16,  # over all processes
        "REFERENCE_WORLD_SIZE": 0,  # see DefaultTrainer.auto_scale_workers
        "BIAS_LR_FACTOR": 1.0,
        "WEIGHT_DECAY_BIAS": None,  # None: WEIGHT_DECAY
        "CLIP_GRADIENTS": {
            "ENABLED": False,
            "CLIP_TYPE": "value",  # or "norm", of each parameter
            "CLIP_VALUE": 1.0,
            "NORM_TYPE": 2.0,
        },
        "AMP": {"ENABLED": False},
    }
