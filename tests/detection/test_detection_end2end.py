"""Decoding and suppression as nodes of a graph, against the decoders and the suppression of the device side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_detection_decoders import CASES, CONFIDENCE, SIZE

from edgevision.detection import Detections, Postprocess
from edgevision.detection.boxes import iou_matrix
from edgevision.detection.compare import partners
from edgevision.detection.decoders import DECODERS
from edgevision.detection.decoders.end2end import OUTPUTS
from edgevision.errors import EngineError, UnsupportedOpError, UsageError
from edgevision.pipeline.end2end import end2end
from edgevision.preprocess import Placement
from edgevision_converters.end2end import append_detections, detections_model, detections_of
from edgevision_converters.end2end.families import FAMILIES
from edgevision_converters.passes.editor import set_attributes
from edgevision_converters.tensorrt import trt_check

WHOLE = Placement(1.0, 1.0, 0.0, 0.0, SIZE[1], SIZE[0])
# a decision that hangs on less than this is rounding's: float32 sigmoids and exponentials of two libraries differ by
# some 1e-7 of their value, and overlaps of boxes of a few pixels by some ten times that
HAIR = 1e-5


def outputs_of(case: str, seed: int, multi_label: bool = False) -> tuple[dict[str, np.ndarray], dict]:
    outputs, options, _ = CASES[case](np.random.default_rng(seed), multi_label)
    return {name: np.ascontiguousarray(value) for name, value in outputs.items()}, options


def postprocess_of(case: str, options: dict, **changes) -> Postprocess:
    return replace(Postprocess(case.split()[0], options, confidence=CONFIDENCE), **changes)


def on_onnxruntime(outputs, postprocess):
    return detections_of(outputs, postprocess, SIZE)


def on_openvino(outputs, postprocess):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    core = openvino.Core()
    made = detections_model({name: value.shape for name, value in outputs.items()}, postprocess, SIZE)
    model = core.read_model(made.SerializeToString())
    model.reshape({name: list(value.shape) for name, value in outputs.items()})
    # as the runtime compiles: left alone it would round to bfloat16 where the processor has it
    found = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(outputs)
    return {name: found[name].copy() for name in OUTPUTS}


ENGINES = {"onnxruntime": on_onnxruntime, "openvino": on_openvino}


def both(outputs, postprocess, engine=on_onnxruntime) -> tuple[list[Detections], list[Detections]]:
    """By the device's code from the raw outputs, and by its reader from the graph's detections."""
    placements = [WHOLE, WHOLE]
    return (
        postprocess(outputs, SIZE, placements),
        end2end(postprocess)(engine(outputs, postprocess), SIZE, placements),
    )


def assert_same(expected: list[Detections], found: list[Detections]) -> None:
    for one, other in zip(expected, found, strict=True):
        pairs = partners(one, other, iou=0.999)
        assert len(one) == len(other) == len(pairs)
        first, second = ([pair[side] for pair in pairs] for side in (0, 1))
        # float32 of other libraries and in another order of operations
        np.testing.assert_allclose(other.scores[second], one.scores[first], atol=HAIR)
        np.testing.assert_allclose(other.boxes[second], one.boxes[first], rtol=1e-5, atol=2e-3)


def clear_cut(outputs, postprocess) -> bool:
    """Whether no decision hangs on rounding: no score at the threshold or beside another, no overlap at its own."""
    for found in replace(postprocess, confidence=CONFIDENCE - HAIR).candidates(outputs, SIZE):
        scores = np.sort(found.scores)
        overlap = iou_matrix(found.boxes, found.boxes)[np.triu_indices(len(found), 1)]
        overlap = overlap[overlap > 0]
        near = np.abs(scores - CONFIDENCE).min(initial=1.0), np.abs(overlap - postprocess.iou).min(initial=1.0)
        if min(*near, np.diff(scores).min(initial=1.0)) < HAIR / 10:
            return False
    return True


def test_every_decoder_has_its_graph_but_those_that_read_one():
    assert {*FAMILIES, "end2end"} == set(DECODERS.names())
    assert {case.split()[0] for case in CASES} == set(FAMILIES)


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from(sorted(CASES)),
    seed=st.integers(0, 10_000),
    multi_label=st.booleans(),
    class_agnostic=st.booleans(),
    iou=st.sampled_from([0.0, 0.3, 0.5, 0.65, 0.9]),
    max_candidates=st.sampled_from([5, 40, 1000]),
    max_detections=st.sampled_from([1, 12, 300]),
)
def test_the_graph_finds_what_the_device_finds(
    case, seed, multi_label, class_agnostic, iou, max_candidates, max_detections
):
    outputs, options = outputs_of(case, seed, multi_label)
    postprocess = postprocess_of(
        case, options, iou=iou, multi_label=multi_label, class_agnostic=class_agnostic,
        max_candidates=max_candidates, max_detections=max_detections,
    )  # fmt: skip
    assume(clear_cut(outputs, postprocess))
    assert_same(*both(outputs, postprocess))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_openvino_finds_it_too(case, multi_label):
    for seed in range(50):
        outputs, options = outputs_of(case, seed, multi_label)
        postprocess = postprocess_of(case, options, multi_label=multi_label, max_candidates=100)
        if clear_cut(outputs, postprocess):
            break
    expected, found = both(outputs, postprocess, on_openvino)
    assert_same(expected, found)
    assert sum(map(len, expected))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("iou", [0.5, 0.25])
def test_ties_and_overlaps_at_the_threshold_are_settled_alike(engine, iou):
    """As integers give them: few different scores, boxes on a grid, whose overlaps are just the threshold."""
    rng = np.random.default_rng(0)
    rows = np.zeros((2, 7, 126), np.float32)
    rows[:, :2] = rng.integers(0, 5, (2, 2, 126)) * 8
    rows[:, 2:4] = rng.integers(1, 3, (2, 2, 126)) * 8
    rows[:, 4:] = rng.integers(0, 9, (2, 3, 126)) / 16
    postprocess = Postprocess("yolov8", confidence=0.375, iou=iou, max_candidates=100)
    candidates = postprocess.candidates({"output0": rows}, SIZE)
    assert all(50 < len(found) <= 100 for found in candidates)
    same = candidates[0].labels[:, None] == candidates[0].labels
    overlap = iou_matrix(candidates[0].boxes, candidates[0].boxes)
    # the very threshold, and boxes that are as good as each other
    assert (same & (overlap == iou)).any()
    expected, found = both({"output0": rows}, postprocess, ENGINES[engine])
    for one, other in zip(expected, found, strict=True):
        assert sorted(zip(one.scores.tolist(), one.labels.tolist(), one.boxes.tolist(), strict=True)) == sorted(
            zip(other.scores.tolist(), other.labels.tolist(), other.boxes.tolist(), strict=True)
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_pictures_without_objects_and_a_box_turned_round(engine):
    outputs = {"output0": np.zeros((2, 6, 126), np.float32)}
    # right of its left by less than nothing: ONNX's suppression would turn it round, and drop the other for it
    outputs["output0"][1, :, 0] = [40, 30, -20, 20, 0.9, 0]
    outputs["output0"][1, :, 1] = [40, 30, 20, 20, 0.8, 0]
    postprocess = Postprocess("yolov8", iou=0.5)
    raw = ENGINES[engine](outputs, postprocess)
    assert raw["num_detections"].tolist() == [[0], [2]]
    assert not any(value[0].any() for value in raw.values())
    _, found = both(outputs, postprocess, ENGINES[engine])
    assert [one.boxes.tolist() for one in found] == [[], [[30, 20, 50, 40]]]


def test_form_of_the_outputs():
    outputs, options = outputs_of("yolov6", 0)
    raw = on_onnxruntime(outputs, postprocess_of("yolov6", options, max_detections=7))
    assert {name: (value.dtype, value.shape) for name, value in raw.items()} == {
        "num_detections": (np.int32, (2, 1)),
        "detection_boxes": (np.float32, (2, 7, 4)),
        "detection_scores": (np.float32, (2, 7)),
        "detection_classes": (np.int32, (2, 7)),
    }
    assert (np.diff(raw["detection_scores"]) <= 0).all()
    # no more rows than there are candidates
    few = on_onnxruntime(outputs, postprocess_of("yolov6", options, max_candidates=4))
    assert few["detection_boxes"].shape == (2, 4, 4)


def test_what_no_graph_decodes_is_refused():
    outputs, _ = outputs_of("yolov8", 0)
    for decoder in ("mine.boxes:decode", "end2end"):
        with pytest.raises(UsageError, match=f"--nms graph knows the decoders fastestdet, .*; what {decoder} reads"):
            on_onnxruntime(outputs, Postprocess(decoder))
    with pytest.raises(EngineError, match="decoder fastestdet expects"):
        on_onnxruntime(outputs, Postprocess("fastestdet"))
    flat = {"boxes": np.zeros((9, 4), np.float32), "scores": np.zeros((9, 2), np.float32)}
    with pytest.raises(UsageError, match="have no batch"):
        on_onnxruntime(flat, Postprocess("ssd_onnx"))


def plugin_model(postprocess: Postprocess, outputs: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The appended nodes with TensorRT's plugin, behind a network that only hands its inputs on."""
    shapes = {name: value.shape for name, value in outputs.items()}
    helper = onnx.helper
    given = [helper.make_tensor_value_info(f"{name}_in", 1, ["N", *shape[1:]]) for name, shape in shapes.items()]
    wanted = [helper.make_tensor_value_info(name, 1, ["N", *shape[1:]]) for name, shape in shapes.items()]
    nodes = [helper.make_node("Identity", [f"{name}_in"], [name], name) for name in shapes]
    network = helper.make_model(
        helper.make_graph(nodes, "network", given, wanted), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    return append_detections(network, shapes, postprocess, SIZE, plugin=True)


@pytest.mark.parametrize("case", CASES)
def test_tensorrts_plugin_gets_what_its_documentation_asks_for(case):
    outputs, options = outputs_of(case, 1)
    postprocess = postprocess_of(case, options, class_agnostic=True, iou=0.45, max_candidates=100, max_detections=20)
    model = plugin_model(postprocess, outputs)
    trt_check(model)
    onnx.checker.check_model(model)
    plugin = model.graph.node[-1]
    most = int(model.graph.output[1].type.tensor_type.shape.dim[1].dim_value)
    assert most <= 20
    assert (plugin.op_type, plugin.domain, list(plugin.output)) == ("EfficientNMS_TRT", "TRT", list(OUTPUTS))
    settled = {its.name: onnx.helper.get_attribute_value(its) for its in plugin.attribute}
    assert settled == {
        "plugin_version": b"1",
        "background_class": -1,
        "box_coding": 0,
        "class_agnostic": 1,
        "iou_threshold": pytest.approx(0.45),
        "max_output_boxes": most,
        "score_activation": 0,
        "score_threshold": pytest.approx(CONFIDENCE),
    }
    shapes = {value.name: value.type.tensor_type for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    boxes, scores = ([dim.dim_value for dim in shapes[name].shape.dim] for name in plugin.input)
    assert (boxes[0], boxes[2], boxes[1]) == (0, 4, scores[1])
    assert [value.name for value in model.graph.output] == list(OUTPUTS)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"box_coding": 3}, r"EfficientNMS_TRT 'EfficientNMS_TRT' sets box_coding=3; expected one of \(0, 1\)"),
        ({"plugin_version": "2"}, "sets plugin_version='2'"),
        ({"max_output_box": 9}, "sets max_output_box=9; known are plugin_version, "),
        ({"score_threshold": None}, "does not say score_threshold, whose default differs"),
    ],
)
def test_a_plugin_that_would_be_read_otherwise_is_refused(change, told):
    model = plugin_model(Postprocess("yolov8"), outputs_of("yolov8", 0)[0])
    set_attributes(model.graph.node[-1], **change)
    with pytest.raises(UnsupportedOpError, match=told):
        trt_check(model)


