"""Ground truth to experiment on: drawn here, or of any data set that can be scored.

Legend: H, W height and width of a map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from d2_smallobj import metrics
from d2_smallobj.annotations.label_maps import check_label_values

if TYPE_CHECKING:
    from d2_smallobj.annotations.truth import GroundTruth, TruthImage

IGNORE = 255


@dataclasses.dataclass(frozen=True)
class LabelledImage:
    """Ground truth of one image, read when it is needed.

    Attributes:
        image_id: its name.
        load: returns (semantic, instances), both (H, W) integers; 255 = ignore and void.
    """

    image_id: str
    load: Callable[[], tuple[np.ndarray, np.ndarray]]


def truth_images(truth: GroundTruth, num_classes: int) -> list[LabelledImage]:
    """Take the images of any ground truth that can be scored (folders, COCO, LVIS).

    Args:
        truth: see :mod:`d2_smallobj.annotations.truth`. Where it has no instances, the 8-connected
            components of the semantic map are the instances.
        num_classes: number of classes, background included, to check the maps against.
    """

    def loader(image: TruthImage) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        def load() -> tuple[np.ndarray, np.ndarray]:
            semantic, instances = truth.read(image)
            check_label_values(semantic, num_classes, IGNORE, image.where)
            if instances is None:
                return semantic, component_instances(semantic)
            if instances.shape != semantic.shape:
                raise ValueError(
                    f"{image.instances}: must have the size of {image.where}, {semantic.shape}, "
                    f"got {instances.shape}"
                )
            return semantic, instances

        return load

    return [LabelledImage(image.image_id, loader(image)) for image in truth.images]


def component_instances(semantic: np.ndarray) -> np.ndarray:
    """Number the 8-connected components of the classes, passing over 255.

    Args:
        semantic: (H, W) integers, 0 = background, 255 = ignore.

    Returns:
        int64 (H, W), 0 on background, 255 on ignored pixels.
    """
    return np.where(semantic == IGNORE, IGNORE, metrics.component_instances(semantic))


def drawn_pair(size: int = 240) -> LabelledImage:
    """A scene for the corner cases: one small and one large disc of class 1.

    Args:
        size: side of the scene in pixels; at the default the discs are of COCO's sizes S and L.
    """
    return drawn_discs([(0.35, 0.40, 0.28), (0.80, 0.80, 0.06)], size, "drawn pair")


def drawn_discs(discs: Sequence[tuple[float, float, float]], size: int, name: str) -> LabelledImage:
    """A square scene of discs of class 1.

    Args:
        discs: (x of the centre, y, radius) in units of the side; disc k is instance k + 1.
        size: side of the scene in pixels.
        name: id of the image.
    """

    def load() -> tuple[np.ndarray, np.ndarray]:
        y, x = (np.mgrid[:size, :size] + 0.5) / size
        instances = np.zeros((size, size), np.uint8)
        for number, (left, top, radius) in enumerate(discs, start=1):
            instances[(x - left) ** 2 + (y - top) ** 2 < radius**2] = number
        return (instances > 0).astype(np.uint8), instances

    return LabelledImage(name, load)


def drawn_sizes(
    count: int = 24, smallest: float = 8.0, largest: float = 200.0
) -> list[LabelledImage]:
    """Scenes of one disc each, whose diameters grow geometrically, for the removal curve.

    Args:
        count: number of scenes, >= 2.
        smallest: diameter of the first disc in pixels.
        largest: diameter of the last one; the scenes are 1.2 times as wide.
    """
    size = round(1.2 * largest)
    diameters = np.geomspace(smallest, largest, count)
    return [
        drawn_discs([(0.5, 0.5, float(diameter) / 2 / size)], size, f"disc {number:03d}")
        for number, diameter in enumerate(diameters)
    ]
