"""From the network's resolution back to the image's."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def sem_seg_postprocess(
    result: torch.Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> torch.Tensor:
    """Cut the padding off (C, H, W) scores of an ``img_size`` (h, w) input; resize bilinearly."""
    cut = result[None, :, : img_size[0], : img_size[1]]
    size = (output_height, output_width)
    return F.interpolate(cut, size=size, mode="bilinear", align_corners=False)[0]
