"""Turn dataset dicts into tensors: read, check, augment, and weigh by size (paper, Eq. 3)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from d2_smallobj.config import task_a_iterations
from d2_smallobj.data.supervision import read_supervision
from d2_smallobj.losses.size_balanced import resize_labels
from d2_smallobj.modeling.segmentor import build_size_weights, logit_sizes
from d2_smallobj.utils.files import check_regular
from d2_smallobj.utils.opencv import cv2
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T


class SemSegMapper:
    """Map dataset dicts to what the model takes, in the loader's workers.

    Args:
        cfg: the config.
        is_train: whether to augment and to attach labels and size weights.

    Attributes:
        weights_from: first stream position that gets a weight map; ``size_weights`` is None if
            none does.
        logit_sizes: sizes at which labels are weighed, where the loss is taken on the logits;
            None: the image's size.
    """

    def __init__(self, cfg: CfgNode, is_train: bool = True) -> None:
        self.is_train = is_train
        self.augmentations = T.AugmentationList(build_augmentations(cfg) if is_train else [])
        self.image_format = cfg.INPUT.FORMAT
        self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.ignore_label = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        self.keep_true = cfg.SMALLOBJ.SUPERVISION.LOG_ACCURACY
        self.overlaps = cfg.SMALLOBJ.SUPERVISION.OVERLAPS
        self.seed = max(cfg.SEED, 0)
        weighs_a = cfg.SMALLOBJ.TASK_A.LOSS == "size_weighted"
        weighs_b = cfg.SMALLOBJ.TASK_B.LOSS == "size_weighted"
        task_a = 0 if weighs_a else task_a_iterations(cfg)
        weighs = is_train and (weighs_a or (weighs_b and task_a < cfg.SOLVER.MAX_ITER))
        self.size_weights = build_size_weights(cfg) if weighs else None
        self.weights_from = task_a * images_per_step(cfg)
        on_logits = weighs and cfg.SMALLOBJ.LOSS_RESOLUTION == "logits"
        self.logit_sizes = logit_sizes(cfg) if on_logits else None

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read one image, and in training its label map.

        Returns:
            The dict with ``image`` (3, H, W) float32 in 0..255, ``height`` and ``width`` of the
            file; in training also ``sem_seg`` (H, W) int64 and, from ``weights_from`` on,
            ``size_weights`` (H, W) float32, or with ``logit_sizes`` ``logit_size_weights``, a dict
            from each (h, w) to (h, w) float32. Images with a ``supervision`` also get ``doubtable``
            (H, W) int64, the number of the box that a label comes from, 0 where it is certain, and
            ``box_classes`` and ``true_sem_seg`` as :func:`.supervision.read_supervision` does.

        Raises:
            ValueError: a label map is corrupt, or has other labels or another size than expected.
            OSError: a file is missing, or an image cannot be decoded. Both name the file.
        """
        x = copy.copy(dataset_dict)
        image = read_image(x["file_name"], self.image_format)
        _check_size(x, image)
        x["height"], x["width"] = image.shape[:2]
        if not self.is_train:
            x["image"] = to_tensor(image)
            return x
        labels, maps = read_supervision(
            x, self.num_classes, self.ignore_label, self.keep_true, self.overlaps
        )
        with _augmentation_seed(self.seed, x.get("stream_position")):
            augmented = T.AugInput(image.astype(np.float32), sem_seg=labels)
            transforms = self.augmentations(augmented)
        labels = augmented.sem_seg
        x["image"] = to_tensor(augmented.image)
        x["sem_seg"] = torch.from_numpy(labels.astype(np.int64))
        for key, value in maps.items():
            x[key] = torch.from_numpy(transforms.apply_segmentation(value).astype(np.int64))
        for key in maps.keys() & {"doubtable", "box_classes"}:
            # The crop pads all maps with the ignore label, which is no box's number.
            x[key][x["sem_seg"] == self.ignore_label] = 0
        if self.size_weights is not None and x.get("stream_position", 0) >= self.weights_from:
            self._add_size_weights(x, labels)
        return x

    def _add_size_weights(self, x: dict[str, Any], labels: np.ndarray) -> None:
        """Weigh the labels at the resolution of the loss."""
        assert self.size_weights is not None
        if self.logit_sizes is None:
            x["size_weights"] = torch.from_numpy(self.size_weights(labels))
            return
        padded = np.full(self.logit_sizes.padded, self.ignore_label, labels.dtype)
        padded[: labels.shape[0], : labels.shape[1]] = labels
        batch = torch.from_numpy(padded)[None]
        x["logit_size_weights"] = {
            size: torch.from_numpy(self.size_weights(resize_labels(batch, size)[0].numpy()))
            for size in self.logit_sizes.maps
        }


