"""Sizes of detectors against the papers' tables, and against the authors' releases where the papers print none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgevision.models import create_model
from edgevision.models.statistics import count_multiply_adds, count_parameters


def meta(name: str, **kwargs: object) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **kwargs)


def gigaflops(model: nn.Module, size: int) -> float:
    """Two per multiply-add, as detection papers count them."""
    return 2 * count_multiply_adds(model, (1, 3, size, size)) / 1e9


# N, S, M: table 1 of arXiv 2301.05586. T: table 1 of arXiv 2209.02976, whose layout it has. Fused, at 640 × 640, COCO.
@pytest.mark.parametrize(
    ("name", "millions", "billions"),
    [("yolov6_n", 4.7, 11.4), ("yolov6_t", 15.0, 36.7), ("yolov6_s", 18.5, 45.3), ("yolov6_m", 34.9, 85.8)],
)
def test_yolov6_has_the_parameters_and_operations_of_the_paper(name: str, millions: float, billions: float) -> None:
    model = meta(name, deploy=True)
    # half a unit of the digit printed; N has 4.649 and is the furthest off
    assert count_parameters(model) / 1e6 == pytest.approx(millions, abs=0.055)
    # 1.2 %: the authors' tool also counts biases, batch norms and poolings; 1.0 % (T) is the furthest off
    assert gigaflops(model, 640) == pytest.approx(billions, rel=0.012)
    assert gigaflops(model, 640) < billions


def test_yolov6_lite_s_has_the_size_of_the_release() -> None:
    model = meta("yolov6lite_s")
    # half a unit, of what remains when the norms are folded: a bias instead of a scale and an offset
    norms = sum(module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert (count_parameters(model) - norms) / 1e6 == pytest.approx(0.55, abs=0.005)
    billions, normalized = gigaflops(model, 320), 0

    def count(_: nn.Module, __: object, output: torch.Tensor) -> None:
        nonlocal normalized
        normalized += output.numel()

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(count)
    model.eval()(torch.empty(1, 3, 320, 320, device="meta"))
    # of depthwise networks norms are a good part: the authors' tool counts four operations for each of their values.
    # The rest, 2.3 %, are its activations and poolings
    assert billions == pytest.approx(0.527, abs=0.0005)
    assert billions + 4 * normalized / 1e9 == pytest.approx(0.56, rel=0.025)


# parameters: floats of the authors' weight files less the norms' means and variances; operations: what their program
# prints for 416 × 416 (65.864 and 5.56 billion)
@pytest.mark.parametrize(
    ("name", "parameters", "billions"), [("yolov3", 61_949_149, 65.864), ("yolov3_tiny", 8_852_366, 5.56)]
)
def test_yolov3_is_darknets(name: str, parameters: int, billions: float) -> None:
    model = meta(name)
    assert count_parameters(model) == parameters
    # a tenth of a per cent: the tiny form's are printed with two digits
    assert gigaflops(model, 416) == pytest.approx(billions, rel=1e-3)


def test_ssd_lite_has_the_size_of_the_mobilenet_v2_paper() -> None:
    # table 6 of arXiv 1801.04381, COCO at 320 × 320: 4.3 M parameters, 0.8 B multiply-adds; half a unit each
    model = meta("ssdlite_mobilenet_v2")
    assert count_parameters(model) / 1e6 == pytest.approx(4.3, abs=0.05)
    assert count_multiply_adds(model, (1, 3, 320, 320)) / 1e9 == pytest.approx(0.8, abs=0.05)
    # with the 20 classes of VOC 3.36 M: "about 3.4 M", half a unit of that digit
    assert count_parameters(meta("ssdlite_mobilenet_v2", num_classes=20)) / 1e6 == pytest.approx(3.4, abs=0.05)


def test_transposed_convolutions_are_counted() -> None:
    # 5 · 5 inputs of 4 channels, each of which gives to 6 channels · 2 · 2
    assert count_multiply_adds(nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5)) == 25 * 4 * 24
    assert count_multiply_adds(nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (1, 4, 5, 5)) == 25 * 4 * 12
