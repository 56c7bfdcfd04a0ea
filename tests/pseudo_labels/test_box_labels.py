"""Label maps of boxes: painted, or refined inside every box."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.boxes import checked_boxes
from d2_smallobj.annotations.label_maps import read_label_map
from d2_smallobj.postprocessing import CrfOptions, DenseCrf
from d2_smallobj.pseudo_labels.box_labels import box_labels, object_share, write_box_label
from d2_smallobj.utils.opencv import cv2

HEIGHT, WIDTH = 70, 90
CRF = DenseCrf(CrfOptions(iterations=3, bilateral_sxy=15.0, bilateral_srgb=8.0))


def _scene():
    """A red disc on grey noise, a blue one in front of its corner: image, true labels, boxes."""
    rng = np.random.default_rng(0)
    image = rng.integers(100, 120, (HEIGHT, WIDTH, 3), np.uint8)
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    for class_id, centre, radius, colour in (
        (2, (40, 35), 22, (200, 30, 30)),
        (1, (62, 20), 10, (20, 40, 210)),
    ):
        cv2.circle(image, centre, radius, colour, -1)
        cv2.circle(truth, centre, radius, class_id, -1)
    rows = [(1, 52, 10, 73, 31), (2, 18, 13, 63, 58), (-2, 80, 60, 90, 70)]
    return image, truth, checked_boxes(rows, HEIGHT, WIDTH, "test")


def _iou(labels, truth, class_id):
    found, wanted = labels == class_id, truth == class_id
    return (found & wanted).sum() / (found | wanted).sum()


def test_painted_boxes():
    image, _, boxes = _scene()
    labels = box_labels(boxes, image)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[60:70, 80:90] = 255
    expected[13:58, 18:63] = 2
    expected[10:31, 52:73] = 1  # the smaller one lies on top
    np.testing.assert_array_equal(labels, expected)
    assert not box_labels(boxes[:0], image).any()


@pytest.mark.parametrize(("refine", "crf"), [("grabcut", None), ("crf", CRF)])
def test_a_refined_box_finds_its_object(refine, crf):
    image, truth, boxes = _scene()
    painted = box_labels(boxes, image)
    labels = box_labels(boxes, image, refine=refine, crf=crf)
    for class_id in (1, 2):
        assert _iou(labels, truth, class_id) > _iou(painted, truth, class_id) + 0.1
        assert _iou(labels, truth, class_id) > 0.85
    inside = np.zeros_like(truth, bool)
    inside[10:58, 18:73] = True
    assert not labels[~inside & (painted == 0)].any()  # nothing outside of the boxes
    np.testing.assert_array_equal(labels, box_labels(boxes, image, refine=refine, crf=crf))
    if refine == "grabcut":
        assert 0 < (labels[inside] == 255).mean() < 0.2  # the band along the borders


def test_what_cannot_be_refined_is_painted():
    grey, small = np.full((40, 40, 3), 90, np.uint8), (3, 3, 18, 18)
    assert (object_share(small, grey, None) == 1).all()  # 225 pixels
    # One colour, no background in sight, and an object that fills nothing.
    assert (object_share((5, 5, 35, 35), grey, None) == 1).all()
    assert (object_share((0, 0, 40, 40), grey, None) == 1).all()

    def nothing(probabilities, image):
        return np.stack([np.ones(image.shape[:2]), np.zeros(image.shape[:2])])

    assert (object_share((5, 5, 35, 35), grey, nothing) == 1).all()
    with pytest.raises(ValueError, match="refine: unknown value 'grab'"):
        box_labels(np.zeros((0, 5), np.int32), grey, refine="grab")


def test_a_large_box_is_refined_at_a_smaller_size():
    image, truth, boxes = (np.asarray(x) for x in _scene())
    large = np.repeat(np.repeat(image, 5, 0), 5, 1)
    boxes[:, 1:] *= 5
    labels = box_labels(boxes, large, refine="grabcut")
    assert labels.shape == large.shape[:2]
    assert _iou(labels, np.repeat(np.repeat(truth, 5, 0), 5, 1), 2) > 0.85


def test_files(tmp_path):
    image, _, boxes = _scene()
    Image.fromarray(image).save(tmp_path / "a.png")
    write = functools.partial(write_box_label, refine="none", crf=None, keep=True)
    item = (str(tmp_path / "a.png"), boxes, str(tmp_path / "out/a.png"))
    assert write(item) is True
    np.testing.assert_array_equal(read_label_map(item[2]), box_labels(boxes, image))
    assert write(item) is False
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert "a.png: the image cannot be read" in write((*item[:2], str(tmp_path / "out/b.png")))
    assert not (tmp_path / "out/b.png").exists()
