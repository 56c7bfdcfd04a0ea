"""Damage every kind of file that is read: one clear error that names the file, or a true result.

Bits are flipped, bytes overwritten, cut, repeated and put in; in text, numbers and words are also
replaced by what a parser stumbles over. The default run takes seconds, ``--run-slow`` minutes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pickle
import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from small_scenes import NAMES, guess, scene, write_ids

from d2_smallobj.annotations.boxes import coco_boxes, read_voc_boxes
from d2_smallobj.annotations.classes import choose_categories, read_class_names
from d2_smallobj.annotations.coco import InstanceAnnotations
from d2_smallobj.annotations.image_files import open_picture
from d2_smallobj.annotations.image_lists import image_index, read_image_list
from d2_smallobj.annotations.label_maps import label_size, read_labels, write_label_map
from d2_smallobj.annotations.panoptic import panoptic_maps, read_panoptic_file
from d2_smallobj.annotations.truth import TruthImage
from d2_smallobj.pascal_b.candidates import read_reject_list
from d2_smallobj.pascal_b.index import read_index
from d2_smallobj.pascal_b.near_duplicates import hash_picture
from d2_smallobj.pseudo_labels.activations import read_maps
from d2_smallobj.pseudo_labels.formats import read_pseudo_label
from d2_smallobj.pseudo_labels.targets import TargetImage
from d2_smallobj.report.review import read_suspicions
from d2_smallobj.scoring import Inputs, Settings, evaluate
from d2_smallobj.scoring.predictions import open_predictions, read_prediction
from d2_smallobj.scoring.run_folder import load_run
from d2_smallobj.scoring.scored_run import RUN_FILES, save_run
from d2_smallobj.utils.cli import user_message

SECONDS, BYTES = 2.0, 1 << 30
"""What one damaged file may take."""
TORCH = importlib.util.find_spec("torch") is not None
STUMBLES = [
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"null",
        b"true",
        b"NaN",
        b"-1",
        b"0",
        b"1e999",
        b"1.5",
        b"[]",
        b"{}",
    ),
    *(
        b'""',
        b'"\\ud800"',
        b'"a\\u0000b"',
        b'"../../etc/passwd"',
        b"9" * 5000,
        b"99999999999999999999",
    ),
    *(
        b"8589934592",
        b"1000000",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[[[[1]]]]",
        b"\r\n\r\n",
        b",",
    ),
    *(b'"', b"<a>" * 50_000, b"&x;", b"%PDF", b"\x80\x04", b"PK\x03\x04", b"- " * 3000),
]


class Reader(NamedTuple):
    """One kind of file.

    ``write`` makes an intact one in a folder and returns it; ``read`` returns what can be compared
    by ``repr``; ``valid`` says whether another result can be what the damaged file holds (a flipped
    pixel of a format without checksums is another label), ``None``: it cannot.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    valid: Callable[[Any], bool] | None = None
    text: bool = False


def saved(name: str, content: Any) -> Callable[[Path], Path]:
    """A writer of bytes, text or JSON."""

    def write(folder):
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
        return folder / name

    return write


def label_png(folder):
    write_label_map(folder / "map.png", scene(0)[0])
    return folder / "map.png"


def array(name, value):
    def write(folder):
        np.save(folder / name, value)
        return folder / name

    return write


def picture(name, **options):
    def write(folder):
        pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
        image = Image.fromarray(pixels.repeat(6, 0).repeat(6, 1))
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(folder / name, exif=exif, **options)
        return folder / name

    return write


