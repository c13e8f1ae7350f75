"""The real data sets, against the counts that their README states."""

from __future__ import annotations

import numpy as np
import pytest

from edgevision.data import batches, open_dataset
from edgevision.data.image_folder import ZipFolder
from edgevision.images import to_image
from edgevision.preprocess import PRESETS, Preprocess

pytestmark = pytest.mark.data


def test_imagenet_mini(data_root):
    dataset = open_dataset(data_root / "imagenet-mini", split="test")
    assert (len(dataset), len(dataset.classes), len(set(dataset.labels.tolist()))) == (500, 1000, 500)
    assert (dataset.labels.min() >= 0, dataset.labels.max() < 1000) == (True, True)
    assert dataset.classes[1] == "goldfish"
    assert dataset[0].label == 1
    assert min(to_image(dataset[7].image).size) == 256
    rest = open_dataset(f"csv:{data_root}/imagenet-mini/labels.csv[200:]")
    assert (len(rest), rest[0].name) == (300, dataset[200].name)
    [(images, labels)] = batches(open_dataset(f"{data_root}/imagenet-mini[:8]"), PRESETS["imagenet"], 8, workers=2)
    assert images.shape == (8, 3, 224, 224)
    assert labels.tolist() == dataset.labels[:8].tolist()


def test_cifar10_npz(data_root):
    train, test = (open_dataset(data_root / "cifar10", split=split) for split in ("train", "test"))
    assert (len(train), len(test), len(open_dataset(data_root / "cifar10"))) == (4000, 501, 4501)
    counts = np.bincount(train.labels)
    assert (counts.min(), counts.max()) == (366, 422)
    counts = np.bincount(test.labels)
    assert (counts.min(), counts.max()) == (43, 56)
    assert (train.classes[0], test.classes[9], train[0].image.shape) == ("airplane", "truck", (32, 32, 3))


def test_cifar10_jpeg_zips(data_root):
    train, test = (open_dataset(f"folder:{data_root}/cifar10-jpeg", split=split) for split in ("train", "test"))
    assert isinstance(test, ZipFolder)
    assert (len(train), len(test)) == (10_000, 2000)
    assert np.bincount(train.labels).tolist() == [1000] * 10
    assert np.bincount(test.labels).tolist() == [200] * 10
    assert train.classes == open_dataset(data_root / "cifar10" / "test.npz").classes
    for images, labels in batches(test, PRESETS["cifar10"], 500, workers=2):
        assert images.shape == (500, 3, 32, 32)
        assert len(labels) == 500


def test_fashion_mnist_sprite(data_root):
    train, test = (open_dataset(data_root / "fashion-mnist-sprite", split=split) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [60] * 10
    assert np.bincount(test.labels).tolist() == [10] * 10
    assert test[0].image.shape == (28, 28)


def test_bccd_voc_and_coco_are_the_same(data_root):
    for split, count, boxes in (("train", 205, 2804), ("test", 87, 1137)):
        voc = open_dataset(data_root / "bccd", split=split)
        coco = open_dataset(data_root / "bccd" / "coco", split=split)
        assert (len(voc), len(coco)) == (count, count)
        assert set(coco.classes) == set(voc.classes) == {"WBC", "RBC", "Platelets"}
        assert sum(len(sample.boxes.labels) for sample in coco) == boxes
        by_name = {sample.image.name: sample.boxes for sample in coco}
        for sample in voc:
            other = by_name[sample.image.name]
            assert np.array_equal(sample.boxes.xyxy, other.xyxy)
            names = [voc.classes[label] for label in sample.boxes.labels]
            assert names == [coco.classes[label] for label in other.labels]


def test_bccd_counts(data_root):
    whole = open_dataset(f"voc:{data_root}/bccd")
    assert (len(whole), whole.skipped_boxes, whole.classes) == (292, 2, ("Platelets", "RBC", "WBC"))
    train, val = (open_dataset(f"{data_root}/bccd/coco/instances_{name}.json") for name in ("train", "val"))
    assert (train.skipped_boxes, val.skipped_boxes) == (0, 0)
    for dataset, expected in ((train, (214, 2381, 209)), (val, (87, 967, 83))):
        counts = np.bincount(np.concatenate([sample.boxes.labels for sample in dataset]))
        per_class = dict(zip(dataset.classes, counts.tolist(), strict=True))
        assert (per_class["WBC"], per_class["RBC"], per_class["Platelets"]) == expected
    assert to_image(whole[0].image).size == (640, 480)


def test_coco128(data_root):
    dataset = open_dataset(data_root / "coco128")
    labels = np.concatenate([sample.boxes.labels for sample in dataset])
    assert (len(dataset), len(labels), len(set(labels.tolist())), len(dataset.classes)) == (128, 929, 71, 80)
    assert sum(len(sample.boxes.labels) == 0 for sample in dataset) == 2
    assert (dataset.category_ids[0], dataset.category_ids[-1], dataset.classes[0]) == (1, 90, "person")
    for sample in dataset:
        width, height = to_image(sample.image).size
        # the boxes were made from six decimals of the picture's size, so they may stand a little over its edge
        assert (sample.boxes.xyxy >= -0.01).all()
        assert (sample.boxes.xyxy <= [width + 0.01, height + 0.01, width + 0.01, height + 0.01]).all()


def test_faces_and_photos(data_root):
    faces = open_dataset(data_root / "faces-orl")
    assert (len(faces), len(faces.classes)) == (250, 25)
    assert np.bincount(faces.labels).tolist() == [10] * 25
    assert to_image(faces[0].image).size == (92, 112)
    photos = open_dataset(f"{data_root}/photos", split="train")
    assert (len(photos), photos.labels) == (6, None)
    for images, labels in batches(photos, Preprocess((64, 64)), 4):
        assert images.shape[1:] == (3, 64, 64)
        assert labels is None
