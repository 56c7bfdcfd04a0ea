"""Real VOC images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.metrics import Accumulator

NAMES = ["background", *map(str, range(1, 21))]


@pytest.fixture(scope="module")
def images(realdata):
    folder = realdata / "voc" / "VOC2012"
    files = sorted((folder / "SegmentationObject").glob("*.png"))
    return {
        file.stem: (read_label_map(folder / "SegmentationClass" / file.name), read_label_map(file))
        for file in files
    }


@pytest.mark.parametrize("mode", ["exact", "official"])
def test_ground_truth_as_prediction_is_100_everywhere(images, mode):
    """Also shows that no real instance lies on two classes or on background: that would raise.

    Borders are filled with background, so no two blobs touch. Where two instances of one class
    do (the 255 border has gaps) they share a component, which has no surplus.
    """
    accumulator = Accumulator(21, mode=mode)
    for name, (semantic, instances) in images.items():
        accumulator.update(name, np.where(semantic == 255, 0, semantic), semantic, instances)
    figures = accumulator.summarize(NAMES)
    values = {v for k, v in figures.items() if "IoU" in k and not math.isnan(v)}
    assert values == {100.0}


def test_counts(images):
    accumulator = Accumulator(21)
    for name, (semantic, instances) in images.items():
        accumulator.update(name, np.zeros_like(semantic), semantic, instances)
    figures = accumulator.summarize(NAMES)
    sizes = [
        int(np.count_nonzero(instances == number))
        for _, instances in images.values()
        for number in set(np.unique(instances).tolist()) - {0, 255}
    ]
    small = sum(size < 32**2 for size in sizes)
    large = sum(size >= 96**2 for size in sizes)
    expected = [len(images), len(sizes), small, len(sizes) - small - large, large]
    names = ["images", "instances", "instances_S", "instances_M", "instances_L"]
    assert [figures[name] for name in names] == expected
    # The 24 images of this selection.
    assert expected == [24, 67, 20, 16, 31]


def test_borders_predicted_as_objects_merge_neighbours(images):
    # Void pixels are left out of every count, yet they join components: the figures must differ
    # from those of a prediction that leaves borders empty, or the raw prediction was not used.
    figures = []
    for fill_with_object in (False, True):
        accumulator = Accumulator(21)
        for name, (semantic, instances) in images.items():
            void, label = (
                semantic == 255,
                int(np.bincount(semantic[semantic < 255])[1:].argmax()) + 1,
            )
            guess = np.where(void, label if fill_with_object else 0, semantic)
            # Some surplus on the background to be shared among what is joined.
            guess[:30] = np.where(guess[:30] == 0, label, guess[:30])
            accumulator.update(name, guess, semantic, instances)
        figures.append(accumulator.summarize(NAMES))
    assert figures[0]["mIoU"] == figures[1]["mIoU"]
    assert figures[0]["IA-mIoU_fg"] != figures[1]["IA-mIoU_fg"]
