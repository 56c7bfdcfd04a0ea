"""Turn a model's output for an image into a label map.

Shapes: H, W height and width of the original image; C number of classes of the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

PredictionFn = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""Takes the model's output for an image and the image's dataset dict; returns (H, W) integer labels
or (C, H, W) scores, as a tensor or an array."""


def predicted_labels(
    output: Any,
    record: Mapping[str, Any],
    num_classes: int,
    dataset_name: str,
    prediction_fn: PredictionFn | None,
) -> np.ndarray:
    """Get the (H, W) integer label map of one image out of a model's output.

    Raises:
        TypeError: the output has no ``sem_seg``, or is neither integer labels nor scores.
    """
    if prediction_fn is not None:
        found = prediction_fn(output, record)
        return to_labels(found, num_classes, dataset_name, what="what prediction_fn returned")
    if not isinstance(output, Mapping) or "sem_seg" not in output:
        held = sorted(output) if isinstance(output, Mapping) else type(output).__name__
        raise TypeError(
            f"the model's output must be a dict with 'sem_seg', got {held}; a prediction_fn can"
            " make a label map of other outputs"
        )
    return to_labels(output["sem_seg"], num_classes, dataset_name)


def to_labels(
    prediction: torch.Tensor | np.ndarray,
    num_classes: int,
    dataset_name: str = "",
    *,
    what: str = "sem_seg",
) -> np.ndarray:
    """Turn (C, H, W) scores or (H, W) integer labels, on any device, into a label map.

    Scores of at most 256 classes give uint8. Other types are a TypeError, other shapes a
    ValueError.
    """
    if not isinstance(prediction, np.ndarray) or prediction.ndim != 2:
        prediction = torch.as_tensor(prediction)
    shape, dtype = tuple(prediction.shape), prediction.dtype
    if len(shape) == 2:
        if "int" not in str(dtype):
            raise TypeError(f"{what}: a (H, W) prediction must hold integer labels, got {dtype}")
        # An array stays one: torch lacks some of its types.
        return prediction if isinstance(prediction, np.ndarray) else prediction.cpu().numpy()
    if len(shape) != 3 or shape[0] != num_classes:
        raise ValueError(
            f"{what} must be ({num_classes}, H, W) scores for {num_classes} classes"
            f" or (H, W) labels, got shape {shape}"
            + (class_number_remedy(num_classes, dataset_name) if len(shape) == 3 else "")
        )
    # The first of equal scores, as argmax; on a CPU three times as fast.
    labels = torch.as_tensor(prediction).max(dim=0).indices
    # Narrowed on the device: an eighth of the bytes to copy.
    return labels.to(torch.uint8 if num_classes <= 256 else torch.int32).cpu().numpy()


def class_number_remedy(num_classes: int, dataset_name: str) -> str:
    """Say what to do if a model numbers other classes than the data set."""
    return (
        f"; data set {dataset_name!r} has {num_classes} classes: fold or shift the model's with"
        " prediction_fn, or give num_classes where the metadata has no class names"
    )
