"""From the network's resolution back to the image's."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def sem_seg_postprocess(
    result: torch.Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> torch.Tensor:
    """Cut the padding off (C, H, W) scores and resize them bilinearly.

    Args:
        result: scores of the padded input.
        img_size: (height, width) of the input before padding.
        output_height: height of the original image.
        output_width: width of the original image.

    Returns:
        (C, output_height, output_width) scores.
    """
    cut = result[None, :, : img_size[0], : img_size[1]]
    size = (output_height, output_width)
    return F.interpolate(cut, size=size, mode="bilinear", align_corners=False)[0]
