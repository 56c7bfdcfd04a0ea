"""Per-image figures against the numbers of the code that introduced them.

Wang et al., "Revisiting Evaluation Metrics for Semantic Segmentation", NeurIPS 2023 datasets track.
"""

from __future__ import annotations

import numpy as np
import pytest

from d2_smallobj.metrics import Accumulator
from d2_smallobj.metrics.image_sums import resampled_figures
from d2_smallobj.statistics.intervals import bootstrap_weights, score

CLASSES, IMAGES, HEIGHT, WIDTH = 5, 60, 12, 17

# What AccuracyMetric(q=q, num_classes=5, ignore_index=255) printed for formula_maps(), image by
# image, on 2026-11-28: github.com/zifuwanggg/JDTLosses, metrics/accuracy_metric.py at commit
# 68ce8ac431a0ea07d325dacb3d94965634285362, with torch 2.13 on a CPU. It works in float32 and calls
# the figures mIoUD, mIoUI, mIoUC, mIoUI<q> and mIoUC<q>.
PRINTED = {"mIoU": 37.669601, "mIoU_I": 47.346558, "mIoU_C": 47.125591}
PRINTED_WORST = {
    1: (6.962002, 6.310777),
    5: (7.793669, 7.397309),
    10: (9.650051, 9.098298),
    25: (13.272821, 13.493662),
}


def formula_maps():
    """Prediction and truth of 60 images, in each of which two to five of the classes are present.

    Faults are between none and nine in ten pixels; one pixel in nineteen is ignored.
    """
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    images = []
    for n in range(IMAGES):
        truth = (y * (n % 5 + 1) // 4 + x * (n % 3 + 1) // 5 + n // 4) % (2 + n % 4)
        truth = (truth + (n % 7) // 2) % CLASSES
        mixed = (x * x * 31 + y * y * 17 + x * y * (n + 3) + n * n * 7) % 97
        guess = np.where(mixed < (11 * n) % 90, (truth + 1 + mixed % 3) % CLASSES, truth)
        images.append((guess, np.where(mixed % 19 == n % 19, 255, truth)))
    return images


@pytest.mark.parametrize("stuff", [(), (0,), (1, 4)])
@pytest.mark.parametrize("worst", PRINTED_WORST)
def test_the_figures_are_those_of_the_published_code(worst, stuff):
    accumulator = Accumulator(CLASSES, stuff=stuff)
    for number, maps in enumerate(formula_maps()):
        accumulator.update(number, *maps)
    figures = accumulator.summarize(list("abcde"), worst=worst)
    image, category = PRINTED_WORST[worst]
    expected = {**PRINTED, f"mIoU_I@{worst}": image, f"mIoU_C@{worst}": category}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=0, abs=1e-4)


def test_the_maps_tell_the_figures_apart():
    present = np.array([np.bincount(t[t < 255], minlength=CLASSES) > 0 for _, t in formula_maps()])
    # Two images in a hundred would do for none of the classes.
    assert present.sum(axis=0).tolist() == [37, 44, 49, 46, 34]
    assert set(present.sum(axis=1).tolist()) == {2, 3, 4, 5}


@pytest.mark.parametrize("worst", [5, 60])
def test_a_resample_is_the_images_repeated(worst):
    # Four times 60 images: the worst of the images, and of each class's, are several everywhere.
    maps, names = formula_maps(), list("abcde")
    whole = Accumulator(CLASSES, stuff=())
    for number in range(4 * IMAGES):
        whole.update(f"{number:03d}", *maps[number % IMAGES])
    scores = score(whole, class_names=names, stuff=(), worst=worst)
    weights = next(bootstrap_weights(4 * IMAGES, 2, worst))
    found = resampled_figures(scores.ious, weights, worst)
    for row, drawn in enumerate(weights.astype(int)):
        repeated = Accumulator(CLASSES, stuff=())
        for number in np.repeat(np.arange(4 * IMAGES), drawn).tolist():
            repeated.update(len(repeated.images), *maps[number % IMAGES])
        expected = repeated.summarize(names, worst=worst)
        assert list(found) == ["mIoU_I", "mIoU_C", f"mIoU_I@{worst}", f"mIoU_C@{worst}"]
        for name, values in found.items():
            assert values[row] == pytest.approx(expected[name], abs=1e-7), name
