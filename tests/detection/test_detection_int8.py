"""What is decoded in the graph stays in float, so that INT8 finds what FP32 finds."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from detection_nets import CLASSES, SIZE, anchor_free, pictures, pixels_and_logits

from edgevision.detection import Postprocess
from edgevision.detection.boxes import iou_matrix
from edgevision.pipeline.golden import run_graph
from edgevision.preprocess import Placement
from edgevision_calibration.observe import observe
from edgevision_calibration.planning import make_plan
from edgevision_calibration.scheme import SCHEMES
from edgevision_calibration.tail import tail_of
from edgevision_converters.canonical import canonicalize
from edgevision_converters.qdq import quantize_dequantize

NETS = {"in the graph": anchor_free, "pixels beside logits": pixels_and_logits}
# no cell of the seconds' pictures was calibrated with
CALIBRATION, SEEN = 1, 9
WHOLE = Placement(1.0, 1.0, 0.0, 0.0, SIZE, SIZE)


@pytest.fixture(scope="module", params=NETS)
def observed(request):
    """A graph, its table, its FP32 outputs on other pictures, and a threshold that some of their cells pass."""
    graph = canonicalize(NETS[request.param]())
    table = observe(graph, iter(pictures(8, CALIBRATION)))
    feed = np.concatenate(pictures(4, SEEN))
    fp32 = run_graph(graph.to_bytes(), feed, exact=False)
    return graph, table, feed, fp32


def detections(outputs, least: float):
    """As a device has them: scores are brought to 0..1 where the net gives logits."""
    values = outputs["output"].copy()
    if values[:, 4:].min() < 0:
        values[:, 4:] = 1 / (1 + np.exp(-values[:, 4:]))
    return Postprocess("yolov8", {"strides": [32], "num_classes": CLASSES}, confidence=least)(
        {"output": values}, (SIZE, SIZE), [WHOLE] * len(values)
    )


def found_again(first, second) -> float:
    """Share of the first's boxes that the second has too: same class, IoU of 0.8."""
    again = total = 0
    for one, other in zip(first, second, strict=True):
        alike = (iou_matrix(one.boxes, other.boxes) >= 0.8) & (one.labels[:, None] == other.labels[None, :])
        again, total = again + int(alike.any(axis=1).sum()), total + len(one)
    assert total >= 8
    return again / total


@pytest.mark.parametrize("target", SCHEMES)
def test_int8_finds_what_fp32_finds(observed, target):
    graph, table, feed, fp32 = observed
    plan = make_plan(graph, table, SCHEMES[target])
    assert plan.weights
    int8 = run_graph(quantize_dequantize(graph, plan).SerializeToString(), feed, exact=True)
    # the outputs' own noise moves scores about the threshold: INT8 may show what FP32 has just below
    assert found_again(detections(fp32, 0.25), detections(int8, 0.2)) >= 0.9


@pytest.mark.parametrize("target", SCHEMES)
def test_nothing_behind_the_last_layers_carries_integers(observed, target):
    graph, table, *_ = observed
    plan = make_plan(graph, table, SCHEMES[target])
    tail = tail_of(graph)
    convolutions = {name for node in graph.nodes if node.op_type == "Conv" for name in node.output}
    # a convolution's own output may, where all its channels have enough of the steps
    assert not set(plan.activations) & (tail.tensors - convolutions)
    for name in set(plan.activations) & tail.tensors:
        seen = table[name]
        assert ((seen.channel_high - seen.channel_low) / plan.activations[name].scale >= 30).all()


def test_dfls_convolution_stays_in_float():
    graph = canonicalize(anchor_free())
    (decoder,) = tail_of(graph).decoders
    assert graph.producer[next(node for node in graph.nodes if node.name == decoder).input[0]].op_type == "Softmax"
    table = observe(graph, iter(pictures(4)))
    for scheme in SCHEMES.values():
        plan = make_plan(graph, table, scheme)
        assert plan.float_ops[decoder] == "it decodes what the last layers give"


def test_naive_placement_loses_every_score(tmp_path: Path, monkeypatch):
    """The failure itself, as ONNX Runtime's own static quantization has it: one step for pixels and probabilities."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self.feed = iter(pictures(8, CALIBRATION))

        def get_next(self):
            picture = next(self.feed, None)
            return None if picture is None else {"images": picture}

    monkeypatch.setattr(logging.getLogger(), "disabled", True)
    onnx.save(anchor_free(), str(tmp_path / "net.onnx"))
    quantize_static(tmp_path / "net.onnx", tmp_path / "int8.onnx", Pictures(), per_channel=True)
    feed = np.concatenate(pictures(4, SEEN))
    fp32 = run_graph((tmp_path / "net.onnx").read_bytes(), feed, exact=False)
    naive = run_graph((tmp_path / "int8.onnx").read_bytes(), feed, exact=False)
    assert sum(map(len, detections(fp32, 0.25))) >= 8
    assert sum(map(len, detections(naive, 0.01))) == 0
    # boxes are whole: nothing but the detections tells
    assert naive["output"][:, :4].max() == pytest.approx(fp32["output"][:, :4].max(), rel=0.1)


def test_what_is_pooled_is_no_tail():
    # a classifier's large last convolution keeps its integers on both sides
    from detection_nets import Builder, body

    b = Builder()
    x = b.op("Relu", b.random_conv(body(b), 32, 64, 1))
    b.op("Flatten", b.op("GlobalAveragePool", x), out="logits")
    graph = canonicalize(b.model({"logits": [1, 64]}))
    assert tail_of(graph).tensors <= {"logits", *graph.producer["logits"].input}
    plan = make_plan(graph, observe(graph, iter(pictures(4))), SCHEMES["onnxruntime"])
    last = [node for node in graph.nodes if node.op_type == "Conv"][-1]
    assert last.name not in plan.float_ops
    assert {last.output[0], *(node.output[0] for node in graph.consumers[last.output[0]])} & set(plan.activations)


def test_a_mean_over_a_softmax_inside_a_network_is_none_of_the_tail():
    from detection_nets import Builder, body

    b = Builder()
    shares = b.op("Softmax", b.random_conv(body(b), 32, 16, 1), axis=1)
    x = b.op("Relu", b.random_conv(shares, 16, 16, 1))
    last = b.random_conv(x, 16, 8, 3)
    b.op("Sigmoid", last, out="output")
    tail = tail_of(canonicalize(b.model({"output": [1, 8, 20, 20]})))
    assert tail.decoders == ()
    assert tail.tensors == {last, "output"}
