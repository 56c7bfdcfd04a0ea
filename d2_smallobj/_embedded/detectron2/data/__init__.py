"""Data: catalogs, loaders, samplers, transforms."""

from . import detection_utils, samplers, transforms
from .build import build_detection_test_loader, build_detection_train_loader
from .catalog import DatasetCatalog, MetadataCatalog

__all__ = [
    "DatasetCatalog",
    "MetadataCatalog",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "detection_utils",
    "samplers",
    "transforms",
]