def test_a_plugin_of_another_form_or_name_is_refused():
    model = plugin_model(Postprocess("yolov8"), outputs_of("yolov8", 0)[0])
    del model.graph.node[-1].output[-1]
    with pytest.raises(UnsupportedOpError, match="has 2 inputs and 3 outputs; it takes boxes and scores"):
        trt_check(model)
    model.graph.node[-1].op_type = "BatchedNMS_TRT"
    with pytest.raises(UnsupportedOpError, match="BatchedNMS_TRT 'EfficientNMS_TRT' is of domain 'TRT'"):
        trt_check(model)


def test_more_candidates_than_tensorrt_sorts_are_refused():
    outputs, options = outputs_of("yolov8", 1)
    with pytest.raises(UsageError, match="TensorRT sorts up to 3840 values; got max_candidates 4000"):
        plugin_model(postprocess_of("yolov8", options, max_candidates=4000), outputs)


def fixed(**changes) -> Postprocess:
    return end2end(Postprocess("yolov8", confidence=0.3, iou=0.6, max_detections=50, **changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"confidence": 0.2}, r"suppresses by itself, with confidence 0\.3 or more; got 0\.2.*--nms device"),
        ({"iou": 0.5}, r"with iou 0\.6 alone; got 0\.5"),
        ({"max_detections": 60}, "with max_detections 50 or fewer; got 60"),
        ({"class_agnostic": True}, "with class_agnostic False alone"),
        ({"multi_label": True}, "with multi_label False alone"),
    ],
)
def test_a_threshold_that_the_graph_has_settled_cannot_be_asked_for(changes, told):
    with pytest.raises(UsageError, match=told):
        replace(fixed(), **changes)


