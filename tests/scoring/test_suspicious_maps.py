"""Folders of label maps in each other's place, or given twice."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.scoring import Inputs, Settings, evaluate
from d2_smallobj.scoring.scored_run import warnings

# Classes of the objects of each image; instances count from 1, as in VOC.
FEW = ((15,), (7, 15), (2, 9, 12), (20,), (9, 15), (3,))
MANY = (*FEW, (15, 15, 9), (7, 7))


@pytest.fixture
def folders(tmp_path):
    """``folders(objects)`` makes folders of classes and of instances."""

    def make(objects, name="data"):
        found = tmp_path / name / "classes", tmp_path / name / "instances"
        for number, classes in enumerate(objects):
            maps = np.zeros((2, 12, 30), np.uint8)
            for place, label in enumerate(classes):
                maps[:, 2:9, 8 * place + 1 : 8 * place + 7] = [[[label]], [[place + 1]]]
            maps[:, 0] = 255
            for folder, labels in zip(found, maps):
                write_label_map(folder / f"image{number}.png", labels)
        return found

    return make


def score(semantic, instances=None):
    given = {} if instances is None else {"instances": str(instances)}
    inputs = Inputs(predictions=str(semantic), semantic=str(semantic), **given)
    return evaluate(inputs, Settings(samples=0))


def suspicious(run):
    return [line for line in warnings(run) if "--semantic" in line or "--instances" in line]


def test_folders_where_they_belong(folders):
    for objects in (FEW, MANY, FEW[:1], [(1,), (1, 1), (1,), (1,), (1,)], [(1, 2, 3)] * 6, [()]):
        semantic, instances = folders(objects, str(objects))
        assert suspicious(score(semantic, instances)) == suspicious(score(semantic)) == []


def test_exchanged_folders(folders):
    semantic, instances = folders(MANY)
    with pytest.raises(ValueError, match=r"exchanged: the maps of 2 image\(s\), .*image6\.png for"):
        score(instances, semantic)
    semantic, instances = folders(FEW, "few")
    (line,) = suspicious(score(instances, semantic))
    assert line.startswith("--semantic and --instances look exchanged")
    # Another problem in one image is told as it is.
    semantic, instances = folders(MANY, "more")
    write_label_map(semantic / "image0.png", np.full((12, 30), 99, np.uint8))
    with pytest.raises(ValueError, match="1 image") as caught:
        score(semantic, instances)
    assert "seem to be" not in str(caught.value)


def test_an_error_of_the_annotation_is_no_exchange(folders):
    semantic, instances = folders([*MANY, (1, 2)])
    write_label_map(instances / "image8.png", np.ones((12, 30), np.uint8))
    with pytest.raises(ValueError, match="instance 1 lies on class 0") as caught:
        score(semantic, instances)
    assert "seem to be" not in str(caught.value)


def test_instances_as_classes(folders):
    (line,) = suspicious(score(folders(MANY)[1]))
    assert line.startswith("The semantic maps look like instance maps")


def test_one_folder_twice(folders, tmp_path):
    semantic, _ = folders(FEW)
    with pytest.raises(ValueError, match="--semantic and --instances are the same folder"):
        score(semantic, semantic)
    (tmp_path / "link").symlink_to(semantic)
    with pytest.raises(ValueError, match="are the same folder"):
        score(semantic, tmp_path / "link")
    shutil.copytree(semantic, tmp_path / "copy")
    (line,) = suspicious(score(semantic, tmp_path / "copy"))
    assert line.startswith("The semantic and the instance maps are the same in all images")
