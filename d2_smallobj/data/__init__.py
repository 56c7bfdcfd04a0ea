"""Data sets, mapper, augmentations and loaders."""

from d2_smallobj.data.augmentation import RandomPaddedCrop, RandomScale
from d2_smallobj.data.catalog import register_all
from d2_smallobj.data.loaders import build_test_loader, build_train_loader, dataset_dicts
from d2_smallobj.data.mapper import SemSegMapper
from d2_smallobj.data.stream import StreamDataset, StreamSampler

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
