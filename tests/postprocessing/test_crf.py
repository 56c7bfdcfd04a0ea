"""The CRF against exact mean-field inference with every pair of pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist
from scipy.special import softmax

from d2_smallobj.postprocessing import CrfOptions, DenseCrf
from d2_smallobj.postprocessing import crf as module
from d2_smallobj.utils.opencv import cv2


def exact(probabilities, image, options):
    """Mean-field inference from its definition."""
    height, width = image.shape[:2]
    place = np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2).astype(float)
    colour = image.reshape(-1, 3).astype(float)
    smooth = cdist(place, place, "sqeuclidean") / options.gaussian_sxy**2
    appearance = cdist(place, place, "sqeuclidean") / options.bilateral_sxy**2
    appearance += cdist(colour, colour, "sqeuclidean") / options.bilateral_srgb**2
    kernel = 0
    for weight, distance in (
        (options.gaussian_weight, smooth),
        (options.bilateral_weight, appearance),
    ):
        k = np.exp(-distance / 2)
        scale = 1 / np.sqrt(k.sum(axis=1))
        kernel = kernel + weight * scale[:, None] * k * scale
    log_p = np.log(np.clip(probabilities.reshape(len(probabilities), -1).T, 1e-5, None))
    q = softmax(log_p, axis=1)
    for _ in range(options.iterations):
        q = softmax(log_p + kernel @ q, axis=1)
    return q.T.reshape(probabilities.shape)


def blurred_labels(labels, num_classes, seed=0, sigma=3.0):
    """Probabilities of a net that knows the labels roughly."""
    rng = np.random.default_rng(seed)
    logits = [
        6 * cv2.GaussianBlur((labels == c).astype(np.float32), (0, 0), sigma)
        + 4 * cv2.GaussianBlur(rng.normal(size=labels.shape).astype(np.float32), (0, 0), 2)
        for c in range(num_classes)
    ]
    return softmax(np.stack(logits), axis=0)


@pytest.fixture(scope="module")
def scene():
    """Two discs on a background, (48, 56), three noisy colours, and rough probabilities."""
    y, x = np.mgrid[:48, :56]
    labels = np.zeros((48, 56), int)
    labels[(y - 20) ** 2 + (x - 18) ** 2 < 130] = 1
    labels[(y - 32) ** 2 + (x - 42) ** 2 < 40] = 2
    colours = np.array([[90, 100, 110], [200, 60, 50], [60, 70, 190]])
    image = colours[labels] + np.random.default_rng(1).normal(0, 3, (48, 56, 3))
    return image.clip(0, 255).astype(np.uint8), labels, blurred_labels(labels, 3)


def test_smoothness_kernel_is_exact(scene):
    image, _, probabilities = scene
    for sxy in (0.4, 3.0):
        options = CrfOptions(iterations=5, gaussian_sxy=sxy, bilateral_weight=0.0)
        np.testing.assert_allclose(
            DenseCrf(options)(probabilities, image), exact(probabilities, image, options), atol=2e-4
        )


@pytest.mark.parametrize(
    "options",
    [CrfOptions(), CrfOptions(iterations=3, bilateral_sxy=20, bilateral_srgb=10)],
    ids=["default", "wide"],
)
def test_agrees_with_exact_inference(scene, options):
    image, labels, probabilities = scene
    found, expected = DenseCrf(options)(probabilities, image), exact(probabilities, image, options)
    assert np.abs(found - expected).mean() < 0.005
    assert (found.argmax(0) == expected.argmax(0)).mean() > 0.995
    # The refinement is no small matter here: unrefined labels are far from the exact ones.
    assert (probabilities.argmax(0) == expected.argmax(0)).mean() < 0.985
    assert (found.argmax(0) == labels).mean() > 0.99


def test_agrees_with_exact_inference_on_a_photograph(realdata):
    folder = realdata / "voc" / "VOC2012"
    path = sorted((folder / "SegmentationClass").glob("*.png"))[0]
    window = np.s_[60:120, 100:170]
    image = np.array(Image.open(folder / "JPEGImages" / f"{path.stem}.jpg").convert("RGB"))[window]
    values = np.array(Image.open(path))[window]
    classes = np.unique(values[values != 255])
    labels = np.searchsorted(classes, np.where(values == 255, 0, values))
    probabilities = blurred_labels(labels, max(2, len(classes)))
    found = DenseCrf()(probabilities, image)
    expected = exact(probabilities, image, CrfOptions())
    assert (found.argmax(0) == expected.argmax(0)).mean() > 0.99
    assert np.abs(found - expected).mean() < 0.01


def test_agrees_with_the_usual_library(scene):
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    image, _, probabilities = scene
    classes, height, width = probabilities.shape
    model = densecrf.DenseCRF2D(width, height, classes)
    energy = -np.log(np.clip(probabilities, 1e-5, None)).reshape(classes, -1)
    model.setUnaryEnergy(np.ascontiguousarray(energy, np.float32))
    model.addPairwiseGaussian(sxy=1, compat=3)
    model.addPairwiseBilateral(sxy=67, srgb=3, rgbim=np.ascontiguousarray(image), compat=4)
    theirs = np.array(model.inference(10)).reshape(probabilities.shape)
    ours = DenseCrf()(probabilities, image)
    assert (ours.argmax(0) == theirs.argmax(0)).mean() > 0.995
    assert np.abs(ours - theirs).mean() < 0.003


def test_without_kernels_nothing_changes(scene):
    image, _, probabilities = scene
    refined = DenseCrf(CrfOptions(gaussian_weight=0, bilateral_weight=0))(probabilities, image)
    np.testing.assert_allclose(refined, probabilities, atol=1e-6)


def test_properties(scene):
    image, _, probabilities = scene
    before = probabilities.copy(), image.copy()
    refined = DenseCrf()(probabilities, image)
    assert refined.dtype == np.float32
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(DenseCrf()(probabilities, image), refined)
    np.testing.assert_array_equal(before[0], probabilities)
    np.testing.assert_array_equal(before[1], image)
    order = [2, 0, 1]
    np.testing.assert_allclose(DenseCrf()(probabilities[order], image), refined[order], atol=1e-4)
    # RGB or BGR: distances between colours are the same.
    other = DenseCrf()(probabilities, image[:, :, ::-1])
    assert np.abs(other - refined).mean() < 2e-3


def test_classes_that_cannot_win_are_left_out(scene, monkeypatch):
    image, _, probabilities = scene
    unlikely = np.full((17, *image.shape[:2]), 5e-4)
    padded = np.concatenate([probabilities * (1 - unlikely.sum(axis=0)), unlikely])
    refined = DenseCrf()(padded, image)
    np.testing.assert_allclose(refined[3:], unlikely, atol=1e-7)
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)
    monkeypatch.setattr(module, "_NEGLIGIBLE", 0.0)
    everything = DenseCrf()(padded, image)
    assert (everything.argmax(0) == refined.argmax(0)).mean() > 0.999
    assert np.abs(everything - refined).mean() < 2e-3


def test_one_pixel_and_one_class():
    image = np.zeros((1, 1, 3), np.uint8)
    for probabilities in ([[[1.0]]], [[[0.25]], [[0.75]]]):
        refined = DenseCrf()(np.array(probabilities), image)
        assert refined.shape == np.shape(probabilities)
        assert refined.argmax() == np.argmax(probabilities)
        assert np.isfinite(refined).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations must be finite and > 0, got 0"),
        ({"iterations": 1.5}, "iterations must be an integer, got 1.5"),
        ({"gaussian_sxy": 0.0}, "gaussian_sxy must be finite and > 0, got 0.0"),
        ({"bilateral_srgb": float("nan")}, "bilateral_srgb must be finite and > 0, got nan"),
        ({"bilateral_weight": -1.0}, "bilateral_weight must be finite and >= 0, got -1.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        CrfOptions(**options)


@pytest.mark.parametrize(
    ("probabilities", "image", "message"),
    [
        (np.ones((4, 4)), np.zeros((4, 4, 3), np.uint8), r"shape \(K, H, W\).*got \(4, 4\)"),
        (np.ones((1, 4, 4), int), np.zeros((4, 4, 3), np.uint8), "float array.*int64"),
        (np.ones((1, 4, 4)), np.zeros((4, 5, 3), np.uint8), r"image .*\(4, 4, 3\).*\(4, 5, 3\)"),
        (np.ones((1, 4, 4)), np.zeros((4, 4, 3)), "image must be uint8.*float64"),
        (np.ones((2, 4, 4)), np.zeros((4, 4, 3), np.uint8), "sums from 2 to 2 .*softmax first"),
        (np.full((1, 4, 4), np.nan), np.zeros((4, 4, 3), np.uint8), "got a minimum of nan"),
    ],
)
def test_bad_input(probabilities, image, message):
    with pytest.raises(ValueError, match=message):
        DenseCrf()(probabilities, image)
