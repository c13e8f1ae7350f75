"""From data set to network input."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from edgevision.data import Sample, batches, open_dataset
from edgevision.errors import DataError, UsageError
from edgevision.preprocess import PRESETS, Preprocess

DIGITS = PRESETS["digits"]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batches_are_the_data_set_in_order(workers, batch_size):
    dataset = open_dataset("digits[:30]")
    found = list(batches(dataset, DIGITS, batch_size, workers=workers))
    assert [len(images) for images, _ in found[:-1]] == [batch_size] * (len(found) - 1)
    images = np.concatenate([images for images, _ in found])
    labels = np.concatenate([labels for _, labels in found])
    assert (images.dtype, images.shape, labels.dtype) == (np.float32, (30, 1, 32, 32), np.int64)
    assert np.array_equal(images, DIGITS.batch([sample.image for sample in dataset]))
    assert np.array_equal(labels, dataset.labels)


def test_unlabelled_pictures_and_channels_last(tmp_path):
    for index in range(3):
        Image.new("RGB", (9, 5), (index, 0, 0)).save(tmp_path / f"{index}.png")
    [(images, labels)] = batches(open_dataset(tmp_path), Preprocess((4, 6), layout="NHWC"), 8)
    assert images.shape == (3, 4, 6, 3)
    assert labels is None


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_named_when_its_batch_is_asked_for(tmp_path, workers):
    for index in range(6):
        Image.effect_noise((64, 64), 90).save(tmp_path / f"{index}.png")
    whole = (tmp_path / "4.png").read_bytes()
    (tmp_path / "4.png").write_bytes(whole[: len(whole) // 2])
    stream = batches(open_dataset(tmp_path), Preprocess((4, 4)), 3, workers=workers)
    assert next(stream)[0].shape == (3, 3, 4, 4)
    with pytest.raises(DataError, match=r"4\.png"):
        next(stream)


class Given:
    """A data set of the pictures it is given."""

    name, classes, labels = "given", (), None

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return Sample(self.images[index], name=f"given[{index}]")


def test_damage_that_does_not_name_its_sample_gets_its_name():
    broken = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(broken, "PNG")
    cut = Image.open(io.BytesIO(broken.getvalue()[:-500]))
    with pytest.raises(DataError, match=r"given\[1\]: cannot be read as an image"):
        list(batches(Given([np.zeros((4, 4), np.uint8), cut]), Preprocess((4, 4)), 2))
    with pytest.raises(DataError, match=r"given\[0\]: an image array must be uint8"):
        list(batches(Given([np.zeros((4, 4), np.float32)]), Preprocess((4, 4)), 2, workers=1))


@pytest.mark.parametrize(("batch_size", "workers"), [(4, 1), (2, 3), (1, 2)])
def test_about_a_batch_is_prepared_ahead_and_no_more(batch_size, workers):
    begun = []

    def preprocess(image):
        begun.append(1)
        return np.zeros((3, 2, 2), np.float32)

    stream = batches(Given([np.zeros((2, 2), np.uint8)] * 200), preprocess, batch_size, workers=workers)
    for taken in range(1, 6):
        next(stream)
        deadline = time.monotonic() + 10
        while len(begun) <= taken * batch_size and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(begun) > taken * batch_size  # the workers run ahead,
        time.sleep(0.02)  # as far as they may,
        assert len(begun) <= taken * batch_size + max(batch_size, 2 * workers)  # and no further
    stream.close()


def test_stopping_early_leaves_no_thread():
    before = threading.active_count()
    stream = batches(open_dataset("digits"), DIGITS, 4, workers=3)
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


def test_wrong_numbers_are_refused_at_once():
    dataset = open_dataset("digits[:4]")
    with pytest.raises(UsageError, match="batch_size must be 1 or more; got 0"):
        batches(dataset, DIGITS, 0)
    with pytest.raises(UsageError, match="workers must be 0 or more; got -1"):
        batches(dataset, DIGITS, 1, workers=-1)
    assert list(batches(Given([]), DIGITS, 2)) == []
