"""Pictures of a run in its folder: what is trained on, what was learned.

::

    train_batch0.jpg …       batches with their boxes drawn: what the network sees
    labels.png               objects by class, where they lie and how large they are
    val_batch0.jpg …         validation pictures: objects to the left, what was found to the right
    pr_curve.png             precision over recall at IoU 0.5
    confusion_matrix.png     which class was taken for which
    results.png              losses and mAP over the epochs

The ``.png`` files need matplotlib; without it they are left out, and a line says so.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from edgevision.dependencies import require
from edgevision.detection.detections import Detections
from edgevision.detection.evaluation import DetectionMetrics, confusion_matrix
from edgevision.detection.nms import non_maximum_suppression
from edgevision.detection.visualize import draw_boxes
from edgevision.errors import MissingDependencyError
from edgevision.files import write_bytes
from edgevision.images import to_image
from edgevision.training.detection.config import DetectionConfig
from edgevision.training.detection.loop import detect, judge
from edgevision.training.detection.source import TrainingPictures, ValidationPictures, tell
from edgevision.training.metrics import Row
from edgevision.training.source import epoch_plan

# pictures of a drawn batch, and batches that are drawn
PICTURES = 9
BATCHES = 3
# of what is drawn and counted, not of mAP
CONFIDENCE = 0.25
_QUALITY = 90
_SIDE = 480


def draw_data(source: TrainingPictures, config: DetectionConfig, folder: Path) -> None:
    """The first batches of the first epoch, and the objects of the whole set."""
    augment = source.augmenter(config)
    count = min(PICTURES, len(source))
    for number, indices in enumerate(epoch_plan(config.seed, 0, len(source), count)[:BATCHES].tolist()):
        examples = [augment(index, 0, source.preprocess.size) for index in indices]
        drawn = [
            draw_boxes(_colored(example.pixels), example.boxes, example.labels, classes=source.dataset.classes)
            for example in examples
        ]
        _save_grid(drawn, folder / f"train_batch{number}.jpg")
    _with_matplotlib(lambda: _draw_labels(source, folder / "labels.png"))


def draw_results(
    network: nn.Module, source: ValidationPictures, history: Sequence[Row], folder: Path, device: torch.device
) -> None:
    """What a trained network finds, how well, and how it came there."""
    detections = detect(network, source, PICTURES, device)
    shown = [_as_deployed(network, found) for found in detections]
    for number in range(min(BATCHES, math.ceil(len(source) / PICTURES))):
        chosen = range(number * PICTURES, min((number + 1) * PICTURES, len(source)))
        drawn = [_side_by_side(source, index, shown[index]) for index in chosen]
        _save_grid(drawn, folder / f"val_batch{number}.jpg")
    metrics = judge(network, source, detections)

    def draw() -> None:
        _draw_precision(metrics, folder / "pr_curve.png")
        _draw_confusion(source, shown, len(metrics.per_class), folder / "confusion_matrix.png")
        _draw_history(history, folder / "results.png")

    _with_matplotlib(draw)


def _colored(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def _as_deployed(network: Any, found: Detections) -> Detections:
    """Of what mAP is judged by, that which the network's own thresholds leave."""
    own = network.postprocess(CONFIDENCE)
    sure = found.above(own.confidence)
    kept = non_maximum_suppression(sure.boxes, sure.scores, sure.labels, iou=own.iou, class_agnostic=own.class_agnostic)
    return Detections(sure.boxes[kept], sure.scores[kept], sure.labels[kept], sure.classes)


def _side_by_side(source: ValidationPictures, index: int, found: Detections) -> Image.Image:
    image = to_image(source.dataset[index].image)
    truth, classes = source.boxes[index], source.dataset.classes
    left = draw_boxes(image, truth.xyxy, truth.labels, classes=classes)
    right = found.plot(image)
    both = Image.new("RGB", (2 * image.width, image.height))
    both.paste(left, (0, 0))
    both.paste(right, (image.width, 0))
    both.thumbnail((2 * _SIDE, _SIDE))
    return both


def _save_grid(pictures: Sequence[Image.Image], path: Path) -> None:
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = (max(getattr(picture, side) for picture in pictures) for side in ("width", "height"))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height), (114, 114, 114))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * width, number // columns * height))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=_QUALITY)
    write_bytes(path, stream.getvalue())


