"""CfgNode and the decorator that lets a constructor be called with one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import yaml
from fvcore.common.config import CfgNode as _CfgNode

from .defaults import default_tree


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
    return CfgNode(default_tree())


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
