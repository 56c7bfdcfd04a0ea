"""Registration: names, metadata, missing files; on whichever host runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from d2_smallobj import host
from d2_smallobj.annotations.cityscapes import CITYSCAPES_CLASS_NAMES
from d2_smallobj.annotations.classes import COCO_CLASS_NAMES, VOC_CLASS_NAMES
from d2_smallobj.data import build_test_loader, catalog, dataset_dicts
from d2_smallobj.data.catalog import canonical_name, register_all, registered
from d2_smallobj.demo import dataset as demo_module
from d2_smallobj.demo.dataset import make_demo
from d2_smallobj.engine import build_config
from detectron2.data import DatasetCatalog, MetadataCatalog

METHODS = ("irn", "cda", "amn", "rib", "clims", "rca", "edam", "nsrom", "bana", "bbam")
TRAINING = ("voc_2012_trainaug", "coco_2014_train_81", "coco_2017_train_81")
NAMES = {
    *(f"smallobj_demo_{part}" for part in ("train", "train_gt", "val")),
    *(f"{name}_{labels}" for name in TRAINING for labels in (*METHODS, "gt", "mixed")),
    *("voc_2012_seg_val", "pascal_b_val", "coco_2014_val_81", "coco_2017_val_81"),
    *(f"cityscapes_vehicles_persons_{split}" for split in ("train", "val")),
}
CLASSES = {"voc": VOC_CLASS_NAMES, "pascal": VOC_CLASS_NAMES, "coco": COCO_CLASS_NAMES}
CLASSES |= {"cityscapes": CITYSCAPES_CLASS_NAMES, "smallobj": demo_module.DEMO_CLASS_NAMES}


@pytest.fixture
def root(tmp_path, registration):
    """Register below an empty root."""
    register_all(tmp_path / "datasets")
    return tmp_path / "datasets"


def test_again_and_another_root(root, tmp_path):
    assert set(registered()) >= NAMES
    before = {name: DatasetCatalog[name] for name in NAMES}
    register_all()
    register_all(root)
    register_all(str(root))
    assert {name: DatasetCatalog[name] for name in NAMES} == before
    mine = canonical_name("voc_2012_trainaug@/mine")
    register_all(tmp_path / "elsewhere")
    assert mine not in DatasetCatalog.list()
    for name in ("voc_2012_seg_val", canonical_name(mine)):
        with pytest.raises(FileNotFoundError, match=str(tmp_path / "elsewhere")):
            DatasetCatalog.get(name)
    assert MetadataCatalog.get("coco_2014_val_81").instances_json == str(
        tmp_path / "elsewhere/coco/annotations/instances_val2014.json"
    )
    assert set(registered()) >= NAMES


def test_root_from_the_environment(root, monkeypatch, tmp_path):
    # A root that was named stays; without one, the environment decides.
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "env"))
    register_all()
    assert registered()["pascal_b_val"].folder == root / "pascal_b"
    catalog._state["explicit"] = False
    register_all()
    assert registered()["pascal_b_val"].folder == tmp_path / "env/pascal_b"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    register_all()
    assert registered()["pascal_b_val"].folder == Path("datasets/pascal_b")


def test_a_taken_name(root, tmp_path):
    DatasetCatalog.remove("pascal_b_val")
    spec = catalog._registered.pop("pascal_b_val")
    DatasetCatalog.register("pascal_b_val", list)
    with pytest.raises(ValueError, match="'pascal_b_val' is already registered by other code"):
        register_all(tmp_path / "third")
    DatasetCatalog.remove("pascal_b_val")
    MetadataCatalog.remove("pascal_b_val")
    catalog._state["root"] = None
    register_all(root)
    assert registered()["pascal_b_val"].folder == spec.folder


def test_metadata(root):
    for name in NAMES:
        metadata = MetadataCatalog.get(name)
        classes = CLASSES[name.split("_")[0]]
        assert metadata.stuff_classes == list(classes)
        assert len(metadata.stuff_colors) == metadata.num_classes == len(classes)
        assert len(set(metadata.stuff_colors)) == len(classes)
        assert metadata.ignore_label == 255
        assert metadata.evaluator_type == "smallobj_sem_seg"
        from_json = name in ("coco_2014_val_81", "coco_2017_val_81")
        assert (metadata.get("instances_json") is not None) == from_json
        assert (metadata.get("json_kind") == "coco") == from_json


def test_a_missing_data_set_is_one_clear_error(root, repository):
    readme = (repository / "datasets/README.md").read_text(encoding="utf-8")
    for name in sorted(NAMES):
        method = name.rsplit("_", 1)[-1]
        generic = name.replace(f"_{method}", "_<method>")
        assert f"`{name}`" in readme or f"`{generic}`" in readme, name
        section = registered()[name].section
        assert f"\n## {section}\n" in readme
        if section == "Demo":
            continue
        message = rf"data set '{name}': \d path\(s\) missing"
        with pytest.raises(FileNotFoundError, match=message) as error:
            DatasetCatalog.get(name)
        text = str(error.value)
        assert text.count(f"\n  {root}") >= 2
        assert text.rsplit('section "', 1)[1].rstrip('").') == section


def test_demo_is_made_on_first_use(root, monkeypatch):
    made = []

    def tiny(path):
        made.append(path)
        make_demo(path, num_train=3, num_val=2, size=96)

    monkeypatch.setattr(demo_module, "make_demo", tiny)
    folder = root / "smallobj_demo/VOCdevkit/VOC2012"
    train = DatasetCatalog.get("smallobj_demo_train")
    assert made == [root / "smallobj_demo"]
    assert train[0]["sem_seg_file_name"] == str(folder / "PseudoLabels/demo/train_00000.png")
    assert "ins_seg_file_name" not in train[0]
    (first, _) = DatasetCatalog.get("smallobj_demo_val")
    assert first == {
        "file_name": str(folder / "JPEGImages/val_00000.jpg"),
        "sem_seg_file_name": str(folder / "SegmentationClass/val_00000.png"),
        "ins_seg_file_name": str(folder / "SegmentationObject/val_00000.png"),
        "image_id": "val_00000",
    }
    (record, *_) = DatasetCatalog.get("smallobj_demo_train_gt")
    assert record["sem_seg_file_name"] == str(folder / "SegmentationClass/train_00000.png")
    assert f"--root {root}" in registered()["smallobj_demo_val"].prepare_command
    # With label maps of any folder.
    labels = folder / "SegmentationClass"
    (record, *_) = dataset_dicts([f"smallobj_demo_train@{labels}"])
    assert record["sem_seg_file_name"] == str(labels / "train_00000.png")


PROGRAM = """
import os, sys
root = os.environ["DETECTRON2_DATASETS"]
seen = []
def audit(event, args):
    if event in ("open", "os.listdir", "os.scandir", "os.mkdir") and args:
        if any(str(args[0]).startswith(p) for p in watched): seen.append((event, args))