def look_at(path):
    with open_picture(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return pixels, hash_picture(path), TargetImage(("x",), str(path)).read_size()


def is_map(labels):
    return labels.ndim == 2 and labels.dtype.kind in "iu" and labels.size > 0


def runs(labels, label):
    found = coco_mask.encode(np.asfortranarray((labels == label).astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def annotation_file(kind):
    semantic = scene(0)[0]
    height, width = semantic.shape
    lists = {"neg_category_ids": [3], "not_exhaustive_category_ids": []} if kind == "lvis" else {}
    url = {"coco_url": "http://x/val2017/a.jpg"} if kind == "lvis" else {"file_name": "a.jpg"}
    polygon = [[5.0, 5.0, 15.0, 5.0, 15.0, 15.5, 5.0, 15.0]]
    masks = [
        polygon,
        runs(semantic, 2),
        {"size": [height, width], "counts": [50, 10, height * width - 60]},
    ]
    return {
        "images": [{"id": 7, "height": height, "width": width, **url, **lists}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(NAMES[1:], start=2)],
        "annotations": [
            {"id": n, "image_id": 7, "category_id": 2 + n % 2, "iscrowd": int(n == 2), "area": 9.0,
             "bbox": [5, 5, 10, 10.5], "segmentation": mask}
            for n, mask in enumerate(masks)
        ],
    }  # fmt: skip


def read_annotations(kind):
    def read(path):
        annotations = InstanceAnnotations(path, kind=kind)
        maps = [annotations.maps(image) for image in annotations.image_ids]
        index = read_index(path, kind)
        boxes = coco_boxes(path) if kind == "coco" else None
        chosen = choose_categories(path, annotations.class_names)
        return maps, image_index(path, kind).images, len(index.annotation_ids), boxes, chosen

    return read


def are_maps(found):
    return all(
        is_map(semantic) and semantic.shape == instances.shape for semantic, instances in found[0]
    )


IDS = np.where(scene(0)[0] == 1, 70_000, np.where(scene(0)[0] == 2, 9, 300))
PANOPTIC = {
    "categories": [{"id": n, "name": f"c{n}", "isthing": int(n > 1)} for n in (1, 5, 9)],
    "images": [{"id": 3, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 3, "file_name": "a.png", "segments_info": [
        {"id": 9, "category_id": 5}, {"id": 300, "category_id": 1},
        {"id": 70_000, "category_id": 9, "iscrowd": 1}]}],
}  # fmt: skip


def panoptic_json(folder):
    write_ids(folder / "a.png", IDS)
    return saved("panoptic.json", PANOPTIC)(folder)


def panoptic_png(folder):
    panoptic_json(folder)
    return folder / "a.png"


def read_panoptic(path):
    file = read_panoptic_file(path.with_name("panoptic.json"))
    options = {"stuff": file.stuff, "ignore_label": 255}
    return [panoptic_maps(path.with_name("a.png"), s, **options)[:2] for s in file.segments]


def predictions(folder):
    entries = [
        {"file_name": "x/a.jpg", "category_id": label, "segmentation": runs(guess(0), label)}
        for label in np.unique(guess(0)).tolist()
    ]
    return saved("sem_seg_predictions.json", entries)(folder)


def read_predictions(path):
    found = open_predictions(path)
    hits = [found.find(TruthImage.of_files(name, "", "")) for name in found.names()]
    return [read_prediction(entry, guess(0).shape, str(path)) for _, entry in hits]


def scored(name):
    def write(folder):
        maps = folder / "maps"
        for place in range(3):
            semantic, instances = scene(place)
            for kind, labels in (("p", guess(place)), ("s", semantic), ("i", instances)):
                write_label_map(maps / kind / f"{place}.png", labels)
        classes = saved("classes.txt", "\n".join(NAMES))(folder)
        inputs = Inputs(str(maps / "p"), str(maps / "s"), str(maps / "i"), classes=str(classes))
        save_run(folder / "run", evaluate(inputs, Settings(samples=0)))
        return folder / "run" / name

    return write


def figures(path):
    return sorted(load_run(path.parent).headline.items())


VOC = (
    "<annotation><size><width>50</width><height>40</height><depth>3</depth></size>"
    "<object><name>cat</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
    "<part><name>head</name></part></object></annotation>"
)


def inside(found):
    boxes, (height, width) = found
    limits = np.array([width, height, width, height])
    return boxes.shape[1:] == (5,) and (boxes[:, 1:] >= 0).all() and (boxes[:, 1:] <= limits).all()


MAPS = np.random.default_rng(1).random((2, 6, 8)).astype(np.float32)


def pseudo(file_format):
    def read(path):
        return read_pseudo_label([path], 6, 8, num_classes=4, file_format=file_format)

    return read


def is_pseudo(labels):
    return labels.shape == (6, 8) and set(np.unique(labels).tolist()) <= {0, 1, 2, 3, 255}


CONFIG = """MODEL:
  META_ARCHITECTURE: "SizeBalancedSegmentor"
  SEM_SEG_HEAD: {NUM_CLASSES: 21}
SOLVER:
  STEPS: (100, 200)
  BASE_LR: 2.5e-4
  MAX_ITER: 300
OUTPUT_DIR: "out"
"""


def weight_readers() -> dict[str, Reader]:
    """Weights and what names them, which need torch and the host."""
    torch = pytest.importorskip("torch")
    checkpoint = pytest.importorskip("d2_smallobj.engine.checkpoint")
    weight_files = pytest.importorskip("d2_smallobj.engine.weight_files")
    arrays = {"conv1.weight": MAPS, "fc.bias": np.arange(4), "n": np.float32(2)}
    tensors = {"model": {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2)}, "n": 7}

    def pth(**options):
        return lambda folder: torch.save(tensors, folder / "a.pth", **options) or folder / "a.pth"

    def marked(folder):
        for number in (19, 39):
            torch.save(tensors, folder / f"model_{number:07}.pth")
        return saved("last_checkpoint", "model_0000039.pth")(folder)

    def last(path):
        run = checkpoint.SafeCheckpointer(
            torch.nn.Linear(2, 2), str(path.parent), n=torch.nn.Linear(1, 1)
        )
        return Path(run._find_resumable() or "model_00000").name

    def weights(path):
        return weight_files.read_weights_file(str(path))

    def named(found):
        return isinstance(found["model"], dict) and len(found["model"]) > 0

    setup = pytest.importorskip("d2_smallobj.engine.setup")
    mapper = pytest.importorskip("d2_smallobj.data.mapper")

    def is_picture(found):
        return found.ndim == 3 and found.dtype == np.uint8

    return {
        "config": Reader(
            saved("c.yaml", CONFIG),
            lambda path: setup.build_config(str(path)),
            lambda cfg: cfg.SOLVER.MAX_ITER > 0,
            True,
        ),
        "training picture": Reader(
            picture("a.jpg"), lambda path: mapper.read_image(str(path), "RGB"), is_picture
        ),
        "checkpoint": Reader(pth(), weights),
        "old checkpoint": Reader(pth(_use_new_zipfile_serialization=False), weights, named),
        "model zoo": Reader(saved("a.pkl", pickle.dumps({"model": arrays}, 2)), weights, named),
        # The one before is taken where the last one's name cannot be read.
        "last_checkpoint": Reader(marked, last, lambda name: name.startswith("model_00000"), True),
    }


LIST = "\n".join(
    f"/JPEGImages/2007_{n:06}.jpg /SegmentationClassAug/2007_{n:06}.png" for n in range(9)
)
SUSPICIONS = "image_id,disagreement,void_share,message\n" + "".join(
    f"{n},0.4,0.{n},\n" for n in range(1, 9)
)


def ints(found):
    return all(type(number) is int for number in found)


def stored(name, save):
    """A writer that calls ``save`` with the path."""

    def write(folder):
        save(folder / name)
        return folder / name

    return write


SMALL = guess(0)[:6, :8] % 4
REJECTED = {"version": 1, "rejected": [{"image_id": 3, "reason": "x"}]}
READERS = {
    "label PNG": Reader(label_png, lambda path: (read_labels(path), label_size(path))),
    "label npy": Reader(
        array("a.npy", scene(0)[1]),
        lambda path: (read_labels(path), label_size(path)),
        lambda found: is_map(found[0]) and found[0].shape == found[1],
    ),
    "JPEG": Reader(picture("a.jpg"), look_at, lambda found: found[0].ndim == 3),
    "PNG picture": Reader(picture("a.png"), look_at, lambda found: found[0].ndim == 3),
    "label TIFF": Reader(
        stored("a.tif", lambda path: Image.fromarray(guess(0)).save(path)), read_labels, is_map
    ),
    "pseudo label": Reader(
        stored("a.png", lambda path: write_label_map(path, SMALL)), pseudo("indices")
    ),
    "activation maps": Reader(
        array("a.npy", {"keys": np.array([0, 2]), "high_res": MAPS}), pseudo("cams"), is_pseudo
    ),
    "scores": Reader(array("a.npy", {0: MAPS[0], 2: MAPS[1]}), pseudo("scores"), is_pseudo),
    "plain maps": Reader(array("a.npy", MAPS), read_maps, lambda found: np.isfinite(found).all()),
    "COCO": Reader(
        saved("c.json", annotation_file("coco")), read_annotations("coco"), are_maps, True
    ),
    "LVIS": Reader(
        saved("l.json", annotation_file("lvis")), read_annotations("lvis"), are_maps, True
    ),
    "panoptic JSON": Reader(
        panoptic_json, read_panoptic, lambda found: all(s.ndim == 2 for s, _ in found), True
    ),
    "panoptic PNG": Reader(panoptic_png, read_panoptic),
    "predictions": Reader(
        predictions, read_predictions, lambda found: all(map(is_map, found)), True
    ),
    "VOC boxes": Reader(
        saved("a.xml", VOC), lambda path: read_voc_boxes(path, {"cat": 8}), inside, True
    ),
    "image list": Reader(
        saved("l.txt", LIST),
        read_image_list,
        lambda found: all(i.image_id and ".." not in str(i.image) for i in found),
        True,
    ),
    "class names": Reader(
        saved("c.txt", "\n".join(NAMES)),
        lambda path: read_class_names(str(path)),
        lambda found: len(set(found)) == len(found) > 0,
        True,
    ),
    "reject list": Reader(saved("r.txt", "12 # dark\n77\n"), read_reject_list, ints, True),
    "reject JSON": Reader(saved("r.json", REJECTED), read_reject_list, ints, True),
    "candidates CSV": Reader(saved("s.csv", SUSPICIONS), read_suspicions, ints, True),
    **(weight_readers() if TORCH else {}),
    **{f"run, {name}": Reader(scored(name), figures, None, True) for name in RUN_FILES},
}


def damage(content: bytes, rng: np.random.Generator, text: bool) -> bytes:
    """One way to damage a file."""
    length = max(len(content), 1)
    # As often in the first hundred bytes, where headers are, as anywhere.
    place = int(rng.integers(min(length, 100) if rng.random() < 0.5 else length))
    some = int(rng.integers(1, 40))
    tokens = list(re.finditer(rb"-?\d[\d.]*|\"[^\"]*\"|[A-Za-z_]+", content)) if text else []
    if tokens and rng.random() < 0.5:
        token = tokens[int(rng.integers(len(tokens)))]
        return (
            content[: token.start()]
            + STUMBLES[rng.integers(len(STUMBLES))]
            + content[token.end() :]
        )
    way = int(rng.integers(9))
    if way < 3:
        flipped = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            flipped[int(rng.integers(length))] ^= 1 << int(rng.integers(8))
        flipped[place] ^= 1 << int(rng.integers(8))
        return bytes(flipped)
    parts = {
        3: (content[:place], rng.bytes(some), content[place + some :]),
        4: (content[:place],),
        5: (content[:place], rng.bytes(some), content[place:]),
        6: (content[: place + some], content[place:]),
        7: (content[:place], STUMBLES[rng.integers(len(STUMBLES))], content[place:]),
        8: (rng.bytes(some * 20),)
        if rng.random() < 0.5
        else (content[:place], content[place + some :]),
    }
    return b"".join(parts[way])


@contextlib.contextmanager
def little_memory():
    """Let what asks for more than BYTES fail, where the system can do that."""
    resource = pytest.importorskip("resource")
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check_places(reader: Reader, path: Path) -> list[str]:
    """Put a device and a pipe, which would be read for ever, in the file's place, and nothing."""
    wrong = []
    for place, put in {
        "/dev/zero": lambda: path.symlink_to("/dev/zero"),
        "a pipe": lambda: os.mkfifo(path),
        "nothing": lambda: None,
    }.items():
        path.unlink()
        put()
        try:
            found = reader.read(path)
            if not (reader.valid and isinstance(found, str) and reader.valid(found)):
                wrong.append(f"{place}: gave {found!r:.200}")
        except Exception as error:
            message = user_message(error)
            if message is None or path.name not in message or "Errno" in message:
                wrong.append(f"{place}: {type(error).__name__}: {error!s:.200}")
    return wrong


def check(name: str, folder: Path, seeds: range) -> None:
    """Read a file damaged in as many ways as there are seeds."""
    reader = READERS[name]
    path = reader.write(folder)
    # Of files that do not belong together, another one may be named.
    several = name.startswith(("run,", "panoptic"))
    key = r"\b[A-Z]+(\.[A-Z_]+)+(: | must be )" if name == "config" else "a^"
    intact = path.read_bytes()
    true = repr(reader.read(path))
    wrong = []
    for seed in seeds:
        rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
        path.write_bytes(damage(intact, rng, reader.text))
        begun = time.process_time()  # of this process: others may be busy
        try:
            with little_memory():
                found = reader.read(path)
            if repr(found) != true and not (reader.valid and reader.valid(found)):
                wrong.append(f"seed {seed}: gave {found!r:.200} instead of {true:.200}")
        except Exception as error:
            message = user_message(error)
            if message is None:
                wrong.append(f"seed {seed}: a bare {type(error).__name__}: {error!s:.200}")
            elif len(message) > 3000 or not re.fullmatch(r".*(:(\n  .*)+)?", message):
                wrong.append(f"seed {seed}: no line to read: {message:.200}")
            elif path.name not in message and not (
                (several and str(path.parent) in message) or re.search(key, message)
            ):
                wrong.append(f"seed {seed}: without the file's name: {message:.200}")
        taken = time.process_time() - begun
        if taken > SECONDS:
            wrong.append(f"seed {seed}: took {taken:.1f} s")
    wrong += check_places(reader, path)
    assert not wrong, f"{len(wrong)} of {len(seeds)}:\n" + "\n".join(wrong[:15])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damage_is_named_or_harmless(name, tmp_path):
    check(name, tmp_path, range(10))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_more_damage(name, tmp_path):
    check(name, tmp_path, range(10, 10 + int(os.environ.get("DAMAGED_FILES", 300))))
