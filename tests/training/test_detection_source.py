"""Pictures with boxes on their way to a detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detection_run import squares
from PIL import Image

from edgevision.data import open_dataset
from edgevision.data.base import Boxes
from edgevision.data.datasets import ArrayDataset, DetectionDataset
from edgevision.errors import DataError, TrainingError
from edgevision.preprocess import Preprocess
from edgevision.training.detection.augment import input_size
from edgevision.training.detection.config import RECIPES, DetectionConfig
from edgevision.training.detection.source import KEPT_SIZE, TrainingPictures, ValidationPictures
from edgevision.training.source import epoch_plan

LETTERBOX = Preprocess((64, 64), "letterbox", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
CONFIG = DetectionConfig(epochs=4, warmup_epochs=0, close_mosaic=1, mixup=0.5, multi_scale=0.5, degrees=5)


def test_validation_sees_what_the_device_sees(tmp_path: Path) -> None:
    data = squares(tmp_path, 5)
    source = ValidationPictures(data, LETTERBOX, 2, workers=0)
    batches = list(source.batches(2))
    assert [len(batch.inputs) for batch in batches] == [2, 2, 1]
    inputs = torch.cat([batch.inputs for batch in batches]).numpy()
    assert np.array_equal(inputs, LETTERBOX.batch([sample.image for sample in data]))
    for index in range(5):
        batch = batches[index // 2]
        targets, row = batch.targets, index % 2
        expected = LETTERBOX.placement(60, 45).to_input(data.boxes[index].xyxy)
        assert batch.placements[row] == LETTERBOX.placement(60, 45)
        np.testing.assert_allclose(targets.boxes[row][targets.valid[row]].numpy(), expected)
        assert targets.labels[row][targets.valid[row]].tolist() == data.boxes[index].labels.tolist()


def test_cache_and_threads_change_nothing(tmp_path: Path) -> None:
    data = squares(tmp_path)
    plan = epoch_plan(0, 1, len(data), 4)
    sizes = [input_size(CONFIG, LETTERBOX.size, step) for step in range(100)]
    before = next(step for step in range(9, 90, 10) if sizes[step] != sizes[step + 1])
    found = []
    for workers, cached in ((0, True), (0, False), (3, True)):
        source = TrainingPictures(data, LETTERBOX, 2, workers=workers, cache_limit=1 << 30 if cached else 0)
        source.fill_cache("reading")
        found.append(list(source.batches(CONFIG, 1, plan, steps_before=before, multiple=32)))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert np.array_equal(one.pixels, two.pixels)
            assert torch.equal(one.targets.boxes, two.targets.boxes)
    # in the second of these steps the size changes
    assert len({batch.pixels.shape for batch in found[0]}) == 2


def test_large_pictures_are_kept_small_and_boxes_with_them(tmp_path: Path) -> None:
    Image.new("RGB", (900, 600)).save(tmp_path / "large.png")
    boxes = Boxes(np.asarray([[90, 60, 450, 300]], np.float32), np.zeros(1, np.int64))
    data = DetectionDataset("large", [str(tmp_path / "large.png")], [boxes], ("one",), (0,), [0])
    source = TrainingPictures(data, LETTERBOX, 1)
    kept = source[0]
    # whole pixels, of the input and of what is kept
    assert kept.image.size == pytest.approx((64 * KEPT_SIZE, 64 * KEPT_SIZE * 600 / 900), abs=1.5)
    np.testing.assert_allclose(kept.boxes / [*kept.image.size * 2], [[0.1, 0.1, 0.5, 0.5]], rtol=1e-6)
    still = replace(CONFIG, mosaic=0, scale=0, translate=0, degrees=0, flip=0)
    made = source.augmenter(still)(0, 0, (64, 64))
    np.testing.assert_allclose(made.boxes, LETTERBOX.placement(900, 600).to_input(boxes.xyxy), atol=1e-4)


def test_grey_networks_get_grey_pictures(tmp_path: Path) -> None:
    grey = replace(LETTERBOX, color="GRAY", mean=(0.5,), std=(0.5,))
    source = TrainingPictures(squares(tmp_path), grey, 2, workers=0)
    batch = next(
        source.batches(replace(CONFIG, multi_scale=0), 0, epoch_plan(0, 0, 12, 2), steps_before=0, multiple=32)
    )
    assert batch.pixels.shape == (2, 64, 64, 1)
    assert next(ValidationPictures(source.dataset, grey, 2).batches(2)).inputs.shape == (2, 1, 64, 64)


def test_pictures_without_objects_are_fine_and_sets_without_any_are_not(tmp_path: Path) -> None:
    data = squares(tmp_path, 4)
    none = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    some = replace(data, boxes=[none, *data.boxes[1:]])
    source = TrainingPictures(some, LETTERBOX, 2, workers=0)
    still = replace(CONFIG, mosaic=0, multi_scale=0)
    batch = next(source.batches(still, 0, np.asarray([[0, 1]]), steps_before=0, multiple=32))
    assert batch.targets.valid.sum(1).tolist()[0] == 0
    with pytest.raises(TrainingError, match="has no object in any of its 4 pictures"):
        TrainingPictures(replace(data, boxes=[none] * 4), LETTERBOX, 2)


def test_a_class_out_of_range_names_the_file(tmp_path: Path) -> None:
    data = squares(tmp_path, 6)
    boxes = list(data.boxes)
    boxes[3] = Boxes(boxes[3].xyxy, np.full(len(boxes[3].labels), 7, np.int64))
    with pytest.raises(DataError, match=r"3\.png: a box has the class index 7, .* 2 classes are 0 to 1"):
        TrainingPictures(replace(data, boxes=boxes), LETTERBOX, 2)
    boxes[3] = Boxes(boxes[3].xyxy, np.full(len(boxes[3].labels), -1, np.int64))
    with pytest.raises(DataError, match=r"3\.png: a box has the class index -1"):
        ValidationPictures(replace(data, boxes=boxes), LETTERBOX, 2)


def test_data_without_boxes_is_refused(tmp_path: Path) -> None:
    labelled = ArrayDataset("a", np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, np.int64), ("x",), "a")
    with pytest.raises(TrainingError, match=r"a has no boxes \(a\[0\]\); a detector needs COCO or VOC"):
        TrainingPictures(labelled, LETTERBOX, 1)
    empty = replace(squares(tmp_path, 1), files=[], boxes=[])
    with pytest.raises(TrainingError, match="has no pictures"):
        TrainingPictures(empty, LETTERBOX, 1)


def test_the_digest_tells_boxes_and_pictures_apart(tmp_path: Path) -> None:
    data = squares(tmp_path / "a", 4)
    moved = [replace(boxes, xyxy=boxes.xyxy + 1) for boxes in data.boxes]
    digests = [
        TrainingPictures(one, LETTERBOX, 2).digest
        for one in (data, squares(tmp_path / "b", 4), replace(data, boxes=moved), squares(tmp_path / "c", 4, seed=5))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.data
def test_real_cells_stay_in_their_boxes(data_root: Path) -> None:
    data = open_dataset(f"coco:{data_root / 'bccd' / 'coco' / 'instances_train.json'}[:40]")
    source = TrainingPictures(data, Preprocess((320, 320), "letterbox"), 3)
    source.fill_cache("reading")
    augment = source.augmenter(replace(RECIPES["few"], mosaic=1.0, saturation=0.0, hue=0.0))
    stained, elsewhere = [], []
    for index in range(12):
        made = augment(index, 0, (320, 320))
        assert (made.boxes >= 0).all()
        assert (made.boxes <= 320).all()
        # white blood cells are stained violet: much more blue than green
        violet = made.pixels[:, :, 2].astype(float) - made.pixels[:, :, 1]
        inside = np.zeros((320, 320), bool)
        for x0, y0, x1, y1 in made.boxes[made.labels == data.classes.index("WBC")].astype(int).tolist():
            inside[y0:y1, x0:x1] = True
        if inside.any():
            stained.append(violet[inside].mean())
            elsewhere.append(violet[~inside].mean())
    # boxes that were moved elsewhere would hold what the rest of the picture holds
    assert np.mean(stained) > 2 * np.mean(elsewhere) + 10
