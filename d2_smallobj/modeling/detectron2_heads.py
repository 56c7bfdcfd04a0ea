"""Backbones and heads of detectron2 and of its projects, by their names in a config.

All work in :class:`~d2_smallobj.modeling.segmentor.SizeBalancedSegmentor`. Those of the project
DeepLab are registered, and their config keys added, when a config names them.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from d2_smallobj._host import INSTALL_URL, host
from d2_smallobj.utils.messages import look_up_option
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY

PROJECT_PARTS: Mapping[str, str] = dict.fromkeys(
    ("DeepLabV3Head", "DeepLabV3PlusHead", "build_resnet_deeplab_backbone"),
    "detectron2.projects.deeplab",
)
"""Name in a config to the project of detectron2 that registers it."""
_FPN = ("SemSegFPNHead", "build_resnet_fpn_backbone", "build_mobilenet_v2_fpn_backbone")
_REAL_HOST_ONLY = {*_FPN, *PROJECT_PARTS}
_REGISTRIES: dict[tuple[str, ...], Any] = {
    ("MODEL", "BACKBONE", "NAME"): BACKBONE_REGISTRY,
    ("MODEL", "SEM_SEG_HEAD", "NAME"): SEM_SEG_HEADS_REGISTRY,
}


def add_project_configs(cfg: CfgNode, config_file: str, options: Sequence[str]) -> None:
    """Register the backbone and head that a YAML file ("": none) and ``KEY VALUE`` options name.

    ``cfg`` gets their config keys. A part that is unknown, or that the embedded host lacks, is a
    ``ValueError``.
    """
    named = _named_parts(config_file, options)
    for project in sorted({PROJECT_PARTS[x] for x in named.values() if x in PROJECT_PARTS}):
        _add_project(cfg, project, named)
    for key, name in named.items():
        available = sorted(x for x, _ in _REGISTRIES[tuple(key.split("."))])
        if name in _REAL_HOST_ONLY and name not in available:
            raise ValueError(
                f"{key} {name!r} needs the real detectron2 ({INSTALL_URL}); the embedded host that "
                f"runs here has {', '.join(available)}"
            )
        look_up_option(key, name, available)


def _add_project(cfg: CfgNode, project: str, named: Mapping[str, str]) -> None:
    """Import a project of detectron2, which registers its parts, and add its config keys."""
    if host().name == "embedded":
        return
    try:
        module = importlib.import_module(project)
    except ImportError as error:
        raise ValueError(
            f"{sorted(named.values())} need {project}, which this installation of detectron2 lacks "
            f"({error}); install detectron2 from its repository ({INSTALL_URL})"
        ) from error
    getattr(module, f"add_{project.rsplit('.', 1)[-1]}_config")(cfg)


def _named_parts(config_file: str, options: Sequence[str]) -> dict[str, str]:
    """``{dotted key: name}`` of the backbone and the head that are named."""
    tree: Mapping[str, Any] = {}
    # A file that cannot be read is left to the config's own reader, which says why.
    with contextlib.suppress(OSError, KeyError, AssertionError, ValueError, yaml.YAMLError):
        if config_file:
            tree = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)
    given = dict(zip(options[::2], options[1::2]))
    named = {}
    for path in _REGISTRIES:
        value: Any = tree
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        key = ".".join(path)
        value = given.get(key, value)
        if isinstance(value, str):
            named[key] = value
    return named
