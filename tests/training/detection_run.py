"""A detector and pictures with boxes, small enough for runs of a few seconds, also in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from edgevision.data.base import Boxes
from edgevision.data.datasets import DetectionDataset
from edgevision.models import create_model
from edgevision.training.detection.config import DetectionConfig

SIZE = 64
CLASSES = ("red", "blue")
COLORS = ((220, 40, 40), (40, 60, 230))

# everything that draws random numbers or keeps a state, at once
EVERYTHING: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 4,
    "lr": 0.01,
    "warmup_epochs": 1.0,
    "ema_decay": 0.9,
    "mosaic": 0.6,
    "mixup": 0.5,
    "close_mosaic": 1,
    "degrees": 10.0,
    "shear": 3.0,
    "flip_vertical": 0.5,
    "multi_scale": 0.5,
    "assigner_warmup": 1,
    "validate_every": 2,
    "precision": "fp32",
    "seed": 3,
    "plots": False,
}


def small_detector(num_classes: int = 2, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model("yolov6_n", num_classes=num_classes, input_size=SIZE, width=0.125)


def squares(
    folder: Path, count: int = 12, seed: int = 0, classes: tuple[str, ...] = CLASSES, size: tuple[int, int] = (60, 45)
) -> DetectionDataset:
    """Pictures with one to three bright squares on noise; the class is the colour."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    files, boxes = [], []
    width, height = size
    for number in range(count):
        pixels = generator.integers(90, 140, (height, width, 3), dtype=np.uint8)
        corners, labels = [], []
        for place in range(int(generator.integers(1, 4))):
            side = int(generator.integers(12, 18))
            # a column each, so that none lies on another
            left = place * 20 + int(generator.integers(0, 20 - side + 1))
            top = int(generator.integers(0, height - side + 1))
            label = int(generator.integers(2))
            pixels[top : top + side, left : left + side] = COLORS[label]
            corners.append([left, top, left + side, top + side])
            labels.append(label)
        files.append(str(folder / f"{number}.png"))
        Image.fromarray(pixels).save(files[-1])
        boxes.append(Boxes(np.asarray(corners, np.float32), np.asarray(labels, np.int64)))
    return DetectionDataset(f"squares:{seed}", files, boxes, classes, tuple(range(len(classes))), list(range(count)))


def write_coco(dataset: DetectionDataset, path: Path) -> Path:
    """The same data set as a COCO file, its pictures where they are."""
    annotations = [
        {
            "id": 100 * picture + number,
            "image_id": picture,
            "category_id": int(label) + 1,
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
        }
        for picture, found in enumerate(dataset.boxes)
        for number, ((x0, y0, x1, y1), label) in enumerate(zip(found.xyxy, found.labels, strict=True))
    ]
    images = [{"id": number, "file_name": Path(file).name} for number, file in enumerate(dataset.files)]
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(dataset.classes)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def main(out: str, data: str, die_at: str) -> None:
    """A run in a process of its own that kills itself in the step ``die_at``."""
    from edgevision.training import train
    from edgevision.training.detection.loop import DetectorTrainer

    torch.set_num_threads(1)
    original = DetectorTrainer.descend
    steps = [0]

    def descend(self: DetectorTrainer, *args: Any) -> None:
        original(self, *args)
        steps[0] += 1
        if steps[0] == int(die_at):
            os.kill(os.getpid(), signal.SIGKILL)

    DetectorTrainer.descend = descend  # type: ignore[method-assign]
    train(
        small_detector(),
        squares(Path(data)),
        val_data=squares(Path(data) / "val", 4, seed=1),
        out=out,
        config=DetectionConfig.from_dict(EVERYTHING),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
