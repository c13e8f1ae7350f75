from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from edgevision.detection.boxes import iou_matrix
from edgevision.detection.priors import COCO_PRIORS, cluster, find_priors, picture_size, shape_iou
from edgevision.errors import DataError, UsageError

SIDES = arrays.arrays(np.float64, st.tuples(st.integers(12, 40), st.just(2)), elements=st.floats(1, 500))


@given(SIDES, SIDES)
@settings(max_examples=30, deadline=None)
def test_iou_of_shapes_is_that_of_boxes_around_one_centre(first: np.ndarray, second: np.ndarray) -> None:
    boxes, others = (np.concatenate([-sides / 2, sides / 2], axis=1) for sides in (first, second))
    # halving and adding up again costs a few float64 roundings
    np.testing.assert_allclose(shape_iou(first, second), iou_matrix(boxes, others), rtol=1e-9)


def coco_like(rng: np.random.Generator, spread: float, each: int = 300) -> np.ndarray:
    """Boxes around each of the paper's nine priors, whose logarithms differ from it by ``spread``."""
    centers = np.repeat(np.asarray(COCO_PRIORS, np.float64), each, axis=0)
    return centers * np.exp(rng.normal(0, spread, centers.shape))


def test_nine_clusters_are_found_again() -> None:
    found = cluster(coco_like(np.random.default_rng(0), 0.05), 9)
    # means of 300 boxes that differ by 5 %: 0.3 % off; some of the nine lie near each other, their borders shift
    np.testing.assert_allclose(found, np.asarray(COCO_PRIORS, np.float64), rtol=0.03)


def test_coco_like_boxes_give_priors_like_the_papers() -> None:
    sides = coco_like(np.random.default_rng(1), 0.25)
    found = cluster(sides, 9)
    paper = np.asarray(COCO_PRIORS, np.float64)
    # each of the nine has a prior that overlaps it well
    assert shape_iou(paper, found).max(axis=1).min() > 0.6
    # the boxes were made around the paper's: k-means, whose centres are means and not the likeliest sizes, loses 0.4 %
    assert shape_iou(sides, found).max(axis=1).mean() >= shape_iou(sides, paper).max(axis=1).mean() - 0.01


@given(sides=SIDES, count=st.integers(1, 6), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_centres_are_means_and_boxes_are_with_their_nearest(sides: np.ndarray, count: int, seed: int) -> None:
    if len(np.unique(sides, axis=0)) < count:
        with pytest.raises(DataError, match="different box sizes"):
            cluster(sides, count, seed=seed)
        return
    found = cluster(sides, count, seed=seed)
    assert found.shape == (count, 2)
    assert np.array_equal(found, cluster(sides, count, seed=seed))
    assert (np.diff(found.prod(axis=1)) >= 0).all()
    assert (found >= sides.min(axis=0) - 1e-9).all()
    assert (found <= sides.max(axis=0) + 1e-9).all()
    # one cluster is the mean of all; more serve the boxes no worse
    mean = cluster(sides, 1)
    np.testing.assert_allclose(mean[0], sides.mean(axis=0))


def test_as_many_priors_as_sizes_are_these_sizes() -> None:
    sizes = np.array([[10, 10], [20, 5], [5, 20], [100, 80]], np.float64)
    found = cluster(np.repeat(sizes, 7, axis=0), 4)
    assert sorted(map(tuple, found)) == sorted(map(tuple, sizes))


@pytest.mark.parametrize(("count", "message"), [(0, "at least 1"), (True, "at least 1"), (2.0, "at least 1")])
def test_counts_that_make_no_sense(count: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cluster(np.ones((3, 2)), count)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two pictures of 200 × 100 and 100 × 200 with boxes of two sizes."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number, (width, height) in enumerate([(200, 100), (100, 200)]):
        Image.new("RGB", (width, height)).save(tmp_path / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        for sides in ([40, 20], [10, 10]):
            annotations.append({"id": len(annotations), "image_id": number, "category_id": 1, "bbox": [5, 5, *sides],
                                "area": 1, "iscrowd": 0})  # fmt: skip
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    return tmp_path / "instances.json"


def test_boxes_are_measured_in_pixels_of_the_letterboxed_input(coco: Path) -> None:
    found = find_priors(f"coco:{coco}", count=2, size=(400, 400))
    # the longer side of both pictures is 200
    np.testing.assert_allclose(found.sides, [[20, 20], [80, 40]])
    np.testing.assert_allclose(found.shares, [0.5, 0.5])
    assert (found.boxes, found.size) == (4, (400, 400))
    assert found.mean_iou == pytest.approx(1)
    assert 0.3 < found.coco_mean_iou < 1
    # an input twice as wide as high: the upright picture is scaled by 1, the other by 2
    wide = find_priors(f"coco:{coco}", count=4, size=(200, 400))
    np.testing.assert_allclose(wide.sides, [[10, 10], [20, 20], [40, 20], [80, 40]])


def test_data_without_boxes_is_refused(coco: Path) -> None:
    with pytest.raises(DataError, match="no boxes"):
        find_priors(coco.parent / "images")
    with pytest.raises(DataError, match="4 priors were asked for; the data has 2"):
        find_priors(f"coco:{coco}", count=4, size=(400, 400))
    with pytest.raises(UsageError, match="size"):
        find_priors(f"coco:{coco}", size=(0, 5))


def test_a_turned_photo_has_the_size_it_is_shown_in(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert picture_size(tmp_path / "turned.jpg") == (20, 30)
    assert picture_size(np.zeros((5, 7, 3), np.uint8)) == (7, 5)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="not a readable picture"):
        picture_size(tmp_path / "broken.jpg")


@pytest.mark.data
def test_real_boxes_of_coco_give_priors_like_the_papers(data_root: Path) -> None:
    found = find_priors(f"coco:{data_root / 'coco128' / 'instances.json'}")
    # 128 of its pictures: better served than by the nine of all of them, but not by much
    assert found.coco_mean_iou <= found.mean_iou < found.coco_mean_iou + 0.05
    assert shape_iou(np.asarray(COCO_PRIORS, np.float64), found.sides).max(axis=1).min() > 0.5
