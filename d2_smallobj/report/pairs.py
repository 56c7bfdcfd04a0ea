"""A small and a large instance of one class, the setting of the corner cases (paper, Fig. 4).

Legend: H, W height and width of a map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from d2_smallobj.metrics import InstanceTable, match_image
from d2_smallobj.report.labelled_images import IGNORE, LabelledImage
from d2_smallobj.utils.opencv import cv2
from d2_smallobj.utils.options import look_up_option


@dataclasses.dataclass(frozen=True)
class Pair:
    """A small and a large instance of one class, alone in an image.

    Attributes:
        image_id: where they are from.
        class_name: their class.
        instances: uint8 (H, W), 0 background, 1 the small one, 2 the large one, 255 everything
            else that the image shows.
    """

    image_id: str
    class_name: str
    instances: np.ndarray

    @property
    def areas(self) -> dict[str, int]:
        """Pixels of the ``small`` and the ``large`` one."""
        return {
            name: int(np.count_nonzero(self.instances == number))
            for name, number in (("small", 1), ("large", 2))
        }


def find_pair(
    images: Iterable[LabelledImage],
    class_names: Sequence[str],
    *,
    class_name: str | None = None,
    min_area: int = 256,
    min_ratio: float = 4.0,
) -> Pair:
    """Find the image in which two instances of one class differ most in area.

    Args:
        images: the data set.
        class_names: background first.
        class_name: look at this class only.
        min_area: pixels that the small one must have at least.
        min_ratio: by which the area of the large one must exceed that of the small one.

    Raises:
        ValueError: if the class is unknown, or no image has such a pair.
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
            if ratio >= min_ratio and (best is None or ratio > best[0]):
                ids = table.instance_id[[low, high]].tolist()
                best = (ratio, image, label, *ids)
    if best is None:
        raise ValueError(
            f"no image has two instances of {class_name or 'one class'} of at least {min_area} "
            f"pixels, one {min_ratio:g} times as large as the other: give another class or data set"
        )
    _, image, label, low, high = best
    return isolate(image, label, low, high, class_names[label])


def isolate(image: LabelledImage, category: int, small: int, large: int, class_name: str) -> Pair:
    """Keep two instances of an image and ignore all other objects.

    Args:
        image: the image.
        category: class of both.
        small: instance id of the small one.
        large: instance id of the large one.
        class_name: name of the class.
    """
    semantic, instances = image.load()
    kept = np.full(instances.shape, IGNORE, np.uint8)
    kept[(semantic == 0) & (instances != IGNORE)] = 0
    for number, identity in enumerate((small, large), start=1):
        kept[(instances == identity) & (semantic == category)] = number
    return Pair(image.image_id, class_name, kept)


def growth_order(mask: np.ndarray) -> np.ndarray:
    """Order in which a prediction grows over an instance: from its innermost point outwards.

    Args:
        mask: bool (H, W), the instance.

    Returns:
        int64, flat positions of its pixels, first to last.
    """
    inside = cv2.distanceTransform(
        cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 5
    )[1:-1, 1:-1]
    row, column = np.unravel_index(np.argmax(inside), mask.shape)
    positions = np.flatnonzero(mask)
    rows, columns = np.unravel_index(positions, mask.shape)
    return positions[np.argsort((rows - row) ** 2 + (columns - column) ** 2, kind="stable")]


def class_index(class_name: str, class_names: Sequence[str]) -> int:
    """Position of a foreground class.

    Raises:
        ValueError: if there is no such class, or it is the background.
    """
    return list(class_names).index(look_up_option("class_name", class_name, class_names[1:]))


def perfect_match(
    semantic: np.ndarray,
    instances: np.ndarray,
    num_classes: int,
    category: int = 0,
    without: Sequence[int] = (),
) -> tuple[InstanceTable, np.ndarray]:
    """Match the ground truth, less some instances, with itself; ignored pixels are background.

    Args:
        semantic: (H, W) integers.
        instances: (H, W) integers.
        num_classes: number of classes, background included.
        category: class of the instances that are left out.
        without: their ids.

    Returns:
        The records and the confusion matrix.
    """
    prediction = np.where(semantic == IGNORE, 0, semantic)
    if without:
        prediction[np.isin(instances, without) & (semantic == category)] = 0
    match = match_image(prediction, semantic, instances, num_classes=num_classes)
    return match.table, match.confusion
