from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_run import PREPROCESS, pictures

from edgevision.data.datasets import ArrayDataset, FileDataset
from edgevision.errors import DataError, TrainingError
from edgevision.preprocess import PRESETS, Preprocess
from edgevision.training.source import ImageSource, Normalizer, epoch_plan


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("fill", [False, True])
def test_inputs_are_exactly_what_deployment_computes(preset: str, fill: bool) -> None:
    preprocess = PRESETS[preset].with_size(24, 24)
    data = ArrayDataset("x", pictures(6).images, np.zeros(6, np.int64), (), "x")
    source = ImageSource(data, preprocess)
    if fill:
        source.fill_cache("reading")
    chosen = np.array([4, 0, 5])
    assert np.array_equal(source.inputs(chosen), preprocess.batch([data[int(i)].image for i in chosen]))


@given(
    st.sampled_from(["RGB", "BGR", "GRAY"]),
    st.floats(1e-3, 2),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.lists(st.floats(0.05, 5), min_size=3, max_size=3),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_batch_normalisation_of_pixels_has_the_bits_of_preprocess(
    color: str, scale: float, mean: list[float], std: list[float], channels_last: bool
) -> None:
    channels = 1 if color == "GRAY" else 3
    preprocess = Preprocess((5, 7), color=color, scale=scale, mean=tuple(mean[:channels]), std=tuple(std[:channels]))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, channels), dtype=np.uint8)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    batch = Normalizer(preprocess, torch.device("cpu"))(pixels, memory_format)
    assert batch.is_contiguous(memory_format=memory_format)
    assert np.array_equal(batch.numpy(), np.stack([preprocess.normalize(picture) for picture in pixels]))


def test_small_sets_are_decoded_once(tmp_path: Path) -> None:
    files = []
    for number in range(4):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pictures(4).images[number]).save(files[-1])
    source = ImageSource(FileDataset("files", files, np.arange(4)), PREPROCESS)
    source.fill_cache("reading")
    before = source.pixels([0, 1, 2, 3])
    for file in files:
        Path(file).unlink()
    assert np.array_equal(source.pixels([0, 1, 2, 3]), before)
    assert source.workers == 0 or torch.cuda.is_available()


def test_large_sets_are_read_when_used() -> None:
    source = ImageSource(pictures(20), PREPROCESS, cache_limit=100)
    source.fill_cache("reading")
    assert not source.cached
    assert source.workers >= 1
    whole = ImageSource(pictures(20), PREPROCESS)
    assert np.array_equal(source.pixels([7, 3]), whole.pixels([7, 3]))


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_reading_ahead_keeps_the_order(workers: int) -> None:
    source = ImageSource(pictures(8), PREPROCESS, workers=workers)

    def work(indices: np.ndarray) -> int:
        time.sleep(0.002 * (int(indices[0]) % 3))  # later ones are sometimes done first
        return int(indices[0])

    assert list(source.read_ahead(work, np.arange(20)[:, None])) == list(range(20))


def test_reading_ahead_stops_with_its_consumer_and_passes_errors_on() -> None:
    source = ImageSource(pictures(8), PREPROCESS, workers=2)
    started = threading.active_count()
    done: list[int] = []
    batches = source.read_ahead(lambda indices: done.append(int(indices[0])), np.arange(1000)[:, None])
    next(batches)
    batches.close()
    assert len(done) < 20
    assert threading.active_count() == started

    def fail(indices: np.ndarray) -> None:
        raise DataError("damaged picture")

    with pytest.raises(DataError, match="damaged picture"):
        list(source.read_ahead(fail, np.arange(4)[:, None]))


def test_digest_tells_pictures_and_labels_apart() -> None:
    data = pictures()
    same, other = ImageSource(pictures(), PREPROCESS), ImageSource(pictures(seed=1), PREPROCESS)
    relabelled = ArrayDataset("x", data.images, (data.labels + 1) % 4, data.classes, "x")
    digest = ImageSource(data, PREPROCESS).digest
    assert digest == same.digest
    assert digest != other.digest
    assert digest != ImageSource(relabelled, PREPROCESS).digest


def test_unusable_sets_are_refused() -> None:
    images = pictures(4).images
    for labels, message in [(None, "no class labels"), (np.array([0, 1, -1, 0]), "class index -1")]:
        with pytest.raises(TrainingError, match=message):
            ImageSource(ArrayDataset("mine", images, labels, (), "mine"), PREPROCESS)
    with pytest.raises(TrainingError, match="mine has no pictures"):
        ImageSource(FileDataset("mine", [], np.zeros(0, np.int64)), PREPROCESS)


@given(st.integers(0, 2**31), st.integers(0, 100), st.integers(1, 200), st.integers(1, 32))
@settings(max_examples=50, deadline=None)
def test_an_epoch_takes_each_picture_at_most_once(seed: int, epoch: int, count: int, batch: int) -> None:
    plan = epoch_plan(seed, epoch, count, batch)
    assert plan.shape == (count // batch, batch)
    assert len(np.unique(plan)) == plan.size
    assert np.array_equal(plan, epoch_plan(seed, epoch, count, batch))