def read_image(path: str, image_format: str) -> np.ndarray:
    """Read an (H, W, 3) uint8 image; an OSError names the file and what is wrong with it."""
    try:
        check_regular(path)
        return detection_utils.read_image(path, format=image_format)
    except Exception as error:  # damage surfaces in many ways
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{path}: the image cannot be read: {reason}") from error


def _check_size(x: dict[str, Any], image: np.ndarray) -> None:
    """Refuse an image of another size than its data set states."""
    height, width = image.shape[:2]
    stated = (x.get("height", height), x.get("width", width))
    if stated != (height, width):
        raise ValueError(
            f"{x['file_name']}: the image is {width}x{height}, its data set says "
            f"{stated[1]}x{stated[0]} (width x height, EXIF orientation applied)"
        )


def images_per_step(cfg: CfgNode) -> int:
    """Return the images per optimiser step, over all processes and accumulated passes."""
    return cfg.SOLVER.IMS_PER_BATCH * cfg.SMALLOBJ.ACCUMULATE


@contextlib.contextmanager
def _augmentation_seed(seed: int, position: int | None) -> Iterator[None]:
    """Let (seed, position) decide the random draws, and leave the global state as it was."""
    if position is None:
        yield
        return
    state = np.random.get_state()
    # SeedSequence mixes both, so that neighbouring positions draw unrelated numbers.
    np.random.seed(np.random.SeedSequence([seed, position]).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(state)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Turn (H, W, 3) into a contiguous float32 (3, H, W) tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))


# ---- Augmentations, on float32 images -----------------------------------------------------------


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Return the augmentations in the order of docs/method.md#recipe: scale, pad and crop, flip."""
    return [
        RandomScale(cfg.SMALLOBJ.SCALES),
        RandomPaddedCrop(
            cfg.SMALLOBJ.CROP_SIZE,
            image_value=cfg.MODEL.PIXEL_MEAN,
            label_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        ),
        T.RandomFlip(prob=cfg.SMALLOBJ.FLIP_PROB),
    ]


class ScaleTransform(T.Transform):
    """Resize with OpenCV as the released code does: bilinear for images, nearest for label maps.

    Takes the old and the new (height, width). detectron2's ``ResizeTransform`` uses PIL, which
    cannot take float images.
    """

    def __init__(self, old: tuple[int, int], new: tuple[int, int]) -> None:
        super().__init__()
        self.old, self.new = old, new

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Resize an (H, W, C) image."""
        return cv2.resize(img, self.new[::-1], interpolation=cv2.INTER_LINEAR)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize an (H, W) label map; every value stays one that was there."""
        rows, columns = map(_nearest, self.new, segmentation.shape)
        return segmentation[rows[:, None], columns[None, :]]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale (N, 2) coordinates in x, y order."""
        return coords * np.divide(self.new, self.old)[None, ::-1]


def _nearest(size: int, source: int) -> np.ndarray:
    """Return the source index below the centre of each of ``size`` pixels (PIL's NEAREST)."""
    return np.minimum(((np.arange(size) + 0.5) * source / size).astype(np.intp), source - 1)


class RandomScale(T.Augmentation):
    """Resize by a factor drawn from a list."""

    def __init__(self, scales: Sequence[float]) -> None:
        super().__init__()
        self.scales = tuple(scales)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw a factor for an (H, W, C) image."""
        scale = self.scales[np.random.randint(len(self.scales))]
        if scale == 1:
            return T.NoOpTransform()
        height, width = (max(1, int(side * scale)) for side in image.shape[:2])
        return ScaleTransform(image.shape[:2], (height, width))


class RandomPaddedCrop(T.Augmentation):
    """Pad to at least the crop size (right and bottom), then crop at a random place.

    Args:
        crop_size: (height, width) of the result in pixels.
        image_value: fill of images, per channel (the mean, which normalisation makes 0).
        label_value: fill of label maps (the ignore label).
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
        return PaddedCropTransform(top, left, self.crop_size, self.image_value, self.label_value)


class PaddedCropTransform(T.Transform):
    """Crop the window of ``size`` (height, width) at (top, left); fill it outside the image."""

    def __init__(
        self, top: int, left: int, size: tuple[int, ...], image_value: np.ndarray, label_value: int
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
