"""Data: catalogs, loaders, samplers, transforms."""

# ruff: noqa: F401 (all names are for users)

from . import detection_utils, samplers, transforms
from .build import build_detection_test_loader, build_detection_train_loader
from .catalog import DatasetCatalog, MetadataCatalog
