"""Size bins: small, medium, large, in pixels or as a share of the image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

_RELATIVE = "relative:"
_SYNTAX = (
    "'coco', 'S:1024,M:9216,L:inf' (pixels) or 'relative:S:0.01,M:0.1,L:1' (share of the image)"
)


class SizeBins(Mapping[str, float]):
    """Exclusive upper bounds by bin name, ascending; a mapping, as a plain dict of pixels is.

    An instance falls into the first bin whose bound exceeds its area (``relative=False``), or
    its area divided by the number of pixels of the image, ignored ones included
    (``relative=True``; a bound of 1 takes in an instance that fills the image, too).

    Args:
        bounds: upper bound by name.
        relative: whether bounds are shares of the image, in (0, 1] or inf, instead of pixels.

    Raises:
        ValueError: if there is no bin, a bound is not above the one before it (the first: above
            0), or a share exceeds 1.

    Example:
        >>> bins = SizeBins({"tiny": 0.01, "rest": 1}, relative=True)
        >>> bins.positions([99, 100, 10000], 10000).tolist()
        [0, 1, 1]
    """

    def __init__(self, bounds: Mapping[str, float], *, relative: bool = False) -> None:
        self._bounds = {str(name): float(bound) for name, bound in bounds.items()}
        self.relative = relative
        limits = [0.0, *self._bounds.values()]
        if len(limits) == 1 or not all(low < high for low, high in zip(limits, limits[1:])):
            raise ValueError(
                f"bins must map names to ascending upper bounds, got {dict(self._bounds)}"
            )
        wrong = [bound for bound in limits if relative and 1 < bound < math.inf]
        if wrong:
            raise ValueError(
                f"bins: a relative bound is a share of the image and at most 1, got {wrong}"
            )

    def __getitem__(self, name: str) -> float:
        return self._bounds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return list(self.items()) == list(other.items()) and self.relative == getattr(
            other, "relative", False
        )

    def __hash__(self) -> int:
        return hash((tuple(self._bounds.items()), self.relative))

    def __repr__(self) -> str:
        return f"SizeBins({self._bounds}, relative={self.relative})"

    def __str__(self) -> str:
        """The text that :func:`parse_size_bins` reads back."""
        parts = [f"{name}:{_plain(bound)}" for name, bound in self._bounds.items()]
        return (_RELATIVE if self.relative else "") + ",".join(parts)

    def positions(self, area: np.ndarray, image_area: np.ndarray | int) -> np.ndarray:
        """Find the bin of every area.

        Args:
            area: (R,) pixels.
            image_area: (R,) or one number, pixels of the image; looked at by relative bins only.

        Returns:
            int64 (R,), position of the first bin whose bound exceeds the area; ``len(self)`` if
            none does.
        """
        bounds = np.array(list(self._bounds.values()))
        if not self.relative:
            return np.searchsorted(bounds, area, side="right")
        # Nothing is larger than its image, so a share of 1 is no limit.
        bounds[bounds == 1] = math.inf
        return np.searchsorted(bounds, np.divide(area, image_area), side="right")


# docs/method.md#sizes: S < 32², M < 96², L the rest.
COCO_SIZE_BINS = SizeBins({"S": 32.0**2, "M": 96.0**2, "L": math.inf})


def as_size_bins(bins: Mapping[str, float]) -> SizeBins:
    """Take a plain mapping for absolute bins.

    Raises:
        ValueError: as :class:`SizeBins`.
    """
    return bins if isinstance(bins, SizeBins) else SizeBins(bins)


def parse_size_bins(text: str) -> SizeBins:
    """Read bins from an option's text.

    Args:
        text: ``coco``; or ``NAME:BOUND`` pairs separated by commas, bounds ascending, in pixels
            (a number or ``inf``); with ``relative:`` in front, as shares of the image.

    Returns:
        The bins; ``str()`` of them gives the pairs back.

    Raises:
        ValueError: if the text has another form, a name comes twice, or bounds do not ascend.

    Example:
        >>> dict(parse_size_bins("S:1024,L:inf"))
        {'S': 1024.0, 'L': inf}
    """
    text = text.strip()
    if text.lower() == "coco":
        return COCO_SIZE_BINS
    relative = text.startswith(_RELATIVE)
    bounds: dict[str, float] = {}
    for pair in text[len(_RELATIVE) if relative else 0 :].split(","):
        name, _, number = pair.strip().partition(":")
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not name or math.isnan(bound):
            raise ValueError(f"size bins: expected {_SYNTAX}, got {pair!r} in {text!r}")
        if name in bounds:
            raise ValueError(f"size bins: every name once, got {name!r} again in {text!r}")
        bounds[name] = bound
    return SizeBins(bounds, relative=relative)


def _plain(bound: float) -> str:
    """A bound without a superfluous ``.0``."""
    return str(int(bound)) if bound.is_integer() else repr(bound)
