"""The resolver on small files of real formats, registered as detectron2 and its projects do."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import d2_smallobj  # noqa: F401 (makes the embedded host importable)
from d2_smallobj.annotations.cityscapes import BENCHMARK_LABELS
from d2_smallobj.annotations.label_maps import write_label_map
from d2_smallobj.annotations.label_rules import LabelRule
from d2_smallobj.data.ground_truth import open_dataset, resolve
from d2_smallobj.evaluation import SmallObjectEvaluator
from d2_smallobj.metrics import Accumulator
from d2_smallobj.scoring import Inputs, Settings, evaluate
from detectron2.data import DatasetCatalog, MetadataCatalog

PREFIX = "test_truth_"


@pytest.fixture
def register():
    """Register a data set for one test; returns its name."""
    names = []

    def call(records, name="set", **metadata):
        name = PREFIX + name
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield call
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def save(path, labels):
    """A label map; returns its path as text."""
    write_label_map(path, np.asarray(labels), palette=False)
    return str(path)


def save_ids(path, ids):
    """A panoptic PNG; returns its path as text."""
    ids = np.asarray(ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = [ids & 255, ids >> 8 & 255, ids >> 16 & 255]
    Image.fromarray(np.stack(channels, axis=2).astype(np.uint8)).save(path)
    return str(path)


def record_of(folder, semantic, instances=None, **more):
    """A dict with a semantic map, and an instance map if there is one."""
    record = {"file_name": "a.jpg", "sem_seg_file_name": save(folder / "s.png", semantic), **more}
    if instances is not None:
        record["ins_seg_file_name"] = save(folder / "i.png", instances)
    return record


def ids_of(instances):
    return sorted(set(np.unique(instances).tolist()) - {0, 255})


def score(predictions, name, **options):
    """The scored run of predictions for a registered data set."""
    options |= {"predictions": str(predictions), "dataset": name}
    inputs = Inputs(**options, open_dataset=open_dataset)
    return evaluate(inputs, Settings(samples=0))


# ---- Cityscapes --------------------------------------------------------------------------------


CITY_THINGS = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
CITY_META = {"thing_classes": CITY_THINGS, "stuff_classes": list(BENCHMARK_LABELS)}


@pytest.fixture
def city(tmp_path):
    """A street: road, two cars that touch, a group of cars, one person; its dict."""
    train_ids = np.zeros((12, 24), np.uint8)
    stored = np.full((12, 24), 7, np.uint16)
    for rows, columns, train_id, value in (
        (slice(1, 5), slice(2, 6), 13, 26000),
        (slice(1, 5), slice(6, 10), 13, 26001),
        (slice(6, 9), slice(2, 8), 13, 26),
        (slice(6, 9), slice(12, 14), 11, 24000),
    ):
        train_ids[rows, columns], stored[rows, columns] = train_id, value
    train_ids[:, 23], stored[:, 23] = 255, 3
    folder = tmp_path / "gtFine" / "val" / "bonn"
    stem = "bonn_000001_000007"
    save(folder / f"{stem}_gtFine_instanceIds.png", stored)
    record = {
        "file_name": str(tmp_path / f"leftImg8bit/val/bonn/{stem}_leftImg8bit.png"),
        "sem_seg_file_name": save(folder / f"{stem}_gtFine_labelTrainIds.png", train_ids),
        "height": 12,
        "width": 24,
    }
    return folder, record, train_ids, stored


def test_cityscapes_semantic(register, city):
    _, record, train_ids, _ = city
    name = register([record], evaluator_type="cityscapes_sem_seg", ignore_label=255, **CITY_META)
    truth = resolve(name)
    assert truth.stuff == tuple(range(11))
    maps = truth.read_record({"file_name": record["file_name"]})
    np.testing.assert_array_equal(maps.semantic, train_ids)
    assert ids_of(maps.instances) == [24000, 26000, 26001]
    # The group of cars is void, though it keeps its class.
    assert (maps.instances[6:9, 2:8] == 255).all()
    assert maps.source.endswith("_gtFine_instanceIds.png")
    assert any("8 of 19 classes are things" in text for text in truth.decided)
    assert any("instanceIds beside" in text for text in truth.decided)


def test_cityscapes_panoptic_goes_before_instance_ids(register, city):
    folder, record, train_ids, _ = city
    ids = train_ids.astype(np.int64) * 1000
    ids[1:5, 2:6] += 1
    ids[1:5, 6:10] += 2
    ids[6:9, 12:14] += 1
    ids[ids == 255000], ids[ids == 0] = 0, 7
    segments = [
        {"id": n, "category_id": n // 1000, "iscrowd": n == 13000}
        for n in (7, 13001, 13002, 13000, 11001)
    ]
    panoptic = save_ids(folder / "panoptic.png", ids)
    record = {**record, "pan_seg_file_name": panoptic, "segments_info": segments}
    name = register(
        [record],
        thing_classes=list(BENCHMARK_LABELS),
        stuff_classes=list(BENCHMARK_LABELS),
        thing_dataset_id_to_contiguous_id={24 + n: 11 + n for n in range(8)},
        stuff_dataset_id_to_contiguous_id={7 + n: n for n in range(11)},
    )
    truth = resolve(name)
    assert truth.stuff == tuple(range(11))
    maps = truth.read_record(record)
    np.testing.assert_array_equal(maps.semantic, train_ids)
    assert ids_of(maps.instances) == [11001, 13001, 13002]
    assert (maps.instances[6:9, 2:8] == 255).all()


# ---- Panoptic sets -----------------------------------------------------------------------------


NAMES = ["cat", "dog", "sky", "grass"]
STANDARD = {
    "thing_classes": NAMES,
    "stuff_classes": NAMES,
    "thing_dataset_id_to_contiguous_id": {1: 0, 2: 1},
    "stuff_dataset_id_to_contiguous_id": {8: 2, 9: 3},
}


@pytest.fixture
def panoptic(tmp_path):
    """Sky above grass, two cats that touch, a dog: a dict as detectron2 makes it."""
    ids = np.full((10, 12), 8)
    ids[5:] = 9
    ids[4:7, 2:4], ids[4:7, 4:6], ids[4:7, 8:10] = 1000, 70000, 255
    classes = {8: 2, 9: 3, 1000: 0, 70000: 0, 255: 1}
    record = {
        "file_name": str(tmp_path / "images" / "a.jpg"),
        "image_id": 7,
        "pan_seg_file_name": save_ids(tmp_path / "panoptic" / "a.png", ids),
        "segments_info": [
            {"id": number, "category_id": c, "iscrowd": 0, "isthing": c < 2}
            for number, c in classes.items()
        ],
    }
    return record, ids, np.vectorize(classes.get)(ids)


def test_coco_panoptic_without_semantic_files(register, panoptic):
    record, _, semantic = panoptic
    truth = resolve(register([record], ignore_label=255, **STANDARD))
    assert truth.stuff == (2, 3)
    maps = truth.read_record(record)
    np.testing.assert_array_equal(maps.semantic, semantic)
    # 255 means void, so that the dog has another id.
    assert ids_of(maps.instances) == [1000, 70000, 70001]
    scored = truth.scoring_truth()
    assert scored.size(scored.images[0]) == (10, 12)
    for first, second in zip(pickle.loads(pickle.dumps(scored)).read(scored.images[0]), maps):
        np.testing.assert_array_equal(first, second)


def test_the_semantic_map_decides_where_both_exist(register, panoptic, tmp_path):
    record, _, semantic = panoptic
    own = semantic.copy()
    own[4, 2:4] = 2  # The head of a cat is sky.
    own[4:7, 8:10] = 255  # The dog is ignored.
    record["sem_seg_file_name"] = save(tmp_path / "semantic" / "a.png", own)
    truth = resolve(register([record], ignore_label=255, **STANDARD))
    maps = truth.read_record({"file_name": record["file_name"], "image_id": 7})
    np.testing.assert_array_equal(maps.semantic, own)
    assert ids_of(maps.instances) == [1000, 70000]
    assert (maps.instances[4, 2:4] == 255).all()
    assert (maps.instances[5:7, 2:4] == 1000).all()
    # More instances than a byte holds.
    ids = np.arange(1, 301).reshape(15, 20).repeat(3, 0).repeat(3, 1)
    segments = [{"id": n, "category_id": 0} for n in range(1, 301)]
    record = {"file_name": "a.jpg", "pan_seg_file_name": save_ids(tmp_path / "a.png", ids)}
    name = register([record | {"segments_info": segments}], "many", **STANDARD)
    assert len(ids_of(resolve(name).read_record(record).instances)) == 300


@pytest.mark.parametrize("kind", ["separated", "stuffonly"])
def test_all_objects_in_one_class(register, tmp_path, kind):
    labels = np.array([[0, 0, 1], [2, 2, 255]], np.uint8)
    record = record_of(tmp_path, labels)
    if kind == "separated":
        entry = {"category_id": 5, "segmentation": [[0, 0, 2, 0, 2, 1, 0, 1]], "bbox_mode": 1}
        record |= {"annotations": [{**entry, "bbox": [0, 0, 2, 1]}], "height": 2, "width": 3}
    name = register(
        [record],
        stuff_classes=["things", "banner", "sky"],
        thing_classes=["a", "b", "c", "d", "e", "f"],
        thing_dataset_id_to_contiguous_id={n + 1: n for n in range(6)},
        stuff_dataset_id_to_contiguous_id={0: 0, 92: 1, 93: 2},
    )
    truth = resolve(name)
    assert truth.stuff == (0, 1, 2)
    assert "nothing can be said about single objects" in truth.decided[0]
    maps = truth.read_record(record)
    np.testing.assert_array_equal(maps.semantic, labels)
    assert maps.instances is None
    assert maps.source == record["sem_seg_file_name"]


# ---- Which classes are stuff -------------------------------------------------------------------


MAPS = {"thing_dataset_id_to_contiguous_id": {1: 0, 2: 1}}


@pytest.mark.parametrize(
    ("metadata", "stuff"),
    [
        # Ids of classes: both lists complete (MaskFormer), things listed alone (Mask2Former's
        # COCO), ids that do not number the things (Mask2Former's ADE20K).
        ({**STANDARD, "stuff_dataset_id_to_contiguous_id": {1: 0, 2: 1, 8: 2, 9: 3}}, (2, 3)),
        ({**MAPS, "thing_classes": ["cat", "dog"], "stuff_classes": NAMES}, (2, 3)),
        ({"thing_dataset_id_to_contiguous_id": {5: 1, 9: 3}, "stuff_classes": NAMES,
          "thing_classes": ["dog", "grass"]}, (0, 2)),
        # Names; an empty map (FC-CLIP).
        ({"thing_classes": ["dog"], "stuff_classes": NAMES}, (0, 2, 3)),
        ({"thing_dataset_id_to_contiguous_id": {}, "stuff_classes": NAMES}, ()),
        # Background last (CAT-Seg), with synonyms (FC-CLIP); all are things (VOC-20).
        ({"stuff_classes": [*NAMES, "Background"]}, (4,)),
        ({"stuff_classes": ["background,crops,bush", "cat,cats"]}, (0,)),
        ({"stuff_classes": NAMES}, ()),
    ],
)  # fmt: skip
def test_stuff_by_the_metadata(register, metadata, stuff):
    truth = resolve(register([], **metadata))
    assert truth.stuff == stuff
    assert "--stuff NAME" in truth.decided[0]


def test_stuff_by_the_user(register):
    name = register([], **STANDARD)
    for stuff, ids in ((["grass", 0], (0, 3)), ("sky", (2,)), ((), ())):
        truth = resolve(name, stuff=stuff)
        assert (truth.stuff, truth.decided) == (ids, [])


THINGS, STUFF = "thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({THINGS: {1: 4}}, f"{THINGS} leads to 4, but there are 4 stuff_classes"),
        ({"thing_classes": ["cat", "a", *NAMES[2:]]}, "class 1 is 'a' in .* and 'dog' in stuff"),
        (
            {STUFF: {8: 1, 9: 3}},
            rf"category 8 is class 1 \('dog'\), .* a thing .*, stuff in {STUFF}",
        ),
        ({STUFF: {1: 3}}, f"category 1 is class 0 in {THINGS} and class 3 in {STUFF}; correct"),
        (
            {"thing_classes": ["dog", "a"], THINGS: {}},
            r"thing_.* has 'a', .*lacks .*stuff=\[\.\.\.",
        ),
        ({"num_classes": 5}, "num_classes is 5, but there are 4 class names"),
        ({"ignore_label": 3}, r"ignore_label is 3, which is the class 'grass'; .*, e\.g\. 255"),
        ({"ignore_label": -1}, "ignore_label must be an int"),
    ],
)
def test_bad_metadata(register, change, message):
    name = register([], **{**STANDARD, **change})
    with pytest.raises(ValueError, match=f"metadata of '{name}': {message}"):
        resolve(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stuff": ["grss"]}, r"stuff: unknown value 'grss'; .*did you mean 'grass'\?"),
        ({"stuff": [4]}, r"stuff: class ids are 0\.\.3, got 4"),
        ({"missing_instances": "none"}, "missing_instances: unknown value 'none'"),
        ({"unannotated": "sk"}, r"unannotated, 'void' or a class: unknown value.*mean 'sky'\?"),
        ({"num_classes": 5}, "num_classes must be 4, the number of stuff_classes .* got 5"),
    ],
)
def test_bad_options(register, options, message):
    with pytest.raises(ValueError, match=message):
        resolve(register([], **STANDARD), **options)


# ---- Semantic sets -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "top", "ignore_label"), [("png", 3, 4), ("tif", 846, 65535), ("png", 846, 65535)]
)
def test_16_bits_and_any_ignore_label(register, tmp_path, suffix, top, ignore_label):
    labels = np.array([[0, top, ignore_label], [1, 1, top]], np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(labels if ignore_label > 255 else labels.astype(np.uint8)).save(path)
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(path)}
    names = [str(number) for number in range(top + 1)]
    truth = resolve(register([record], stuff_classes=names, ignore_label=ignore_label))
    maps = truth.read_record(record)
    np.testing.assert_array_equal(maps.semantic, labels)
    assert maps.instances is None
    assert truth.ignore_label == ignore_label
    scored = truth.scoring_truth()
    assert scored.size(scored.images[0]) == (2, 3)


def voc_like(tmp_path, semantic, objects, image="2007_000032"):
    folder = tmp_path / "VOC2012"
    if objects is not None:
        save(folder / "SegmentationObject" / f"{image}.png", objects)
    return {
        "file_name": str(folder / "JPEGImages" / f"{image}.jpg"),
        "sem_seg_file_name": save(folder / "annotations_detectron2/val" / f"{image}.png", semantic),
    }


def test_voc_20_without_background(register, tmp_path):
    """SegmentationObject beside JPEGImages; what was background is ignored, class 0 counts."""
    semantic = np.full((6, 9), 255, np.uint8)
    objects = np.zeros_like(semantic)
    semantic[1:4, 1:3] = semantic[1:4, 3:5] = 0
    objects[1:4, 1:3], objects[1:4, 3:5] = 1, 2
    semantic[4, 7], objects[4, 7] = 14, 3
    objects[0, :] = 255
    record = voc_like(tmp_path, semantic, objects)
    names = [f"class {number}" for number in range(20)]
    maps = resolve(register([record], stuff_classes=names)).read_record(record)
    np.testing.assert_array_equal(maps.instances, objects)
    # Sets of more classes than VOC tells apart (Context-59) do not use it.
    many = [f"class {number}" for number in range(59)]
    name = register([record], "many", stuff_classes=many)
    assert resolve(name).read_record(record).instances is None


def test_background_last_and_a_map_of_the_things_only(register, tmp_path):
    semantic = np.full((4, 6), 2, np.uint8)
    semantic[1:3, 1:3], semantic[1:3, 3:5] = 0, 1
    objects = np.where(semantic == 2, 0, semantic + 1)
    record = voc_like(tmp_path, semantic, objects)
    truth = resolve(register([record], stuff_classes=["cat", "dog", "background"]))
    assert truth.stuff == (2,)
    np.testing.assert_array_equal(truth.read_record(record).instances, objects)
    instances = np.array([[0, 0, 0, 0], [1, 2, 3, 0]], np.uint8)
    record = record_of(tmp_path, [[2, 2, 2, 2], [0, 0, 1, 3]], instances)
    truth = resolve(register([record], "things", **STANDARD))
    assert truth.stuff == (2, 3)
    np.testing.assert_array_equal(truth.read_record(record).instances, instances)


def test_an_object_map_of_another_image(register, tmp_path):
    semantic = np.zeros((8, 8), np.uint8)
    semantic[:2] = 1
    objects = np.zeros_like(semantic)
    objects[4:] = 1
    record = voc_like(tmp_path, semantic, objects)
    name = register([record], stuff_classes=["background", "cat"])
    with pytest.raises(ValueError, match=r"only 0 of the 32 pixels .*do the files belong to the s"):
        resolve(name).read_record(record)
    save(tmp_path / "VOC2012/SegmentationObject/2007_000032.png", objects[:, :7])
    with pytest.raises(ValueError, match=r"semantic map is 8 x 8 .* instance map 8 x 7; do the"):
        resolve(name).read_record(record)
    scored = resolve(name).scoring_truth()
    with pytest.raises(ValueError, match=r"height x width 8 x 7, but 8 x 8 in .*; do the files"):
        scored.size(scored.images[0])


def test_an_image_without_instances_among_others(register, tmp_path):
    semantic = np.zeros((4, 6), np.uint8)
    semantic[1:3, 1:3] = 1
    records = [voc_like(tmp_path, semantic, *rest) for rest in ((semantic, "a"), (None, "b"))]
    name = register(records, stuff_classes=["background", "cat"])
    with pytest.raises(ValueError, match=r"b\.png has no instances beside .*'components'.*'void'"):
        resolve(name).read_record(records[1])
    truth = resolve(name, missing_instances="components")
    assert truth.read_record(records[1]).instances is None
    assert ids_of(truth.read_record(records[0]).instances) == [1]
    truth = resolve(name, missing_instances="void")
    np.testing.assert_array_equal(truth.read_record(records[1]).instances, semantic * 255)
    # An empty instance map is an annotation: nothing is there.
    save(tmp_path / "VOC2012/SegmentationObject/b.png", semantic * 0)
    assert not resolve(name).read_record(records[1]).instances.any()


# ---- Annotations -------------------------------------------------------------------------------


def mask_of(mask):
    """Its run-length code, as COCO writes it."""
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(runs["size"]), "counts": runs["counts"].decode()}


def box_of(rows, columns):
    mask = np.zeros((8, 10), bool)
    mask[rows, columns] = True
    return mask_of(mask)


ENTRIES = [
    {"category_id": 1, "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]], "iscrowd": 0},
    {"category_id": 0, "segmentation": box_of(slice(2, 6), slice(1, 9)), "iscrowd": 0},
    {"category_id": 0, "segmentation": box_of(slice(6, 8), slice(0, 3)), "iscrowd": 1},
]
"""A dog (file order: first) on a cat, and a crowd of cats."""


def painted():
    instances = np.zeros((8, 10), int)
    instances[6:8, 0:3], instances[2:6, 1:9], instances[1:4, 1:4] = 255, 2, 1
    return instances


@pytest.mark.parametrize("source", ["dict", "json by id", "json by name"])
def test_instances_of_annotations(register, tmp_path, source):
    """With a semantic map of its own, crowds are void for the instances alone."""
    semantic = np.select([painted() == 1, painted() > 0], [1, 0], 2).astype(np.uint8)
    record = record_of(tmp_path, semantic, file_name=str(tmp_path / "a.jpg"))
    metadata = {"thing_classes": ["cat", "dog"], "stuff_classes": NAMES}
    if source == "dict":
        record = {**record, "annotations": ENTRIES, "height": 8, "width": 10}
    else:
        content = {
            "images": [{"id": 31, "height": 8, "width": 10, "file_name": "a.jpg"}],
            "categories": [{"id": 5, "name": "dog"}, {"id": 9, "name": "cat"}],
            "annotations": [
                {**e, "id": n, "image_id": 31, "category_id": 5 if e["category_id"] else 9}
                for n, e in enumerate(ENTRIES)
            ],
        }
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        metadata["json_file"] = str(path)
        record |= {"image_id": 31} if source == "json by id" else {}
    truth = resolve(register([record], **metadata))
    maps = truth.read_record({"file_name": record["file_name"]})
    np.testing.assert_array_equal(maps.semantic, semantic)
    np.testing.assert_array_equal(maps.instances, painted())
    scored = pickle.loads(pickle.dumps(truth.scoring_truth()))
    np.testing.assert_array_equal(scored.read(scored.images[0])[1], painted())


@pytest.mark.parametrize(
    ("unannotated", "names", "stuff", "empty"),
    [
        ("void", ("cat", "dog"), (), 255),
        ("background", ("background", "cat", "dog"), (0,), 0),
        ("dog", ("cat", "dog"), (), 1),
    ],
)
def test_painting_a_detection_set(register, unannotated, names, stuff, empty):
    record = {"file_name": "a.jpg", "annotations": ENTRIES, "height": 8, "width": 10}
    name = register([record], thing_classes=["cat", "dog"])
    truth = resolve(name, unannotated=unannotated)
    assert (truth.class_names, truth.stuff) == (names, stuff)
    maps = truth.read_record({"file_name": "a.jpg", "height": 8, "width": 10})
    np.testing.assert_array_equal(maps.instances, painted())
    cat, dog = names.index("cat"), names.index("dog")
    # Where the semantic map is painted, crowds are ignored in both.
    expected = np.select([painted() == 1, painted() == 2, painted() == 255], [dog, cat, 255], empty)
    np.testing.assert_array_equal(maps.semantic, expected)


def test_painting_more_classes_than_a_byte_holds(register):
    things = [f"thing {number}" for number in range(1203)]  # as LVIS
    record = {"file_name": "a.jpg", "annotations": [{**ENTRIES[0], "category_id": 1202}]}
    record |= {"height": 8, "width": 10}
    truth = resolve(register([record], thing_classes=things), unannotated="void")
    assert truth.ignore_label == 65535
    assert set(np.unique(truth.read_record(record).semantic)) == {1202, 65535}


def test_detection_sets_name_their_siblings(register):
    entry = {"file_name": "a.jpg", "annotations": [], "height": 2, "width": 2}
    name = register([entry], "coco_val", thing_classes=["cat"])
    for suffix, classes in (("panoptic", NAMES), ("panoptic_stuffonly", ["things", "sky"])):
        register([], f"coco_val_{suffix}", stuff_classes=classes)
    message = (
        rf"'{name}' has no semantic ground truth .*: evaluate on '{name}_panoptic', or let it be "
        r"painted .* unannotated='background' or 'void'"
    )
    with pytest.raises(ValueError, match=message):
        resolve(name)
    lone = register([entry], "lvis", thing_classes=["cat"])
    with pytest.raises(ValueError, match=r"no stuff_classes\): let it be painted from"):
        resolve(lone)
    # Names of classes, but no label maps.
    city = register([entry], "city_instance_val", **CITY_META)
    register([], "city_sem_seg_val", **CITY_META)
    with pytest.raises(ValueError, match=r"no 'sem_seg_file_name'.*'test_truth_city_sem_seg_val'"):
        resolve(city).read_record(entry)


def test_cityscapes_instance_set(register):
    """detectron2's detection set names the 19 classes; its dicts have annotations alone."""
    entries = [{**entry, "category_id": 2} for entry in ENTRIES[:1]]
    record = {"file_name": "a.png", "annotations": entries, "height": 8, "width": 10}
    name = "city_fine_instance_seg_val"
    name = register([record], name, evaluator_type="cityscapes_instance", **CITY_META)
    register([], "city_fine_sem_seg_val", evaluator_type="cityscapes_sem_seg", **CITY_META)
    message = (
        r"no semantic ground truth \(its evaluator_type is 'cityscapes_instance'\): evaluate on "
        r"'test_truth_city_fine_sem_seg_val', or let it be painted .* unannotated='background'"
    )
    with pytest.raises(ValueError, match=message):
        resolve(name)
    truth = resolve(name, unannotated="void")
    assert len(truth.class_names) == 19
    assert set(np.unique(truth.read_record(record).semantic)) == {13, 255}
    truth = resolve(name, unannotated="background")
    assert truth.class_names == ("background", *CITY_THINGS)
    assert (truth.stuff, set(np.unique(truth.read_record(record).semantic))) == ((0,), {0, 3})
    assert resolve(name, reader=lambda record: None).stuff == tuple(range(11))


