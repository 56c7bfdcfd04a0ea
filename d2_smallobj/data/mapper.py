"""From a dataset dict to tensors: reading, checks, augmentation, the size-weight map."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from d2_smallobj.annotations.label_maps import CORRUPT_IMAGE, check_label_values, read_label_map
from d2_smallobj.config import task_a_iterations
from d2_smallobj.data.augmentation import RandomPaddedCrop, RandomScale
from d2_smallobj.data.supervision import supervised_labels
from d2_smallobj.losses.size_balanced import resize_labels
from d2_smallobj.losses.size_weights import SizeWeights
from d2_smallobj.modeling.segmentor import LogitSizes, build_size_weights, logit_sizes
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T


class SemSegMapper:
    """Maps dataset dicts to what the model takes; runs in the loader's workers.

    Args:
        is_train: whether to augment and to attach labels and size weights.
        augmentations: applied in order to image and label map.
        image_format: ``"BGR"`` or ``"RGB"``.
        num_classes: classes in the label maps, background included.
        ignore_label: label of pixels without a class.
        size_weights: makes the weight map (paper, Eq. 3) from the augmented label map, here in the
            worker, so that training never waits for it; None: no map.
        weights_from: first stream position whose task weights by size; earlier ones get no map.
        logit_sizes: the weight maps are made for labels of these sizes, where the loss is taken;
            None: for those of the image.
        keep_true: whether images labelled by boxes get their true labels too, where known, for
            the log.
        seed: with the stream position, decides the augmentation.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        num_classes: int,
        ignore_label: int,
        size_weights: SizeWeights | None = None,
        weights_from: int = 0,
        logit_sizes: LogitSizes | None = None,
        keep_true: bool = False,
        seed: int = 0,
    ) -> None:
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.size_weights = size_weights
        self.weights_from = weights_from
        self.logit_sizes = logit_sizes
        self.keep_true = keep_true
        self.seed = seed

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Map config keys to constructor arguments."""
        weights, weights_from = _weight_stage(cfg)
        on_logits = is_train and weights is not None and cfg.SMALLOBJ.LOSS_RESOLUTION == "logits"
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg) if is_train else [],
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "size_weights": weights if is_train else None,
            "weights_from": weights_from,
            "logit_sizes": logit_sizes(cfg) if on_logits else None,
            "keep_true": cfg.SMALLOBJ.SUPERVISION.LOG_ACCURACY,
            "seed": max(cfg.SEED, 0),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read one image (and in training its label map).

        Returns:
            The dict with ``image`` (3, H, W) float32 in 0..255, ``height`` and ``width`` of the
            file; in training also ``sem_seg`` (H, W) int64 and, from ``weights_from`` on,
            ``size_weights`` (H, W) float32, or with ``logit_sizes`` ``logit_size_weights``, a dict
            from each (h, w) to (h, w) float32. Images with a ``supervision`` also get ``doubtable``
            (H, W) int64, the number of the box that a label comes from, 0 where it is certain, and
            with ``keep_true`` ``true_sem_seg`` (H, W) int64.

        Raises:
            ValueError: for a label map that is corrupt or not one, has values out of range or
                another size than its image; names the file.
            OSError: for a missing image or label file, or an image that cannot be decoded.
        """
        x = copy.copy(dataset_dict)
        image = read_image(x["file_name"], self.image_format)
        x["height"], x["width"] = image.shape[:2]
        if not self.is_train:
            x["image"] = _to_tensor(image)
            return x
        labels, maps = self._read_supervision(x)
        with _augmentation_seed(self.seed, x.get("stream_position")):
            augmented = T.AugInput(image.astype(np.float32), sem_seg=labels)
            transforms = self.augmentations(augmented)
        labels = augmented.sem_seg
        x["image"] = _to_tensor(augmented.image)
        x["sem_seg"] = torch.from_numpy(labels.astype(np.int64))
        for key, value in maps.items():
            x[key] = torch.from_numpy(transforms.apply_segmentation(value).astype(np.int64))
        if "doubtable" in maps:
            # The crop pads all maps with the ignore label, which is no box's number.
            x["doubtable"][x["sem_seg"] == self.ignore_label] = 0
        if self.size_weights is not None and x.get("stream_position", 0) >= self.weights_from:
            self._add_size_weights(x, labels)
        return x

    def _add_size_weights(self, x: dict[str, Any], labels: np.ndarray) -> None:
        """Weigh the labels at the resolution of the loss."""
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

    def _read_supervision(self, x: dict[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The label map of an image from its mask or its boxes, and maps that go with it."""
        if "supervision" not in x:
            return self._read_labels(x), {}
        labels, maps = supervised_labels(
            x, self._read_labels, keep_true=self.keep_true, ignore_label=self.ignore_label
        )
        if x["supervision"] == "boxes":
            where = f"{x['file_name']}: its boxes"
            check_label_values(labels, self.num_classes, self.ignore_label, where)
        return labels, maps

    def _read_labels(self, x: dict[str, Any]) -> np.ndarray:
        """The label map of an image, checked."""
        path = x["sem_seg_file_name"]
        labels = read_label_map(path)
        if labels.shape != (x["height"], x["width"]):
            raise ValueError(
                f"{path}: the label map is {labels.shape[1]}x{labels.shape[0]}, its image "
                f"{x['file_name']} is {x['width']}x{x['height']} (width x height); "
                "they must agree"
            )
        if "label_rule" in x:
            labels = x["label_rule"].semantic(labels, path)
        check_label_values(labels, self.num_classes, self.ignore_label, path)
        # The crop pads with the ignore label, which may be none of the file's type (-1, 65535).
        return labels.astype(np.int32)


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """The recipe's augmentations in its order: scale, pad and crop, flip."""
    return [
        RandomScale(cfg.SMALLOBJ.SCALES),
        RandomPaddedCrop(
            cfg.SMALLOBJ.CROP_SIZE,
            image_value=cfg.MODEL.PIXEL_MEAN,
            label_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        ),
        T.RandomFlip(prob=cfg.SMALLOBJ.FLIP_PROB),
    ]


def read_image(path: str, image_format: str) -> np.ndarray:
    """Read an (H, W, 3) uint8 image.

    Raises:
        OSError: names the file and what is wrong with it.
    """
    try:
        return detection_utils.read_image(path, format=image_format)
    except CORRUPT_IMAGE as error:
        raise OSError(f"{path}: the image cannot be read: {error}") from error


def _weight_stage(cfg: CfgNode) -> tuple[SizeWeights | None, int]:
    """The weight map's options and the first stream position that needs it."""
    node = cfg.SMALLOBJ
    if node.TASK_A.LOSS == "size_weighted":
        return build_size_weights(cfg), 0
    task_a = task_a_iterations(cfg)
    if node.TASK_B.LOSS != "size_weighted" or task_a >= cfg.SOLVER.MAX_ITER:
        return None, 0
    return build_size_weights(cfg), task_a * images_per_step(cfg)


def images_per_step(cfg: CfgNode) -> int:
    """Images per optimiser step, over all processes and accumulated passes."""
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


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) to a contiguous float32 (3, H, W) tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))
