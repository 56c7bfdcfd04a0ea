"""Models: registries, builders, ResNet."""

# ruff: noqa: F401 (all names are for users)

from .backbone import BACKBONE_REGISTRY, Backbone, build_backbone
from .build import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_model, build_sem_seg_head
