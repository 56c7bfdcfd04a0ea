"""Whether the config feeds a pretrained net what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from d2_smallobj.modeling.weights.layouts import Conventions
from detectron2.config import CfgNode

# Published means of one data set differ by under a level, another channel order by twenty.
_MEAN_TOLERANCE = 3.0
_STD_TOLERANCE = 3.0


def convention_mismatches(cfg: CfgNode, conventions: Conventions) -> list[str]:
    """Name every config key that does not fit the weights.

    Args:
        cfg: the config.
        conventions: what the weights were trained on.

    Returns:
        One part of a sentence a key, with its value and the one that fits; empty: all fit.
    """
    resnet = cfg.MODEL.RESNETS
    checks = [
        (
            "INPUT.FORMAT",
            cfg.INPUT.FORMAT,
            conventions.image_format,
            conventions.image_format == cfg.INPUT.FORMAT,
        ),
        (
            "MODEL.PIXEL_MEAN",
            list(cfg.MODEL.PIXEL_MEAN),
            list(conventions.pixel_mean),
            _near(cfg.MODEL.PIXEL_MEAN, conventions.pixel_mean, _MEAN_TOLERANCE),
        ),
        (
            "MODEL.PIXEL_STD",
            list(cfg.MODEL.PIXEL_STD),
            list(conventions.pixel_std),
            _near(cfg.MODEL.PIXEL_STD, conventions.pixel_std, _STD_TOLERANCE),
        ),
        (
            "MODEL.RESNETS.STRIDE_IN_1X1",
            resnet.STRIDE_IN_1X1,
            conventions.stride_in_1x1,
            # ResNet-18 and -34 have no 1x1 convolution but the shortcut.
            resnet.DEPTH < 50 or conventions.stride_in_1x1 == resnet.STRIDE_IN_1X1,
        ),
        (
            "SMALLOBJ.STEM_POOL_CEIL",
            cfg.SMALLOBJ.STEM_POOL_CEIL,
            conventions.stem_pool_ceil,
            conventions.stem_pool_ceil in (None, cfg.SMALLOBJ.STEM_POOL_CEIL),
        ),
    ]
    return [f"{key} is {now}, they need {needed}" for key, now, needed, fits in checks if not fits]


def _near(a: Sequence[float], b: Sequence[float], tolerance: float) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b))
