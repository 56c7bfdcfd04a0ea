"""Registered data sets, their ground truth, the mapper and the loaders.

The names are imported on first use (PEP 562): ``python -m d2_smallobj.data --help`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d2_smallobj.data.catalog import register_all
    from d2_smallobj.data.loaders import build_test_loader, build_train_loader, dataset_dicts
    from d2_smallobj.data.mapper import SemSegMapper

__all__ = [
    "SemSegMapper",
    "build_test_loader",
    "build_train_loader",
    "dataset_dicts",
    "register_all",
]
_MODULES = {"register_all": "catalog", "SemSegMapper": "mapper"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'loaders')}"), name)
