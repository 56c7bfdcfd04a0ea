"""From files to figures: the core's, whatever the files look like and whoever reads them."""

from __future__ import annotations

import dataclasses
import math
import os

import numpy as np
import pytest

from d2_smallobj import scoring
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.annotations.truth import GroundTruth
from d2_smallobj.metrics import Accumulator, parse_size_bins
from d2_smallobj.scoring import Inputs, Settings, evaluate, load_run, merge, save_run
from d2_smallobj.scoring.scored_run import RUN_FILES
from d2_smallobj.utils.parallel import WorkerError

QUICK = Settings(samples=20)


def bits(figures):
    return {key: repr(value) for key, value in figures.items()}


def same_columns(one, other):
    return all(
        np.array_equal(column, getattr(other, name)) for name, column in one.columns().items()
    )


def core(dataset, with_instances=True, **options):
    """The figures from the numeric core alone."""
    accumulator = Accumulator(4, **options)
    for name, labels, maps in zip(dataset.names, dataset.guesses, dataset.scenes):
        accumulator.update(name, labels, *maps[: 1 + with_instances])
    return accumulator.summarize(["background", "cat", "dog", "bird"])


def run(dataset, settings=QUICK, jobs=1, **changes):
    return evaluate(Inputs(**{**dataset.options, **changes}), settings, jobs=jobs)


def save(run, folder):
    save_run(folder, run)
    return {name: (folder / name).read_bytes() for name in RUN_FILES}


@pytest.mark.parametrize("mode", ["exact", "official"])
@pytest.mark.parametrize("instances", [True, False])
def test_figures_are_the_cores(dataset, mode, instances):
    """Without instance maps, components are the instances."""
    changes = {} if instances else {"instances": None}
    scored = run(dataset, Settings(mode=mode, samples=0), **changes)
    assert bits(scored.figures) == bits(core(dataset, instances, mode=mode))
    assert 0 < scored.figures["IA-mIoU"] < 100
    assert scored.images == dataset.names
    assert not scored.intervals


def test_every_form_of_prediction_gives_the_same(dataset, sem_seg_json, tmp_path):
    expected = run(dataset)
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    for index, (name, labels) in enumerate(zip(dataset.names, dataset.guesses)):
        np.save(arrays / f"{name}.npy", labels.astype([np.uint8, np.int64, np.int16][index % 3]))
    for predictions in (arrays, sem_seg_json, sem_seg_json.parent):
        found = run(dataset, predictions=str(predictions))
        assert bits(found.figures) == bits(expected.figures)
        # As text, for NaN differs from itself.
        assert repr(found.intervals) == repr(expected.intervals)
        assert same_columns(found.pixels, expected.pixels)


# Nine: more than there are images.
@pytest.mark.parametrize("parts", [1, 2, 9])
def test_processes_and_shards_change_no_bit(dataset, tmp_path, parts):
    whole = save(run(dataset), tmp_path / "whole")
    if parts == 1:
        assert save(run(dataset, jobs=3), tmp_path / "many") == whole
    folders = [tmp_path / f"shard{part}" for part in range(1, parts + 1)]
    for part, folder in enumerate(folders, start=1):
        scored = run(dataset, dataclasses.replace(QUICK, shard=(part, parts)))
        save_run(folder, scored)
        assert bool(scored.intervals) == (parts == 1)
    if parts > 1:
        assert save(merge(folders[::-1]), tmp_path / "merged") == whole


