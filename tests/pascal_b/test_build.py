"""PASCAL-B from beginning to end."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.classes import VOC_CLASS_NAMES
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.image_lists import voc_dicts
from d2_smallobj.annotations.label_maps import read_label_map, write_label_map
from d2_smallobj.pascal_b import (
    BuildOptions,
    BuildPaths,
    ScreeningOptions,
    build_pascal_b,
    painting,
    rebuild_pascal_b,
)
from d2_smallobj.pascal_b.index import COCO_RULES, LVIS_RULES
from d2_smallobj.pascal_b.manifest import read_manifest
from d2_smallobj.scoring import Inputs, Settings, evaluate


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def files_of(folder):
    """Content of every file by its path below the folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def cells_of(manifest):
    return {(cell["class"], cell["size"]): cell for cell in manifest["sampling"]["cells"]}


class TestASet:
    def test_the_registered_layout(self, made):
        folders = {"label_dir": "SegmentationClass", "instance_dir": "SegmentationObject"}
        records = voc_dicts(made.folder, "val", **folders, list_file="val.txt")
        assert [int(record["image_id"]) for record in records] == made.manifest["image_ids"]
        assert len(records) == 12
        for record in records:
            assert Image.open(record["file_name"]).size == (120, 100)
            assert Image.open(record["sem_seg_file_name"]).mode == "P"
            assert read_label_map(record["ins_seg_file_name"]).shape == (100, 120)
        assert sorted(path.name for path in made.folder.iterdir()) == [
            *("DATA_CARD.md", "JPEGImages", "SegmentationClass", "SegmentationObject"),
            *("accounting.csv", "annotations", "manifest.json", "val.txt"),
        ]
        assert not list(made.folder.parent.glob(".set*"))

    def test_json_and_maps_are_the_same(self, made):
        found = InstanceAnnotations(made.folder / "annotations/instances_val.json")
        assert found.class_names == VOC_CLASS_NAMES
        instances = 0
        folders = ("SegmentationClass", "SegmentationObject")
        for image_id in found.image_ids:
            for folder, labels in zip(folders, found.maps(image_id)):
                stored = read_label_map(made.folder / folder / f"{image_id:012d}.png")
                np.testing.assert_array_equal(stored, labels)
            instances += len(set(np.unique(stored)) - {0, 255})
        assert instances == made.manifest["outputs"]["instances"] == found.num_instances

    def test_ground_truth_as_prediction_scores_100(self, made, tmp_path):
        semantic = made.folder / "SegmentationClass"
        for path in semantic.iterdir():
            labels = read_label_map(path)
            write_label_map(tmp_path / path.name, np.where(labels == 255, 0, labels))
        maps = {"semantic": str(semantic), "instances": str(made.folder / "SegmentationObject")}
        for truth in (maps, {"coco_json": str(made.folder / "annotations/instances_val.json")}):
            run = evaluate(Inputs(str(tmp_path), **truth), Settings(samples=0))
            figures = {k: v for k, v in run.figures.items() if "IoU" in k and not np.isnan(v)}
            assert len(run.images) == 12
            assert {"mIoU", "IA-mIoU", "IA-mIoU_S", "IA-mIoU_M"} <= set(figures)
            assert figures == pytest.approx(dict.fromkeys(figures, 100.0))

    def test_the_manifest(self, made):
        manifest = read_manifest(made.folder / "manifest.json")
        assert manifest == json.loads(json.dumps(made.manifest))
        sampling, balance = manifest["sampling"], manifest["balance"]
        cells = sampling["cells"]
        assert len(cells) == 60
        assert sampling["bound"] <= sampling["distance"]
        assert sampling["distance"] == sum(abs(c["chosen"] - c["target"]) for c in cells)
        chance = balance["random"]
        reached = balance["achieved"]["normalized_entropy"]
        assert reached > chance["normalized_entropy"] + chance["normalized_entropy_std"]
        images = manifest["images"]
        fit = images["in the set"] + images["dropped: image not sampled"]
        assert balance["source"]["images"] == fit
        assert [entry["kind"] for entry in manifest["inputs"]] == ["lvis", "coco"]
        card = (made.folder / "DATA_CARD.md").read_text(encoding="utf-8")
        assert "This is not the authors' set" in card
        assert "## Terms" in card
        assert "| lvis | cat | cat |" in card
        assert all(entry["sha256"] in card for entry in manifest["inputs"])

    def test_the_counts_are_those_of_the_maps(self, made):
        """Areas counted on run lengths against painted pixels."""
        counts = Counter()
        for path in (made.folder / "SegmentationObject").iterdir():
            instances = read_label_map(path)
            semantic = read_label_map(made.folder / "SegmentationClass" / path.name)
            for identity in set(np.unique(instances)) - {0, 255}:
                own = instances == identity
                area = np.count_nonzero(own)
                name = VOC_CLASS_NAMES[semantic[own][0]]
                counts[name, "S" if area < 1024 else "M" if area < 9216 else "L"] += 1
        chosen = {key: cell["chosen"] for key, cell in cells_of(made.manifest).items()}
        assert counts == Counter({key: number for key, number in chosen.items() if number})


