"""The benchmark of PASCAL-B's builder: its files look like LVIS's and COCO's."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
from benchmarks import lvis
from benchmarks.lvis import draw_annotation_files, published_counts

from d2_smallobj.pascal_b import BuildOptions, BuildPaths, build_pascal_b
from d2_smallobj.pascal_b.index import read_index


def test_published_counts():
    counts = published_counts()
    assert len(counts) == 1203
    assert counts[0] == ("aerosol_can", 64, 109)
    assert sum(instances for _, _, instances in counts) == 1_270_141
    assert {name: images for name, images, _ in counts}["dining_table"] == 227


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lvis")
    return draw_annotation_files(folder, images=400, seed=1)


def test_annotations_are_as_many_as_published(drawn):
    index = read_index(drawn[0], "lvis")
    assert len(index.images) == 400
    number = {name: n for n, name in index.categories.items()}
    for name, images, instances in published_counts()[:60]:
        own = index.image_ids[index.category_ids == number[name]]
        assert len(np.unique(own)) == round(images * 400 / 100_000)
        assert len(own) >= round(instances * 400 / 100_000) or not len(own)


def test_a_seed_draws_the_same_files(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        draw_annotation_files(tmp_path / name, images=40, seed=1)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


@pytest.mark.slow
def test_most_images_are_fit(drawn, tmp_path):
    place = BuildPaths([drawn[0]], [drawn[1]], tmp_path / "set")
    manifest = build_pascal_b(place, BuildOptions(number=20)).manifest
    images = manifest["images"]
    candidates = 400 - images["dropped: image without an object of the 20 classes in LVIS"]
    assert candidates > 100
    assert images["in the set"] + images["dropped: image not sampled"] > 0.8 * candidates
    assert manifest["balance"]["achieved"]["normalized_entropy"] > 0.85
    outcomes = {outcome for row in manifest["accounting"] for outcome in row["outcomes"]}
    assert {"used", "background", "void: labelled by COCO only"} <= outcomes


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"seconds": 301.0}, ["it takes 301 s, not 300"]),
        ({"peak_gib": 6.2}, ["it takes 6.2 GiB, not 6"]),
    ],
)
def test_targets(monkeypatch, drawn, changes, missed):
    row = {"normalized_entropy": 0.5, "coefficient_of_variation": 1.0, "images": 7, "draws": 9}
    figures = {
        **{"seconds": 10.0, "cpu_seconds": 15.0, "peak_gib": 1.5, "load_average": 0.5},
        "input": [{"kind": "lvis", "images": 400, "annotations": 5000, "bytes": 10**7}],
        "instances": 90,
        "sampling": {"per_cell": 3, "distance": 4, "bound": 2},
        "balance": {"source": row, "random": row, "achieved": row},
        **changes,
    }
    monkeypatch.setattr(lvis, "measure", lambda *_, **__: figures)
    parser = argparse.ArgumentParser()
    lvis.add_arguments(parser)
    found = lvis.run(parser.parse_args(["--folder", str(drawn[0].parent)]))
    assert found.missed == missed
    assert "lvis: 400 images, 5,000 annotations, 0.01 GB" in found.text
    assert "distance to the target of 3 per cell: 4, bound 2" in found.text
    assert found.figures["settings"] == {"images": 100_000, "jobs": 2, "seed": 0}


@pytest.mark.slow
def test_a_measurement(drawn):
    figures = lvis.measure(*drawn, number=10, jobs=1, seed=0)
    assert figures["sampling"]["requested_images"] == 10
    assert 0.03 < figures["peak_gib"] < 6
    assert figures["cpu_seconds"] > 0
    assert [path.name for path in drawn[0].parent.iterdir() if path.is_dir()] == []
