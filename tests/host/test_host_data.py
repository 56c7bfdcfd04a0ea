"""Samplers, loaders, catalogs, transforms and images."""

import host_toy
import numpy as np
import pytest
import torch
from fvcore.transforms.transform import CropTransform
from PIL import Image

import d2_smallobj
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.utils import comm


def first(iterable, n):
    iterator = iter(iterable)
    return [next(iterator) for _ in range(n)]


def test_training_sampler_follows_the_rule():
    generator = torch.Generator().manual_seed(7)
    expected = [i for _ in range(3) for i in torch.randperm(5, generator=generator).tolist()]
    sampler = TrainingSampler(5, seed=7)
    assert first(sampler, 15) == expected
    assert first(sampler, 15) == expected  # a new iterator starts anew
    assert first(TrainingSampler(3, shuffle=False, seed=0), 7) == [0, 1, 2, 0, 1, 2, 0]
    assert first(sampler._infinite_indices(), 3) == expected[:3]
    assert (sampler._size, sampler._shuffle, sampler._seed) == (5, True, 7)
    with pytest.raises(ValueError, match=r"[Gg]ot 0"):
        TrainingSampler(0, seed=1)
    # Shared among ranks.
    whole = first(TrainingSampler(5, seed=1), 12)
    parts = []
    for rank in range(3):
        sampler = TrainingSampler(5, seed=1)
        sampler._rank, sampler._world_size = rank, 3
        parts.append(first(sampler, 4))
    assert [i for turn in zip(*parts) for i in turn] == whole


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_inference_sampler_splits_exactly(monkeypatch, size, world_size):
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(list(InferenceSampler(size)))
        assert len(InferenceSampler(size)) == len(parts[-1])
    assert [i for part in parts for i in part] == list(range(size))
    lengths = [len(part) for part in parts]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1


def train_loader(**options):
    defaults = {"total_batch_size": 4, "aspect_ratio_grouping": False, "mapper": dict}
    sampler = TrainingSampler(host_toy.SIZE, seed=5)
    return build_detection_train_loader(
        host_toy.samples(), sampler=sampler, **{**defaults, **options}
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_loader_gives_the_samplers_order(num_workers):
    loader = train_loader(mapper=lambda x: {**x, "seen": True}, num_workers=num_workers)
    batches = first(loader, 5)
    assert all(len(batch) == 4 for batch in batches)
    assert all("seen" in x for batch in batches for x in batch)
    order = [x["index"] for batch in batches for x in batch]
    assert order == first(TrainingSampler(host_toy.SIZE, seed=5), 20)


@pytest.mark.parametrize(("num_workers", "batch_size"), [(0, 1), (2, 5)])
def test_test_loader_gives_every_sample_once(num_workers, batch_size):
    loader = build_detection_test_loader(
        host_toy.samples(), mapper=lambda x: x, batch_size=batch_size, num_workers=num_workers
    )
    assert len(loader) == -(-host_toy.SIZE // batch_size)
    assert [x["index"] for batch in loader for x in batch] == list(range(host_toy.SIZE))


def test_loaders_that_are_refused():
    with pytest.raises((ValueError, AssertionError), match=r"\(0\)|got 0"):
        train_loader(total_batch_size=0)
    if d2_smallobj.host().name == "embedded":
        with pytest.raises(ValueError, match=r"aspect_ratio_grouping: .* give False, got True"):
            train_loader(aspect_ratio_grouping=True)


def test_dataset_catalog():
    name = "host_catalog_test"
    DatasetCatalog.register(name, lambda: [{"a": 1}])
    try:
        assert name in DatasetCatalog
        assert name in DatasetCatalog.list()
        assert DatasetCatalog.get(name) == [{"a": 1}]
        with pytest.raises(AssertionError, match="already registered"):
            DatasetCatalog.register(name, list)
    finally:
        DatasetCatalog.remove(name)
    with pytest.raises(KeyError, match="not registered"):
        DatasetCatalog.get(name)


def test_metadata_is_set_once():
    metadata = MetadataCatalog.get("host_metadata_test")
    try:
        assert metadata is MetadataCatalog.get("host_metadata_test")
        assert metadata.set(stuff_classes=["a"], ignore_label=255) is metadata
        metadata.ignore_label = 255  # the same value again is fine
        with pytest.raises(AssertionError, match="ignore_label"):
            metadata.ignore_label = 0
        with pytest.raises(AttributeError, match="thing_colors"):
            _ = metadata.thing_colors
        assert (metadata.name, metadata.stuff_classes) == ("host_metadata_test", ["a"])
    finally:
        MetadataCatalog.remove("host_metadata_test")


def test_images_are_turned_upright(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(rgb, -1)
    np.testing.assert_array_equal(utils.read_image(str(tmp_path / "turned.png"), "RGB"), upright)
    bgr = utils.read_image(str(tmp_path / "turned.png"), "BGR")
    np.testing.assert_array_equal(bgr, upright[:, :, ::-1])
    # Broken metadata is no obstacle.
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=b"Exif\0\0no TIFF header")
    np.testing.assert_array_equal(utils.read_image(str(tmp_path / "a.png"), "RGB"), rgb)


class Crop(T.Augmentation):
    """Needs the size that the image has after earlier augmentations."""

    def get_transform(self, image):
        return CropTransform(1, 0, image.shape[1] - 2, image.shape[0])


def test_augmentations_transform_image_and_labels_alike():
    image = np.arange(24, dtype=np.uint8).reshape(4, 6)
    given = T.AugInput(image, sem_seg=image.copy())
    transforms = T.AugmentationList([T.RandomFlip(prob=1.0), Crop(), Crop()])(given)
    expected = image[:, ::-1][:, 2:4]
    np.testing.assert_array_equal(given.image, expected)
    np.testing.assert_array_equal(given.sem_seg, expected)
    np.testing.assert_array_equal(transforms.apply_segmentation(image), expected)
    assert len(transforms) == 3
    alone = T.AugInput(image)
    assert isinstance(T.RandomFlip(prob=0.0)(alone), T.NoOpTransform)
    assert alone.sem_seg is None