@pytest.mark.slow
def test_the_seed_decides_not_the_order_of_the_input_nor_the_jobs(plain, many, build):
    one = files_of(plain.folder)
    other = files_of(build(many.shuffled(3), "other", place={"jobs": 2}).folder)
    manifests = [json.loads(files.pop("manifest.json")) for files in (one, other)]
    for files in (one, other):
        # Both name the input's hash, which is that of its bytes.
        card = files.pop("DATA_CARD.md").decode().splitlines()
        files["card"] = [line for line in card if ".json | " not in line]
    assert one == other
    for manifest in manifests:
        for entry in manifest["inputs"]:
            del entry["sha256"]
    assert manifests[0] == manifests[1]
    assert build(many, "seed", seed=6).manifest["image_ids"] != manifests[0]["image_ids"]


def coco_of(lvis):
    """COCO annotations of the same objects as LVIS's, as COCO would name them."""
    names = {category["id"]: category["name"] for category in lvis["categories"]}
    ids = {rule.class_id: number for number, rule in enumerate(COCO_RULES.values(), 1)}
    found = ((a, LVIS_RULES.get(names[a["category_id"]])) for a in lvis["annotations"])
    objects = ((a, rule.class_id) for a, rule in found if rule is not None)
    annotations = [{**a, "category_id": ids[class_id], "iscrowd": 0} for a, class_id in objects]
    categories = [{"id": n, "name": name} for n, name in enumerate(COCO_RULES, 1)]
    return {"images": lvis["images"], "annotations": annotations, "categories": categories}


@pytest.fixture(scope="module")
def real(realdata, tmp_path_factory):
    """LVIS v0.5, 977 annotations of 100 images, as COCO file as well; and a set of them."""
    folder = tmp_path_factory.mktemp("real")
    lvis = realdata / "lvis/lvis_v05_val_100.json"
    content = json.loads(lvis.read_text())
    coco = coco_of(content)
    (folder / "coco.json").write_text(json.dumps(coco))
    place = BuildPaths([lvis], [folder / "coco.json"], folder / "set")
    made = build_pascal_b(place, BuildOptions(number=100))
    rows = made.manifest["accounting"]
    return SimpleNamespace(lvis=content, coco=coco, made=made, manifest=made.manifest, rows=rows)


class TestRealLvis:
    def test_every_annotation_is_accounted_for(self, real):
        names = {category["id"]: category["name"] for category in real.lvis["categories"]}
        expected = Counter(names[a["category_id"]] for a in real.lvis["annotations"])
        found = {r["category"]: r["annotations"] for r in real.rows if r["source"] == "lvis"}
        assert found == expected
        assert sum(expected.values()) == 977
        number = sum(r["annotations"] for r in real.rows if r["source"] == "coco")
        assert number == len(real.coco["annotations"])
        for row in real.rows:
            assert sum(row["outcomes"].values()) == row["annotations"]
            assert bool(row["class"]) == ("background" not in row["outcomes"])
        # The table says the same, with a column for each outcome.
        table = read_csv((real.made.folder / "accounting.csv").read_text())
        assert len(table) == len(real.rows)
        for line in table:
            assert sum(map(int, list(line.values())[4:])) == int(line["annotations"])
        # Those that are used are the instances.
        used = sum(row["outcomes"].get("used", 0) for row in real.rows)
        content = json.loads((real.made.folder / "annotations/instances_val.json").read_text())
        instances = [a for a in content["annotations"] if not a["iscrowd"]]
        assert len(instances) == used == real.manifest["outputs"]["instances"]
        assert {a["source"].partition(":")[0] for a in instances} == {"lvis"}

    def test_mapping_by_name(self, real):
        """Persons are called baby; ids are v0.5's own."""
        rows = {row["category"]: row for row in real.rows if row["source"] == "lvis"}
        assert (rows["baby"]["class"], rows["baby"]["annotations"]) == ("person", 15)
        assert rows["baby"]["outcomes"]["used"] > 10
        assert rows["bus_(vehicle)"]["class"] == "bus"
        assert rows["banana"]["outcomes"] == {"background": 87}
        assert real.manifest["missing_categories"] == []

    def test_partly_labelled_images_are_dropped_and_few_are_said(self, real):
        images, chosen = real.manifest["images"], real.manifest["image_ids"]
        assert images["dropped: image not exhaustively labelled"] == 2
        assert sum(images.values()) == 100
        assert chosen == sorted(chosen)
        assert f"only {len(chosen)} images are fit; 100 were asked for" in real.made.notes
        (short,) = [note for note in real.made.notes if "cells fall short" in note]
        assert "pottedplant S: 0, " in short


