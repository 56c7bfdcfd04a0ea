"""The VOC config, unchanged but for sizes and iteration counts, on 24 real VOC images."""

from __future__ import annotations

import json
import shutil

import pytest


@pytest.fixture(scope="module")
def voc_root(realdata, tmp_path_factory):
    """The layout of datasets/README.md, the true label maps standing in for pseudo labels."""
    root = tmp_path_factory.mktemp("voc_datasets")
    source = realdata / "voc" / "VOC2012"
    voc = root / "VOCdevkit" / "VOC2012"
    (voc / "PseudoLabels").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        (voc / folder).symlink_to(source / folder)
    (voc / "PseudoLabels" / "irn").symlink_to(source / "SegmentationClass")
    for name in ("val.txt", "trainaug.txt"):
        shutil.copy(
            source / "ImageSets" / "Segmentation" / "val.txt",
            voc / "ImageSets" / "Segmentation" / name,
        )
    return root


@pytest.mark.slow
def test_voc_config_trains_both_tasks_and_evaluates(repository, train_server, voc_root, tmp_path):
    options = [
        # ImageNet weights cannot be had offline; without them a frozen norm lets values explode.
        *("OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", "", "MODEL.RESNETS.NORM", "BN"),
        *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.DEVICE", "cpu"),
        *("SOLVER.MAX_ITER", 4, "SMALLOBJ.TASK_A.ITERS", 2, "SOLVER.IMS_PER_BATCH", 2),
        *("SMALLOBJ.CROP_SIZE", "[97, 97]", "DATALOADER.NUM_WORKERS", 1),
    ]
    done = train_server.ask(
        repository / "tools" / "train_net.py",
        *("--config-file", repository / "configs" / "voc_sbce.yaml", *options),
        env={"DETECTRON2_DATASETS": str(voc_root)},
    )
    assert done.code == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results.keys() == {"A", "B"}
    for task in "AB":
        figures = results[task]["voc_2012_seg_val"]
        assert figures["images"] == 24
        # Counted in the instance maps of the files themselves.
        assert [figures[f"instances_{size}"] for size in "SML"] == [20, 16, 31]
        assert 0 <= figures["IA-mIoU"] <= 100
    lines = map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())
    last = [line for line in lines if "in_task_B" in line][-1]
    assert last["in_task_B"] == 1
    assert last["loss_ewc"] >= 0
