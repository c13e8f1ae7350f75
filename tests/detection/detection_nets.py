"""Small detectors as other people export them, whose outputs hold what is needed to find something."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 3
SIZE = 640
STRIDE = 32
CELLS = SIZE // STRIDE
REG_MAX = 15


class Builder:
    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value, dtype=np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes) -> str:
        name = out or f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [name], f"{kind.lower()}{len(self.nodes)}", **attributes)
        )
        return name

    def conv(self, x: str, weight: np.ndarray, bias: np.ndarray | float, *, stride: int = 1) -> str:
        kernel = weight.shape[2]
        bias = np.broadcast_to(np.asarray(bias, np.float32), len(weight))
        pad = [0] * 4 if stride == kernel else [kernel // 2] * 4
        return self.op(
            "Conv", x, self.constant(weight), self.constant(bias), kernel_shape=[kernel] * 2, pads=pad,
            strides=[stride] * 2,
        )  # fmt: skip

    def random_conv(
        self, x: str, inputs: int, outputs: int, kernel: int, *, stride: int = 1, bias: float = 0.0, gain: float = 1.0
    ) -> str:
        weight = gain * self.rng.normal(0, (2 / (inputs * kernel**2)) ** 0.5, (outputs, inputs, kernel, kernel))
        # sums to nothing: what all cells have alike finds no object
        weight -= weight.mean(axis=(1, 2, 3), keepdims=True)
        return self.conv(x, weight, bias, stride=stride)

    def model(self, outputs: dict[str, list[int]], size: int = SIZE) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "detector",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, size, size])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def body(b: Builder) -> str:
    """Pictures → 32 channels at stride 32."""
    x = b.op("Relu", b.random_conv("images", 3, 16, 8, stride=8))
    x = b.op("Relu", b.random_conv(x, 16, 32, 2, stride=2))
    x = b.op("Relu", b.random_conv(x, 32, 32, 2, stride=2))
    return b.op("Relu", b.random_conv(x, 32, 32, 3))


def anchor_free(seed: int = 0) -> onnx.ModelProto:
    """YOLOv8's kind of head with its decoding in the graph: ``output`` ``[1, 4 + CLASSES, 400]``.

    DFL's distances from a Softmax and a convolution, centres and sizes in pixels, Sigmoid, one Concat of both.
    """
    b = Builder(seed)
    x = body(b)
    box = b.random_conv(b.op("Relu", b.random_conv(x, 32, 32, 3)), 32, 4 * (REG_MAX + 1), 1)
    # few cells find something: the classes' bias is low and their weights are large
    score = b.random_conv(b.op("Relu", b.random_conv(x, 32, 32, 3)), 32, CLASSES, 1, bias=-3.0, gain=10.0)
    both = b.op("Concat", box, score, axis=1)
    rows = b.op("Reshape", both, b.constant([1, 4 * (REG_MAX + 1) + CLASSES, CELLS**2], np.int64))
    split = b.constant([4 * (REG_MAX + 1), CLASSES], np.int64)
    b.nodes.append(helper.make_node("Split", [rows, split], ["sides", "logits"], "split", axis=1))
    sides = b.op("Reshape", "sides", b.constant([1, 4, REG_MAX + 1, CELLS**2], np.int64))
    shares = b.op("Softmax", b.op("Transpose", sides, perm=[0, 2, 1, 3]), axis=1)
    distances = b.conv(shares, np.arange(REG_MAX + 1, dtype=np.float32).reshape(1, -1, 1, 1) / 4, 0.0)
    distances = b.op("Reshape", distances, b.constant([1, 4, CELLS**2], np.int64))
    b.nodes.append(
        helper.make_node("Split", [distances, b.constant([2, 2], np.int64)], ["before", "after"], "halves", axis=1)
    )
    row, column = np.divmod(np.arange(CELLS**2), CELLS)
    anchors = b.constant(np.stack([column, row])[None] + 0.5)
    corner, opposite = b.op("Sub", anchors, "before"), b.op("Add", anchors, "after")
    center = b.op("Div", b.op("Add", corner, opposite), b.constant(2.0))
    pixels = b.op("Mul", b.op("Concat", center, b.op("Sub", opposite, corner), axis=1), b.constant(float(STRIDE)))
    b.op("Concat", pixels, b.op("Sigmoid", "logits"), axis=1, out="output")
    return b.model({"output": [1, 4 + CLASSES, CELLS**2]})


def pixels_and_logits(seed: int = 0) -> onnx.ModelProto:
    """One convolution that gives sizes in pixels beside logits, then nothing but moves and an addition."""
    b = Builder(seed)
    x = body(b)
    sides = b.rng.normal(0, 40.0, (4, 32, 1, 1))
    scores = b.rng.normal(0, 4.0, (CLASSES, 32, 1, 1))
    weight = np.concatenate([sides, scores])
    weight -= weight.mean(axis=1, keepdims=True)
    both = b.conv(x, weight, np.asarray([300.0] * 4 + [-3.0] * CLASSES))
    rows = b.op("Reshape", both, b.constant([1, 4 + CLASSES, CELLS**2], np.int64))
    b.op("Add", rows, b.constant(np.zeros((1, 4 + CLASSES, 1))), out="output")
    return b.model({"output": [1, 4 + CLASSES, CELLS**2]})


def pictures(count: int, seed: int = 1, size: int = SIZE) -> list[np.ndarray]:
    """float32 ``[1, 3, size, size]`` each, 0..1: patches of all sizes on one another."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        total = np.zeros((3, size, size), np.float32)
        for cells in (5, 10, 20, 40):
            patch = rng.uniform(0, 0.25, (3, cells, cells)).astype(np.float32)
            total += patch.repeat(size // cells, 1).repeat(size // cells, 2)
        made.append(total[None])
    return made


def bright_cells(side: int = 64, stride: int = 8) -> onnx.ModelProto:
    """Finds bright cells: YOLOv8's kind of output, each cell's box where it lies, its score from how red it is."""
    b = Builder()
    cells = side // stride
    weight = np.zeros((1, 3, stride, stride), np.float32)
    weight[0, 0] = 20.0 / stride**2
    score = b.op("Sigmoid", b.conv("images", weight, -10.0, stride=stride))
    # no weight on the picture: the boxes are constants of the network's own batch
    nothing = b.conv("images", np.zeros((4, 3, stride, stride), np.float32), 0.0, stride=stride)
    row, column = np.divmod(np.arange(cells**2), cells)
    where = np.stack([(column + 0.5) * stride, (row + 0.5) * stride, *[np.full(cells**2, float(stride))] * 2])
    boxes = b.op("Add", nothing, b.constant(where.reshape(1, 4, cells, cells)))
    both = b.op("Concat", boxes, score, axis=1)
    b.op("Reshape", both, b.constant([-1, 5, cells**2], np.int64), out="output")
    return b.model({"output": [1, 5, cells**2]}, side)