def _with_matplotlib(draw: Callable[[], None]) -> None:
    """Draw, or say in a line what is missing: a trained network is worth more than its plots."""
    try:
        require("matplotlib.figure", purpose="draw a run's curves")
    except MissingDependencyError as error:
        tell(f"no curves drawn: {error}")
        return
    draw()


def _figure(rows: int, columns: int) -> tuple[Any, Any]:
    # a Figure of its own, without pyplot: nothing global, no window, safe in any thread
    module = require("matplotlib.figure", purpose="draw a run's curves")
    figure = module.Figure(figsize=(5 * columns, 4 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save_figure(figure: Any, path: Path) -> None:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    write_bytes(path, stream.getvalue())


def _names(classes: Sequence[str], count: int) -> list[str]:
    return [classes[index] if index < len(classes) else str(index) for index in range(count)]


def _draw_labels(source: TrainingPictures, path: Path) -> None:
    labels = np.concatenate([boxes.labels for boxes in source.boxes])
    parts = []
    for index in range(len(source)):
        picture = source[index]
        parts.append(picture.boxes.reshape(-1, 4) / np.asarray([*picture.image.size] * 2, np.float32))
    boxes = np.concatenate(parts)
    names = _names(source.dataset.classes, int(labels.max()) + 1)
    figure, axes = _figure(1, 3)
    counts = np.bincount(labels, minlength=len(names))
    axes[0][0].barh(range(len(names)), counts)
    # hundreds of names cannot be read in any size
    if len(names) <= 40:
        axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    axes[0][0].set_title(f"{len(labels)} objects in {len(source)} pictures")
    centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for axis, values, title, (across, down) in (
        (axes[0][1], centers, "centres", ("x", "y")),
        (axes[0][2], sides, "sizes", ("width", "height")),
    ):
        axis.hist2d(values[:, 0], values[:, 1], bins=40, range=[[0, 1], [0, 1]], cmap="magma")
        axis.set(title=title, xlabel=f"{across} / picture", ylabel=f"{down} / picture")
    axes[0][1].invert_yaxis()
    _save_figure(figure, path)


def _draw_precision(metrics: DetectionMetrics, path: Path) -> None:
    figure, axes = _figure(1, 1)
    axis = axes[0][0]
    recall = np.linspace(0, 1, metrics.precision50.shape[1])
    for found, curve in zip(metrics.per_class, metrics.precision50, strict=True):
        if found.map50 is not None and len(metrics.per_class) <= 12:
            axis.plot(recall, curve, linewidth=1, label=f"{found.name} {found.map50:.3f}")
    known = metrics.precision50[~np.isnan(metrics.precision50).any(axis=1)]
    if len(known) and metrics.map50 is not None:
        axis.plot(recall, known.mean(axis=0), color="black", linewidth=2, label=f"all classes {metrics.map50:.3f}")
        axis.legend(loc="lower left")
    axis.set(title="IoU 0.5", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    _save_figure(figure, path)


def _draw_confusion(source: ValidationPictures, detections: Sequence[Detections], num_classes: int, path: Path) -> None:
    matrix = confusion_matrix(source.boxes, detections, num_classes, confidence=CONFIDENCE)
    names = [*_names(source.dataset.classes, num_classes), "nothing"]
    figure, axes = _figure(1, 1)
    axis = axes[0][0]
    # shares of each true class: rare ones are to be seen, too
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 30:
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                ink = "white" if shares[row, column] > 0.5 else "black"
                axis.text(column, row, str(count), ha="center", va="center", fontsize=8, color=ink)
    axis.set(title=f"confidence {CONFIDENCE}, IoU 0.5", xlabel="found", ylabel="true")
    _save_figure(figure, path)


def _draw_history(history: Sequence[Row], path: Path) -> None:
    figure, axes = _figure(1, 3)
    groups = (
        ("losses", ("train_loss", "val_loss")),
        ("parts", ("train_class", "train_box", "train_dfl", "train_objectness")),
        ("mAP", ("map", "map50", "map75")),
    )
    for axis, (title, names) in zip(axes[0], groups, strict=True):
        for name in names:
            points = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=name)
        axis.set(title=title, xlabel="epoch")
        if axis.lines:
            axis.legend()
    _save_figure(figure, path)