watched = [root, "datasets"]
sys.addaudithook(audit)
import d2_smallobj.plugin
from d2_smallobj.data.catalog import canonical_name, register_all, registered
watched.append("")
register_all("/nowhere")
canonical_name("voc_2012_trainaug@/nowhere/labels")
if seen: raise SystemExit(f"{seen}")
assert len(registered()) > 30
"""


def test_importing_and_registering_read_no_file(tmp_path):
    """Importing the whole plugin looks at nothing below the data's folder; nor does registering."""
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "data")}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_listing_the_whole_of_trainaug(root, realdata, monkeypatch):
    """10,582 images: each folder is listed once, and no file is asked for one by one."""
    ids = (realdata / "lists/voc12_train_aug.txt").read_text().split()
    folder = root / "VOCdevkit/VOC2012"
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    shutil.copy(realdata / "lists/voc12_train_aug.txt", lists / "trainaug.txt")
    names = {
        lists: ["trainaug.txt"],
        folder / "JPEGImages": [f"{image}.jpg" for image in ids],
        folder / "PseudoLabels/irn": [f"{image}.png" for image in ids],
    }
    listed, asked = [], []

    def scandir(path):
        listed.append(Path(path))
        return contextlib.nullcontext([SimpleNamespace(name=name) for name in names[Path(path)]])

    real = os.stat
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        patch.setattr(os, "stat", lambda *a, **k: asked.append(a) or real(*a, **k))
        dicts = DatasetCatalog.get("voc_2012_trainaug_irn")
    assert [x["image_id"] for x in dicts] == ids
    assert len(ids) == 10582
    assert listed == list(names)
    assert len(asked) < 10
    assert [path.name for path in root.rglob("*.*")] == ["trainaug.txt"]  # nothing is cached there


