"""Registered data sets, their ground truth, the mapper and the loaders."""

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
