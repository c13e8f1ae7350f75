"""A small network of each kind learns two pictures by heart, and its boxes, decoded as on the device, are theirs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from edgevision.detection.boxes import iou_matrix
from edgevision.detection.decoders import DECODERS
from edgevision.detection.nms import non_maximum_suppression
from edgevision.models import create_model
from edgevision.models.detection.detector import Detector
from edgevision.models.detection.heads.decoupled import DecoupledHead
from edgevision.training.detection.criterion import build_criterion
from edgevision.training.detection.targets import Targets

SIZE = 96
BOXES = (
    np.array([[10.0, 12, 50, 44], [60, 50, 90, 90]]),
    np.array([[30.0, 40, 70, 88]]),
)
LABELS = (np.array([0, 1]), np.array([1]))
COLOURS = ((1.0, 0.1, 0.1), (0.1, 0.2, 1.0))


def pictures() -> torch.Tensor:
    torch.manual_seed(0)
    drawn = 0.3 + 0.1 * torch.rand(2, 3, SIZE, SIZE)
    for picture, (boxes, labels) in enumerate(zip(BOXES, LABELS, strict=True)):
        for (left, top, right, bottom), label in zip(boxes.astype(int), labels, strict=True):
            drawn[picture, :, top:bottom, left:right] = torch.tensor(COLOURS[label])[:, None, None]
    return drawn


def found_in(detector, outputs) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes and labels of each picture, as the device finds them."""
    post = detector.postprocess()
    arrays = {name: value.detach().numpy() for name, value in outputs.items()}
    decode = DECODERS.resolve(post.decoder)
    found = []
    for some in decode(arrays, (SIZE, SIZE), confidence=0.3, multi_label=False, **post.options):
        kept = non_maximum_suppression(some.boxes, some.scores, some.labels, iou=0.5)
        found.append((some.boxes[kept], some.labels[kept]))
    return found


class Pyramid(nn.Module):
    """A few convolutions, the last three of which are the levels."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        widths = (3, 16, 24, channels, channels, channels)
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, w, 3, 2, 1, bias=False), nn.BatchNorm2d(w), nn.SiLU())
            for c, w in pairwise(widths)
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = []
        for step in self.steps:
            x = step(x)
            maps.append(x)
        return tuple(maps[2:])


def small_detector(kind: str) -> nn.Module:
    if kind == "yolov3":
        return create_model("yolov3_tiny", num_classes=2, input_size=SIZE, width=0.125)
    if kind == "ssd":
        return create_model("ssdlite_mobilenet_v2", num_classes=2, input_size=SIZE, width=0.25)
    head = DecoupledHead((32, 32, 32), num_classes=2, strides=(8, 16, 32), reg_max=8 if kind == "yolov6_dfl" else 0)
    head.set_priors()
    return Detector(Pyramid(), nn.Identity(), head)


@pytest.mark.parametrize(
    ("kind", "steps", "settings"),
    [
        ("yolov6", 60, {"warmup_epochs": 1}),
        ("yolov6", 60, {"warmup_epochs": 1, "assigner": "simota", "box_loss": "siou"}),
        ("yolov6_dfl", 60, {"warmup_epochs": 1, "box_loss": "ciou"}),
        ("yolov3", 40, {}),
        ("ssd", 35, {}),
    ],
)
def test_two_pictures_are_learned_by_heart(kind, steps, settings):
    torch.manual_seed(1)
    detector = small_detector(kind)
    criterion = build_criterion(detector, **settings)
    x, targets = pictures(), Targets.of_pictures(BOXES, LABELS)
    optimizer = torch.optim.Adam(detector.parameters(), lr=5e-3)
    history = []
    for step in range(steps):
        losses = criterion(detector(x), targets, epoch=4 * step // steps)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append(losses["loss"].item())
    assert history[-1] < history[0] / 2
    # with the statistics of this batch: the running ones are far behind after so few steps
    with torch.no_grad():
        found = found_in(detector, detector(x))
    for (boxes, labels), truth, names in zip(found, BOXES, LABELS, strict=True):
        overlap = iou_matrix(truth.astype(np.float32), boxes) * (names[:, None] == labels[None])
        assert (overlap.max(axis=1, initial=0) > 0.5).all()
