"""``python -m d2_smallobj.data``: what is there, what is missing, what prepares it."""

from __future__ import annotations

import csv
import functools
import json
import pickle
import runpy

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.label_maps import read_label_map, write_label_map
from d2_smallobj.data import __main__ as command
from d2_smallobj.data import catalog, file_checks


@pytest.fixture
def main(capsys, monkeypatch, registration):
    """``main(*arguments)``: exit status, text on stdout, error."""

    def run(*arguments, main=command.main):
        monkeypatch.setattr("sys.argv", ["data", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured, status = capsys.readouterr(), stop.value.code
        if isinstance(status, str):
            return 1, captured.out, status
        return status, captured.out, captured.err

    return run


@pytest.fixture
def root(real_root):
    return real_root


def rows_of(text):
    """The table's rows by data set: state, images, missing."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_all_data_sets(main, root):
    status, out, _ = main("--root", root)
    assert status == 0
    rows = rows_of(out)
    assert rows["voc_2012_seg_val"] == ["ready", "24 of 1,449", ""]
    assert rows["voc_2012_trainaug_irn"] == ["ready", "24 of 10,582", ""]
    assert rows["voc_2012_trainaug_gt"] == ["ready", "24 of 10,582", ""]
    assert rows["voc_2012_trainaug_amn"] == ["missing", "", "PseudoLabels/amn/"]
    assert rows["coco_2017_val_81"] == ["ready", "50 of 5,000", ""]
    assert rows["coco_2014_val_81"][2] == "annotations/instances_val2014.json, val2014/"
    assert rows["smallobj_demo_train"] == ["on first use", "", ""]
    assert not (root / "smallobj_demo").exists()  # looking does not make it
    assert set(rows) - {"data set", "-" * len(max(rows, key=len))} >= set(catalog.registered()) - {
        *catalog.ALIASES
    }
    for name, told in (
        ("voc_2012_trainaug_amn", "prepare_pseudo_labels.py amn LABELS_FOLDER --root"),
        ("voc_2012_trainaug_bana", "prepare_pseudo_labels.py bana Y_CRF_FOLDER Y_RET_FOLDER"),
        ("coco_2014_val_81", 'see datasets/README.md, section "COCO"'),
        ("coco_2014_train_81_rib", f"rib LABELS_FOLDER --root {root} --dataset coco_2014"),
        ("coco_2017_train_81_gt", f"prepare_coco.py train2017 --root {root}/coco"),
        ("pascal_b_val", "python datasets/prepare_pascal_b.py"),
    ):
        (line,) = (line for line in out.splitlines() if line.startswith(f"  {name} "))
        assert told in line


def test_named_ones(main, root):
    assert main("voc_2012_trainaug_irn", "voc_2012_val", "--root", root)[0] == 0
    status, out, _ = main("voc_2012_seg_val", "pascal_b_val", "--root", root)
    assert status == 1
    assert list(rows_of(out))[-2:] == ["voc_2012_seg_val", "pascal_b_val"]
    folder = root / "VOCdevkit/VOC2012/SegmentationClass"
    status, out, _ = main(f"voc_2012_trainaug@{folder}", "--root", root)
    assert (status, rows_of(out)[f"voc_2012_trainaug@{folder}"]) == (
        0,
        ["ready", "24 of 10,582", ""],
    )
    status, _, err = main("voc_2012_trainaug_amm", "--root", root)
    assert status == 1
    assert "did you mean 'voc_2012_trainaug_amn'?" in err


def test_missing_files_are_counted_and_malformed_lists_told(main, root):
    for path in sorted((root / "VOCdevkit/VOC2012/PseudoLabels/irn").iterdir())[:7]:
        path.unlink()
    status, out, _ = main("voc_2012_trainaug_irn", "--root", root)
    assert status == 1
    shown = rows_of(out)["voc_2012_trainaug_irn"]
    assert shown == ["missing", "", "7 of 49 files, e.g. PseudoLabels/irn/2007_000032.png"]
    lists = root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "trainaug.txt").write_text("2007_000032\n2007_000032\n")
    annotations = root / "coco/annotations/instances_val2017.json"
    annotations.write_text(annotations.read_text()[:5000])
    status, out, _ = main("voc_2012_trainaug_irn", "coco_2017_val_81", "--root", root)
    assert status == 1
    rows = rows_of(out)
    assert rows["voc_2012_trainaug_irn"][0] == rows["coco_2017_val_81"][0] == "unusable"
    assert "trainaug.txt, line 2: image '2007_000032' is listed twice" in out
    assert "instances_val2017.json: not a complete JSON file" in out


NAMES = ("voc_2012_seg_val", "voc_2012_trainaug_irn")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_good_files(main, root, monkeypatch):
    """As ``python -m``; what ``--jobs`` sends to processes can be unpickled there."""

    def sent(function, tasks, *, jobs, **_):
        assert jobs == 2
        return map(pickle.loads(pickle.dumps(function)), tasks)

    monkeypatch.setattr(file_checks, "parallel_map", sent)
    run = functools.partial(runpy.run_module, "d2_smallobj.data", run_name="__main__")
    status, out, _ = main(*NAMES, "--check", "--jobs", 2, "--root", root, main=run)
    assert status == 0
    assert out.count("all files are good") == 2


def test_coco_check(main, root):
    path = root / "coco/annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"] = content["images"][:3]
    known = [image["id"] for image in content["images"]]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in known]
    path.write_text(json.dumps(content))
    assert main("coco_2017_val_81", "--check", "--root", root)[0] == 0
    content["images"][0]["height"] += 1
    (first,) = [a for a in content["annotations"] if a["image_id"] == known[1]][:1]
    first["segmentation"] = [["x"]]
    path.write_text(json.dumps(content))
    status, out, _ = main("coco_2017_val_81", "--check", "--root", root)
    assert status == 1
    assert "coco_2017_val_81: 2 bad image(s):" in out
    assert "instances_val2017.json says" in out
    assert f"annotation {first['id']}: a polygon is a list of numbers" in out


def test_bad_files(main, root):
    folder = root / "VOCdevkit/VOC2012"
    ids = (folder / "ImageSets/Segmentation/val.txt").read_text().split()
    for kind, image in zip(("SegmentationClass", "SegmentationObject"), ids):
        labels = read_label_map(folder / kind / f"{image}.png")
        write_label_map(folder / kind / f"{image}.png", labels[1:])
    path = folder / f"SegmentationObject/{ids[2]}.png"
    write_label_map(path, np.ones_like(read_label_map(path)))
    path = folder / f"SegmentationClass/{ids[3]}.png"
    write_label_map(path, np.full_like(read_label_map(path), 21))
    Image.new("RGB", (3, 3)).save(folder / f"JPEGImages/{ids[4]}.jpg")
    (folder / f"JPEGImages/{ids[5]}.jpg").write_bytes(b"")
    status, out, _ = main("voc_2012_seg_val", "--check", "--root", root)
    assert status == 1
    assert "voc_2012_seg_val: 6 bad image(s):" in out
    told = ["its image", "must agree", "instance 1 lies on", "must be 0..20 or 255"]
    told += ["its image", "cannot be read"]
    for line, image, text in zip(out.split("bad image(s):\n")[1].splitlines(), ids, told):
        assert image in line
        assert text in line, line


def test_coco(main, realdata, tmp_path):
    path = realdata / "coco/tinycoco50_val2017.json"
    table = tmp_path / "fates.csv"
    status, out, _ = main("--account", path, "--csv", table)
    assert status == 0
    assert "50 images, 2 without annotations; 32 of 80 categories have none." in out
    content = json.loads(path.read_text())
    persons = [a for a in content["annotations"] if a["category_id"] == 1]
    crowds = sum(a["iscrowd"] for a in persons)
    rows = {row["category"]: row for row in csv.DictReader(table.open(newline=""))}
    assert rows["person"]["crowd"] == str(crowds)
    assert rows["person"]["used"] == str(len(persons) - crowds)
    assert len(rows) == 80


def test_malformed_masks_of_chosen_classes(main, realdata, tmp_path):
    content = json.loads((realdata / "lvis/lvis_v05_val_100.json").read_text())
    mapping = tmp_path / "map.json"
    mapping.write_text(json.dumps({"cat": "cat", "cow": "cow", "baby": "person"}))
    banana = next(c["id"] for c in content["categories"] if c["name"] == "banana")
    spoilt = next(a for a in content["annotations"] if a["category_id"] == banana)
    spoilt["segmentation"] = {"size": [1, 1], "counts": [1]}
    path = tmp_path / "spoilt.json"
    path.write_text(json.dumps(content))
    status, out, _ = main(
        *("--account", path, "--kind", "lvis", "--classes", "voc"),
        *("--category-map", mapping, "--void", "banana"),
    )
    assert status == 1
    assert "1 malformed mask(s):" in out
    header, _, *rows = (line for line in out.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        *("category", "used", "void", "background", "malformed", "annotations")
    ]
    totals = [int(cell) for cell in rows[-1].strip("|").split("|")[1:]]
    assert sum(totals[:4]) == totals[4] == 977
    assert min(totals) > 0


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ("--account gone.json", 1, "gone.json"),
        ("--account x.json pascal_b_val", 2, "give no data sets"),
        ("--account coco --category-map m.json", 2, "needs --classes"),
        ("--account coco --void prson", 1, "did you mean 'person'?"),
    ],
)
def test_wrong_use(main, realdata, arguments, status, told):
    coco = realdata / "coco/tinycoco50_val2017.json"
    found, _, err = main(*(coco if a == "coco" else a for a in arguments.split()))
    assert found == status
    assert told in err
