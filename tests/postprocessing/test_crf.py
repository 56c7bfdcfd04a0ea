"""The CRF against exact mean-field inference with every pair of pixels."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from scipy.special import softmax

from d2_smallobj.postprocessing import CrfOptions, DenseCrf, crf

ONES, BLACK = np.ones((1, 4, 4)), np.zeros((4, 4, 3), np.uint8)


def exact(probabilities, image, options):
    """Mean-field inference from its definition."""
    place = np.argwhere(np.ones(image.shape[:2])).astype(float)
    colour = image.reshape(-1, 3).astype(float)
    place, colour = (cdist(values, values, "sqeuclidean") for values in (place, colour))
    appearance = place / options.bilateral_sxy**2 + colour / options.bilateral_srgb**2
    weights, kernel = (options.gaussian_weight, options.bilateral_weight), 0
    for weight, distance in zip(weights, (place / options.gaussian_sxy**2, appearance)):
        k = np.exp(-distance / 2)
        scale = 1 / np.sqrt(k.sum(axis=1))
        kernel = kernel + weight * scale[:, None] * k * scale
    log_p = np.log(np.clip(probabilities.reshape(len(probabilities), -1).T, 1e-5, None))
    q = softmax(log_p, axis=1)
    for _ in range(options.iterations):
        q = softmax(log_p + kernel @ q, axis=1)
    return q.T.reshape(probabilities.shape)


def assert_close(found, expected, *, labels, mean):
    """Labels that agree, as a share of at least ``labels``; probabilities that do, on average."""
    assert (found.argmax(0) == expected.argmax(0)).mean() > labels
    assert np.abs(found - expected).mean() < mean


def blurred_labels(labels, num_classes):
    """Probabilities of a net that knows the labels roughly."""
    known = labels == np.arange(num_classes)[:, None, None]
    noise = np.random.default_rng(0).normal(size=known.shape)
    logits = 6 * gaussian_filter(known.astype(float), (0, 3, 3)) + 4 * gaussian_filter(
        noise, (0, 2, 2)
    )
    return softmax(logits, axis=0)


@pytest.fixture(scope="module")
def scene():
    """Two discs on a background, (48, 56), three noisy colours, and rough probabilities."""
    y, x = np.mgrid[:48, :56]
    labels = ((y - 20) ** 2 + (x - 18) ** 2 < 130) + 2 * ((y - 32) ** 2 + (x - 42) ** 2 < 40)
    colours = np.array([[90, 100, 110], [200, 60, 50], [60, 70, 190]])
    image = colours[labels] + np.random.default_rng(1).normal(0, 3, (48, 56, 3))
    return image.clip(0, 255).astype(np.uint8), labels, blurred_labels(labels, 3)


@pytest.mark.parametrize("sxy", [0.4, 3.0])
def test_smoothness_kernel_is_exact(scene, sxy):
    image, _, probabilities = scene
    options = CrfOptions(iterations=5, gaussian_sxy=sxy, bilateral_weight=0.0)
    found = DenseCrf(options)(probabilities, image)
    np.testing.assert_allclose(found, exact(probabilities, image, options), atol=2e-4)


@pytest.mark.parametrize("widths", [(67, 3), (20, 10)])
def test_agrees_with_exact_inference(scene, widths):
    image, labels, probabilities = scene
    options = CrfOptions(bilateral_sxy=widths[0], bilateral_srgb=widths[1])
    found, expected = DenseCrf(options)(probabilities, image), exact(probabilities, image, options)
    assert_close(found, expected, labels=0.995, mean=0.005)
    # The refinement is no small matter here: unrefined labels are far from the exact ones.
    assert (probabilities.argmax(0) == expected.argmax(0)).mean() < 0.985
    assert (found.argmax(0) == labels).mean() > 0.99


def test_agrees_with_exact_inference_on_a_photograph(realdata):
    folder = realdata / "voc" / "VOC2012"
    path = sorted((folder / "SegmentationClass").glob("*.png"))[0]
    window = np.s_[70:112, 105:150]
    image = np.array(Image.open(folder / "JPEGImages" / f"{path.stem}.jpg").convert("RGB"))[window]
    values = np.array(Image.open(path))[window]
    classes, labels = np.unique(np.where(values == 255, 0, values), return_inverse=True)
    probabilities = blurred_labels(labels.reshape(values.shape), len(classes))
    expected = exact(probabilities, image, CrfOptions())
    assert_close(DenseCrf()(probabilities, image), expected, labels=0.99, mean=0.01)


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
    assert_close(DenseCrf()(probabilities, image), theirs, labels=0.995, mean=0.003)


def test_properties(scene):
    image, _, probabilities = scene
    before = [probabilities.copy(), image.copy()]
    refined = DenseCrf()(probabilities, image)
    assert refined.dtype == np.float32
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(DenseCrf()(probabilities, image), refined)
    assert all(map(np.array_equal, before, (probabilities, image)))
    unchanged = DenseCrf(CrfOptions(gaussian_weight=0, bilateral_weight=0))(probabilities, image)
    np.testing.assert_allclose(unchanged, probabilities, atol=1e-6)
    np.testing.assert_allclose(DenseCrf()(probabilities[::-1], image), refined[::-1], atol=1e-4)
    # RGB or BGR: distances between colours are the same.
    assert_close(DenseCrf()(probabilities, image[:, :, ::-1]), refined, labels=0.99, mean=2e-3)


def test_classes_that_cannot_win_are_left_out(scene, monkeypatch):
    image, _, probabilities = scene
    unlikely = np.full((17, *image.shape[:2]), 5e-4)
    padded = np.concatenate([probabilities * (1 - unlikely.sum(axis=0)), unlikely])
    refined = DenseCrf()(padded, image)
    np.testing.assert_allclose(refined[3:], unlikely, atol=1e-7)
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)
    monkeypatch.setattr(crf, "_NEGLIGIBLE", 0.0)
    assert_close(DenseCrf()(padded, image), refined, labels=0.999, mean=2e-3)


def test_one_pixel_and_one_class():
    for probabilities in (np.ones((1, 1, 1)), np.array([[[0.25]], [[0.75]]])):
        refined = DenseCrf()(probabilities, np.zeros((1, 1, 3), np.uint8))
        assert refined.shape == probabilities.shape
        assert refined.argmax() == probabilities.argmax()
        assert np.isfinite(refined).all()


@pytest.mark.parametrize(
    ("options", "probabilities", "image", "message"),
    [
        ({"iterations": 0}, ONES, BLACK, "iterations must be finite and > 0, got 0"),
        ({"iterations": 1.5}, ONES, BLACK, "iterations must be an integer, got 1.5"),
        ({"gaussian_sxy": 0.0}, ONES, BLACK, "gaussian_sxy must be finite and > 0, got 0.0"),
        ({"bilateral_srgb": np.nan}, ONES, BLACK, "bilateral_srgb must be finite and > 0, got nan"),
        ({"bilateral_weight": -1.0}, ONES, BLACK, "_weight must be finite and >= 0, got -1.0"),
        ({}, ONES[0], BLACK, r"shape \(K, H, W\).*got \(4, 4\)"),
        ({}, ONES.astype(int), BLACK, "float array.*int64"),
        ({}, ONES, BLACK[:, :3], r"image .*\(4, 4, 3\).*\(4, 3, 3\)"),
        ({}, ONES, BLACK.astype(float), "image must be uint8.*float64"),
        ({}, np.ones((2, 4, 4)), BLACK, "sums from 2 to 2 .*softmax first"),
        ({}, ONES * np.nan, BLACK, "got a minimum of nan"),
    ],
)
def test_refusals(options, probabilities, image, message):
    with pytest.raises(ValueError, match=message):
        DenseCrf(CrfOptions(**options))(probabilities, image)