def test_a_coco_file_of_other_images(realdata, tmp_path):
    """Without a common image nothing can be cross-checked."""
    names = ("lvis/lvis_v05_val_100.json", "coco/tinycoco50_val2017.json")
    place = BuildPaths(*([realdata / name] for name in names), tmp_path / "set")
    with pytest.raises(ValueError, match=r"lvis_v05.* share no image \(100 and 50"):
        build_pascal_b(place, BuildOptions())
    assert not (tmp_path / "set").exists()


def test_what_cannot_be_balanced_is_said_and_written(many, build):
    made = build(many, number=12, per_cell=9)
    (note,) = [note for note in made.notes if "cells fall short of 9" in note]
    cat = cells_of(made.manifest)["cat", "S"]["chosen"]
    assert "aeroplane S: 0, 9 short (all fit images together have 0)" in note
    assert cat == 9 or f"cat S: {cat}, {9 - cat} short" in note
    assert len(made.manifest["image_ids"]) == 12
    card = (made.folder / "DATA_CARD.md").read_text()
    assert "- aeroplane S: 0, 9 short" in card
    assert "more would cost other cells" in card


def test_rejected_images_and_verdicts(plain, many, build, tmp_path):
    first = plain.manifest["image_ids"]
    lists, candidates = (tmp_path / "a.json", tmp_path / "b.txt"), tmp_path / "candidates.csv"
    entries = [{"image_id": n, "reason": "wrong"} for n in first[:2]]
    lists[0].write_text(json.dumps({"version": 1, "rejected": entries}))
    lists[1].write_text(f"{first[2]}\n77 # unknown\n")
    made = build(many, rejected=lists, candidate_list=candidates)
    assert not set(first[:3]) & set(made.manifest["image_ids"])
    assert made.manifest["images"]["dropped: image rejected by hand"] == 3
    assert made.manifest["rejected"] == {**{str(n): "wrong" for n in first[:2]}, str(first[2]): ""}
    assert "1 rejected image(s) not in the inputs:\n  77" in made.notes
    rows = read_csv(candidates.read_text())
    assert [int(row["image_id"]) for row in rows] == sorted(int(row["image_id"]) for row in rows)
    fit = [row for row in rows if row["verdict"] == "fit"]
    assert len(fit) == made.manifest["balance"]["source"]["images"]
    cat = cells_of(made.manifest)["cat", "S"]
    assert sum(int(row["cat S"]) for row in fit) == cat["available"]


def test_near_duplicates_of_voc_are_left_out(made, many, build, tmp_path):
    assert made.manifest["near_duplicates"] is None
    folder, copied = made.folder.parent / "coco", made.manifest["image_ids"][0]
    (tmp_path / "voc/JPEGImages").mkdir(parents=True)
    copy = tmp_path / "voc/JPEGImages/2007_000032.jpg"
    shutil.copy(folder / f"val2017/{copied:012d}.jpg", copy)
    voc = {"place": {"pictures": folder}, "voc": tmp_path / "voc"}
    manifest = build(many, seed=4, **voc).manifest
    assert copied not in manifest["image_ids"]
    assert len(manifest["image_ids"]) == 12
    found = {"image_id": copied, "voc_id": "2007_000032", "distance": 0}
    assert manifest["near_duplicates"] == [found]
    assert manifest["images"]["dropped: near-duplicate of a VOC image"] == 1


def test_bad_masks_cost_their_image_only(many, build, tmp_path):
    chosen = many.lvis["annotations"][0]
    chosen["segmentation"] = {"size": [1, 1], "counts": [1]}
    (tmp_path / "set").mkdir()  # an empty folder is taken
    made = build(many, number=100)
    assert made.folder == tmp_path / "set"
    assert chosen["image_id"] not in made.manifest["image_ids"]
    assert made.manifest["images"]["dropped: image with a malformed mask"] == 1
    (note,) = [note for note in made.notes if "dropped for a mask" in note]
    assert "lvis.json: annotation 1: its run-length mask is for an image" in note


def test_tables_from_coco(world, build):
    for image_id in (1, 2):
        world.image(image_id)
        world.add("both", image_id, ("cat", "cat"), (0, 0, 30, 30))
    world.add("coco", 2, "dining table", (40, 40, 80, 80))
    both = ScreeningOptions(from_coco=("diningtable", "pottedplant"))
    for options, outcomes in (({"screening": both}, "used"), ({}, "void: labelled by COCO only")):
        rows = build(world, outcomes[:4], **options).manifest["accounting"]
        (table,) = [row for row in rows if row["category"] == "dining table"]
        assert table["outcomes"] == {outcomes: 1}