"""``<training set>@<folder>``: one line of config."""


@pytest.fixture
def voc(real_root, registration):
    register_all(real_root)
    return real_root / "VOCdevkit/VOC2012"


@pytest.fixture
def mine(voc, tmp_path):
    shutil.copytree(voc / "SegmentationClass", tmp_path / "my labels")
    return tmp_path / "my labels"


def test_absolute(voc, mine):
    name = f"voc_2012_trainaug@{mine}"
    dicts = dataset_dicts([name])
    assert len(dicts) == 24
    assert dicts[0]["sem_seg_file_name"] == str(mine / "2007_000032.png")
    assert dicts[0]["file_name"] == str(voc / "JPEGImages/2007_000032.jpg")
    assert MetadataCatalog.get(name).stuff_classes == list(VOC_CLASS_NAMES)
    # Again, and together with another set.
    assert len(dataset_dicts((name, name, "voc_2012_seg_val"))) == 72


def test_relative_home_and_in_a_config(mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    monkeypatch.setenv("HOME", str(mine.parent))
    for name in ("my labels", "~/my labels"):
        (x, *_) = dataset_dicts([f"voc_2012_trainaug@{name}"])
        assert x["sem_seg_file_name"] == str(mine / "2007_000032.png")
    name = f"voc_2012_trainaug@{mine}"
    cfg = build_config("", ["DATASETS.TRAIN", f"('{name}',)"])
    assert len(dataset_dicts(cfg.DATASETS.TRAIN)) == 24
    with pytest.raises(ValueError, match="has pseudo labels: it is no set to evaluate on"):
        build_test_loader(cfg, name)


def test_missing_labels(mine):
    for path in sorted(mine.iterdir())[:12]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"12 path\(s\) missing:[\s\S]*and 2 more\nHow"):
        dataset_dicts([f"voc_2012_trainaug@{mine}"])
    with pytest.raises(FileNotFoundError, match=r"1 path\(s\) missing:\n  .*/nowhere/\n"):
        dataset_dicts([f"voc_2012_trainaug@{mine}/nowhere"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("voc_2012_trainag@x", "before '@': unknown value 'voc_2012_trainag'; .*did you mean"),
        ("voc_2012_seg_val@x", "before '@': unknown value 'voc_2012_seg_val'"),
        ("voc_2012_trainaug@", "'@' is followed by the folder of the label maps"),
        ("@x", "before '@': unknown value ''"),
    ],
)
def test_wrong_names(root, name, message):
    with pytest.raises(ValueError, match=message):
        dataset_dicts([name])
    assert name not in DatasetCatalog.list()


def test_voc_2012_val_is_the_segmentation_set(real_root, registration):
    register_all(real_root)
    assert canonical_name("voc_2012_val") == "voc_2012_seg_val"
    dicts = dataset_dicts(["voc_2012_val"])
    assert dicts == DatasetCatalog.get("voc_2012_seg_val")
    # What the catalogs themselves have under that name is left to whoever had it first.
    if host().name == "detectron2":
        assert "voc_2012_val" not in registered()
    else:
        assert DatasetCatalog.get("voc_2012_val") == dicts
