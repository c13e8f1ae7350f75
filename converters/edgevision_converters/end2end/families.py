"""For each decoder of `edgevision.detection.decoders`, the same computation as nodes of a graph.

A function of `FAMILIES` writes what makes scores of the network's outputs, and returns a `Head`, whose boxes are
decoded later, and only those of the places with the best scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevision.detection.boxes import Float32Array
from edgevision.detection.decoders import fastestdet as fastestdet_family
from edgevision.detection.decoders import ssd_onnx as ssd_onnx_family
from edgevision.detection.decoders.common import MAX_EXPONENT, grid, rows_output
from edgevision.errors import UsageError
from edgevision_converters.end2end.nodes import Nodes

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Head:
    """Scores and raw boxes of all N places, in the order in which the decoder looks at them.

    Attributes:
        scores: tensor ``[B, N, C]``, 0..1, or logits.
        values: tensor ``[B, N, V]``: of each place what its box is decoded from.
        boxes: (nodes, values ``[B, K, V]``, table ``[B, K, T]``) → tensor ``[B, K, 4]`` xyxy in pixels of the input.
        count: N.
        table: ``[N, T]``: what is known of each place beforehand; None where nothing is.
        logits: whether ``scores`` still want a sigmoid.
    """

    scores: str
    values: str
    boxes: Callable[[Nodes, str, str], str]
    count: int
    table: Float32Array | None = None
    logits: bool = False


def yolov6(nodes: Nodes, size: tuple[int, int], options: Options) -> Head:
    """See `edgevision.detection.decoders.yolov6`."""
    strides, reg_max = options["strides"], options["reg_max"]
    corners, scales = grid(size, strides)

    def boxes(nodes: Nodes, values: str, table: str) -> str:
        distances = _expected_distances(nodes, values, reg_max) if reg_max else values
        return _from_sides(nodes, distances, table)

    return Head(
        nodes.concat([nodes.rows(f"scores_{stride}") for stride in strides], 1),
        nodes.concat([nodes.rows(f"boxes_{stride}") for stride in strides], 1),
        boxes,
        len(scales),
        np.stack([*(corners + np.float32(0.5)), scales], axis=1),
        logits=True,
    )


def yolov3(nodes: Nodes, size: tuple[int, int], options: Options) -> Head:
    """See `edgevision.detection.decoders.yolov3`."""
    maps, tables = [], []
    for stride, anchors in zip(options["strides"], options["anchors"], strict=True):
        maps.append(nodes.rows(f"anchors_{stride}", len(anchors)))
        corners, scales = grid(size, (stride,))
        tables += [_beside(corners.T, scales, np.broadcast_to(anchor, corners.T.shape)) for anchor in anchors]
    rows, table = nodes.concat(maps, 1), np.concatenate(tables)

    def boxes(nodes: Nodes, values: str, table: str) -> str:
        offsets = nodes.op("Sigmoid", nodes.columns(values, 0, 2))
        centers = nodes.op("Add", offsets, nodes.columns(table, 0, 2))
        centers = nodes.op("Mul", centers, nodes.columns(table, 2, 3))
        return nodes.around(centers, nodes.op("Mul", _powers(nodes, values), nodes.columns(table, 3)))

    scores = _times_objectness(nodes, nodes.op("Sigmoid", nodes.columns(rows, 4)))
    return Head(scores, nodes.columns(rows, 0, 4), boxes, len(table), table)


def ssd(nodes: Nodes, size: tuple[int, int], options: Options) -> Head:
    """See `edgevision.detection.decoders.ssd`."""
    (height, width), (offset, exponent) = size, options["variances"]
    scores, values, tables = [], [], []
    for level, priors in enumerate(options["priors"]):
        rows, columns = nodes.shapes[f"boxes_{level}"][2:]
        scores.append(nodes.rows(f"scores_{level}", len(priors)))
        values.append(nodes.rows(f"boxes_{level}", len(priors)))
        row, column = np.divmod(np.arange(rows * columns), columns)
        centers = np.stack([(column + 0.5) / columns * width, (row + 0.5) / rows * height], axis=1)
        sides = np.asarray(priors, np.float64) * (width, height)
        tables += [_beside(centers, np.broadcast_to(side, centers.shape)) for side in sides]
    table = np.concatenate(tables)

    def boxes(nodes: Nodes, values: str, table: str) -> str:
        sides = nodes.columns(table, 2)
        shifts = nodes.op("Mul", nodes.columns(values, 0, 2), nodes.floats(offset))
        centers = nodes.op("Add", nodes.columns(table, 0, 2), nodes.op("Mul", shifts, sides))
        return nodes.around(centers, nodes.op("Mul", _powers(nodes, values, exponent), sides))

    shares = nodes.op("Softmax", nodes.concat(scores, 1), axis=-1)
    return Head(nodes.columns(shares, 1), nodes.concat(values, 1), boxes, len(table), table)


def yolov8(nodes: Nodes, size: tuple[int, int], options: Options) -> Head:
    """See `edgevision.detection.decoders.yolov8`."""
    count = len(grid(size, options["strides"])[1])
    rows = _class_rows(nodes, count, channels_first=True)
    return Head(nodes.columns(rows, 4), nodes.columns(rows, 0, 4), _centered, count)


def yolov5(nodes: Nodes, size: tuple[int, int], options: Options) -> Head:
    """See `edgevision.detection.decoders.yolov5`."""
    count = options["anchors"] * len(grid(size, options["strides"])[1])
    rows = _class_rows(nodes, count)
    return Head(_times_objectness(nodes, nodes.columns(rows, 4)), nodes.columns(rows, 0, 4), _centered, count)


def yolox(nodes: Nodes, size: tuple[int, int], options: Options) -> Head:
    """See `edgevision.detection.decoders.yolox`."""
    corners, scales = grid(size, options["strides"])
    rows = _class_rows(nodes, len(scales))

    def boxes(nodes: Nodes, values: str, table: str) -> str:
        scale = nodes.columns(table, 2)
        centers = nodes.op("Add", nodes.columns(values, 0, 2), nodes.columns(table, 0, 2))
        return nodes.around(nodes.op("Mul", centers, scale), nodes.op("Mul", _powers(nodes, values), scale))

    scores = _times_objectness(nodes, nodes.columns(rows, 4))
    if options["decoded"]:
        return Head(scores, nodes.columns(rows, 0, 4), _centered, len(scales))
    return Head(scores, nodes.columns(rows, 0, 4), boxes, len(scales), _beside(corners.T, scales))


def nanodet(nodes: Nodes, size: tuple[int, int], options: Options) -> Head:
    """See `edgevision.detection.decoders.nanodet`."""
    corners, scales = grid(size, options["strides"])
    reg_max = options["reg_max"]
    rows = _class_rows(nodes, len(scales))

    def boxes(nodes: Nodes, values: str, table: str) -> str:
        return _from_sides(nodes, _expected_distances(nodes, values, reg_max), table)

    sides = -4 * (reg_max + 1)
    scores, values = nodes.columns(rows, 0, sides), nodes.columns(rows, sides)
    return Head(scores, values, boxes, len(scales), _beside(corners.T, scales))


def fastestdet(nodes: Nodes, size: tuple[int, int], options: Options) -> Head:
    """See `edgevision.detection.decoders.fastestdet`."""
    (name,) = fastestdet_family.map_names(nodes.shapes)
    height, width = size
    rows, columns = nodes.shapes[name][2:]
    row, column = np.divmod(np.arange(rows * columns), columns)
    table = np.stack([column, row], axis=1).astype(np.float32)
    values = nodes.rows(name)

    def boxes(nodes: Nodes, values: str, table: str) -> str:
        centers = nodes.op("Add", table, nodes.op("Tanh", nodes.columns(values, 0, 2)))
        centers = nodes.op("Mul", centers, nodes.floats([width / columns, height / rows]))
        sides = nodes.op("Sigmoid", nodes.columns(values, 2))
        return nodes.around(centers, nodes.op("Mul", sides, nodes.floats([width, height])))

    objectness = nodes.op("Pow", nodes.op("Relu", nodes.columns(values, 0, 1)), nodes.floats(0.6))
    classes = nodes.op("Pow", nodes.op("Relu", nodes.columns(values, 5)), nodes.floats(0.4))
    scores = nodes.op("Mul", objectness, classes)
    return Head(scores, nodes.columns(values, 1, 5), boxes, len(table), table)


def ssd_onnx(nodes: Nodes, size: tuple[int, int], options: Options) -> Head:
    """See `edgevision.detection.decoders.ssd_onnx`."""
    names = ssd_onnx_family.table_names(nodes.shapes, options["boxes"], options["scores"])
    if names is None:
        raise UsageError(
            "boxes and scores are decoded in the graph where they are [B, N, 4] and [B, N, C]; these have no batch: "
            "export the model with one, or leave --nms graph out"
        )
    corners, scores = names
    if options["background"] is not None:
        classes = range(nodes.shapes[names[1]][2])
        kept = [column for column in classes if column != options["background"] % len(classes)]
        scores = nodes.op("Gather", scores, nodes.ints(*kept), axis=2)
    height, width = size

    def boxes(nodes: Nodes, values: str, _: str) -> str:
        if options["order"] == "cxcywh":
            values = _centered(nodes, values, "")
        elif options["order"] == "yxyx":
            values = nodes.op("Gather", values, nodes.ints(1, 0, 3, 2), axis=2)
        return nodes.op("Mul", values, nodes.floats([width, height] * 2)) if options["normalized"] else values

    return Head(scores, corners, boxes, nodes.shapes[names[0]][1])


def ultraface(nodes: Nodes, size: tuple[int, int], _: Options) -> Head:
    """See `edgevision.detection.decoders.ultraface`."""
    fixed = {"order": "xyxy", "normalized": True, "background": 0, "boxes": None, "scores": None}
    return ssd_onnx(nodes, size, fixed)


FAMILIES: dict[str, Callable[[Nodes, tuple[int, int], Options], Head]] = {
    "fastestdet": fastestdet,
    "nanodet": nanodet,
    "ssd": ssd,
    "ssd_onnx": ssd_onnx,
    "ultraface": ultraface,
    "yolov3": yolov3,
    "yolov5": yolov5,
    "yolov6": yolov6,
    "yolov8": yolov8,
    "yolox": yolox,
}


def _class_rows(nodes: Nodes, count: int, *, channels_first: bool = False) -> str:
    """The output of `edgevision.detection.decoders.common.class_rows` as ``[B, count, values]``."""
    place = rows_output(nodes.shapes, count, channels_first=channels_first)
    assert place is not None
    name, first = place
    return nodes.op("Transpose", name, perm=[0, 2, 1]) if first else name


def _beside(*columns: Any) -> Float32Array:
    """Columns ``[N]`` and ``[N, T]`` of one table."""
    return np.column_stack(columns).astype(np.float32)


def _centered(nodes: Nodes, values: str, _: str) -> str:
    return nodes.around(nodes.columns(values, 0, 2), nodes.columns(values, 2, 4))


def _times_objectness(nodes: Nodes, rows: str) -> str:
    """Class probabilities times the objectness before them."""
    return nodes.op("Mul", nodes.columns(rows, 1), nodes.columns(rows, 0, 1))


def _powers(nodes: Nodes, values: str, factor: float = 1.0) -> str:
    """e to the power of a box's third and fourth value, bounded as the decoders do."""
    exponents = nodes.columns(values, 2, 4)
    if factor != 1.0:
        exponents = nodes.op("Mul", exponents, nodes.floats(factor))
    return nodes.op("Exp", nodes.op("Min", exponents, nodes.floats(MAX_EXPONENT)))


def _from_sides(nodes: Nodes, distances: str, table: str) -> str:
    """Corners from the distances to left, top, right and bottom of a point, both in strides; table: x, y, stride."""
    point = nodes.columns(table, 0, 2)
    first = nodes.op("Sub", point, nodes.columns(distances, 0, 2))
    second = nodes.op("Add", point, nodes.columns(distances, 2, 4))
    return nodes.op("Mul", nodes.concat([first, second], -1), nodes.columns(table, 2))


def _expected_distances(nodes: Nodes, logits: str, reg_max: int) -> str:
    """See `edgevision.detection.decoders.common.expected_distances`: ``[B, K, 4·(reg_max + 1)]`` → ``[B, K, 4]``."""
    shares = nodes.op("Softmax", nodes.reshape(logits, 0, 0, 4, reg_max + 1), axis=-1)
    means = nodes.op("MatMul", shares, nodes.floats(np.arange(reg_max + 1)[:, None]))
    return nodes.reshape(means, 0, 0, 4)