class TestPlace:
    def test_a_set_is_replaced_only_by_force(self, plain, many, build, tmp_path):
        shutil.copytree(plain.folder, tmp_path / "set")
        with pytest.raises(FileExistsError, match="holds a PASCAL-B already; give --force"):
            build(many, seed=2)
        made = build(many, seed=2, place={"force": True})
        assert read_manifest(made.folder / "manifest.json")["sampling"]["seed"] == 2

    @pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
    def test_other_files_are_never_replaced(self, many, build, tmp_path, name):
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / name).write_text("mine")
        with pytest.raises(FileExistsError, match="holds something else than a PASCAL-B"):
            build(many, place={"force": True})
        assert (tmp_path / "set" / name).read_text() == "mine"

    def test_an_interrupted_build_goes_on(self, plain, many, build, monkeypatch):
        """Maps that were painted before are not painted again; the result is the same."""
        real, written = painting.write_label_map, []

        def interrupt(path, labels):
            if len(written) == 7:
                raise KeyboardInterrupt
            written.append(path)
            real(path, labels)

        monkeypatch.setattr(painting, "write_label_map", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(many)
        assert all(path.exists() for path in written)
        before = list(written)
        written[:] = [None] * 8
        made = build(many)
        assert not set(written[8:]) & set(before)
        assert files_of(made.folder) == files_of(plain.folder)
        assert not list(made.folder.parent.glob(".set*"))

    def test_pictures_must_be_there(self, many, build, tmp_path):
        (tmp_path / "coco/val2017").mkdir(parents=True)
        with pytest.raises(FileNotFoundError, match=r"12 of 12 images of the set missing:\n"):
            build(many, place={"pictures": tmp_path / "coco"})
        assert not (tmp_path / "set").exists()


class TestRebuilding:
    @pytest.fixture
    def place(self, made, tmp_path):
        there = made.folder.parent
        lvis = shutil.copy(there / "inputs/lvis.json", tmp_path / "renamed.json")
        files = [lvis], [there / "inputs/coco.json"]
        return BuildPaths(*files, tmp_path / "again", pictures=there / "coco")

    def test_the_same_to_the_byte(self, made, place):
        again = rebuild_pascal_b(place, made.folder / "manifest.json")
        assert files_of(again.folder) == files_of(made.folder)
        assert again.manifest == read_manifest(made.folder / "manifest.json")

    def test_other_inputs(self, made, place):
        path = place.lvis[0]
        path.write_text(path.read_text() + " ")
        with pytest.raises(ValueError, match="these are not the files of this manifest") as found:
            rebuild_pascal_b(place, made.folder / "manifest.json")
        assert "missing: lvis.json (lvis, SHA-256 " in str(found.value)
        assert f"not in the manifest: {path} (lvis, SHA-256 " in str(found.value)
        assert not place.output.exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda m: m["outputs"].update(instances=1), "the same inputs gave another set"),
            (lambda m: m["image_ids"].append(5), "1 of its images are no candidates"),
            (lambda m: m["screening"].update(min_area=0), "'screening': min_area: expected"),
            (lambda m: m["screening"].update(colour=0), "'screening': .*colour"),
            (lambda m: m.update(version=2), "expected manifest version 1, got 2"),
            (lambda m: m.update(format="x"), "not a manifest of PASCAL-B"),
            (lambda m: m.pop("outputs"), r"the manifest lacks \['outputs'\]"),
            (lambda m: m.update(image_ids=["x"]), r"'image_ids' must be .*, got \['x'\]"),
        ],
    )
    def test_changed_manifests(self, made, place, tmp_path, change, message):
        manifest = read_manifest(made.folder / "manifest.json")
        change(manifest)
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=message) as found:
            rebuild_pascal_b(place, path)
        assert "changed.json" in str(found.value)
        assert not place.output.exists()
        assert not list(tmp_path.glob(".again*"))
        path.write_text(path.read_text()[:-20])
        with pytest.raises(ValueError, match=r"changed\.json: not a complete JSON"):
            rebuild_pascal_b(place, path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 0}, "number: expected an integer >= 1, got 0"),
        ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
        ({"per_cell": 0}, "per_cell: expected an integer >= 1, got 0"),
        ({"max_distance": 1.5}, r"max_distance: expected an integer >= 0, got 1\.5"),
        ({"voc": "x"}, "voc: near-duplicates can only be found with pictures, got none"),
        ({"place": {"coco": []}}, "coco: expected at least one file"),
        ({"place": {"jobs": 0}}, "jobs: expected an integer >= 1"),
    ],
)
def test_options_are_checked(many, build, options, message):
    with pytest.raises(ValueError, match=message):
        build(many, **options)
