"""The best of all places, their boxes, and non-maximum suppression, as nodes: in ONNX's own op or TensorRT's plugin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from edgevision.detection.decoders.end2end import OUTPUTS
from edgevision.detection.postprocess import Postprocess
from edgevision_converters.end2end.families import Head
from edgevision_converters.end2end.nodes import Nodes

# what TensorRT knows the plugin by
PLUGIN, PLUGIN_DOMAIN, PLUGIN_VERSION = "EfficientNMS_TRT", "TRT", "1"


@dataclass(frozen=True)
class Chosen:
    """The K best candidates of each picture.

    Attributes:
        boxes: tensor ``[B, K, 4]`` xyxy in pixels of the input.
        scores: tensor ``[B, K]``.
        labels: int64 tensor ``[B, K]``.
        count: K.
    """

    boxes: str
    scores: str
    labels: str
    count: int


def choose(nodes: Nodes, head: Head, postprocess: Postprocess, classes: int) -> Chosen:
    """What goes on to the suppression: every place with its best class, or each class of each place."""
    if postprocess.multi_label:
        scores = nodes.op("Sigmoid", head.scores) if head.logits else head.scores
        count = min(postprocess.max_candidates, classes * head.count)
        # one class after the other, as decoders give them
        flat = nodes.reshape(nodes.op("Transpose", scores, perm=[0, 2, 1]), 0, -1)
        index = _places_of_best(nodes, flat, count)
        places_of_class = nodes.ints(head.count)
        labels = nodes.op("Div", index, places_of_class)
        places = nodes.op("Sub", index, nodes.op("Mul", labels, places_of_class))
        return Chosen(_boxes_at(nodes, head, places), nodes.at(flat, index), labels, count)
    best, labels = (nodes.op("Squeeze", name, nodes.ints(-1)) for name in nodes.best(head.scores, 1))
    if head.logits:
        best = nodes.op("Sigmoid", best)
    if head.count <= postprocess.max_candidates:
        return Chosen(_boxes_at(nodes, head, None), best, labels, head.count)
    places = _places_of_best(nodes, best, postprocess.max_candidates)
    best, labels = nodes.at(best, places), nodes.at(labels, places)
    return Chosen(_boxes_at(nodes, head, places), best, labels, postprocess.max_candidates)


def _places_of_best(nodes: Nodes, scores: str, count: int) -> str:
    """Where the ``count`` greatest of ``[B, N]`` lie, in the order of the places.

    Suppression takes the first of equal scores, and OpenVINO gives equal ones in any order (seen in 2026.4).
    """
    _, places = nodes.best(scores, count)
    # float32 holds whole numbers up to 16 million, and TensorRT 8 sorts no integers
    numbers, _ = nodes.best(nodes.op("Cast", places, to=TensorProto.FLOAT), count, least=True)
    return nodes.op("Cast", numbers, to=TensorProto.INT64)


def _boxes_at(nodes: Nodes, head: Head, places: str | None) -> str:
    """Boxes of some places ``[B, K]``, or of all, none with its right or bottom before its left or top."""
    values, table = head.values, "" if head.table is None else nodes.floats(head.table)
    if places is not None:
        values = nodes.at(values, places)
        table = table and nodes.op("Gather", table, places, axis=0)
    boxes = head.boxes(nodes, values, table)
    # ONNX's suppression would turn such a box round, where ours has it cover nothing
    first, second = nodes.columns(boxes, 0, 2), nodes.columns(boxes, 2, 4)
    return nodes.concat([first, nodes.op("Max", first, second)], -1)


def suppress(nodes: Nodes, chosen: Chosen, postprocess: Postprocess, classes: int) -> None:
    """ONNX's NonMaxSuppression, and the best ``max_detections`` of what it leaves, as the graph's outputs.

    It selects pairs of candidate and class, at most so many of each class; here every candidate has one class. What
    it selects keeps its score, the rest gets 0, and the greatest are the detections.
    """
    most = detections_per_picture(chosen, postprocess)
    selected = nodes.op(
        "NonMaxSuppression",
        chosen.boxes,
        _by_class(nodes, chosen, postprocess, classes, axis=1),
        nodes.ints(most),
        nodes.floats([_just_above(postprocess.iou)]),
        nodes.floats([postprocess.confidence]),
    )
    pairs = nodes.op("Gather", selected, nodes.ints(0, 2), axis=1)
    nothing = nodes.op("Mul", chosen.scores, nodes.floats(0.0))
    kept = nodes.op("ScatterND", nothing, pairs, nodes.op("GatherND", chosen.scores, pairs))
    scores, places = nodes.best(kept, most)
    found = nodes.op("Cast", nodes.op("Greater", scores, nodes.floats(0.0)), to=TensorProto.INT32)
    # what lies behind the number of detections is 0 everywhere
    mask = nodes.op("Unsqueeze", nodes.op("Cast", found, to=TensorProto.FLOAT), nodes.ints(-1))
    boxes = nodes.op("Mul", nodes.at(chosen.boxes, places), mask)
    labels = nodes.op("Cast", nodes.at(chosen.labels, places), to=TensorProto.INT32)
    count = nodes.op("ReduceSum", found, nodes.ints(1), keepdims=1)
    made = (count, boxes, scores, nodes.op("Mul", labels, found))
    for name, output in zip(made, OUTPUTS, strict=True):
        nodes.editor.nodes.append(nodes.editor.make_node("Identity", [name], [output], output))


def _just_above(iou: float) -> np.float32:
    """The next number, at most 1: OpenVINO drops boxes at the threshold itself (seen in 2026.4), the others above it.

    Overlaps of just 0.5 are frequent on a grid; those of the next number are not.
    """
    above = np.nextafter(np.float32(iou), np.float32(2.0))
    return np.clip(above, np.finfo(np.float32).tiny, np.float32(1.0))


def suppress_by_plugin(nodes: Nodes, chosen: Chosen, postprocess: Postprocess, classes: int) -> None:
    """TensorRT's EfficientNMS, whose outputs are the graph's.

    It is told of every class of every candidate, and all but one are 0: a box has one class here. Source: NVIDIA's
    plugin/efficientNMSPlugin in github.com/NVIDIA/TensorRT: inputs ``[B, K, 4]`` and ``[B, K, C]``, attributes.
    """
    nodes.editor.nodes.append(
        helper.make_node(
            PLUGIN,
            [chosen.boxes, _by_class(nodes, chosen, postprocess, classes, axis=2)],
            list(OUTPUTS),
            PLUGIN,
            domain=PLUGIN_DOMAIN,
            plugin_version=PLUGIN_VERSION,
            background_class=-1,
            box_coding=0,
            class_agnostic=int(postprocess.class_agnostic),
            iou_threshold=postprocess.iou,
            max_output_boxes=detections_per_picture(chosen, postprocess),
            score_activation=0,
            score_threshold=postprocess.confidence,
        )
    )


def detections_per_picture(chosen: Chosen, postprocess: Postprocess) -> int:
    """Rows of the outputs."""
    return min(postprocess.max_detections, chosen.count)


def _by_class(nodes: Nodes, chosen: Chosen, postprocess: Postprocess, classes: int, *, axis: int) -> str:
    """Scores with a dimension for classes in place ``axis``: 0 but for a candidate's own.

    Classes that suppress each other have one row together. In the plugin they keep their own, since it tells classes
    by them.
    """
    scores = nodes.op("Unsqueeze", chosen.scores, nodes.ints(axis))
    if axis == 1 and postprocess.class_agnostic:
        return scores
    own = nodes.op("Unsqueeze", chosen.labels, nodes.ints(axis))
    numbers = np.arange(classes).reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
    is_own = nodes.op("Equal", own, nodes.editor.add_constant("detections_classes", numbers))
    return nodes.op("Where", is_own, scores, nodes.floats(0.0))
