"""Images of different sizes in one padded tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass
class ImageList:
    """A batch.

    Attributes:
        tensor: (N, ..., H, W), padded on the right and at the bottom.
        image_sizes: (height, width) of each image before padding.
    """

    tensor: torch.Tensor
    image_sizes: list[tuple[int, int]]

    @staticmethod
    def from_tensors(
        tensors: Sequence[torch.Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Mapping[str, int] | None = None,
    ) -> ImageList:
        """Pad tensors (..., Hi, Wi) to one size, a multiple of ``size_divisibility``; stack them.

        ``padding_constraints`` may hold "size_divisibility", which wins over the argument, and
        "square_size", the side of a square to pad to.
        """
        constraints = padding_constraints or {}
        divisor = max(constraints.get("size_divisibility", size_divisibility), 1)
        square = constraints.get("square_size", 0)
        sizes = [(int(t.shape[-2]), int(t.shape[-1])) for t in tensors]
        height, width = (square, square) if square > 0 else map(max, zip(*sizes))
        height, width = -(-height // divisor) * divisor, -(-width // divisor) * divisor
        padded = [
            F.pad(t, (0, width - w, 0, height - h), value=pad_value)
            for t, (h, w) in zip(tensors, sizes)
        ]
        return ImageList(torch.stack(padded), sizes)
