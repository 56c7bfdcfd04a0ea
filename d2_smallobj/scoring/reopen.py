"""Opening a run's inputs again where pixels are not in files of their own, for pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from d2_smallobj.annotations.truth import GroundTruth, TruthImage
from d2_smallobj.metrics import component_instances
from d2_smallobj.scoring.inputs import Inputs, choose_ignore_label
from d2_smallobj.scoring.predictions import FolderPredictions, JsonPredictions, read_prediction


def reopener(
    description: Mapping[str, Any] | None,
) -> Callable[[str], dict[str, Callable[[], np.ndarray]]] | None:
    """Make what :class:`d2_smallobj.scoring.scored_run.Sources` opens inputs with.

    Args:
        description: of the inputs, as the options hold it; ``None``: there were none.

    Returns:
        A function from image id to functions that paint its maps; nothing is opened before one
        of those is called, and then once for all images.
    """
    if description is None:
        return None
    opened = _Opened(description)

    def reopen(image_id: str) -> dict[str, Callable[[], np.ndarray]]:
        return {
            "semantic": functools.partial(opened.truth_map, image_id, 0),
            "instances": functools.partial(opened.truth_map, image_id, 1),
            "prediction": functools.partial(opened.prediction, image_id),
        }

    return reopen


class _Opened:
    """Inputs that are opened when they are first needed."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._description = description

    def truth_map(self, image_id: str, which: int) -> np.ndarray:
        truth, images = self._truth
        maps = truth.read(_known(images, image_id))
        if maps[which] is not None:
            return maps[which]
        ignore_label = choose_ignore_label(None, truth)
        return component_instances(maps[0], stuff=truth.stuff, ignore_label=ignore_label)

    def prediction(self, image_id: str) -> np.ndarray:
        truth, images = self._truth
        image = _known(images, image_id)
        found = self._predictions.find(image)
        if found is None:
            raise ValueError(f"no prediction of {image_id!r} any more")
        return read_prediction(
            found[1],
            truth.size(image),
            f"prediction of {image_id}",
            label_ids=self._inputs.prediction_ids == "label",
        )

    @functools.cached_property
    def _inputs(self) -> Inputs:
        return Inputs.from_description(self._description)

    @functools.cached_property
    def _truth(self) -> tuple[GroundTruth, dict[str, TruthImage]]:
        truth = self._inputs.open_truth()
        return truth, {image.image_id: image for image in truth.images}

    @functools.cached_property
    def _predictions(self) -> FolderPredictions | JsonPredictions:
        return self._inputs.open_predictions(self._truth[0])


def _known(images: Mapping[str, TruthImage], image_id: str) -> TruthImage:
    if image_id not in images:
        raise ValueError(f"no ground truth of {image_id!r} any more")
    return images[image_id]
