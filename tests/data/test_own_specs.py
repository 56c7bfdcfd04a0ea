"""Data sets of a user's own files, by their names alone."""

from __future__ import annotations

import json
import os
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from own_data import NAMES, SIZE, make_own_data, without
from PIL import Image
from tiny_runs import TINY, as_options

from d2_smallobj.annotations.label_maps import read_label_map, write_label_map
from d2_smallobj.commands.evaluate import main as evaluate
from d2_smallobj.data.__main__ import main as data
from d2_smallobj.data.catalog import canonical_name
from d2_smallobj.data.ground_truth import open_dataset
from d2_smallobj.data.loaders import build_test_loader, build_train_loader, dataset_dicts
from d2_smallobj.engine import TwoTaskTrainer, build_config
from d2_smallobj.evaluation import SmallObjectEvaluator
from detectron2.data import MetadataCatalog

_BASE = os.path.join(os.path.dirname(__file__), "../../configs/demo_sbce.yaml")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache of one test."""
    monkeypatch.setenv("D2_SMALLOBJ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def own(tmp_path):
    return make_own_data(tmp_path / "user")


def listing(folder):
    """All files below a folder with their times."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# ---- Names and dicts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "names", "classes"),
    [
        ("", "background car cat dog bus", [[1, 2, 3], [3, 4], [2], []]),
        (",classes=all", "background car cat dog bus", [[1, 2, 3], [3, 4], [2], []]),
        (",classes=supercategories", "background vehicle animal", [[1, 2], [1, 2], [2], []]),
        (",classes=dog+car", "background dog car", [[1, 2], [1], [], []]),
        (",classes=supercategories:animal", "background animal", [[1], [1], [1], []]),
        (":any", "background object", [[1], [1], [1], []]),
        (":bus", "background bus", [[], [1], [], []]),
    ],
)
def test_classes_boxes_and_maps(own, options, names, classes):
    before = listing(own.path.parent)
    name = canonical_name(own.name + options)
    dicts = dataset_dicts([name])
    metadata = MetadataCatalog.get(name)
    assert metadata.stuff_classes == names.split()
    assert metadata.ignore_label == 255
    assert metadata.num_classes == len(names.split())
    assert [x["image_classes"] for x in dicts] == classes
    assert [os.path.basename(x["file_name"]) for x in dicts] == [*NAMES.values()]
    truth = open_dataset(name)
    for x, image in zip(dicts, truth.images):
        semantic, instances = truth.read(image)
        assert (x["height"], x["width"]) == semantic.shape == SIZE
        # Every object of these images is visible; a crowd is 255 in both maps.
        assert set(np.unique(semantic)) - {0, 255} == set(x["boxes"][:, 0][x["boxes"][:, 0] > 0])
        assert ((semantic == 255) == (instances == 255)).all()
        assert len(set(np.unique(instances)) - {0, 255}) == (x["boxes"][:, 0] > 0).sum()
    assert listing(own.path.parent) == before


def test_the_smaller_object_lies_on_top(own):
    first, second, *_ = dataset_dicts([own.name])
    labels = read_label_map(first["sem_seg_file_name"])
    assert (labels[12, 12], labels[30, 30], labels[10, 50], labels[46, 2]) == (1, 2, 255, 0)
    labels = read_label_map(second["sem_seg_file_name"])
    assert labels[15, 25] == 4  # the bus is smaller than the dog


def test_a_changed_file_is_painted_anew(own, cache):
    (first, *_) = dataset_dicts([own.name])
    made = listing(cache)
    assert dataset_dicts([own.name])
    assert listing(cache) == made
    data = json.loads(own.path.read_text())
    data["annotations"] = data["annotations"][1:]
    own.path.write_text(json.dumps(data))
    (again, *_) = dataset_dicts([own.name])
    assert again["sem_seg_file_name"] != first["sem_seg_file_name"]
    assert again["image_classes"] == [1, 3]
    assert read_label_map(again["sem_seg_file_name"])[30, 30] == 0


def test_several_at_once(own):
    found, errors = [], []

    def load():
        try:
            found.append(len(dataset_dicts([own.name])))
        except Exception as error:
            errors.append(error)

    canonical_name(own.name)
    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, errors) == ([4] * 4, [])