def test_what_the_graph_leaves_open_can_be_asked_for():
    outputs = {
        "num_detections": np.asarray([[3]], np.int32),
        "detection_boxes": np.asarray([[[0, 0, 8, 8], [0, 0, 8, 8], [1, 1, 9, 9], [2, 2, 3, 3]]], np.float32),
        "detection_scores": np.asarray([[0.9, 0.8, 0.4, 0.99]], np.float32),
        "detection_classes": np.asarray([[1, 1, 0, 0]], np.int32),
    }
    # alike boxes stay: nothing is suppressed twice, and rows behind the number mean nothing
    for changes, labels in (({}, [1, 1, 0]), ({"confidence": 0.5}, [1, 1]), ({"max_detections": 1}, [1])):
        [found] = replace(fixed(), **changes)(outputs, SIZE, [WHOLE])
        assert found.labels.tolist() == labels
    own = Postprocess.from_dict(fixed().to_dict())
    assert own == fixed()
    assert own.fixed == Postprocess("yolov8", confidence=0.3, iou=0.6, max_detections=50)
    with pytest.raises(UsageError, match="leaves a decoder of yours nothing to read"):
        own.with_function(lambda *_, **__: [])
    # judges take what there is
    judged = own.adjusted(confidence=0.001, iou=0.65, multi_label=True, max_detections=100)
    assert (judged.confidence, judged.iou, judged.multi_label, judged.max_detections) == (0.3, 0.6, False, 50)
    # somebody else's graph, of which nothing is known
    foreign = Postprocess("end2end", confidence=0.85)
    assert [found.labels.tolist() for found in foreign(outputs, SIZE, [WHOLE])] == [[1]]
    assert foreign.adjusted(iou=0.1).iou == 0.1


@pytest.mark.parametrize(
    "wrong",
    [{"num_detections": np.zeros((2, 1))}, {"detection_boxes": np.zeros((1, 3, 5))}, {"detection_scores": None}],
)
def test_outputs_of_another_form_are_refused(wrong):
    outputs = {
        "num_detections": np.zeros((1, 1), np.int32),
        "detection_boxes": np.zeros((1, 3, 4), np.float32),
        "detection_scores": np.zeros((1, 3), np.float32),
        "detection_classes": np.zeros((1, 3), np.int32),
        **wrong,
    }
    given = {name: value for name, value in outputs.items() if value is not None}
    with pytest.raises(EngineError, match=r"decoder end2end expects num_detections \[B, 1\]"):
        fixed()(given, SIZE, [WHOLE])
