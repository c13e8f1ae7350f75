"""Pictures and boxes changed together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevision.errors import UsageError
from edgevision.preprocess import Preprocess
from edgevision.training.detection.augment import BATCHES_PER_SIZE, Augmenter, Picture, input_size, visible
from edgevision.training.detection.config import DetectionConfig

STILL = DetectionConfig(
    epochs=10, warmup_epochs=0, mosaic=0, close_mosaic=0, hue=0, saturation=0, value=0, flip=0, scale=0, translate=0
)
PAD = 114


def picture(color: tuple[int, int, int], box: tuple[int, int, int, int], size: tuple[int, int], at: Preprocess,
            label: int = 0) -> Picture:  # fmt: skip
    """One rectangle of a colour on black, placed as ``at`` does."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = color
    place = at.placement(*size)
    return Picture(
        Image.fromarray(pixels),
        np.asarray([box], np.float32),
        np.asarray([label], np.int64),
        (place.scale_x, place.scale_y),
        (place.left, place.top),
    )


def augmenter(config: DetectionConfig, pictures: list[Picture], size: tuple[int, int] = (96, 96)) -> Augmenter:
    return Augmenter(config, len(pictures), pictures.__getitem__, size, PAD)


def extent(mask: np.ndarray) -> list[int] | None:
    """Box around the true pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else None


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess((64, 96), "letterbox"),
        Preprocess((64, 64), "stretch"),
        Preprocess((48, 48), "shorter_side", 56),
    ],
)
@pytest.mark.parametrize("size", [(80, 57), (31, 90), (64, 64)])
def test_without_augmentation_pictures_lie_as_the_preprocess_lays_them(
    preprocess: Preprocess, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    one = replace(picture((9, 9, 9), (10, 34, 25, 54), size, preprocess), image=Image.fromarray(pixels))
    made = augmenter(STILL, [one], preprocess.size)(0, 3, preprocess.size)
    expected = np.asarray(preprocess.geometry(Image.fromarray(pixels)))
    # one is resized whole and then cropped, the other only where it is seen: Pillow rounds its weights and both passes
    assert np.abs(made.pixels.astype(int) - expected).max() <= 2
    boxes = preprocess.placement(*size).to_input(one.boxes)
    np.testing.assert_allclose(made.boxes, np.clip(boxes, 0, preprocess.size[::-1] * 2), atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    degrees=st.sampled_from([0.0, 0.0, 30.0]),
    shear=st.sampled_from([0.0, 8.0]),
    box=st.tuples(st.integers(2, 40), st.integers(2, 30), st.integers(12, 30), st.integers(12, 25)),
)
def test_boxes_go_where_their_pixels_go(
    seed: int, degrees: float, shear: float, box: tuple[int, int, int, int]
) -> None:
    at = Preprocess((96, 96), "letterbox")
    left, top, width, height = box
    one = picture((255, 255, 255), (left, top, left + width, top + height), (80, 60), at)
    config = replace(STILL, seed=seed, scale=0.4, translate=0.2, flip=0.5, flip_vertical=0.5, degrees=degrees,
                     shear=shear, min_visible=0.05)  # fmt: skip
    made = augmenter(config, [one])(0, 0, (96, 96))
    # half of white against the black of the picture; the border of 114 is left out by a higher threshold
    seen = extent(made.pixels.min(axis=2) > 135)
    if not len(made.boxes):
        # dropped: nearly nothing of it may be seen
        assert seen is None or (seen[2] - seen[0]) * (seen[3] - seen[1]) < 0.2 * width * height * 4
        return
    turned = bool(degrees or shear)
    if turned and (made.boxes[0].min() <= 0 or made.boxes[0].max() >= 96):
        return  # what is cut off may be the corner that a turned box reaches out to
    # a pixel that is half white counts or not, at both ends; turned corners are thin
    np.testing.assert_allclose(made.boxes[0], seen, atol=3.6 if turned else 1.6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), degrees=st.sampled_from([0.0, 12.0]))
def test_all_four_pictures_of_a_mosaic_keep_their_boxes(seed: int, degrees: float) -> None:
    at = Preprocess((96, 96), "letterbox")
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
    pictures = [picture(color, (10, 8, 50, 44), (80, 60), at, label) for label, color in enumerate(colors)]
    config = replace(STILL, seed=seed, mosaic=1.0, scale=0.3, translate=0.1, flip=0.5, degrees=degrees, min_visible=0)
    made = augmenter(config, pictures)(1, 0, (96, 96))
    for label, color in enumerate(colors):
        mine = np.abs(made.pixels.astype(int) - np.asarray(color)).sum(axis=2) < 200
        outside = mine.copy()
        for x0, y0, x1, y1 in made.boxes[made.labels == label].round().astype(int).tolist():
            inside = mine[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
            # the box around a turned square has corners that are not the square's
            assert degrees or not inside.size or inside.mean() > 0.99
            outside[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = False
        # strips below two pixels have no box
        assert outside.sum() <= 2 * 96


def test_a_mosaic_shows_several_pictures_and_a_seed_decides_which() -> None:
    at = Preprocess((96, 96), "letterbox")
    pictures = [picture((40 * label, 255, 90), (5, 5, 70, 50), (80, 60), at, label) for label in range(6)]
    config = replace(STILL, mosaic=1.0, scale=0.3)
    make = augmenter(config, pictures)
    shown = [set(make(2, epoch, (96, 96)).labels.tolist()) for epoch in range(8)]
    assert max(len(labels) for labels in shown) >= 3
    assert len({frozenset(labels) for labels in shown}) > 1  # an epoch draws other neighbours
    again = augmenter(config, pictures)
    # in another order, from another object: the same
    for epoch in (5, 2):
        one, two = make(3, epoch, (96, 96)), again(3, epoch, (96, 96))
        assert np.array_equal(one.pixels, two.pixels)
        assert np.array_equal(one.boxes, two.boxes)
    other = augmenter(replace(config, seed=1), pictures)(3, 2, (96, 96))
    assert not np.array_equal(other.pixels, make(3, 2, (96, 96)).pixels)


def test_mosaics_stop_before_the_end() -> None:
    config = replace(STILL, mosaic=1.0, close_mosaic=4)
    assert [config.composes(epoch) for epoch in (0, 5, 6, 9)] == [True, True, False, False]
    at = Preprocess((96, 96), "letterbox")
    pictures = [picture((255, 255, 255), (5, 5, 70, 50), (80, 60), at, label) for label in range(6)]
    make = augmenter(config, pictures)
    assert make(2, 6, (96, 96)).labels.tolist() == [2]
    assert config.with_epochs(5).close_mosaic == 1
    assert config.with_epochs(5).epochs == 5


def test_mixup_joins_the_boxes_of_two_mosaics() -> None:
    at = Preprocess((96, 96), "letterbox")
    pictures = [picture((255, 255, 255), (5, 5, 70, 50), (80, 60), at, label) for label in range(3)]
    alone = augmenter(replace(STILL, mosaic=1.0), pictures)(0, 0, (96, 96))
    mixed = augmenter(replace(STILL, mosaic=1.0, mixup=1.0), pictures)(0, 0, (96, 96))
    assert len(mixed.boxes) > len(alone.boxes)
    np.testing.assert_allclose(mixed.boxes[: len(alone.boxes)], alone.boxes)
    # white on black, each picture about a half: greys that neither picture has
    assert ((mixed.pixels > 60) & (mixed.pixels < 110)).any()


def test_colours_change_and_boxes_do_not() -> None:
    at = Preprocess((96, 96), "letterbox")
    one = picture((200, 90, 40), (5, 5, 70, 50), (80, 60), at)
    still = augmenter(STILL, [one])(0, 0, (96, 96))
    vivid = augmenter(replace(STILL, hue=0.2, saturation=0.5, value=0.5), [one])(0, 0, (96, 96))
    assert np.array_equal(still.boxes, vivid.boxes)
    assert np.abs(still.pixels.astype(int) - vivid.pixels).max() > 20
    # black stays black, and a grey border has no hue to shift
    assert vivid.pixels[still.pixels.max(axis=2) == 0].max() == 0
    grey = replace(one, image=one.image.convert("L"))
    made = augmenter(replace(STILL, value=0.5), [grey])(0, 0, (96, 96))
    assert made.pixels.shape == (96, 96, 1)
    assert len(np.unique(made.pixels)) >= 2


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-50, 150, width=32)] * 2, *[st.floats(0, 80, width=32)] * 2), max_size=8),
    st.sampled_from([0.0, 0.2, 0.9]),
)
def test_visible_boxes_lie_in_the_picture_and_keep_their_share(
    boxes: list[tuple[float, float, float, float]], share: float
) -> None:
    corners = np.asarray([(x, y, x + w, y + h) for x, y, w, h in boxes], np.float64).reshape(-1, 4)
    kept, clipped = visible(corners, (100, 90), share)
    assert clipped.dtype == np.float32
    for index, (x0, y0, x1, y1) in zip(kept.tolist(), clipped.tolist(), strict=True):
        assert 0 <= x0 <= x1 - 2 + 1e-4 <= 90
        assert 0 <= y0 <= y1 - 2 + 1e-4 <= 100
        width, height = boxes[index][2:]
        assert (x1 - x0) * (y1 - y0) >= share * width * height * (1 - 1e-4)
    whole = [
        index
        for index, (x, y, w, h) in enumerate(boxes)
        if x >= 0 and y >= 0 and x + w <= 90 and y + h <= 100 and min(w, h) >= 2.001
    ]
    assert set(whole) <= set(kept.tolist())


def test_multi_scale_changes_every_ten_batches() -> None:
    config = replace(STILL, multi_scale=0.4)
    sizes = [input_size(config, (320, 256), step) for step in range(200)]
    assert all(len(set(sizes[start : start + BATCHES_PER_SIZE])) == 1 for start in range(0, 200, BATCHES_PER_SIZE))
    assert len(set(sizes)) > 3
    assert all(side % 32 == 0 for size in sizes for side in size)
    assert all(320 * 0.6 - 16 <= height <= 320 * 1.4 + 16 for height, _ in sizes)
    assert {side % 64 for step in range(200) for side in input_size(config, (320, 256), step, 64)} == {0}
    assert input_size(STILL, (321, 7), 5) == (321, 7)


def test_settings_are_checked() -> None:
    for wrong, message in (
        ({"mosaic": 1.5}, "mosaic must be between 0 and 1"),
        ({"scale": 1.0}, "scale must be between 0 and 0.95"),
        ({"plots": 1}, "plots must be true or false"),
        ({"validate_every": 0}, "validate_every must be between 1"),
        ({"mosiac": 1.0}, "did you mean mosaic"),
    ):
        with pytest.raises(UsageError, match=message):
            DetectionConfig.from_dict(wrong)
    config = DetectionConfig(epochs=7, warmup_epochs=1, mixup=0.3, box_loss="siou")
    assert DetectionConfig.from_dict(config.to_dict()) == config