def test_given_labels_and_lists(own, tmp_path):
    labels, ids = tmp_path / "labels", tmp_path / "ids.txt"
    for name in ("a 1", "b", "c"):
        write_label_map(labels / f"{name}.png", np.full(SIZE, 2, np.uint8))
    # The image without annotation may lack a label.
    dicts = dataset_dicts([f"{own.name},labels={labels}"])
    assert [x["image_id"] for x in dicts] == [1, 2, 3]
    assert read_label_map(dicts[0]["sem_seg_file_name"]).min() == 2
    assert "ins_seg_file_name" not in dicts[0]
    assert len(dicts[0]["boxes"]) == 3
    cfg = build_config("", [])
    with pytest.raises(ValueError, match="no set to evaluate on"):
        build_test_loader(cfg, f"{own.name},labels={labels}")
    with pytest.raises(ValueError, match="no ground truth; leave labels= out"):
        open_dataset(f"{own.name},labels={labels}")
    ids.write_text("3\nb.jpg\n\na 1\n")
    assert [x["image_id"] for x in dataset_dicts([f"{own.name},ids={ids}"])] == [1, 2, 3]
    ids.write_text("c\n")
    (x,) = dataset_dicts([f"{own.name},ids={ids},labels={labels}:cat"])
    assert x["image_classes"] == [1]


def test_paths_below_the_folder_of_all_data_sets(own, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(own.path.parent))
    monkeypatch.chdir(tmp_path)
    name = f"coco_json@{own.path.name}@{own.images.relative_to(own.path.parent)}"
    assert dataset_dicts([name]) == dataset_dicts([own.name])


# ---- Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (",classes=supercategory", "did you mean 'supercategories'"),
        (",classes=dog+caat", "unknown value 'caat'.* did you mean 'cat'"),
        (",classes=dog+dog", "'dog' is named twice"),
        (",class=all", "unknown value 'class'.* did you mean 'classes'"),
        (",classes=", "classes= has no value"),
        (",classes=all,classes=all", "classes= is given twice"),
        ("@more", r"expected coco_json@INSTANCES.json@IMAGE_FOLDER.*got 3 path\(s\)"),
        (":horse", "class of .*unknown value 'horse'"),
    ],
)
def test_bad_names(own, options, message):
    with pytest.raises(ValueError, match=message):
        canonical_name(own.name + options)


def test_missing_files(own, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.json"):
        canonical_name(f"coco_json@{tmp_path}/none.json@{own.images}")
    with pytest.raises(ValueError, match=r"unknown value 'coco_jso'.*did you mean 'coco_json'"):
        canonical_name(f"coco_jso@{own.path}@{own.images}")
    with pytest.raises(FileNotFoundError, match=r"ids.txt"):
        dataset_dicts([f"{own.name},ids={tmp_path}/ids.txt"])
    (own.images / "b.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 path\(s\) missing:\s+\S+ images/b.jpg\n.*Your own"
    ):
        dataset_dicts([own.name])


def many(data):
    data["categories"] = [{"id": i, "name": f"c{i}", "supercategory": "s"} for i in range(300)]


def twice(data):
    data["categories"][0]["name"] = "dog"


def no_group(data):
    del data["categories"][1]["supercategory"]


def unknown_image(data):
    data["annotations"][0]["image_id"] = 99


def unknown_category(data):
    data["annotations"][0]["category_id"] = 99


def bad_mask(data):
    data["annotations"][0]["segmentation"] = [[1, 2, 3]]


def bad_box(data):
    data["annotations"][0]["bbox"] = [1, 2, 3]


def one_without(data):
    data["annotations"][3]["segmentation"] = []


def outside(data):
    data["images"][0]["file_name"] = "../a.jpg"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (many, "", "300 classes are more than the 254 labels of an 8-bit map"),
        (twice, "", "several categories have the name dog"),
        (no_group, ",classes=supercategories", "1 categories have no 'supercategory' .car."),
        (unknown_image, "", "annotation 1 belongs to image 99, which is not in the file"),
        (unknown_category, "", "annotation 1 has category 99, which is not in the file"),
        (bad_mask, "", r"1 image\(s\) whose masks cannot be painted:\s+.*annotation 1: a polygon"),
        (bad_box, "", r"annotation 1: bbox is \[1.0, 2.0, 3.0\], not 4 numbers"),
        (outside, "", "'../a.jpg' is not a path within"),
    ],
)
def test_bad_files(tmp_path, change, options, message):
    own = make_own_data(tmp_path / "user", change)
    with pytest.raises(ValueError, match=message):
        dataset_dicts([own.name + options])


