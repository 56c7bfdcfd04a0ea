"""The recipe's augmentations (docs/method.md#recipe), for detectron2, on float32 images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d2_smallobj.utils.opencv import cv2
from detectron2.data import transforms as T


class ScaleTransform(T.Transform):
    """Resize with OpenCV: bilinear for images, nearest for label maps.

    detectron2's ``ResizeTransform`` goes through PIL, which cannot take the float images of
    this recipe; the released code uses OpenCV.

    Args:
        height: height of the result in pixels.
        width: width of the result in pixels.
        scale_y: factor on y coordinates.
        scale_x: factor on x coordinates.
    """

    def __init__(self, height: int, width: int, scale_y: float, scale_x: float) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.scale_y, self.scale_x = scale_y, scale_x

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Resize an (H, W, C) image."""
        return cv2.resize(img, (self.width, self.height), interpolation=cv2.INTER_LINEAR)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize an (H, W) label map; every value stays one that was there."""
        rows = _nearest(self.height, segmentation.shape[0])
        columns = _nearest(self.width, segmentation.shape[1])
        return segmentation[rows[:, None], columns[None, :]]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale (N, 2) coordinates in x, y order."""
        return coords * np.array([[self.scale_x, self.scale_y]])


def _nearest(size: int, source: int) -> np.ndarray:
    """Source index below the centre of each of ``size`` pixels (PIL's NEAREST)."""
    return np.minimum(((np.arange(size) + 0.5) * source / size).astype(np.intp), source - 1)


class RandomScale(T.Augmentation):
    """Resize by a factor drawn from a list.

    Args:
        scales: the factors, each > 0.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        super().__init__()
        self.scales = tuple(scales)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw a factor for an (H, W, C) image."""
        scale = self.scales[np.random.randint(len(self.scales))]
        height, width = image.shape[:2]
        if scale == 1:
            return T.NoOpTransform()
        new_height, new_width = max(1, int(height * scale)), max(1, int(width * scale))
        # The sides are whole pixels, so the true factors differ a little from the drawn one.
        return ScaleTransform(new_height, new_width, new_height / height, new_width / width)


class RandomPaddedCrop(T.Augmentation):
    """Pad to at least the crop size (right and bottom), then crop at a random place.

    Args:
        crop_size: (height, width) of the result in pixels.
        image_value: per channel, what images are padded with (the mean: zero after
            normalisation).
        label_value: what label maps are padded with (ignore).
    """

    def __init__(
        self, crop_size: Sequence[int], *, image_value: Sequence[float], label_value: int
    ) -> None:
        super().__init__()
        self.crop_size = tuple(crop_size)
        self.image_value = np.asarray(image_value, dtype=np.float32)
        self.label_value = label_value

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw a place in an (H, W, C) image."""
        height, width = image.shape[:2]
        crop_height, crop_width = self.crop_size
        top = np.random.randint(max(height - crop_height, 0) + 1)
        left = np.random.randint(max(width - crop_width, 0) + 1)
        return PaddedCropTransform(
            top, left, self.crop_size, image_value=self.image_value, label_value=self.label_value
        )


class PaddedCropTransform(T.Transform):
    """Crop a window; what of it lies outside the image is filled.

    Args:
        top: first row of the window.
        left: first column of the window.
        size: (height, width) of the window.
        image_value: per channel fill of images.
        label_value: fill of label maps.
    """

    def __init__(
        self,
        top: int,
        left: int,
        size: tuple[int, int],
        *,
        image_value: np.ndarray,
        label_value: int,
    ) -> None:
        super().__init__()
        self.top, self.left, self.size = top, left, size
        self.image_value, self.label_value = image_value, label_value

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Crop an (H, W, C) image."""
        window = np.empty((*self.size, img.shape[2]), dtype=img.dtype)
        window[:] = self.image_value.astype(img.dtype)
        return self._copy(img, window)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Crop an (H, W) label map."""
        return self._copy(segmentation, np.full(self.size, self.label_value, segmentation.dtype))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Shift (N, 2) coordinates in x, y order."""
        return coords - np.array([[self.left, self.top]])

    def _copy(self, source: np.ndarray, window: np.ndarray) -> np.ndarray:
        part = source[self.top : self.top + self.size[0], self.left : self.left + self.size[1]]
        window[: part.shape[0], : part.shape[1]] = part
        return window
