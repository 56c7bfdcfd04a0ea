"""Making the demo: same bytes for a seed, whole or not at all, never over other files."""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
from unittest.mock import Mock

import pytest

from d2_smallobj.demo import dataset as demo_module
from d2_smallobj.demo.dataset import ensure_demo, make_demo
from d2_smallobj.utils.files import lock_folder

TINY = {"num_train": 3, "num_val": 2, "size": 64}


def _digests(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _beside(root):
    return sorted(path.name for path in root.parent.iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "demo"
    make_demo(root, **TINY)
    return root


@pytest.fixture
def tiny(made, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(made, tmp_path / "demo")


@pytest.fixture
def _small_default(monkeypatch):
    """Let ensure_demo make a tiny set: its default of 400 scenes takes seconds."""
    make = make_demo
    monkeypatch.setattr(demo_module, "make_demo", lambda root: make(root, **TINY))


def test_bytes_depend_on_the_seed_and_not_on_the_number(made, tmp_path):
    make_demo(tmp_path / "again", **TINY)
    make_demo(tmp_path / "more", **{**TINY, "num_train": 5})
    make_demo(tmp_path / "other", seed=1, **TINY)
    one, again, more, other = map(_digests, (made, *sorted(tmp_path.iterdir())))
    assert again == one
    pictures = {name: digest for name, digest in one.items() if name.endswith((".jpg", ".png"))}
    assert pictures.items() <= more.items()
    assert set(other) == set(one)
    same = {name for name, digest in one.items() if other[name] == digest}
    assert {name.rsplit("/", 1)[-1] for name in same} == {"train.txt", "val.txt"}
    assert len({digest for name, digest in one.items() if name.endswith(".jpg")}) == 5


def test_layout(made):
    voc = "VOCdevkit/VOC2012"
    names = ["train_00000", "train_00001", "train_00002", "val_00000", "val_00001"]
    folders = ("SegmentationClass", "SegmentationObject", "PseudoLabels/demo")
    expected = {"demo.json", *(f"{voc}/JPEGImages/{name}.jpg" for name in names)}
    expected |= {f"{voc}/{folder}/{name}.png" for folder in folders for name in names}
    for split in ("train", "val"):
        lists = f"{voc}/ImageSets/Segmentation/{split}.txt"
        expected |= {f"annotations/instances_{split}.json", lists}
    assert set(_digests(made)) == expected
    assert (made / lists).read_text() == "val_00000\nval_00001\n"


def _replace(root, seed=0):
    make_demo(root, seed=seed, force=True, **TINY)


def test_what_is_there_is_kept_unless_forced(tiny):
    one, before = _digests(tiny), {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    make_demo(tiny, **TINY)
    ensure_demo(tiny)
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before
    told = r"holds a demo made with .*seed=0.*not .*seed=4.*--force"
    with pytest.raises(FileExistsError, match=told):
        make_demo(tiny, seed=4, **TINY)
    _replace(tiny, seed=4)
    assert json.loads((tiny / "demo.json").read_text())["options"]["seed"] == 4
    (tiny / "VOCdevkit/VOC2012/JPEGImages/val_00000.jpg").write_bytes(b"scribble")
    _replace(tiny)
    assert _digests(tiny) == one
    assert _beside(tiny) == ["demo"]


@pytest.mark.usefixtures("_small_default")
@pytest.mark.parametrize("damage", ["file", "folder", {"version": 0}, {"options": {"speed": 1}}])
def test_incomplete_or_stale_folders_are_made_anew(tiny, damage):
    before, voc = _digests(tiny), tiny / "VOCdevkit/VOC2012"
    if damage == "file":
        (voc / "SegmentationClass/train_00001.png").unlink()
    elif damage == "folder":
        shutil.rmtree(voc / "PseudoLabels")
    else:
        marker = json.loads((tiny / "demo.json").read_text())
        (tiny / "demo.json").write_text(json.dumps({**marker, **damage}))
    ensure_demo(tiny)
    assert _digests(tiny) == before
    assert _beside(tiny) == ["demo"]


@pytest.mark.usefixtures("_small_default")
def test_first_use_makes_it_in_missing_or_empty_folders(made, tmp_path):
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "a/b/demo", tmp_path / "empty"):
        ensure_demo(root)
        assert _digests(root) == _digests(made)


def test_own_files_beside_the_demos_are_kept(tiny):
    labels = tiny / "VOCdevkit/VOC2012/PseudoLabels/mine"
    labels.mkdir()
    (labels / "train_00000.png").write_text("mine")
    before = _digests(tiny)
    ensure_demo(tiny)
    make_demo(tiny, **TINY)
    (tiny / "annotations/instances_val.json").unlink()
    before.pop("annotations/instances_val.json")
    for make in (ensure_demo, _replace):
        with pytest.raises(FileExistsError, match=r"more files .* in .*PseudoLabels/mine"):
            make(tiny)
    assert _digests(tiny) == before


@pytest.mark.parametrize("marker", [None, "{}", "[]", "not json", '{"version": 1'])
def test_other_peoples_files_are_never_touched(tmp_path, marker):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    if marker is not None:
        (tmp_path / "mine/demo.json").write_text(marker)
    before = _digests(tmp_path)
    for make, name in itertools.product((ensure_demo, _replace), ("file", "mine")):
        with pytest.raises(FileExistsError, match=rf"{name} holds files that are not a demo's"):
            make(tmp_path / name)
    assert _digests(tmp_path) == before


def test_the_loser_of_a_race_uses_the_winners_files(tmp_path, monkeypatch):
    root, write, winner = tmp_path / "demo", demo_module.write_demo, []

    def slowly(folder, options):
        write(folder, options)
        monkeypatch.undo()  # while we were at it, another process finishes
        make_demo(root, **TINY)
        winner.append(root.stat().st_ino)

    monkeypatch.setattr(demo_module, "write_demo", slowly)
    make_demo(root, **TINY)
    assert winner == [root.stat().st_ino]
    assert _beside(root) == ["demo"]


def test_processes_at_once(tmp_path):
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(make_demo, tmp_path / "demo", **TINY) for _ in range(2)]
        assert [job.result() for job in jobs] == [None, None]
    assert len(_digests(tmp_path / "demo")) == 25
    assert _beside(tmp_path / "demo") == ["demo"]


def test_nothing_is_left_of_an_interrupted_run(tmp_path, monkeypatch):
    full = Mock(side_effect=OSError(28, "No space left on device", "picture.jpg"))
    monkeypatch.setattr(demo_module, "_write_scene", full)
    with pytest.raises(OSError, match=r"No space left on device.*picture\.jpg"):
        make_demo(tmp_path / "demo", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed(tmp_path):
    """Not what another process is making, what was made just now, or what is not ours."""
    names = ("killed__", "at_work_", "just_now", "of_mine_")
    folders = {name: tmp_path / f".demo.{name}" for name in names}
    for name, folder in folders.items():
        (folder / ("thesis" if name == "of_mine_" else "new")).mkdir(parents=True)
        if name != "just_now":
            os.utime(folder, (1, 1))
    lock = lock_folder(folders["at_work_"])
    make_demo(tmp_path / "demo", **TINY)
    os.close(lock)
    assert {name for name, folder in folders.items() if folder.exists()} == set(names[1:])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_train": 0}, ValueError, r"num_train: must be in 1\.\.99999, got 0"),
        ({"num_val": 100000}, ValueError, "num_val: must be .*got 100000"),
        ({"size": 63}, ValueError, r"size: must be in 64\.\.1024, got 63"),
        ({"seed": -1}, ValueError, "seed: must be in .*got -1"),
        ({"seed": 1.0}, TypeError, r"seed: expected an integer, got 1\.0"),
        ({"size": True}, TypeError, "size: expected an integer, got True"),
    ],
)
def test_options_are_checked(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        make_demo(tmp_path / "demo", **options)
    assert list(tmp_path.iterdir()) == []