@pytest.mark.parametrize(
    ("change", "boxes", "message"),
    [
        (without("segmentation"), True, "has boxes, but no masks: labels=FOLDER"),
        (without("segmentation", "bbox"), False, "has image labels, but no masks: labels=FOLDER"),
        (one_without, True, "1 of 7 annotations have no mask, e.g. annotation 4"),
    ],
)
def test_without_masks(tmp_path, change, boxes, message):
    own = make_own_data(tmp_path / "user", change)
    dicts = dataset_dicts([own.name])
    assert [x["image_classes"] for x in dicts] == [[1, 2, 3], [3, 4], [2], []]
    assert ("boxes" in dicts[0]) == boxes
    assert "sem_seg_file_name" not in dicts[0]
    with pytest.raises(ValueError, match=message):
        open_dataset(own.name)
    with pytest.raises(ValueError, match=message):
        SmallObjectEvaluator(own.name).process(
            [dict(dicts[0])], [{"sem_seg": np.zeros(SIZE, np.uint8)}]
        )
    cfg = build_config(_BASE, ["DATASETS.TRAIN", repr((own.name,)), "DATALOADER.NUM_WORKERS", "0"])
    with pytest.raises(ValueError, match=message):
        next(iter(build_train_loader(cfg)))


def test_boxes_beside_masks_are_mixed_supervision(own, tmp_path):
    boxes = make_own_data(tmp_path / "boxes", without("segmentation"))
    names = repr((own.name, boxes.name))
    options = ("DATASETS.TRAIN", names, "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "8")
    batch = next(iter(build_train_loader(build_config(_BASE, options))))
    assert sorted(x["supervision"] for x in batch) == ["boxes"] * 4 + ["mask"] * 4
    marked = [x["file_name"] for x in batch if x["doubtable"].any()]
    assert marked
    assert all(str(boxes.images) in name for name in marked)


def test_an_image_of_another_size(own):
    Image.new("RGB", (60, 50)).save(own.images / "b.jpg")
    cfg = build_config("", ["DATALOADER.NUM_WORKERS", "0"])
    loader = build_test_loader(cfg, own.name)
    with pytest.raises(ValueError, match=r"b.jpg: the image is 60x50, its data set says 64x48"):
        list(loader)


def test_a_cache_that_cannot_be_written(own, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("D2_SMALLOBJ_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="set D2_SMALLOBJ_CACHE to a folder that can"):
        dataset_dicts([own.name])


# ---- Folders of label maps -----------------------------------------------------------------------


@pytest.fixture
def pairs(own, tmp_path):
    """The painted maps of the JSON as two folders, and the name of both forms."""
    dicts = dataset_dicts([own.name])
    for x in dicts:
        stem = os.path.splitext(os.path.basename(x["file_name"]))[0]
        for key, place in (("sem_seg_file_name", "semantic"), ("ins_seg_file_name", "instances")):
            (tmp_path / place).mkdir(exist_ok=True)
            shutil.copy(x[key], tmp_path / place / f"{stem}.png")
    name = f"label_maps@{own.images}@{tmp_path}/semantic"
    return SimpleNamespace(
        one=f"{name},classes=5", two=f"{name}@{tmp_path}/instances,classes=5", dicts=dicts
    )


def test_folders_of_maps(pairs, own, tmp_path, cache):
    for name in (pairs.one, pairs.two):
        dicts = dataset_dicts([name])
        assert [x["image_id"] for x in dicts] == ["a 1", "b", "c", "empty"]
        for x, other in zip(dicts, pairs.dicts):
            assert (x["height"], x["width"]) == SIZE
            assert x["file_name"] == other["file_name"]
            visible = set(other["boxes"][:, 0].tolist()) - {-3}
            assert x["image_classes"] == sorted(visible)
            assert sorted(x["boxes"][:, 0]) == sorted(b for b in other["boxes"][:, 0] if b > 0)
    # The boxes of the annotations are those of the visible parts but for the dog's below the bus.
    assert dicts[0]["boxes"].tolist() == [[1, 10, 10, 18, 20], [2, 4, 4, 40, 40]]
    assert MetadataCatalog.get(pairs.two).stuff_classes == ["background", "1", "2", "3", "4"]
    (x, *_) = dataset_dicts([f"{pairs.two}:2"])
    assert (x["image_classes"], x["boxes"].tolist()) == ([1], [[1, 4, 4, 40, 40]])
    made = listing(cache)
    assert dataset_dicts([pairs.two])
    assert listing(cache) == made
    write_label_map(tmp_path / "semantic/b.png", np.zeros(SIZE, np.uint8))
    assert dataset_dicts([pairs.one])[1]["image_classes"] == []
    (tmp_path / "ids").write_text("b.jpg\nc\n")
    assert len(dataset_dicts([f"{pairs.two.replace(',', f',ids={tmp_path}/ids,')}"])) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("label_maps@{images}@{semantic}", "it needs classes=voc, coco, a file, or a number"),
        ("label_maps@{images}@{semantic},classes=3", r"b.png: label values must be 0..2 or 255"),
        ("label_maps@{images}@{semantic},classes=1", "class 0 must be 'background', and others"),
        ("label_maps@{images},classes=5", r"expected label_maps@IMAGE_FOLDER@.*got 1 path\(s\)"),
        ("label_maps@{images}@{semantic},labels=x", "unknown value 'labels'"),
        ("label_maps@{images}@{semantic}@{other},classes=5", "c.png: instances must have the size"),
        ("label_maps@{images}@{root},classes=5", "there is no PNG in it"),
        ("label_maps@{images}@{semantic}@{root},classes=5", r"4 path\(s\) missing"),
        ("label_maps@{root}@{semantic},classes=5", r"4 path\(s\) missing"),
        ("label_maps@{root}/no@{semantic},classes=5", r"1 path\(s\) missing:\s+\S+/no/"),
        ("label_maps@{images}@{semantic},classes=coco,ids={ids}", "'x.jpg' is no image of"),
    ],
)
def test_bad_folders_of_maps(pairs, own, tmp_path, name, message):
    shutil.copytree(tmp_path / "instances", tmp_path / "other")
    write_label_map(tmp_path / "other/c.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "ids").write_text("x.jpg\n")
    name = name.format(
        images=own.images, root=tmp_path, ids=tmp_path / "ids",
        semantic=tmp_path / "semantic", other=tmp_path / "other",
    )  # fmt: skip
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        dataset_dicts([name])


# ---- The list ------------------------------------------------------------------------------------


def shown(capsys, *arguments):
    """The exit status of the command and what it writes, spaces made one."""
    with pytest.raises(SystemExit) as stop:
        data([*map(str, arguments)])
    return stop.value.code, " ".join(capsys.readouterr().out.split())


def test_the_list(own, pairs, cache, capsys):
    shutil.rmtree(cache)
    code, text = shown(capsys, own.name)
    assert not cache.exists()
    assert (code, "| on first use | 4 |" in text) == (0, True)
    assert "| 2 | cat | 2 | 3 |" in text
    code, text = shown(capsys, pairs.two.replace("=5", "=6"))
    assert (code, "its classes are counted when it is used first" in text) == (0, True)
    code, text = shown(capsys, own.name, "--check")
    assert code == 0
    assert "| ready | 4 |" in text
    assert "all files are good" in text
    assert "| class | name | images | boxes | S | M | L |" in text
    # One cat is M; of the dogs one is a crowd.
    assert "| 2 | cat | 2 | 3 | 2 | 1 | 0 |" in text
    assert "| 3 | dog | 2 | 1 | 1 | 0 | 0 |" in text
    assert "warning" not in text
    code, text = shown(capsys, pairs.two, pairs.one, "--check")
    assert (code, text.count("| 2 | 2 | 2 | 3 | 2 | 1 | 0 |")) == (0, 2)


def test_the_list_warns(own, tmp_path, capsys):
    (tmp_path / "ids").write_text("c\nempty\n")
    labels = tmp_path / "labels"
    write_label_map(labels / "c.png", np.full(SIZE, 3, np.uint8))
    name = f"{own.name},ids={tmp_path}/ids,labels={labels}"
    code, text = shown(capsys, name, "--check")
    assert code == 0
    assert "warning: 3 class(es) without any image: car, dog, bus" in text
    assert "warning: 1 label map(s) with a class that the annotations of the image do not" in text
    for labels_map, message in (
        (np.full(SIZE, 9, np.uint8), "c.png: label values must be 0..4 or 255"),
        (np.zeros((4, 4), np.uint8), "c.png: the label map is 4x4, its image"),
    ):
        write_label_map(labels / "c.png", labels_map)
        code, text = shown(capsys, name, "--check")
        assert (code, message in text) == (1, True)
    Image.new("RGB", (60, 50)).save(own.images / "b.jpg")
    code, text = shown(capsys, own.name, "--check")
    assert (code, "b.jpg: height x width is (50, 60), its data set says (48, 64)" in text) == (
        1,
        True,
    )


def test_the_list_of_files_without_masks(tmp_path, capsys):
    own = make_own_data(tmp_path / "user", without("segmentation", "bbox"))
    code, text = shown(capsys, own.name, "--check")
    assert (code, "| 2 | cat | 2 |" in text) == (0, True)
    assert "note:" in text
    assert "has image labels, but no masks" in text
    own = make_own_data(tmp_path / "bad", bad_mask)
    code, text = shown(capsys, own.name, "--check")
    assert (code, "annotation 1: a polygon" in text) == (1, True)


# ---- Training and figures ------------------------------------------------------------------------


def figures(folder, *truth):
    """What the command writes about predictions."""
    out = folder.parent / f"run_{truth[0].strip('-')}"
    evaluate([*truth, "--predictions", str(folder), "--output", str(out), "--quiet"])
    found = json.loads((out / "metrics.json").read_text())
    return {key: value for key, value in found.items() if isinstance(value, float)}


def guesses(dicts, folder):
    """Predictions that err: true maps, shifted and with a class exchanged."""
    for n, x in enumerate(dicts):
        labels = np.roll(read_label_map(x["sem_seg_file_name"]), 2 + n % 3, axis=1)
        labels[(labels == 255) | (labels == 1 + n % 4)] = 0
        stem = os.path.splitext(os.path.basename(x["file_name"]))[0]
        write_label_map(folder / f"{stem}.png", labels)


def same_figures(name, folder, num_classes):
    """Compare the data set, the two folders of PNGs and the evaluator."""
    dicts = dataset_dicts([name])
    guesses(dicts, folder / "guesses")
    for key, place in (("sem_seg_file_name", "semantic"), ("ins_seg_file_name", "instances")):
        (folder / place).mkdir()
        for x in dicts:
            stem = os.path.splitext(os.path.basename(x["file_name"]))[0]
            shutil.copy(x[key], folder / place / f"{stem}.png")
    by_name = figures(folder / "guesses", "--dataset", name)
    folders = ("--semantic", f"{folder}/semantic", "--instances", f"{folder}/instances")
    assert figures(folder / "guesses", *folders, "--classes", str(num_classes)) == by_name
    evaluator = SmallObjectEvaluator(name)
    evaluator.reset()
    for x in dicts:
        stem = os.path.splitext(os.path.basename(x["file_name"]))[0]
        labels = read_label_map(folder / f"guesses/{stem}.png")
        evaluator.process([x], [{"sem_seg": labels}])
    (results,) = evaluator.evaluate().values()
    for key in ("mIoU", "IA-mIoU"):
        assert results[key] == pytest.approx(by_name[key], abs=1e-9)
    return by_name


def test_same_figures(own, tmp_path):
    same_figures(own.name, tmp_path / "scored", 5)


def test_same_figures_on_real_images(realdata, tmp_path):
    pool = realdata / "coco_pool"
    if not pool.is_dir():
        pytest.skip("no coco_pool")
    annotations = pool / "annotations/instances_val2017.json"
    ids = [image["id"] for image in json.loads(annotations.read_text())["images"]][:12]
    (tmp_path / "ids.txt").write_text("\n".join(map(str, ids)))
    options = f"classes=supercategories,ids={tmp_path}/ids.txt"
    name = f"coco_json@{annotations}@{pool}/val2017,{options}"
    found = same_figures(name, tmp_path / "scored", 13)
    assert 20 < found["IA-mIoU_S"] < found["IA-mIoU_M"] < 100


def test_training_and_evaluation_by_config_alone(own, tmp_path):
    options = {
        **TINY,
        "DATASETS.TRAIN": repr((own.name + ",classes=supercategories",)),
        "DATASETS.TEST": repr((own.name + ",classes=supercategories",)),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
        "SMALLOBJ.TASK_A.ITERS": 1,
        "SOLVER.MAX_ITER": 3,
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    trainer = TwoTaskTrainer(build_config(_BASE, as_options(options)))
    trainer.resume_or_load(resume=False)
    trainer.train()
    (folder,) = (tmp_path / "out/inference").iterdir()
    assert (folder / "metrics.json").exists()
