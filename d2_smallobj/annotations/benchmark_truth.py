"""Ground truth in the files of two benchmarks: COCO's panoptic format, and Cityscapes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from d2_smallobj.annotations.cityscapes import (
    BENCHMARK_LABELS,
    BENCHMARK_STUFF,
    bare_name,
    instance_ids_beside,
)
from d2_smallobj.annotations.dataset_files import FileCheck
from d2_smallobj.annotations.image_sources import ImageSource, SourceReader
from d2_smallobj.annotations.panoptic import read_panoptic_file
from d2_smallobj.annotations.truth import SourceTruth, TruthImage, choose
from d2_smallobj.utils.problems import Problems

# Of the maps, of the picture, and of what detectron2's own evaluator writes.
_CITYSCAPES_SUFFIXES = (
    "",
    "_leftImg8bit",
    "_gtFine_labelIds",
    "_gtFine_labelTrainIds",
    "_leftImg8bit_pred",
)


def panoptic_truth(
    json_file: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    listed: Sequence[str] | None = None,
) -> SourceTruth:
    """Ground truth in COCO's panoptic format.

    The classes are the categories in ascending order of their ids, and ``isthing`` tells which
    are stuff. Predictions are looked for under the name of the PNG, of the picture, and the id.

    Args:
        json_file: with ``annotations`` and ``categories``.
        folder: of the PNGs.
        listed: the images to score, by name or id; default: all.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file or folder.
        ValueError: the file is malformed.
        InputError: PNGs are missing, or a listed image is not in the file.
    """
    content = read_panoptic_file(json_file)
    folder = os.fspath(folder)
    os.listdir(folder)  # Raises for what is no folder.
    files, problems, images = FileCheck("", ""), Problems(), []
    for entry, segments in zip(content.entries, content.segments):
        # The last part only: it cannot lead out of the folder.
        name = PurePosixPath(entry.file_name.replace("\\", "/")).name
        path = os.path.join(folder, name)
        number = str(entry.image_id)
        picture = content.pictures.get(entry.image_id, "").replace("\\", "/")
        stems = [PurePosixPath(name).stem, PurePosixPath(picture).stem, number.zfill(12), number]
        source = ImageSource(name, None, "panoptic", path, segments)
        images.append(TruthImage(number, tuple(dict.fromkeys(filter(None, stems))), source=source))
        if not files.exists(path):
            problems.add(f"panoptic PNG(s) of {json_file} that are not in {folder}", name)
    if listed is not None:
        images = choose(images, listed, str(json_file))
    else:
        problems.raise_if_any()
    ignore_label = 255 if len(content.class_names) <= 255 else 65535
    reader = SourceReader(content.class_names, content.stuff, ignore_label)
    return SourceTruth(images, reader, json_classes=content.class_ids)


def cityscapes_truth(
    folder: str | os.PathLike[str], *, listed: Sequence[str] | None = None
) -> SourceTruth:
    """Ground truth of Cityscapes: the 19 classes of the benchmark, as train ids.

    Args:
        folder: ``gtFine``, or a split or a city of it.
        listed: the images to score, as ``<city>_<sequence>_<frame>``; default: all.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        InputError: instance maps are missing, or a listed image is not there.
        ValueError: there is no label map in it.
    """
    os.listdir(folder)  # Raises for what is no folder.
    found: dict[str, str] = {}
    for path in sorted(Path(folder).rglob("*_label*Ids.png")):
        if instance_ids_beside(str(path)) is not None:
            # labelIds come before labelTrainIds, which are made of them.
            found.setdefault(bare_name(path.stem), str(path))
    if not found:
        raise ValueError(
            f"--cityscapes: no *_gtFine_labelIds.png in {folder} or below it; give gtFine or a "
            "split of it"
        )
    files, problems, images = FileCheck("", ""), Problems(), []
    for name, semantic in found.items():
        instances = instance_ids_beside(semantic)
        if not files.exists(instances):
            problems.add("instance map(s) missing beside the label map", instances)
        source = ImageSource(
            name,
            semantic,
            "cityscapes",
            instances,
            label_ids=semantic.endswith("_labelIds.png"),
        )
        stems = tuple(f"{name}{suffix}" for suffix in _CITYSCAPES_SUFFIXES)
        picture = semantic.replace(f"{os.sep}gtFine{os.sep}", f"{os.sep}leftImg8bit{os.sep}")
        picture = os.path.join(os.path.dirname(picture), f"{name}_leftImg8bit.png")
        images.append(
            TruthImage(
                name, stems, picture=picture if files.exists(picture) else None, source=source
            )
        )
    if listed is not None:
        images = choose(images, [bare_name(entry) for entry in listed], str(folder))
    else:
        problems.raise_if_any()
    return SourceTruth(images, SourceReader(tuple(BENCHMARK_LABELS), BENCHMARK_STUFF, 255))