def test_load_gives_back_what_was_saved(dataset, tmp_path):
    scored = run(dataset)
    contents = save(scored, tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    for table in ("table", "blobs", "pixels"):
        assert same_columns(getattr(loaded, table), getattr(scored, table))
    assert np.array_equal(loaded.confusion, scored.confusion)
    assert bits(loaded.figures) == bits(scored.figures)
    assert repr(loaded.intervals) == repr(scored.intervals)
    assert (loaded.name, loaded.options) == ("run", scored.options)
    assert save(loaded, tmp_path / "again") == contents


def test_a_list_chooses_the_images(dataset, tmp_path):
    chosen = tmp_path / "val.txt"
    chosen.write_text("image4\nimage1\n")
    scored = run(dataset, image_list=str(chosen))
    assert scored.images == ["image1", "image4"]
    assert "5 prediction(s) are not scored" in scored.remarks[0]
    # A missing prediction of another image is no business of this run.
    (dataset.preds / "image0.png").unlink()
    assert bits(run(dataset, image_list=str(chosen)).figures) == bits(scored.figures)


def test_surplus_predictions_are_reported_and_change_nothing(dataset):
    expected = bits(run(dataset).figures)
    for name in ("image1_palette", "other"):
        write_label_map(dataset.preds / f"{name}.png", dataset.guesses[1])
    (dataset.preds / "notes.txt").write_text("no map")
    (dataset.preds / ".hidden.png").write_text("no map")
    scored = run(dataset)
    assert bits(scored.figures) == expected
    assert scored.remarks == (
        "2 prediction(s) are not scored, since their images are not wanted or have no ground"
        " truth: image1_palette, other",
    )


def test_options_reach_the_core(dataset):
    settings = Settings(samples=0, size_bins=parse_size_bins("tiny:101,rest:inf"))
    figures = run(dataset, settings).figures
    assert (figures["instances_tiny"], figures["instances_rest"]) == (7, 14)
    for folder in (dataset.semantic, dataset.instances):
        for name, maps in zip(dataset.names, dataset.scenes):
            labels = maps[folder == dataset.instances].astype(np.int64)
            if folder == dataset.semantic:
                labels[labels == 255] = 77
            write_label_map(folder / f"{name}.png", labels)
    relabelled = run(dataset, Settings(ignore_label=77, samples=0))
    assert bits(relabelled.figures) == bits(core(dataset))


def test_images_with_nothing_in_them(dataset):
    """All ignored, no instances, a class without instances: each is counted and named."""
    everywhere = np.full((40, 50), 255, np.uint8)
    for folder in (dataset.semantic, dataset.instances):
        write_label_map(folder / "image0.png", everywhere)
        write_label_map(folder / "image1.png", np.zeros((40, 51), np.uint8))
    scored = run(dataset)
    assert len(scored.images) == 7
    assert "image0" not in scored.table.image_id
    assert scored.figures["instances"] == 15
    assert math.isnan(scored.figures["IA-IoU-bird"])
    # A prediction of an ignored image may hold anything.
    write_label_map(dataset.preds / "image0.png", np.full((40, 50), 99, np.uint8))
    assert bits(run(dataset).figures) == bits(scored.figures)


def test_names_with_commas_quotes_and_umlauts_survive(dataset, tmp_path):
    strange = 'Küste, "Nord" 1'
    for folder in (dataset.preds, dataset.semantic, dataset.instances):
        (folder / "image3.png").rename(folder / f"{strange}.png")
    scored = run(dataset)
    save_run(tmp_path / "run", scored)
    assert strange in load_run(tmp_path / "run").images
    assert bits(load_run(tmp_path / "run").figures) == bits(core(dataset))


def test_sources_lead_to_the_pixels(dataset, sem_seg_json, tmp_path):
    scored = run(dataset, pictures=str(dataset.preds))
    files = {kind: f"{dataset.folder}/{kind}/image2.png" for kind in ("semantic", "instances")}
    files |= dict.fromkeys(("prediction", "image"), f"{dataset.preds}/image2.png")
    assert dict(scored.sources["image2"]) == files
    save_run(tmp_path / "run", run(dataset, predictions=str(sem_seg_json), instances=None))
    sources = load_run(tmp_path / "run").sources["image2"]
    assert set(sources) == {"prediction", "semantic"}
    assert np.array_equal(sources["prediction"](), dataset.guesses[2])


def test_nothing_is_read_before_the_headers_fit(dataset, monkeypatch):
    from d2_smallobj.annotations import label_maps

    monkeypatch.setattr(label_maps, "decode_png", lambda *_: pytest.fail("a map was decoded"))
    assert len(scoring.prepare(Inputs(**dataset.options)).plan.tasks) == 7


class DyingTruth(GroundTruth):
    """Ground truth that takes its process down, as the kernel does when memory is out."""

    def read(self, image):
        os._exit(9)


def test_a_killed_process_is_said(dataset):
    prepared = scoring.prepare(Inputs(**dataset.options), QUICK)
    object.__setattr__(prepared.scorer.truth, "__class__", DyingTruth)
    with pytest.raises(WorkerError, match=r"one of 2 processes was killed .*fewer --jobs"):
        scoring.score(prepared, jobs=2)


def test_a_defect_is_no_input_error(dataset, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(scoring.pipeline, "read_prediction", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        scoring.score(scoring.prepare(Inputs(**dataset.options)))


def test_what_the_user_calls_stuff_has_no_instances(dataset):
    """Folders and their instance maps, which hold the dogs; some of a dog is ignored."""
    expected = Accumulator(4, stuff=(0, 2), ignore_label=200)
    for name, labels, (semantic, instances) in zip(dataset.names, dataset.guesses, dataset.scenes):
        semantic, instances = semantic.copy(), instances.copy()
        semantic[22:24, 20:30] = 200
        semantic[semantic == 255] = 200
        instances[instances == 255] = 0
        write_label_map(dataset.semantic / f"{name}.png", semantic)
        write_label_map(dataset.instances / f"{name}.png", instances)
        expected.update(name, labels, semantic, np.where(instances == 300, 0, instances))
    settings = Settings(samples=0, ignore_label=200)
    scored = run(dataset, settings, stuff=("background", "dog"))
    assert bits(scored.figures) == bits(expected.summarize(["background", "cat", "dog", "bird"]))
    assert scored.figures["instances-dog"] == 7
    assert run(dataset, settings).figures["instances"] == scored.figures["instances"] + 7
