"""Small scored methods for the tests of statistics."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from d2_smallobj.metrics import InstanceTable, PixelTable


@dataclasses.dataclass
class SmallRun:
    """What the statistics ask of a scored method."""

    table: InstanceTable
    image_counts: np.ndarray
    images: list[str]
    class_names: list[str]
    name: str = "run"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def pixels(self):
        """The counts (images, classes, 3) as the table that the package works on."""
        image, category = np.nonzero(self.image_counts.any(axis=2))
        names = np.array(self.images, np.str_)[image]
        return PixelTable(names, category, *self.image_counts[image, category].T)


def build_run(
    rows, *, images=None, class_names=("background", "cat", "dog"), name="run", **options
):
    """A run from rows (image, category, area, IoU), where nothing wrong is predicted.

    So a class's IoU over the data set is Σ area·IoU / Σ area, its IA-IoU the mean of IoU.
    """
    rows = list(rows)
    images = sorted({row[0] for row in rows}) if images is None else list(images)
    counts = np.zeros((len(images), len(class_names), 3), np.int64)
    columns = {field.name: [] for field in dataclasses.fields(InstanceTable)}
    for number, (image, category, area, iou) in enumerate(rows, start=1):
        hit = round(area * iou)
        counts[images.index(image), category] += (hit, area, hit)
        known = {"image_id": image, "category_id": category, "area": area, "pixels": area}
        known |= {"intersection": hit, "charged": hit, "components": int(hit > 0)}
        known |= {"instance_id": number if category else 0, "image_area": 10**6, "shared": 0}
        for key, column in columns.items():
            column.append(known[key])
    table = InstanceTable.from_columns(columns)
    return SmallRun(table, counts, images, list(class_names), name, options)


@pytest.fixture(scope="session")
def make_run():
    return build_run


@pytest.fixture(scope="session")
def random_run():
    """Random runs: same ``truth_seed``, same ground truth; the rest is the method's."""

    def build(truth_seed, method_seed, *, images=12, classes=3, skill=0.5, name="run"):
        truth, method = (np.random.default_rng(seed) for seed in (truth_seed, method_seed))
        rows = []
        for image in range(images):
            rows.append((f"i{image:03d}", 0, int(truth.integers(1000, 9000)), method.random()))
            for _ in range(truth.integers(0, 4)):
                category = int(truth.integers(1, classes))
                area = int(2 ** truth.uniform(4, 16))
                rows.append((f"i{image:03d}", category, area, method.random() ** (1 / skill - 1)))
        names = ["background", *(f"class{c}" for c in range(1, classes))]
        ids = [f"i{image:03d}" for image in range(images)]
        return build_run(rows, images=ids, class_names=names, name=name)

    return build
