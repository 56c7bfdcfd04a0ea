"""Small LVIS and COCO files, written from a few words."""

from __future__ import annotations

import json
import random
from pathlib import Path

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


class World:
    """An LVIS file and a COCO file of the same images, 100 x 120 (H, W)."""

    def __init__(self):
        self.lvis, self.coco = (
            {
                "images": [],
                "annotations": [],
                "categories": [{"id": n, "name": name} for name, n in ids.items()],
            }
            for ids in (LVIS_IDS, COCO_IDS)
        )

    def image(self, image_id, *, negative=(), partial=(), **changes):
        """Add an image to both files; the lists hold LVIS category names."""
        url = f"http://images.cocodataset.org/val2017/{image_id:012d}.jpg"
        entry = {"id": image_id, "height": 100, "width": 120, "coco_url": url, **changes}
        self.coco["images"].append(dict(entry))
        entry["neg_category_ids"] = [LVIS_IDS[name] for name in negative]
        entry["not_exhaustive_category_ids"] = [LVIS_IDS[name] for name in partial]
        self.lvis["images"].append(entry)

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
        entry = {"id": len(content["annotations"]) + 1, "image_id": image_id, **more}
        entry.update(category_id=ids[category], segmentation=segmentation)
        content["annotations"].append(entry)

    def draw(self, source, objects):
        """Add boxes to image 1: ``"cat 0 0 10 20, dog 5 5 9 9 *"``; the star marks a crowd."""
        if not self.coco["images"]:
            self.image(1)
        for text in filter(str.strip, objects.split(",")):
            *name, x0, y0, x1, y1 = text.replace("*", "").split()
            mask = tuple(map(int, (x0, y0, x1, y1)))
            self.add(source, 1, " ".join(name), mask, iscrowd=int("*" in text))

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
        chance, other = random.Random(seed), World()
        for content, ours in ((other.lvis, self.lvis), (other.coco, self.coco)):
            content.update({key: chance.sample(ours[key], len(ours[key])) for key in ours})
        return other


def full_world():
    """Forty images of 100 x 120 with cats, dogs, persons and potted plants of several sizes."""
    world = World()
    chance = random.Random(0)
    kinds = [("cat", "cat"), ("dog", "dog"), ("person", "person"), (None, "potted plant")]
    for image_id in range(1001, 1041):
        world.image(image_id)
        for corner in chance.sample(range(4), chance.randint(1, 3)):
            lvis, coco = chance.choice(kinds)
            x, y = 60 * (corner % 2) + 2, 50 * (corner // 2) + 2
            side = chance.choice([12, 20, 44])
            mask = (x, y, x + side, y + side)
            world.add("both" if lvis else "coco", image_id, (lvis, coco) if lvis else coco, mask)
        if chance.random() < 0.3:
            world.add("both", image_id, ("zebra", "zebra"), (0, 0, 5, 5))
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
    return World()


@pytest.fixture
def cat(world):
    """An image with a cat that both label."""
    world.image(1)
    world.add("both", 1, ("cat", "cat"), (0, 0, 40, 40))
    return world


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
    return lambda image_id=1, from_coco=(16,): sources().candidate(image_id, from_coco=from_coco)


@pytest.fixture
def verdict(candidate):
    """``verdict(**screening options)`` on image 1."""

    def judge(**options):
        options = ScreeningOptions(**options)
        found = candidate(1, options.coco_class_ids)
        return screen(found, ["lvis.json", "coco.json"], options)

    return judge


@pytest.fixture
def build(tmp_path):
    """``build(world, name, **options)``: a set below tmp_path, see :func:`make_set`."""

    def make(world, name="set", **options):
        return make_set(world, tmp_path / f"inputs of {name}", tmp_path / name, **options)

    return make
