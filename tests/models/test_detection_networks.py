"""Detectors as networks: what comes out, from which parts they are made, what they say before training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgevision.detection.decoders import DECODERS
from edgevision.errors import UsageError
from edgevision.models import MODELS, create_model, task_of
from edgevision.models.detection.build import build_detector
from edgevision.models.detection.config import DetectorConfig
from edgevision.models.detection.darknet import StillPool
from edgevision.models.detection.detector import Detector
from edgevision.models.detection.heads.ssd import default_boxes
from edgevision.models.detection.yolov6 import YOLOV6_N
from edgevision.models.reparameterize import is_reparameterizable, reparameterization_error, reparameterize
from edgevision.models.shuffle import interleave
from edgevision.preprocess import Preprocess

NAMES = [name for name in sorted(MODELS._entries) if task_of(name) == "detection"]
REPARAMETERIZABLE = ["yolov6_n", "yolov6_t", "yolov6_m"]


def small(name: str, **arguments: Any) -> Detector:
    torch.manual_seed(0)
    model = create_model(name, **{"num_classes": 3, "input_size": 64, "width": 0.125, **arguments})
    assert isinstance(model, Detector)
    return model


def lived_in(model: nn.Module) -> nn.Module:
    """With statistics in its batch norms that belong to pictures, and none of them neutral."""
    torch.manual_seed(1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 0.5
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    model.train()
    with torch.no_grad():
        for _ in range(6):
            model(torch.rand(4, 3, 64, 64))
    return model.eval()


def expected_outputs(name: str, classes: int, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """The contract: names in order, with channels, height and width."""
    shapes: dict[str, tuple[int, ...]] = {}
    if name.startswith("yolov6"):
        sides = 4 * 17 if name == "yolov6_m" else 4
        for s in (8, 16, 32, 64) if "lite" in name else (8, 16, 32):
            shapes[f"scores_{s}"] = (classes, height // s, width // s)
            shapes[f"boxes_{s}"] = (sides, height // s, width // s)
    elif name.startswith("yolov3"):
        for s in (32, 16) if "tiny" in name else (32, 16, 8):
            shapes[f"anchors_{s}"] = (3 * (5 + classes), height // s, width // s)
    else:
        for i in range(6):
            priors, step = (3 if i == 0 else 6), 16 * 2**i
            cells = (-(-height // step), -(-width // step))
            shapes[f"scores_{i}"] = (priors * (classes + 1), *cells)
            shapes[f"boxes_{i}"] = (priors * 4, *cells)
    return shapes


@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_the_names_order_and_shapes_of_the_contract(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=3, width=0.25)
        for training in (True, False):
            outputs = model.train(training)(torch.empty(2, 3, 192, 320))
            assert [(key, tuple(value.shape[1:])) for key, value in outputs.items()] == list(
                expected_outputs(name, 3, 192, 320).items()
            )
            assert all(value.shape[0] == 2 for value in outputs.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_from_every_output(name: str) -> None:
    model = small(name)
    sum(value.square().sum() for value in model(torch.randn(4, 3, 64, 64)).values()).backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]
    with torch.no_grad():
        first, second = (model(torch.randn(4, 3, 64, 64)) for _ in range(2))
    assert all(value.isfinite().all() for value in first.values())
    assert not any(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_cocos_classes_and_the_catalogues_size(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    arguments = model.architecture["arguments"]
    assert arguments["num_classes"] == model.num_classes == 80
    assert arguments["input_size"] == (640 if "yolov6_" in name else 416 if "yolov3" in name else 320)


@settings(max_examples=5, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    classes=st.integers(1, 30),
    channels=st.integers(1, 4),
    width=st.floats(0.05, 1.2),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
)
def test_any_classes_channels_widths_and_sizes(
    name: str, classes: int, channels: int, width: float, rows: int, columns: int
) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=classes, in_channels=channels, width=width, input_size=64).eval()
        outputs = model(torch.empty(1, channels, 64 * rows, 64 * columns))
    assert {key: tuple(value.shape[1:]) for key, value in outputs.items()} == expected_outputs(
        name, classes, 64 * rows, 64 * columns
    )


@pytest.mark.parametrize(
    ("name", "size", "near"),
    [("yolov6_n", 630, "608 or 640"), ("yolov3", 400, "384 or 416"), ("yolov6lite_s", 352, "320 or 384"),
     ("yolov6_n", 20, "got 20: use 32$")],
)  # fmt: skip
def test_sizes_between_the_strides_are_refused_with_the_near_ones(name: str, size: int, near: str) -> None:
    with pytest.raises(UsageError, match=near):
        create_model(name, input_size=size, width=0.1)


def test_pictures_between_the_strides_are_refused_with_the_near_ones() -> None:
    with torch.device("meta"):
        model = create_model("yolov6_n", width=0.25)
        with pytest.raises(UsageError, match=r"got 72 × 64: use 64 or 96 by 64$"):
            model(torch.empty(1, 3, 72, 64))
        # SSD-Lite rounds its maps up, and takes the paper's 300 as well
        outputs = create_model("ssdlite_mobilenet_v2", width=0.25).eval()(torch.empty(1, 3, 300, 300))
    assert [outputs[f"scores_{i}"].shape[-1] for i in range(6)] == [19, 10, 5, 3, 2, 1]


@pytest.mark.parametrize("name", REPARAMETERIZABLE)
@pytest.mark.parametrize("block", ["repvgg", "qarepvgg"])
def test_fusing_a_whole_detector_does_not_change_its_answers(name: str, block: str) -> None:
    model = lived_in(small(name, block=block))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = reparameterize(model)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, got = model(x), fused(x)
    assert list(got) == list(expected)
    largest = max(float(value.abs().max()) for value in expected.values())
    # 1e-4 of the outputs' range: some thirty layers, each with a float32 rounding (6e-8) of sums in another order
    assert reparameterization_error(model, fused, x) <= 1e-4 * largest
    assert max(float((expected[key] - got[key]).abs().max()) for key in expected) <= 1e-4 * largest
    assert largest > 0.1
    assert not is_reparameterizable(fused)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    # what fusing makes is what `deploy=True` builds
    rebuilt = create_model(name, **{**model.architecture["arguments"], "deploy": True})
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in fused.state_dict().items()}
    assert fused.architecture == rebuilt.architecture


@pytest.mark.parametrize("name", NAMES)
def test_before_training_little_is_found(name: str) -> None:
    # with the pictures' own statistics: a fresh network's norms do not know any yet
    model = small(name, num_classes=5, width=0.25)
    with torch.no_grad():
        outputs = {key: value.numpy() for key, value in model(torch.rand(8, 3, 64, 64)).items()}
    postprocess = model.postprocess()
    assert not any(len(one) for one in postprocess.candidates(outputs, (64, 64)))
    least = replace(postprocess, confidence=1e-4, multi_label=True)
    scores = np.concatenate([one.scores for one in least.candidates(outputs, (64, 64))])
    # the prior probability of 0.01, which SSD shares among its five classes and YOLOv3 multiplies with a fifth;
    # factor 1.5: the last convolutions' small weights see the picture already
    prior = 0.01 if name.startswith("yolov6") else 0.002
    assert prior / 1.5 < np.median(scores) < prior * 1.5


@pytest.mark.parametrize("name", NAMES)
def test_postprocess_reads_the_outputs(name: str) -> None:
    model = small(name).eval()
    with torch.no_grad():
        outputs = {key: value.numpy() for key, value in model(torch.rand(2, 3, 64, 128)).items()}
    postprocess = model.postprocess(confidence=0.0)
    assert postprocess.decoder in DECODERS
    assert postprocess.decoder == model.head.kind
    placement = Preprocess((64, 128), "letterbox").placement(640, 320)
    found = postprocess(outputs, (64, 128), [placement, placement], ("a", "b", "c"))
    assert len(found) == 2
    assert all(len(one) for one in found)
    assert type(postprocess).from_dict(postprocess.to_dict()) == postprocess


def test_boxes_of_yolov6_begin_two_strides_wide() -> None:
    model = small("yolov6_n")
    with torch.no_grad():
        outputs = model(torch.rand(8, 3, 64, 64))
    for stride in model.strides:
        # weights N(0, 0.01) leave the bias of 1 as it is, to a tenth
        assert torch.allclose(outputs[f"boxes_{stride}"].mean(), torch.tensor(1.0), atol=0.1)


def test_anchors_go_to_the_levels_by_their_size() -> None:
    model = small("yolov3", input_size=416)
    options = model.postprocess().options
    assert options["strides"] == [32, 16, 8]
    # section 2.3 of the paper: the three largest belong to the coarsest map
    assert options["anchors"] == [
        [[116, 90], [156, 198], [373, 326]], [[30, 61], [62, 45], [59, 119]], [[10, 13], [16, 30], [33, 23]],
    ]  # fmt: skip
    double = small("yolov3_tiny", input_size=832).postprocess().options
    assert double["anchors"][1][0] == [20, 28]
    own = small("yolov3_tiny", anchors=[[40, 40], [5, 6], [20, 10], [60, 50]])
    assert own.postprocess().options["anchors"] == [[[40, 40], [60, 50]], [[5, 6], [20, 10]]]
    assert own(torch.rand(1, 3, 64, 64))["anchors_32"].shape == (1, 2 * 8, 2, 2)


@pytest.mark.parametrize(
    ("anchors", "message"),
    [([[1, 2]], "do not divide into 2 levels"), ([[1, 2, 3], [1, 2, 3]], "pairs"), ([[1, 0], [1, 1]], "above 0")],
)
def test_bad_anchors_are_refused(anchors: list[list[float]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small("yolov3_tiny", anchors=anchors)


def test_default_boxes_of_ssd() -> None:
    boxes = default_boxes(6)
    assert [len(level) for level in boxes] == [3, 6, 6, 6, 6, 6]
    assert boxes[0][0] == (0.1, 0.1)
    # equation 4: scales rise evenly from 0.2 to 0.95; the square between two is their geometric mean
    scales = [level[0][0] for level in boxes[1:]]
    assert scales == pytest.approx([0.35, 0.5, 0.65, 0.8, 0.95])
    assert boxes[1][-1] == pytest.approx((np.sqrt(0.35 * 0.5),) * 2)
    # all shapes of a level but the extra squares cover the same area
    for level, scale in zip(boxes[1:], scales, strict=True):
        assert [w * h for w, h in level[:5]] == pytest.approx([scale**2] * 5)
    assert sorted(w / h for w, h in boxes[2][:5]) == pytest.approx([1 / 3, 0.5, 1, 2, 3])


@pytest.mark.parametrize("backbone", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "qarepvgg_a0",
                                      "efficientrep_n"])  # fmt: skip
@pytest.mark.parametrize("neck", ["fpn", "pan", "rep_bi_pan"])
def test_any_network_with_a_pyramid_is_a_backbone(backbone: str, neck: str) -> None:
    options = {"depth": 0.33, "scale": 0.25} if neck.startswith("rep") else {}
    config = DetectorConfig(backbone={"name": backbone}, neck={"name": neck, **options}, head={"name": "decoupled"})
    torch.manual_seed(0)
    detector = build_detector(config, num_classes=2, width=0.125, input_size=64)
    outputs = detector(torch.rand(2, 3, 64, 64))
    assert {key: tuple(value.shape[1:]) for key, value in outputs.items()} == expected_outputs("yolov6", 2, 64, 64)
    sum(value.square().sum() for value in outputs.values()).backward()
    assert not [key for key, parameter in detector.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("backbone", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"])
def test_weights_of_a_classifier_serve_as_a_backbone(backbone: str) -> None:
    config = DetectorConfig(backbone={"name": backbone}, neck={"name": "fpn"}, head={"name": "decoupled"})
    detector = build_detector(config, num_classes=2, width=0.25, input_size=64)
    classifier = create_model(backbone, num_classes=2, input_size=224, width=0.25)
    missing = detector.backbone.network.load_state_dict(classifier.state_dict(), strict=False)
    assert not missing.missing_keys
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        expected, got = classifier.eval().pyramid(x), detector.eval().backbone(x)
    assert [m.shape[-1] for m in got] == [24, 12, 6, 3]
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert detector.backbone.channels == tuple(m.shape[1] for m in got)


@pytest.mark.parametrize(("network", "inner"), [("mobilenet_v1", 512), ("mobilenet_v2", 576),
                                                ("mobilenet_v3_small", 288)])  # fmt: skip
def test_ssd_taps_the_maps_that_the_papers_name(network: str, inner: int) -> None:
    config = DetectorConfig(
        backbone={"name": "mobilenet_ssd", "network": network}, neck={"name": "ssd_extras"}, head={"name": "ssd"},
        strides=(16, 32, 64, 128, 256, 512), size_multiple=1,
    )  # fmt: skip
    with torch.device("meta"):
        detector = build_detector(config, num_classes=2, input_size=320).eval()
        c4, c5 = detector.backbone(torch.empty(1, 3, 320, 320))
    assert detector.backbone.channels == (inner, c5.shape[1])
    assert (c4.shape[1:], c5.shape[2:]) == ((inner, 20, 20), (10, 10))


def test_unknown_parts_name_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"unknown neck 'rep_pann': did you mean .*rep_pan"):
        build_detector(replace(YOLOV6_N, neck={"name": "rep_pann"}))
    with pytest.raises(UsageError, match="unknown backbone 'resnet'"):
        build_detector(replace(YOLOV6_N, backbone={"name": "resnet"}))
    with pytest.raises(UsageError, match="squeezenet1_1 offers no maps"):
        build_detector(replace(YOLOV6_N, backbone={"name": "squeezenet1_1"}))
    with pytest.raises(UsageError, match=r"head decoupled: .*regmax"):
        build_detector(replace(YOLOV6_N, head={"name": "decoupled", "regmax": 3}))
    with pytest.raises(UsageError, match="unknown block 'repvg'"):
        create_model("yolov6_n", block="repvg")
    with pytest.raises(UsageError, match="yolov3 takes no argument 'block'"):
        create_model("yolov3", block="repvgg")


def test_tasks_of_the_registry() -> None:
    assert task_of("yolov6_n") == "detection"
    assert task_of("mobilenet_v2") == "classification"
    with pytest.raises(UsageError, match="did you mean"):
        task_of("yolov6_x")


def test_interleaving_takes_the_halves_in_turn() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1, 1).expand(2, 6, 3, 2)
    assert interleave(x)[1, :, 2, 1].tolist() == [0, 3, 1, 4, 2, 5]


def test_pooling_at_stride_1_is_darknets() -> None:
    x = torch.randn(2, 3, 5, 4)
    # what lies beyond the picture is less than anything in it
    expected = nn.functional.max_pool2d(nn.functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 2, stride=1)
    assert torch.equal(StillPool()(x), expected)
