"""Data sets, mapper, augmentations and loaders."""

from d2_smallobj.data.catalog import register_all
from d2_smallobj.data.loaders import (
    StreamDataset,
    StreamSampler,
    build_test_loader,
    build_train_loader,
    dataset_dicts,
)
from d2_smallobj.data.mapper import RandomPaddedCrop, RandomScale, SemSegMapper

__all__ = [
    "RandomPaddedCrop",
    "RandomScale",
    "SemSegMapper",
    "StreamDataset",
    "StreamSampler",
    "build_test_loader",
    "build_train_loader",
    "dataset_dicts",
    "register_all",
]
