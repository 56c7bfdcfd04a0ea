"""Ground truth to experiment on: drawn scenes, any data set, or pairs of its instances.

Legend: H, W height and width of a map.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from d2_smallobj import metrics
from d2_smallobj.annotations.label_rules import check_label_values
from d2_smallobj.metrics import InstanceTable, match_image
from d2_smallobj.utils.messages import look_up_option
from d2_smallobj.utils.opencv import cv2

if TYPE_CHECKING:
    from d2_smallobj.annotations.truth import GroundTruth, TruthImage

IGNORE = 255
PAIR_IDS = {"small": 1, "large": 2}
"""Ids of the instances of a :class:`Pair`."""
_LEAST_RATIO = 4


@dataclasses.dataclass(frozen=True)
class LabelledImage:
    """Ground truth of one image, read on demand.

    Attributes:
        image_id: its name.
        load: returns (semantic, instances), both (H, W) integers; 255 = ignore and void.
    """

    image_id: str
    load: Callable[[], tuple[np.ndarray, np.ndarray]]


class ImpossibleExperimentError(ValueError):
    """The images lack what an experiment needs; another one may be possible."""


def truth_images(truth: GroundTruth, num_classes: int) -> list[LabelledImage]:
    """List the images of a ground truth; without instance maps, components are the instances.

    Every map is checked against the number of classes (background included) when it is read.
    """
    load = functools.partial(_load, truth, num_classes)
    return [LabelledImage(each.image_id, functools.partial(load, each)) for each in truth.images]


def _load(truth: GroundTruth, classes: int, image: TruthImage) -> tuple[np.ndarray, np.ndarray]:
    semantic, instances = truth.read(image)
    check_label_values(semantic, classes, IGNORE, image.where)
    if instances is None:
        return semantic, component_instances(semantic)
    if instances.shape != semantic.shape:
        raise ValueError(
            f"{image.instances}: must have the size of {image.where}, {semantic.shape}, "
            f"got {instances.shape}"
        )
    return semantic, instances


def component_instances(semantic: np.ndarray) -> np.ndarray:
    """Number the 8-connected components of the classes: int64 (H, W), 0 none, 255 ignored."""
    return np.where(semantic == IGNORE, IGNORE, metrics.component_instances(semantic))


def drawn_pair(size: int = 240) -> LabelledImage:
    """Draw the corner cases' scene: discs of class 1, by default of COCO's sizes S and L."""
    return drawn_discs([(0.35, 0.40, 0.28), (0.80, 0.80, 0.06)], size, "drawn pair")


def drawn_discs(discs: Sequence[tuple[float, float, float]], size: int, name: str) -> LabelledImage:
    """Draw a square scene of discs of class 1, with ids 1, 2, ...

    ``discs`` are (x of the centre, y, radius) in units of the side, which is ``size`` pixels.
    """

    def load() -> tuple[np.ndarray, np.ndarray]:
        y, x = (np.mgrid[:size, :size] + 0.5) / size
        instances = np.zeros((size, size), np.uint8)
        for number, (left, top, radius) in enumerate(discs, start=1):
            instances[(x - left) ** 2 + (y - top) ** 2 < radius**2] = number
        return (instances > 0).astype(np.uint8), instances

    return LabelledImage(name, load)


def drawn_sizes(count: int = 24, largest: float = 200.0) -> list[LabelledImage]:
    """Draw the removal curve's scenes: one disc each, of geometrically growing diameter."""
    size = round(1.2 * largest)
    diameters = np.geomspace(8.0, largest, count)
    return [
        drawn_discs([(0.5, 0.5, float(diameter) / 2 / size)], size, f"disc {number:03d}")
        for number, diameter in enumerate(diameters)
    ]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A small and a large instance of one class, alone in an image (paper, Fig. 4).

    Attributes:
        image_id: their image.
        class_name: their class.
        instances: uint8 (H, W), 0 background, 1 the small one, 2 the large one, 255 all else.
    """

    image_id: str
    class_name: str
    instances: np.ndarray

    @property
    def areas(self) -> dict[str, int]:
        """Number of pixels of the ``small`` and the ``large`` one."""
        return {
            name: int(np.count_nonzero(self.instances == place)) for name, place in PAIR_IDS.items()
        }


def find_pair(
    images: Iterable[LabelledImage],
    class_names: Sequence[str],
    *,
    class_name: str | None = None,
    min_area: int = 256,
) -> Pair:
    """Find the image in which two instances of one class differ most in area.

    Args:
        images: the data set.
        class_names: background first.
        class_name: look at this class only.
        min_area: least number of pixels of the small one; the large one has four times as many.

    Raises:
        ValueError: if the class is unknown; ImpossibleExperimentError: no image has such a pair.
    """
    category = None if class_name is None else class_index(class_name, class_names)
    best: tuple[float, LabelledImage, int, int, int] | None = None
    for image in images:
        table = perfect_match(*image.load(), len(class_names))[0]
        for label in {category} if category else set(table.category_id.tolist()) - {0}:
            chosen = np.flatnonzero((table.category_id == label) & (table.pixels >= min_area))
            if len(chosen) < 2:
                continue
            low, high = chosen[table.area[chosen].argmin()], chosen[table.area[chosen].argmax()]
            ratio = float(table.area[high] / table.area[low])
            if ratio >= _LEAST_RATIO and (best is None or ratio > best[0]):
                ids = table.instance_id[[low, high]].tolist()
                best = (ratio, image, label, *ids)
    if best is None:
        raise ImpossibleExperimentError(
            f"no image has two instances of {class_name or 'one class'} of at least {min_area} "
            f"pixels, one {_LEAST_RATIO} times as large as the other: choose another class or data "
            "set"
        )
    _, image, label, low, high = best
    semantic, instances = image.load()
    kept = np.full(instances.shape, IGNORE, np.uint8)
    kept[(semantic == 0) & (instances != IGNORE)] = 0
    for place, identity in zip(PAIR_IDS.values(), (low, high)):
        kept[(instances == identity) & (semantic == label)] = place
    return Pair(image.image_id, class_names[label], kept)


def growth_order(mask: np.ndarray) -> np.ndarray:
    """Order a mask's pixels, as flat positions, from its innermost point outwards."""
    inside = cv2.distanceTransform(
        cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 5
    )[1:-1, 1:-1]
    row, column = np.unravel_index(np.argmax(inside), mask.shape)
    positions = np.flatnonzero(mask)
    rows, columns = np.unravel_index(positions, mask.shape)
    return positions[np.argsort((rows - row) ** 2 + (columns - column) ** 2, kind="stable")]


def class_index(class_name: str, class_names: Sequence[str]) -> int:
    """Find the position of a foreground class; ValueError if there is no such class."""
    return list(class_names).index(look_up_option("class_name", class_name, class_names[1:]))


def perfect_match(
    semantic: np.ndarray,
    instances: np.ndarray,
    num_classes: int,
    category: int = 0,
    without: Sequence[int] = (),
) -> tuple[InstanceTable, np.ndarray]:
    """Match the ground truth, maps (H, W), with itself; ignored pixels are predicted as background.

    The prediction lacks the instances ``without`` of ``category``. Returns records and confusion.
    """
    prediction = np.where(semantic == IGNORE, 0, semantic)
    if without:
        prediction[np.isin(instances, without) & (semantic == category)] = 0
    match = match_image(prediction, semantic, instances, num_classes=num_classes)
    return match.table, match.confusion
