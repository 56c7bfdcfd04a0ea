"""Instance-aware IoU on label maps (docs/method.md); numpy and OpenCV only."""

from d2_smallobj.metrics.accumulator import Accumulator
from d2_smallobj.metrics.components import (
    Components,
    class_components,
    component_instances,
    label_components,
)
from d2_smallobj.metrics.matching import ImageMatch, match_image
from d2_smallobj.metrics.records import (
    COCO_SIZE_BINS,
    BlobTable,
    InstanceTable,
    PixelTable,
    SizeBins,
    parse_size_bins,
)
from d2_smallobj.metrics.summary import OUTCOMES, blob_summary, classify, outcome_summary, summarize

__all__ = [
    "COCO_SIZE_BINS",
    "OUTCOMES",
    "Accumulator",
    "BlobTable",
    "Components",
    "ImageMatch",
    "InstanceTable",
    "PixelTable",
    "SizeBins",
    "blob_summary",
    "class_components",
    "classify",
    "component_instances",
    "label_components",
    "match_image",
    "outcome_summary",
    "parse_size_bins",
    "summarize",
]
