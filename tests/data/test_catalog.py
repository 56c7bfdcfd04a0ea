"""Registration: names, metadata, missing files; on whichever host runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

import d2_smallobj  # noqa: F401  (makes the embedded host importable)
from d2_smallobj.annotations import demo as demo_module
from d2_smallobj.annotations.class_names import COCO_CLASS_NAMES, VOC_CLASS_NAMES
from d2_smallobj.annotations.demo import make_demo
from d2_smallobj.data import catalog
from d2_smallobj.data.catalog import register_all, registered
from detectron2.data import DatasetCatalog, MetadataCatalog

NAMES = {
    "smallobj_demo_train",
    "smallobj_demo_train_gt",
    "smallobj_demo_val",
    *(
        f"voc_2012_trainaug_{method}"
        for method in (
            *("irn", "cda", "amn", "rib", "clims", "rca", "edam", "nsrom", "bana", "bbam"),
            "gt",
        )
    ),
    "voc_2012_seg_val",
    "pascal_b_val",
    *(f"coco_{year}_train_81_{m}" for year in (2014, 2017) for m in ("irn", "rib", "gt")),
    "coco_2014_val_81",
    "coco_2017_val_81",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Register below an empty root for one test, then as before."""
    before = dict(catalog._state)
    register_all(tmp_path / "datasets")
    yield tmp_path / "datasets"
    catalog._state.update(explicit=False)
    if before["root"] is not None:
        register_all(before["root"])
        catalog._state.update(before)


def test_names(root):
    assert set(registered()) == NAMES
    assert set(DatasetCatalog.list()) >= NAMES


def test_again_is_harmless(root):
    before = {name: DatasetCatalog[name] for name in NAMES}
    register_all()
    register_all(root)
    register_all(str(root))
    assert {name: DatasetCatalog[name] for name in NAMES} == before


def test_another_root(root, tmp_path):
    register_all(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "elsewhere")):
        DatasetCatalog.get("voc_2012_seg_val")
    assert MetadataCatalog.get("coco_2014_val_81").instances_json == str(
        tmp_path / "elsewhere/coco/annotations/instances_val2014.json"
    )
    assert set(registered()) == NAMES


def test_root_from_the_environment(root, monkeypatch, tmp_path):
    # A root that was named stays; without one, the environment decides.
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "env"))
    register_all()
    assert MetadataCatalog.get("pascal_b_val").dataset_root == str(root / "pascal_b")
    catalog._state["explicit"] = False
    register_all()
    assert MetadataCatalog.get("pascal_b_val").dataset_root == str(tmp_path / "env/pascal_b")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    register_all()
    assert MetadataCatalog.get("pascal_b_val").dataset_root == "datasets/pascal_b"


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
        classes = (
            VOC_CLASS_NAMES
            if name.startswith(("voc", "pascal"))
            else COCO_CLASS_NAMES
            if name.startswith("coco")
            else demo_module.DEMO_CLASS_NAMES
        )
        assert metadata.stuff_classes == list(classes)
        assert len(metadata.stuff_colors) == metadata.num_classes == len(classes)
        assert len(set(metadata.stuff_colors)) == len(classes)
        assert metadata.ignore_label == 255
        assert metadata.evaluator_type == "smallobj_sem_seg"
        assert metadata.prepare_command
        from_json = name in ("coco_2014_val_81", "coco_2017_val_81")
        assert (metadata.get("instances_json") is not None) == from_json
        assert (metadata.get("json_kind") == "coco") == from_json
    assert [len(c) for c in (VOC_CLASS_NAMES, COCO_CLASS_NAMES)] == [21, 81]


@pytest.mark.parametrize("name", sorted(n for n in NAMES if "demo" not in n))
def test_a_missing_data_set_is_one_clear_error(root, name):
    with pytest.raises(FileNotFoundError, match=rf"data set '{name}': \d path\(s\) missing") as e:
        DatasetCatalog.get(name)
    text = str(e.value)
    assert text.count(f"\n  {root}") >= 2
    section = text.rsplit('section "', 1)[1].rstrip('".')
    assert section in ("VOC-aug and pseudo labels", "PASCAL-B", "COCO")


def test_the_sections_named_in_errors_exist(root, repository):
    readme = (repository / "datasets/README.md").read_text(encoding="utf-8")
    for spec in registered().values():
        if 'section "' in spec.prepare_command:
            section = spec.prepare_command.rsplit('section "', 1)[1].rstrip('".')
            assert f"\n## {section}\n" in readme


def test_every_data_set_is_in_the_readme(root, repository):
    readme = (repository / "datasets/README.md").read_text(encoding="utf-8")
    for name in NAMES:
        method = name.rsplit("_", 1)[-1]
        generic = name.replace(f"_{method}", "_<method>")
        assert f"`{name}`" in readme or f"`{generic}`" in readme, name


def test_demo_is_made_on_first_use(root, monkeypatch):
    made = []

    def tiny(path):
        made.append(path)
        make_demo(path, num_train=3, num_val=2, size=96)

    monkeypatch.setattr(catalog, "ensure_demo", tiny)
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
    assert "--root" in MetadataCatalog.get("smallobj_demo_val").prepare_command


def test_real_voc_pieces(root, realdata):
    shutil.copytree(realdata / "voc/VOC2012", root / "VOCdevkit/VOC2012")
    val = DatasetCatalog.get("voc_2012_seg_val")
    assert len(val) == 24
    assert val[0]["ins_seg_file_name"].endswith("SegmentationObject/2007_000032.png")
    folder = root / "VOCdevkit/VOC2012"
    shutil.copytree(folder / "SegmentationClass", folder / "PseudoLabels/irn")
    lists = folder / "ImageSets/Segmentation"
    shutil.copy(lists / "val.txt", lists / "trainaug.txt")
    assert len(DatasetCatalog.get("voc_2012_trainaug_irn")) == 24
    # PASCAL-B in its own layout.
    shutil.copytree(folder, root / "pascal_b")
    shutil.copy(lists / "val.txt", root / "pascal_b/val.txt")
    assert len(DatasetCatalog.get("pascal_b_val")) == 24


def test_real_coco_pieces(root, realdata):
    annotations = root / "coco/annotations/instances_val2017.json"
    annotations.parent.mkdir(parents=True)
    shutil.copy(realdata / "coco/tinycoco50_val2017.json", annotations)
    shutil.copytree(realdata / "coco/val2017", root / "coco/val2017")
    dicts = DatasetCatalog.get("coco_2017_val_81")
    assert len(dicts) == 50
    assert {"file_name", "image_id", "height", "width"} == set(dicts[0])
    content = json.loads(annotations.read_text())
    content["categories"].pop()
    content["annotations"] = []
    annotations.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"expected 80 categories .*got 79"):
        DatasetCatalog.get("coco_2017_val_81")


def test_registering_reads_no_file(tmp_path):
    program = (
        "import os, sys\n"
        "import d2_smallobj.data.catalog as c\n"
        "def audit(event, args):\n"
        "    if event in ('open', 'os.listdir', 'os.scandir', 'os.mkdir'):\n"
        "        raise SystemExit(f'{event} {args}')\n"
        "sys.addaudithook(audit)\n"
        "c.register_all('/nowhere')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
