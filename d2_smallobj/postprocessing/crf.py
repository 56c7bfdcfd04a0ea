"""Fully connected CRF on a predicted probability map: mean-field inference.

P. Krähenbühl, V. Koltun: Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials, NIPS 2011.

Legend: K classes, H, W height and width of an image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from d2_smallobj.postprocessing.permutohedral import PermutohedralLattice
from d2_smallobj.utils.opencv import cv2

_FLOOR = 1e-5
"""Smallest probability that a class is taken to have, as the usual implementations do."""
_NEGLIGIBLE = 0.02
"""A class that reaches this share of 1 / K at no pixel is left as it is."""


@dataclasses.dataclass(frozen=True)
class CrfOptions:
    """Weights and widths of the two kernels; the defaults are DeepLab's.

    Attributes:
        iterations: mean-field iterations, >= 1.
        gaussian_sxy: standard deviation of the smoothness kernel, pixels, > 0.
        gaussian_weight: its weight, >= 0.
        bilateral_sxy: standard deviation of the appearance kernel in space, pixels, > 0.
        bilateral_srgb: the same in colour, grey levels of 0..255, > 0.
        bilateral_weight: its weight, >= 0.
    """

    iterations: int = 10
    gaussian_sxy: float = 1.0
    gaussian_weight: float = 3.0
    bilateral_sxy: float = 67.0
    bilateral_srgb: float = 3.0
    bilateral_weight: float = 4.0

    def __post_init__(self) -> None:
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int):
            raise ValueError(f"iterations must be an integer, got {self.iterations!r}")
        for name, value in dataclasses.asdict(self).items():
            rule = ">= 0" if name.endswith("_weight") else "> 0"
            if not math.isfinite(value) or value < 0 or (value == 0 and rule == "> 0"):
                raise ValueError(f"{name} must be finite and {rule}, got {value!r}")


class DenseCrf:
    """Refines class probabilities by the colours of the image.

    Mean-field update with Potts compatibility::

        Q_i(c) ∝ p_i(c) exp(sum_m w_m sum_j k_m(i, j) Q_j(c))

    over the smoothness and the appearance kernel, each normalised symmetrically,
    ``k(i, j) / sqrt(sum_l k(i, l) sum_l k(j, l))``, j = i included, as in the implementation
    that the field uses (pydensecrf). The smoothness kernel is computed as it stands, the
    appearance kernel by a permutohedral lattice.
    """

    def __init__(self, options: CrfOptions | None = None) -> None:
        self.options = options or CrfOptions()

    def __call__(self, probabilities: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Refine a map.

        Classes that reach a probability of 0.02 / K at no pixel keep it: they cannot win anywhere
        (some other class has 0.98 / K or more at every pixel), and each would cost as much time
        as one that can.

        Args:
            probabilities: float (K, H, W), K >= 1, each in [0, 1], summing to 1 over K.
            image: uint8 (H, W, 3), in any order of its channels.

        Returns:
            float32 (K, H, W), summing to 1 over K.

        Raises:
            ValueError: for another shape or type, or values that are no probabilities.
        """
        _check(probabilities, image)
        refined = np.asarray(probabilities, np.float32).copy()
        kept = np.flatnonzero(refined.max(axis=(1, 2)) >= _NEGLIGIBLE / len(refined))
        rest = np.delete(refined, kept, axis=0).sum(axis=0)
        refined[kept] = (1 - rest) * self._infer(refined[kept], image)
        return refined

    def _infer(self, probabilities: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Mean-field inference over the classes that matter: float32 (k, H, W)."""
        shape = probabilities.shape
        # Pixels first: filters and softmax then work on contiguous rows.
        log_p = np.log(np.clip(probabilities.reshape(shape[0], -1).T, _FLOOR, None))
        message = self._message(image)
        q = _softmax(log_p)
        for _ in range(self.options.iterations):
            q = _softmax(log_p + message(q))
        return np.ascontiguousarray(q.T).reshape(shape)

    def _message(self, image: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """The function from marginals (H·W, k) to the weighted sum of both filters."""
        options = self.options
        terms = []
        if options.gaussian_weight > 0:
            smooth = _spatial_filter(image.shape[:2], options.gaussian_sxy)
            terms.append((options.gaussian_weight, _normalized(smooth, image)))
        if options.bilateral_weight > 0:
            features = _features(image, options.bilateral_sxy, options.bilateral_srgb)
            appearance = PermutohedralLattice(features).filter
            terms.append((options.bilateral_weight, _normalized(appearance, image)))

        def message(q: np.ndarray) -> np.ndarray:
            total = np.zeros_like(q)
            for weight, filtered in terms:
                total += np.float32(weight) * filtered(q)
            return total

        return message


def _features(image: np.ndarray, sxy: float, srgb: float) -> np.ndarray:
    """Position and colour of every pixel over their standard deviations: float32 (H·W, 5)."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    place = np.stack([columns, rows], axis=-1) / sxy
    features = np.concatenate([place, image / srgb], axis=-1)
    return features.reshape(-1, 5).astype(np.float32)


def _spatial_filter(size: tuple[int, int], sxy: float) -> Callable[[np.ndarray], np.ndarray]:
    """Filter by exp(-|distance|^2 / (2 sxy^2)) over the image, zero outside of it."""
    radius = max(1, math.ceil(5 * sxy))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sxy) ** 2)

    def apply(values: np.ndarray) -> np.ndarray:
        filtered = np.empty_like(values)
        for channel in range(values.shape[1]):
            plane = np.ascontiguousarray(values[:, channel]).reshape(size)
            filtered[:, channel] = cv2.sepFilter2D(
                plane, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_CONSTANT
            ).ravel()
        return filtered

    return apply


def _normalized(
    apply: Callable[[np.ndarray], np.ndarray], image: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """A filter with the square root of its answer to ones divided out on both sides."""
    ones = np.ones((image.shape[0] * image.shape[1], 1), np.float32)
    scale = 1 / np.sqrt(np.maximum(apply(ones), np.finfo(np.float32).tiny))
    return lambda values: scale * apply(scale * values)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _check(probabilities: np.ndarray, image: np.ndarray) -> None:
    if probabilities.ndim != 3 or 0 in probabilities.shape or probabilities.dtype.kind != "f":
        raise ValueError(
            "probabilities must be a float array of shape (K, H, W), none 0, got "
            f"{probabilities.shape} of {probabilities.dtype}"
        )
    if image.dtype != np.uint8 or image.shape != (*probabilities.shape[1:], 3):
        raise ValueError(
            f"image must be uint8 of shape {(*probabilities.shape[1:], 3)}, as the probabilities, "
            f"got {image.shape} of {image.dtype}"
        )
    low, total = probabilities.min(), probabilities.sum(axis=0, dtype=np.float64)
    if not (low >= 0 and np.abs(total - 1).max() <= 1e-3):
        raise ValueError(
            "probabilities must be >= 0 and sum to 1 over the classes, got a minimum of "
            f"{low:.4g} and sums from {total.min():.4g} to {total.max():.4g} "
            "(logits need a softmax first)"
        )
