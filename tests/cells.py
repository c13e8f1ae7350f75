"""Pictures of coloured squares with their boxes in COCO's form: a data set for a detector to train on in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
COLORS = {"red": (220, 40, 40), "blue": (40, 60, 230)}


def write_cells(folder: Path, count: int = 24, seed: int = 0) -> Path:
    """``instances.json`` and ``images/`` in ``folder``."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        picture = rng.integers(0, 60, (SIDE, SIDE, 3), np.uint8)
        for label in range(len(COLORS)):
            side = int(rng.integers(16, 32))
            left, top = (int(value) for value in rng.integers(0, SIDE - side, 2))
            picture[top : top + side, left : left + side] = list(COLORS.values())[label]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0,
                 "bbox": [left, top, side, side], "area": side * side}
            )  # fmt: skip
        name = f"{number:03}.png"
        Image.fromarray(picture).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(COLORS)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path
