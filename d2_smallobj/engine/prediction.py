"""Predict the images of a data set or of any folder into files (``tools/predict.py``).

Shapes: K classes, H x W the size of an image file.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.data import SemSegMapper
from d2_smallobj.report.drawing import blend_labels
from d2_smallobj.utils.files import atomic_write, check_names
from d2_smallobj.utils.messages import itemized
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Suffixes of the files in a folder that are taken for images."""


def find_images(
    paths: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]
) -> list[dict[str, Any]]:
    """List image files, and the images in folders and their subfolders, as dataset dicts.

    Args:
        paths: files, taken for images whatever their names; or folders, of which files with one
            of :data:`IMAGE_SUFFIXES` that are not hidden are taken.
        output: the folder that predictions will be written to.

    Returns:
        Dicts with ``file_name`` and ``image_id``: the path below the folder, without suffix.

    Raises:
        FileNotFoundError: names all paths that do not exist.
        ValueError: for a folder without an image, images that would get one name, or an output
            folder inside an input folder.
    """
    missing = [os.fspath(path) for path in paths if not os.path.exists(path)]
    if missing:
        raise FileNotFoundError(itemized("input path(s) do not exist", missing))
    for folder in filter(os.path.isdir, paths):
        if Path(output).resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(
                f"the output folder {output} lies in the input folder {folder}, whose images "
                "would then include predictions; choose another"
            )
    found: dict[str, str] = {}
    clashes = []
    for path in map(Path, paths):
        for file in _images_in(path) if path.is_dir() else [path]:
            name = file.relative_to(path if path.is_dir() else path.parent).with_suffix("")
            other = found.setdefault(name.as_posix(), os.fspath(file))
            if other != os.fspath(file) and not os.path.samefile(other, file):
                clashes.append(f"{other} and {file}")
    if clashes:
        raise ValueError(
            itemized("pair(s) of images would be written under one name", clashes)
            + "\npredict them into different folders"
        )
    return [{"file_name": file, "image_id": name} for name, file in found.items()]


def _images_in(folder: Path) -> list[Path]:
    """List the images in a folder and its subfolders; links to folders are not followed."""
    images = [
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
    ]
    check_names(folder, (image.name for image in images))
    if not images:
        raise ValueError(f"no image ({', '.join(IMAGE_SUFFIXES)}) in {folder}")
    return sorted(images)


def build_prediction_loader(
    cfg: CfgNode, dicts: Sequence[dict[str, Any]]
) -> Iterable[list[dict[str, Any]]]:
    """Build a loader over dataset dicts, one image a batch, that goes on after bad files."""
    return build_detection_test_loader(
        list(dicts),
        mapper=_TolerantMapper(cfg, False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


class _TolerantMapper(SemSegMapper):
    """Returns the dict of an unreadable file with an ``error``."""

    def __call__(self, x: dict[str, Any]) -> dict[str, Any]:
        try:
            return super().__call__(x)
        except (OSError, ValueError) as error:
            return {**x, "error": str(error)}


@torch.no_grad()
def predict(
    model: nn.Module, loader: Iterable[list[dict[str, Any]]], write: PredictionWriter
) -> list[str]:
    """Predict and write all images of a :func:`build_prediction_loader` in evaluation mode.

    Returns:
        The errors of images that could not be read; all others are written.

    Raises:
        OSError: if a file cannot be written; names it.
    """
    problems = []
    for batch in tqdm(loader, unit="image", disable=None):
        problems += [x["error"] for x in batch if "error" in x]
        good = [x for x in batch if "error" not in x]
        for x, output in zip(good, model(good) if good else ()):
            write(str(x["image_id"]), output, x["image"])
    return problems


@dataclasses.dataclass
class PredictionWriter:
    """Writes the predictions of an image below a folder, which is made when missing.

    ``<name>.png``: the most probable class, P mode with the VOC palette. With ``overlay``
    ``overlay/<name>.jpg``: the image under the colours of its label map. With ``uncertainty``
    ``uncertainty/<name>.npy``, sigma as float16 (H, W), and ``uncertainty/<name>.png``, its grey.
    """

    folder: Path
    image_format: str  # INPUT.FORMAT of the mapper, "BGR" or "RGB"
    overlay: bool = False
    uncertainty: bool = False

    def __call__(self, name: str, output: Mapping[str, Any], image: torch.Tensor) -> None:
        """Write a model's output (``sem_seg``: (K, H, W)) for a mapper's image (3, H, W).

        Raises:
            ValueError: if sigma is wanted and the model predicts none.
        """
        if self.uncertainty and "sigma" not in output:
            raise ValueError(
                "--uncertainty: the model predicts no sigma; set MODEL.META_ARCHITECTURE "
                "UncertainSegmentor and train it"
            )
        labels = most_probable(output)
        write_label_map(output_path(self.folder, name, ".png"), labels)
        if self.overlay:
            content = io.BytesIO()
            overlay = Image.fromarray(blend_labels(rgb_image(image, self.image_format), labels))
            overlay.save(content, "JPEG", quality=90)
            with atomic_write(output_path(self.folder / "overlay", name, ".jpg")) as file:
                file.write(content.getvalue())
        if self.uncertainty:
            sigma, folder = output["sigma"], self.folder / "uncertainty"
            with atomic_write(output_path(folder, name, ".npy")) as file:
                largest = torch.finfo(torch.float16).max
                np.save(file, sigma.clamp(max=largest).half().cpu().numpy(), allow_pickle=False)
            write_label_map(output_path(folder, name, ".png"), grey_sigma(sigma), palette=False)


def grey_sigma(sigma: torch.Tensor) -> np.ndarray:
    """Draw sigma (H, W) as uint8 ``255 sigma / (1 + sigma)``, the same grey in every picture."""
    return (255 * (sigma / (1 + sigma))).round().byte().cpu().numpy()


def most_probable(output: Mapping[str, Any]) -> np.ndarray:
    """Return the label map of a model's output: int64 (H, W)."""
    return output["sem_seg"].argmax(dim=0).cpu().numpy()


def rgb_image(image: torch.Tensor, image_format: str) -> np.ndarray:
    """Convert a mapper's image (3, H, W) in 0..255 to uint8 (H, W, 3), RGB."""
    pixels = image.round().clamp(0, 255).byte().cpu().numpy().transpose(1, 2, 0)
    return np.ascontiguousarray(pixels[..., ::-1] if image_format == "BGR" else pixels)


def output_path(folder: Path, name: str, suffix: str) -> Path:
    """Return the file of an image's result; refuse a name that leads out of the folder."""
    parts = PurePath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.name:
        raise ValueError(
            f"image {name!r} cannot be written below {folder}: its name leads out of the folder"
        )
    return folder / f"{name}{suffix}"
