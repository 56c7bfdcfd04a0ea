"""Small LVIS and COCO files, written from a few words."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d2_smallobj.pascal_b import BuildOptions, BuildPaths, ScreeningOptions, build_pascal_b
from d2_smallobj.pascal_b.candidates import AnnotationSources
from d2_smallobj.pascal_b.index import COCO_RULES, LVIS_RULES, read_index
from d2_smallobj.pascal_b.screening import screen

LVIS_IDS = {
    name: n for n, name in enumerate([*(n for n in sorted(LVIS_RULES) if n != "baby"), "zebra"], 10)
}
COCO_IDS = {name: n for n, name in enumerate([*sorted(COCO_RULES), "zebra"], 1)}


@dataclasses.dataclass
class World:
    """An LVIS file and a COCO file of the same images, 100 x 120 (H, W)."""

    lvis: dict[str, list[dict[str, Any]]]
    coco: dict[str, list[dict[str, Any]]]

    def image(self, image_id, *, negative=(), partial=(), **changes):
        """Add an image to both files; the lists hold LVIS category names."""
        entry = {
            "id": image_id,
            "height": 100,
            "width": 120,
            "coco_url": f"http://images.cocodataset.org/val2017/{image_id:012d}.jpg",
            **changes,
        }
        self.coco["images"].append(dict(entry))
        entry["neg_category_ids"] = [LVIS_IDS[name] for name in negative]
        entry["not_exhaustive_category_ids"] = [LVIS_IDS[name] for name in partial]
        self.lvis["images"].append(entry)
        return entry

    def add(self, source, image_id, category, segmentation, **more):
        """Add an annotation to ``"lvis"`` or ``"coco"``, or ``"both"`` by both names.

        Four numbers are the box of pixels x0 <= x < x1, y0 <= y < y1.
        """
        if source == "both":
            self.add("lvis", image_id, category[0], segmentation, **more)
            source, category = "coco", category[1]
        if isinstance(segmentation, tuple):
            x0, y0, x1, y1 = segmentation
            segmentation = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        content, ids = (self.lvis, LVIS_IDS) if source == "lvis" else (self.coco, COCO_IDS)
        entry = {
            "id": len(content["annotations"]) + 1,
            "image_id": image_id,
            "category_id": ids[category],
            "segmentation": segmentation,
            **more,
        }
        content["annotations"].append(entry)
        return entry

    def write(self, folder):
        """Write both files; their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / "lvis.json", folder / "coco.json"
        for path, content in zip(paths, (self.lvis, self.coco)):
            path.write_text(json.dumps(content))
        return paths

    def shuffled(self, seed):
        """The same content in another order."""
        chance = random.Random(seed)
        return World(
            *(
                {key: chance.sample(values, len(values)) for key, values in content.items()}
                for content in (self.lvis, self.coco)
            )
        )


def empty_world():
    """Two files without images."""
    return World(
        *(
            {
                "images": [],
                "annotations": [],
                "categories": [{"id": n, "name": name} for name, n in ids.items()],
            }
            for ids in (LVIS_IDS, COCO_IDS)
        )
    )


def full_world():
    """Forty images of 100 x 120 with cats, dogs, persons and potted plants of several sizes."""
    world = empty_world()
    chance = random.Random(0)
    kinds = [("cat", "cat"), ("dog", "dog"), ("person", "person"), (None, "potted plant")]
    for image_id in range(1001, 1041):
        world.image(image_id)
        for corner in chance.sample(range(4), chance.randint(1, 3)):
            lvis, coco = chance.choice(kinds)
            x, y = 60 * (corner % 2) + 2, 50 * (corner // 2) + 2
            side = chance.choice([12, 20, 44])
            mask = (x, y, x + side, y + side)
            world.add("coco", image_id, coco, mask)
            if lvis:
                world.add("lvis", image_id, lvis, mask)
        if chance.random() < 0.3:
            world.add("lvis", image_id, "zebra", (0, 0, 5, 5))
            world.add("coco", image_id, "zebra", (0, 0, 5, 5))
    return world


def draw_pictures(world, folder):
    """A JPEG of every image of the world, each another, below ``folder``."""
    for entry in world.coco["images"]:
        rng = np.random.default_rng(entry["id"])
        image = Image.fromarray(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8))
        path = folder / f"val2017/{entry['id']:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.resize((120, 100), Image.Resampling.BICUBIC).save(path)
    return folder


def make_set(world, inputs, output, *, place=None, **options):
    """Build a set of 12 images, without pictures unless ``place`` says where they are."""
    lvis, coco = world.write(inputs)
    where = BuildPaths(**{"lvis": [lvis], "coco": [coco], "output": output, **(place or {})})
    return build_pascal_b(where, BuildOptions(**{"number": 12, **options}))


@pytest.fixture
def world():
    """Two files without images."""
    return empty_world()


@pytest.fixture
def many():
    """See :func:`full_world`."""
    return full_world()


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """A set without pictures, made of :func:`full_world`; nobody writes in it."""
    folder = tmp_path_factory.mktemp("plain")
    return make_set(full_world(), folder / "inputs", folder / "set")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A set with pictures, made of :func:`full_world`; nobody writes in it."""
    folder = tmp_path_factory.mktemp("pascal_b")
    world = full_world()
    place = {"pictures": draw_pictures(world, folder / "coco")}
    return make_set(world, folder / "inputs", folder / "set", place=place, seed=4)


@pytest.fixture
def sources(world, tmp_path):
    """``sources()``: the world's files, read."""

    def read():
        lvis, coco = world.write(tmp_path / "inputs")
        return AnnotationSources([read_index(lvis, "lvis")], [read_index(coco, "coco")])

    return read


@pytest.fixture
def candidate(sources):
    """``candidate(image_id)``: an image of the world, or why it is no candidate."""

    def find(image_id=1, from_coco=(16,)):
        return sources().candidate(image_id, from_coco=frozenset(from_coco))

    return find


@pytest.fixture
def verdict(candidate):
    """``verdict(image_id, **screening options)``."""

    def judge(image_id=1, **options):
        options = ScreeningOptions(**options)
        found = candidate(image_id, options.coco_class_ids)
        return screen(found, ["lvis.json", "coco.json"], options)

    return judge


@pytest.fixture
def build(tmp_path):
    """``build(world, name, **options)``: a set below tmp_path, see :func:`make_set`."""

    def make(world, name="set", **options):
        return make_set(world, tmp_path / f"inputs of {name}", tmp_path / name, **options)

    return make


@pytest.fixture
def files_of():
    """``files_of(folder)``: content of every file by its path below the folder."""

    def read(folder):
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }

    return read