def test_names_are_quoted_and_cut_in_what_was_decided(register):
    names = ["background,crops," + 60 * "bush,", "car,cars", *(f"class {n}" for n in range(20))]
    (text,) = resolve(register([], stuff_classes=names)).decided
    assert "21 of 22 classes are things ('car,cars', 'class 0', 'class 1'" in text
    assert "'class 8' and 11 more), 1 stuff ('background,crops,bush,bush,...')" in text
    assert "class 9" not in text


def test_what_stands_for_the_segmentation_set_says_so(tmp_path, registration):
    registration(tmp_path)
    message = (
        r"^'voc_2012_val' stands for the segmentation set 'voc_2012_seg_val' here, .* "
        r"`python -m d2_smallobj\.data voc_2012_seg_val` lists .*missing"
    )
    with pytest.raises(FileNotFoundError, match=message):
        resolve("voc_2012_val").read_record({"file_name": "JPEGImages/2007_000033.jpg"})
    with pytest.raises(FileNotFoundError, match=r"^data set 'voc_2012_seg_val': \d+ path"):
        resolve("voc_2012_seg_val").read_record({"file_name": "JPEGImages/2007_000033.jpg"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"category_id": 7, "segmentation": []}]},
         r"a\.jpg: annotation 0 has cat"),
        ({"annotations": [*ENTRIES, {"category_id": 0}]}, r"annotation 3 has no 'segmentation'"),
        ({"height": None}, r"has annotations, but no 'height' and 'width'"),
        ({"height": 10**9}, r"dict of a\.jpg: height and width must give 1\.\.178956970 pixels"),
        ({"width": 11}, r"a\.jpg: annotation 1: its run-length mask is for an image"),
        ({"sem_seg_file_name": "three channels.png"},
         r"\.png: a label map holds class indices; .* Give the P"),
        ({"sem_seg_file_name": "zeros.png", "annotations": [], "json_file": "instances.json"},
         r"instances\.json: none of its categories has the name"),
    ],
)  # fmt: skip
def test_malformed_dicts(register, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save("three channels.png")
    Image.fromarray(np.zeros((8, 10), np.uint8)).save("zeros.png")
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "tree"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    record = {"file_name": "a.jpg", "annotations": ENTRIES, "height": 8, "width": 10, **change}
    metadata = {"thing_classes": ["cat", "dog"]}
    if "sem_seg_file_name" in record:
        metadata["stuff_classes"] = NAMES
    if "json_file" in record:
        del record["annotations"]
        metadata["json_file"] = record.pop("json_file")
    truth = resolve(register([record], **metadata), unannotated="void")
    with pytest.raises(ValueError, match=message):
        truth.read_record(record)


# ---- Other ways --------------------------------------------------------------------------------


def test_a_reader_of_ones_own(register):
    semantic, instances = np.zeros((2, 3), int), np.ones((2, 3), int)
    name = register([], stuff_classes=NAMES)
    truth = resolve(name, reader=lambda record: (semantic, instances))
    maps = truth.read_record({"file_name": "a.jpg"})
    assert maps.semantic is semantic
    assert maps.instances is instances
    assert "a.jpg" in maps.source
    with pytest.raises(ValueError, match=r"reader= works with the evaluator only"):
        truth.scoring_truth()
    # Its segments of stuff are no instances.
    semantic = np.array([[0, 1, 2, 2]])
    truth = resolve(name, stuff=[0, "sky"], reader=lambda record: (semantic, semantic * 7))
    assert truth.read_record({"file_name": "a.jpg"}).instances.tolist() == [[0, 7, 0, 0]]


def test_what_a_mapper_dropped_is_taken_from_the_registered_dict(register, panoptic, tmp_path):
    record, _, semantic = panoptic
    record["sem_seg_file_name"] = save(tmp_path / "s.png", semantic)
    truth = resolve(register([record], **STANDARD))
    kept = {key: record[key] for key in ("file_name", "image_id")}
    for given in (record, kept, {**kept, "image": object()}):
        maps = truth.read_record(given)
        np.testing.assert_array_equal(maps.semantic, semantic)
        files = (record["sem_seg_file_name"], record["pan_seg_file_name"])
        assert maps.source == " and ".join(files)
    with pytest.raises(ValueError, match=r"has no ground truth for 'b\.jpg'.*got \['file_name'\]"):
        truth.read_record({"file_name": "b.jpg"})


def test_components_of_translated_labels_are_shown(register, tmp_path):
    """What the report paints again: the classes that a rule makes, and their components."""
    save(tmp_path / "preds" / "a.png", [[1, 1, 0, 1], [0, 0, 0, 0]])
    rule = LabelRule(tuple(1 if number == 4 else 0 for number in range(10)))
    record = record_of(tmp_path, [[4, 4, 9, 4], [9, 9, 9, 9]])
    name = register([record], stuff_classes=["background", "cat"], label_rule=rule)
    scored = score(tmp_path / "preds", name)
    assert scored.figures["IA-mIoU"] == 100
    (sources,) = scored.sources.values()
    assert sources["semantic"]().tolist() == [[1, 1, 0, 1], [0] * 4]
    assert sources["instances"]().tolist() == [[1, 1, 0, 2], [0] * 4]
    with pytest.raises(ValueError, match=r"1 image\(s\) of --list that data set .* does not have"):
        open_dataset(name, listed=["c"])
    # What was decided is said with the run.
    assert any("the class called background is stuff" in text for text in scored.remarks)
    assert any("connected components are the instances" in text for text in scored.remarks)


# ---- What is annotated of stuff ----------------------------------------------------------------


def things_and_stuff(source, register, tmp_path):
    """A cat, a dog and a part of the dog that is ignored: (dict, name), by where they are told."""
    semantic = np.zeros((8, 10), np.uint8)
    semantic[1:3, 1:3], semantic[4:6, 4:7] = 1, 2
    ids = np.where(semantic == 0, 0, semantic + 4)
    semantic[5, 6] = 255
    record = {"file_name": "a.jpg", "image_id": 1, "height": 8, "width": 10}
    meta = {"stuff_classes": ["background", "cat", "dog"]}
    if source == "objects":
        record = voc_like(tmp_path, semantic, ids)
        return record, register([record], **meta)
    record["sem_seg_file_name"] = save(tmp_path / "s.png", semantic)
    if source == "map":
        record["ins_seg_file_name"] = save(tmp_path / "i.png", ids)
    elif source == "panoptic":
        record["pan_seg_file_name"] = save_ids(tmp_path / "p.png", np.where(ids, ids, 9))
        record["segments_info"] = [
            {"id": n, "category_id": c, "iscrowd": 0} for n, c in ((5, 1), (6, 2), (9, 0))
        ]
    else:
        record["annotations"] = [
            {"category_id": n, "segmentation": box_of(*box), "iscrowd": 0}
            for n, box in enumerate([(slice(1, 3), slice(1, 3)), (slice(4, 6), slice(4, 7))])
        ]
        meta["thing_classes"] = ["cat", "dog"]
        if source == "painted":
            del record["sem_seg_file_name"], meta["stuff_classes"]
    return record, register([record], **meta)


@pytest.mark.parametrize("source", ["map", "objects", "panoptic", "annotations", "painted"])
def test_segments_of_stuff_are_no_instances(register, tmp_path, source):
    record, name = things_and_stuff(source, register, tmp_path)
    options = {"unannotated": "background"} if source == "painted" else {}
    both = resolve(name, stuff=["background"], **options)
    assert len(ids_of(both.read_record(record).instances)) == 2
    truth = resolve(name, stuff=["background", "dog"], **options)
    scored = truth.scoring_truth()
    for semantic, instances in (truth.read_record(record)[:2], scored.read(scored.images[0])):
        assert not instances[semantic == 2].any()
        assert len(ids_of(instances)) == 1
        Accumulator(3, stuff=(0, 2)).update("a", np.minimum(semantic, 2), semantic, instances)


def test_contradictions_are_left_for_the_metric(register):
    semantic = np.array([[0, 1, 2, 2]])
    name = register([], stuff_classes=["background", "cat", "dog"])
    # Nobody annotates instances of the background: the maps do not belong together.
    for instances, message in (
        ([[3, 5, 0, 0]], r"not stuff \(0, 2\): instance 3 lies on class 0"),
        ([[0, 5, 5, 0]], r"instance 5 lies on class 1 \(1 px\), class 2"),
    ):
        maps = semantic, np.array(instances)
        truth = resolve(name, stuff=[0, "dog"], reader=lambda record, maps=maps: maps)
        found = truth.read_record({"file_name": "a.jpg"}).instances
        assert found.tolist() == instances
        with pytest.raises(ValueError, match=message):
            Accumulator(3, stuff=(0, 2)).update("a", semantic, semantic, found)


# ---- Predictions as SemSegEvaluator writes them ------------------------------------------------


def json_of(path, labels, ids):
    """detectron2's JSON: its category_id is the data set's own id of a class."""
    path.parent.mkdir(exist_ok=True)
    entries = [
        {"file_name": "x/a.jpg", "category_id": number, "segmentation": mask_of(labels == label)}
        for label, number in ids.items()
    ]
    path.write_text(json.dumps(entries))
    return str(path)


def test_ids_of_the_data_set_in_predictions(register, tmp_path):
    semantic = np.array([[0, 0, 1, 1], [2, 2, 2, 1]], np.uint8)
    record = record_of(tmp_path, semantic)
    classes = {"stuff_classes": ["a", "b", "c"]}
    name = register([record], stuff_dataset_id_to_contiguous_id={1: 0, 2: 1, 9: 2}, **classes)
    path = json_of(tmp_path / "out/sem_seg_predictions.json", semantic, {0: 1, 1: 2, 2: 9})
    for predictions in (path, tmp_path / "out"):
        scored = score(predictions, name)
        assert scored.figures["mIoU"] == 100
        (sources,) = scored.sources.values()
        np.testing.assert_array_equal(sources["prediction"](), semantic)
    # Label maps hold classes, whatever the metadata number.
    save(tmp_path / "preds" / "a.png", semantic)
    assert score(tmp_path / "preds", name).figures["mIoU"] == 100
    # Without the map, as in the folder of the same data set, the ids are classes.
    plain = register([record], "plain", **classes)
    path = json_of(tmp_path / "plain.json", semantic, {0: 0, 1: 1, 2: 2})
    assert score(path, plain).figures["mIoU"] == 100
    message = r"category_id is no category of the ground truth \(.*stuff_.*\n.*entry 0: 0"
    with pytest.raises(ValueError, match=message):
        score(path, name)


# ---- Instances in different places ------------------------------------------------------------


@pytest.mark.parametrize(("missing", "count"), [(None, 6), ("components", 5), ("void", 3)])
def test_the_evaluator_and_the_command_line_agree_on_a_mixed_set(
    register, tmp_path, missing, count
):
    """Two images of three cats: the first has an instance PNG, the second is in the JSON alone.

    Without the JSON, the second's components are its instances, or it has none.
    """
    # Left, top, right, bottom: two cats that touch, and one alone.
    boxes = [(2, 2, 8, 8), (8, 2, 14, 8), (3, 12, 6, 15)]
    semantic, instances = np.zeros((2, 20, 24), np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes, start=1):
        semantic[top:bottom, left:right], instances[top:bottom, left:right] = 1, number
    records, entries, images = [], [], []
    for image in (1, 2):
        file_name = str(tmp_path / f"{image}.jpg")
        records.append(record_of(tmp_path, semantic, file_name=file_name, image_id=image))
        images.append({"id": image, "height": 20, "width": 24, "file_name": f"{image}.jpg"})
        for number, (x0, y0, x1, y1) in enumerate(boxes):
            mask = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            entry = {"id": 10 * image + number, "category_id": 1, "iscrowd": 0}
            entries.append({**entry, "image_id": image, "segmentation": mask})
        save(tmp_path / "predictions" / f"{image}.png", np.roll(semantic, image, axis=1))
    records[0]["ins_seg_file_name"] = save(tmp_path / "instances" / "1.png", instances)
    path = tmp_path / "instances.json"
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}
    path.write_text(json.dumps(content))
    classes = ["background", "cat"]
    metadata = {} if missing else {"instances_json": str(path)}
    name = register(records, stuff_classes=classes, **metadata)
    options = {"missing_instances": missing} if missing else {}
    evaluator = SmallObjectEvaluator(name, **options)
    for record in records:
        guess = np.roll(semantic, record["image_id"], axis=1)
        evaluator.process([record], [{"sem_seg": guess.astype(np.int64)}])
    (figures,) = evaluator.evaluate().values()
    scored = score(tmp_path / "predictions", name, **options)
    for figure in ("mIoU", "IA-mIoU", "IA-mIoU_S", "images", "instances"):
        assert figures[figure] == scored.figures[figure]
    # Three in the PNG, three in the JSON; components are two in each.
    assert figures["instances"] == count
