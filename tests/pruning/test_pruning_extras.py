"""Sensitivity, slimming and sparsity."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from edgevision.errors import DataError, UsageError
from edgevision.models import create_model
from edgevision.pruning import find_groups
from edgevision.pruning.sensitivity import measure_sensitivity, save_sensitivity
from edgevision.pruning.slimming import l1_on_scales
from edgevision.pruning.sparsity import apply_masks, check_sparsity, is_two_of_four, kept_zero, two_of_four


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model = create_model("repvgg_tiny", num_classes=3, input_size=16, width=0.5).eval()
    return model, find_groups(model, (1, 3, 16, 16))


def pictures(count=8, labels=True):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, 3, 16, 16, generator=generator)
    return [(images, torch.arange(count) % 3 if labels else None)]


def test_each_group_is_cut_alone_and_deeper_cuts_save_more(tiny, tmp_path):
    model, groups = tiny
    result = measure_sensitivity(model, groups, pictures(), ratios=(0.75, 0.25))
    assert [(cut.group, cut.ratio) for cut in result.cuts] == [
        (name, ratio) for name in groups.names() for ratio in (0.25, 0.75)
    ]
    for light, deep in zip(result.cuts[::2], result.cuts[1::2], strict=True):
        assert light.kept == round(light.channels * 0.75)
        assert 0 < light.macs < deep.macs < 1
        assert light.error > 0
        assert light.agreement is not None
    images, labels = pictures()[0]
    with torch.no_grad():
        whole = float((model(images).argmax(1) == labels).double().mean())
    assert result.accuracy == whole
    assert result.kept == {"linear": "they are outputs of the network"}
    files = save_sensitivity(result, tmp_path)
    assert [path.name for path in files] == [f"pruning_sensitivity.{kind}" for kind in ("json", "csv", "svg")]
    assert json.loads(files[0].read_text())["cuts"][0]["group"] == result.cuts[0].group
    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    assert [float(row["error"]) for row in rows] == pytest.approx([cut.error for cut in result.cuts], rel=1e-5)
    bars = ElementTree.fromstring(files[2].read_text()).findall(".//{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 1 + 2 + len(result.cuts)  # the ground, the legend, the bars


def test_without_labels_the_answers_are_compared(tiny):
    model, groups = tiny
    result = measure_sensitivity(model, groups, pictures(labels=False), ratios=(0.5,))
    assert result.accuracy is None
    assert all(cut.accuracy is None and cut.error > 0 for cut in result.cuts)


def test_sensitivity_of_a_network_with_several_outputs():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 8, 3, padding=1)
            self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            body = self.body(x).relu()
            return {"boxes": self.boxes(body), "scores": self.scores(body)}

    model = Heads()
    result = measure_sensitivity(model, find_groups(model, (1, 3, 16, 16)), pictures(), ratios=(0.5,))
    (cut,) = result.cuts
    assert cut.error > 0
    assert cut.agreement is None


def test_sensitivity_refuses_bad_ratios_and_no_pictures(tiny):
    with pytest.raises(UsageError, match="a ratio of the sensitivity must be above 0 and below 1; got 1"):
        measure_sensitivity(*tiny, pictures(), ratios=(1,))
    with pytest.raises(UsageError, match="at least one ratio"):
        measure_sensitivity(*tiny, pictures(), ratios=())
    with pytest.raises(DataError, match="there are none"):
        measure_sensitivity(*tiny, [], ratios=(0.5,))


def test_slimming_adds_the_subgradient_of_l1_to_every_scale():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -1.0, 0.0, 2.0]))
    x = torch.randn(4, 3, 5, 5)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    with l1_on_scales(model, 0.5) as count:
        assert count == 4
        slimmed = gradients()
    expected = [gradient.clone() for gradient in plain]
    expected[2] += torch.tensor([0.5, -0.5, 0.0, 0.5])
    for got, wanted in zip(slimmed, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)  # one addition in float32
    assert all(torch.equal(a, b) for a, b in zip(gradients(), plain, strict=True))


def test_slimming_pulls_unneeded_scales_to_zero():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    optimizer = torch.optim.SGD(norm.parameters(), lr=0.1)
    x = torch.randn(16, 6, 4, 4)
    with l1_on_scales(norm, 0.01):
        for _ in range(200):
            optimizer.zero_grad()
            norm(x)[:, :3].sub(x[:, :3]).square().mean().backward()  # the other three serve nobody
            optimizer.step()
    scales = norm.weight.detach().abs()
    assert scales[:3].min() > 0.5
    assert scales[3:].max() < 0.9  # 200 steps of 0.1 × 0.01 from 1


def test_slimming_refuses_what_it_cannot_do():
    with pytest.raises(UsageError, match="must be above 0 and below 1; got 0"), l1_on_scales(nn.BatchNorm2d(2), 0):
        pass
    with pytest.raises(UsageError, match="the network has none"), l1_on_scales(nn.Conv2d(1, 1, 1), 1e-4):
        pass


@pytest.mark.parametrize(
    ("pattern", "target", "message"),
    [
        ("unstructured", "tensorrt", "no engine runs faster with zeros scattered"),
        ("2:4", "onnxruntime", "gains nothing on onnxruntime: ONNX Runtime's kernels multiply zeros"),
        ("2:4", "openvino", "OpenVINO's convolutions multiply zeros"),
        ("2:4", "ncnn", "ncnn's kernels multiply zeros"),
        ("2:4", None, "only TensorRT, on GPUs of compute capability 8.0"),
        ("4:8", "tensorrt", "unknown sparsity '4:8'"),
    ],
)
def test_sparsity_without_a_gain_is_refused_with_the_reason(pattern, target, message):
    with pytest.raises(UsageError, match=message):
        check_sparsity(pattern, target)
    check_sparsity("2:4", "tensorrt")


def test_two_of_four_keeps_the_greatest_along_the_inputs():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, 1.0, 1.0, 1.0, 1.0]])
    layer = nn.Linear(8, 1)
    with torch.no_grad():
        layer.weight.copy_(weight)
    masks = two_of_four(nn.Sequential(layer))
    assert masks["0"].tolist() == [[False, True, True, False, True, True, False, False]]
    assert two_of_four(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 4, 3, groups=4))).keys() == {
        "1"
    }
    with pytest.raises(UsageError, match="the network has none"):
        two_of_four(nn.Sequential(nn.Conv2d(3, 8, 3)))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_zeros_stay_zero_while_the_rest_trains(optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    arguments = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    stepper = optimizer(model.parameters(), lr=0.05, weight_decay=0.01, **arguments)
    masks = two_of_four(model)
    apply_masks(model, masks)
    before = model[2].weight.detach().clone()
    with kept_zero(model, masks):
        for _ in range(4):
            stepper.zero_grad()
            model(torch.randn(2, 4, 8, 8)).square().sum().backward()
            stepper.step()
    for layer in (model[0], model[2]):
        assert is_two_of_four(layer.weight)
        assert int((layer.weight == 0).sum()) == layer.weight.numel() // 2
    assert not torch.equal(before, model[2].weight)
    assert not is_two_of_four(torch.ones(2, 4))
    assert not is_two_of_four(torch.zeros(2, 3))
    np.testing.assert_array_equal((before == 0).numpy(), (model[2].weight == 0).numpy())
