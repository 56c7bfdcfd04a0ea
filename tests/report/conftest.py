"""Scored runs on drawn scenes, with their files, and a real browser to open reports in."""

import pathlib
import runpy
import shutil

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.annotations.classes import DEMO_CLASS_NAMES
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.demo.dataset import draw_pseudo_label
from d2_smallobj.demo.scenes import draw_scene
from d2_smallobj.metrics import Accumulator
from d2_smallobj.scoring.scored_run import ScoredRun
from d2_smallobj.utils.files import atomic_write
from d2_smallobj.utils.opencv import cv2


def score(name, maps, class_names, *, sources=None, remarks=(), **options):
    """Score {image id: (prediction, semantic, instances)} into a run."""
    accumulator = Accumulator(num_classes=len(class_names))
    for image_id, (prediction, semantic, instances) in maps.items():
        accumulator.update(image_id, prediction, semantic, instances)
    return ScoredRun.from_accumulator(
        accumulator, class_names, name=name, options=options, sources=sources, remarks=remarks
    )


def flawed(labels, rng, fineness):
    """A prediction: the truth at a coarse resolution, shifted a little."""
    side = labels.shape[0]
    small = cv2.resize(labels, (side // fineness, side // fineness), interpolation=0)
    back = cv2.resize(small, (side, side), interpolation=0)
    return np.roll(back, int(rng.integers(-2, 3)), axis=int(rng.integers(2)))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Runs of three made-up methods on drawn scenes, with their files."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(3)
    maps, sources = ({name: {} for name in ("Coarse", "Fine", "Weak")} for _ in range(2))
    for index in range(14):
        scene, image_id = draw_scene(rng, 224), f"scene_{index:03d}"
        semantic = scene.classes[scene.instances]
        labels = {
            "semantic": semantic,
            "instances": scene.instances,
            "Coarse": flawed(semantic, rng, 14),
            "Fine": flawed(semantic, rng, 6),
            "Weak": draw_pseudo_label(rng, scene),
        }
        files = {name: str(folder / name / f"{image_id}.png") for name in ("image", *labels)}
        for name in labels:
            write_label_map(files[name], labels[name])
        with atomic_write(files["image"]) as file:
            Image.fromarray(scene.image).save(file, "PNG")
        for name in maps:
            maps[name][image_id] = (labels[name], semantic, scene.instances)
            sources[name][image_id] = {**files, "prediction": files[name]}
    return [score(name, maps[name], DEMO_CLASS_NAMES, sources=sources[name]) for name in maps]


@pytest.fixture
def make_run():
    """Score maps into a run; see score."""
    return score


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium without network; skipped where none is installed."""
    module = runpy.run_path(str(pathlib.Path(__file__).with_name("browser.py")))
    executable = next(filter(None, map(shutil.which, module["NAMES"])), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(module['NAMES'])} is installed")
    started = module["Browser"](executable, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


HOSTILE = (
    "<script>window.pwned=1</script>",
    '"><img src=x onerror="window.pwned=1">',
    "</style></title><svg onload=window.pwned=1>",
    "' onmouseover='window.pwned=1",
    "&lt;b&gt; javascript:window.pwned=1",
)
"""Names that would run if they got into the page as they are."""


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """Two runs whose class, image and method names try to break out; with pictures."""
    folder = tmp_path_factory.mktemp("hostile")
    names = ("background", *HOSTILE)
    rng = np.random.default_rng(0)
    semantic = np.zeros((96, 96), np.uint8)
    for label in range(1, 6):
        semantic[15 * label : 15 * label + 8, 20:30] = label
    wrong = np.roll(semantic, 40, axis=1)
    runs = []
    for index, method in enumerate(("<b>A</b><script>window.pwned=1</script>", HOSTILE[1])):
        maps, sources = {}, {}
        for number, image_id in enumerate((HOSTILE[0], HOSTILE[3])):
            prediction = wrong if (number + index) % 2 else np.zeros_like(semantic)
            maps[image_id] = (prediction, semantic, semantic)
            picture = folder / f"{number}.png"
            Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)).save(picture)
            arrays = {"semantic": semantic, "instances": semantic, "prediction": prediction}
            sources[image_id] = {kind: lambda array=array: array for kind, array in arrays.items()}
            sources[image_id]["image"] = str(picture)
        options = {"inputs": {HOSTILE[2]: HOSTILE[1]}, HOSTILE[4]: [HOSTILE[0]]}
        runs.append(score(method, maps, names, sources=sources, remarks=[HOSTILE[2]], **options))
    return runs
