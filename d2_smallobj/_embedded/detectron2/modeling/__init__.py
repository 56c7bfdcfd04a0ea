"""Models: registries, builders, ResNet."""

from .backbone import BACKBONE_REGISTRY, Backbone, build_backbone
from .build import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_model, build_sem_seg_head

__all__ = [
    "BACKBONE_REGISTRY",
    "META_ARCH_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "Backbone",
    "build_backbone",
    "build_model",
    "build_sem_seg_head",
]
