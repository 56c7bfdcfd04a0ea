"""A tiny data set of real files."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.engine import build_config
from detectron2.data import DatasetCatalog

_BASE = pathlib.Path(__file__).resolve().parents[2] / "configs/Base-Demo.yaml"
TINY = "tiny_train"


@pytest.fixture
def tiny_dicts(tmp_path):
    """Seven JPEGs of different sizes with P-mode label maps in 0..6 and some 255."""
    rng = np.random.default_rng(0)
    dicts = []
    for i in range(7):
        height, width = 20 + 3 * i, 40 - 2 * i
        image, labels = str(tmp_path / f"image_{i}.jpg"), str(tmp_path / f"labels_{i}.png")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(image)
        indices = np.zeros((height, width), np.uint8)
        indices[3:12, 4:20], indices[14:17, 8:11], indices[0] = 1 + i % 6, 2, 255
        write_label_map(labels, indices)
        dicts.append({"file_name": image, "sem_seg_file_name": labels, "image_id": i})
    return dicts


@pytest.fixture
def tiny(tiny_dicts):
    """The name under which the tiny data set is registered for one test."""
    DatasetCatalog.register(TINY, lambda: list(tiny_dicts))
    yield TINY
    DatasetCatalog.remove(TINY)


@pytest.fixture(scope="session")
def tiny_cfg():
    """``tiny_cfg(key, value, ...)``: the demo's config on the tiny data set, crops of 24 x 32."""

    def make(*options):
        fixed = (
            *("DATASETS.TRAIN", f"('{TINY}',)", "DATASETS.TEST", f"('{TINY}',)"),
            *("SMALLOBJ.CROP_SIZE", "[24, 32]", "SMALLOBJ.SCALES", "[0.5, 1.0, 1.5]"),
            *("DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "3", "SEED", "4"),
            *("SOLVER.MAX_ITER", "20"),
        )
        return build_config(str(_BASE), [*fixed, *map(str, options)])

    return make


@pytest.fixture
def real_root(tmp_path, realdata):
    """The real pieces in their places: VOC as val and as trainaug, COCO as val2017."""
    root = tmp_path / "data"
    voc = root / "VOCdevkit/VOC2012"
    shutil.copytree(realdata / "voc/VOC2012", voc)
    lists = voc / "ImageSets/Segmentation"
    shutil.copy(lists / "val.txt", lists / "trainaug.txt")
    for labels in ("SegmentationClassAug", "PseudoLabels/irn"):
        shutil.copytree(voc / "SegmentationClass", voc / labels)
    annotations = root / "coco/annotations/instances_val2017.json"
    annotations.parent.mkdir(parents=True)
    shutil.copy(realdata / "coco/tinycoco50_val2017.json", annotations)
    shutil.copytree(realdata / "coco/val2017", root / "coco/val2017")
    return root
