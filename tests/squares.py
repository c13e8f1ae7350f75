"""A stand-in detector that really detects: the red, green and blue rectangle of a picture, on an engine of its own.

Its outputs have the form of decoder ``yolov8``. It is a distribution on the path with a backend entry point, so that
child processes find it too; targets ``squares`` and ``squares2`` are the same engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from edgevision.bundle import GOLDEN, Bundle, Manifest, Thresholds, golden_bytes
from edgevision.detection.postprocess import Postprocess
from edgevision.preprocess import Preprocess
from edgevision.runtime import TensorSpec

ENGINE = """
import json, os, time
import numpy as np

class Squares:
    version = "3.0"

    def __init__(self, bundle):
        self.behaviour = json.loads(bundle.engine_file("behaviour"))

    def infer(self, feed):
        os.write(1, b"engine chatter\\n") if self.behaviour.get("chatter") else None
        time.sleep(self.behaviour.get("seconds", 0.0))
        x = feed["images"]
        side = x.shape[2]
        out = np.zeros((len(x), 7, sum((side // stride) ** 2 for stride in (8, 16, 32))), np.float32)
        for row, picture in zip(out, x):
            for label in range(3):
                others = np.delete(picture, label, axis=0).max(axis=0)
                ys, xs = np.nonzero((picture[label] > 0.6) & (others < 0.4))
                if len(ys):
                    left, top, right, bottom = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
                    shift = self.behaviour.get("shift", 0.0) * (right - left)
                    row[:4, label] = (left + right) / 2 + shift, (top + bottom) / 2, right - left, bottom - top
                    row[4 + label, label] = (0.9 - label / 10) * self.behaviour.get("scores", 1.0)
        if self.behaviour.get("nan"):
            out[0] = np.nan
        return {"output0": out}

    def close(self):
        pass

def open_engine(bundle, options):
    return Squares(bundle)
"""

SIZE = 64
CLASSES = ("red", "green", "blue")
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def register(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the targets known to this process and its children."""
    site = folder / "squares-site"
    info = site / "squares_engine-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "squares_engine.py").write_text(ENGINE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: squares-engine\nVersion: 1.0\n")
    lines = "\n".join(f"{name} = squares_engine:open_engine" for name in ("squares", "squares2"))
    (info / "entry_points.txt").write_text(f"[edgevision.backends]\n{lines}\n")
    monkeypatch.syspath_prepend(str(site))


def scene(boxes: dict[str, tuple[int, int, int, int]], width: int = 128, height: int = 96) -> Image.Image:
    """A black picture with filled rectangles: class name → left, top, right, bottom (outside the rectangle)."""
    image = Image.new("RGB", (width, height))
    for name, (left, top, right, bottom) in boxes.items():
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=COLORS[CLASSES.index(name)])
    return image


def random_boxes(seed: int, *, width: int = 128, height: int = 96, names: tuple[str, ...] = CLASSES) -> dict[str, Any]:
    """One rectangle of each name in a column of its own, all coordinates multiples of 4."""
    rng = np.random.default_rng(seed)
    column = width // len(names)
    found = {}
    for index, name in enumerate(names):
        left, top = column * index + 4 * int(rng.integers(0, 3)), 4 * int(rng.integers(0, height // 8))
        wide, high = 4 * int(rng.integers(3, column // 4 - 3)), 4 * int(rng.integers(3, height // 8))
        found[name] = (left // 4 * 4, top, left // 4 * 4 + wide, min(height, top + high))
    return found


def make_bundle(
    path: Path,
    *,
    target: str = "squares",
    precision: str = "fp32",
    golden: int = 0,
    reference: bool = False,
    thresholds: dict[str, Thresholds] | None = None,
    classes: tuple[str, ...] = CLASSES,
    decoder: str = "yolov8",
    postprocess: dict[str, Any] | None = None,
    batch: int | None = None,
    **behaviour: Any,
) -> Path:
    """A saved bundle; ``golden`` pictures whose answers are those of the engine that behaves."""
    preprocess = Preprocess((SIZE, SIZE), "letterbox", interpolation="nearest", pad_value=0)
    files = {"engine/behaviour.json": json.dumps(behaviour).encode()}
    if golden:
        pixels = np.stack([np.asarray(preprocess.geometry(scene(random_boxes(seed)))) for seed in range(golden)])
        namespace: dict[str, Any] = {}
        exec(ENGINE, namespace)
        well = namespace["Squares"].__new__(namespace["Squares"])
        well.behaviour = {}
        outputs = well.infer({"images": np.stack([preprocess.normalize(picture) for picture in pixels])})
        groups = {"pixels": {"images": pixels}, "outputs": outputs}
        if reference:
            groups["reference"] = outputs
        files[GOLDEN] = golden_bytes(groups)
    count = sum((SIZE // stride) ** 2 for stride in (8, 16, 32))
    manifest = Manifest(
        name="squares",
        task="detection",
        target=target,
        precision=precision,
        inputs=(TensorSpec("images", "float32", (batch, 3, SIZE, SIZE)),),
        outputs=(TensorSpec("output0", "float32", (batch, 7, count)),),
        preprocess=preprocess,
        engine_files={"behaviour": "engine/behaviour.json"},
        classes=classes,
        thresholds=thresholds or {},
        postprocess=Postprocess(decoder, **(postprocess or {})),
    )
    return Bundle(manifest, files).save(path)


def write_coco(folder: Path, count: int = 6, *, names: tuple[str, ...] = CLASSES, images: str = "images") -> Path:
    """A COCO file of ``count`` scenes, its pictures in a folder beside it; category ids with gaps."""
    (folder / images).mkdir(parents=True)
    records: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    records["categories"] = [{"id": 10 * index + 7, "name": name} for index, name in enumerate(names)]
    for number in range(count):
        boxes = random_boxes(number, names=CLASSES)
        scene(boxes).save(folder / images / f"{number}.png")
        records["images"].append({"id": number, "file_name": f"{number}.png", "width": 128, "height": 96})
        for name, (left, top, right, bottom) in boxes.items():
            if name in names:
                records["annotations"].append(
                    {
                        "id": len(records["annotations"]) + 1,
                        "image_id": number,
                        "category_id": 10 * names.index(name) + 7,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": 0,
                    }
                )
    path = folder / "instances.json"
    path.write_text(json.dumps(records))
    return path
