"""Small canonical graphs of every shape that equalization has to follow, with seeded random weights."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgevision.graph import Graph
from edgevision_calibration.observe import expose, observe, open_session

PIXELS = 12


class Builder:
    """Adds nodes one by one; every method returns the name of the tensor it made."""

    def __init__(self, channels=3, seed=0):
        self.rng = np.random.default_rng(seed)
        self.input = ["batch", channels, PIXELS, PIXELS]
        self.nodes, self.initializers = [], []
        self.channels = {"images": channels}

    def constant(self, value):
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind, *inputs, channels=None, **attributes):
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], f"{kind}_{output}", **attributes))
        self.channels[output] = channels or self.channels[inputs[0]]
        return output

    def conv(self, x, out, kernel=1, group=1, stride=1, bias=True):
        fan_in = self.channels[x] // group * kernel**2
        weight = self.rng.normal(0, 1.4 / fan_in**0.5, (out, self.channels[x] // group, kernel, kernel))
        inputs = [x, self.constant(weight.astype(np.float32))]
        if bias:
            inputs.append(self.constant(self.rng.normal(0, 0.2, out).astype(np.float32)))
        return self.op(
            "Conv", *inputs, channels=out, group=group,
            kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, strides=[stride] * 2,
        )  # fmt: skip

    def relu(self, x):
        return self.op("Relu", x)

    def relu6(self, x):
        return self.op("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def linear(self, x, out, trans_b=1):
        weight = self.rng.normal(0, self.channels[x] ** -0.5, (out, self.channels[x])).astype(np.float32)
        weight = weight if trans_b else np.ascontiguousarray(weight.T)
        bias = self.rng.normal(0, 0.2, out).astype(np.float32)
        return self.op("Gemm", x, self.constant(weight), self.constant(bias), channels=out, transB=trans_b)

    def head(self, x, classes=5, trans_b=1):
        return self.linear(self.op("Flatten", self.op("GlobalAveragePool", x)), classes, trans_b)

    def graph(self, *outputs):
        model = helper.make_model(
            helper.make_graph(
                self.nodes,
                "net",
                [helper.make_tensor_value_info("images", TensorProto.FLOAT, self.input)],
                [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
                self.initializers,
            ),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=9,
        )
        return Graph(onnx.shape_inference.infer_shapes(model, strict_mode=True))


def chain(seed=0):
    b = Builder(seed=seed)
    x = b.relu(b.conv("images", 8, 3, stride=2))
    x = b.relu(b.conv(b.op("MaxPool", x, kernel_shape=[2, 2], strides=[1, 1]), 12, 3))
    return b.graph(b.head(x, trans_b=0))


def depthwise(seed=0):
    b = Builder(seed=seed)
    x = b.relu6(b.conv("images", 8, 3, stride=2))
    x = b.relu6(b.conv(x, 8, 3, group=8))
    x = b.relu6(b.conv(x, 16))
    return b.graph(b.head(x))


def residual(seed=0):
    """Two inverted residuals without activation at their ends, as MobileNetV2's."""
    b = Builder(seed=seed)
    x = b.conv(b.relu6(b.conv("images", 12, 3, stride=2)), 8)
    for _ in range(2):
        y = b.relu6(b.conv(b.relu6(b.conv(x, 16)), 16, 3, group=16))
        x = b.op("Add", x, b.conv(y, 8))
    return b.graph(b.head(b.relu6(b.conv(x, 16))))


def fire(seed=0):
    """SqueezeNet's: one tensor read twice, both results concatenated, twice over."""
    b = Builder(seed=seed)
    x = b.relu(b.conv("images", 8, 3, stride=2))
    for _ in range(2):
        squeezed = b.relu(b.conv(x, 6))
        wide = [b.relu(b.conv(squeezed, 8)), b.relu(b.conv(squeezed, 8, 3))]
        x = b.op("Concat", *wide, channels=16, axis=1)
        x = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    x = b.relu(b.conv(x, 5))
    return b.graph(b.op("Flatten", b.op("GlobalAveragePool", x)))


def grouped(seed=0):
    b = Builder(seed=seed)
    x = b.relu(b.conv("images", 8, 3))
    x = b.relu(b.conv(x, 12, 3, group=2))
    return b.graph(b.head(x))


NETS = {function.__name__: function for function in (chain, depthwise, residual, fire, grouped)}


def pictures(count=24, seed=1, channels=3):
    rng = np.random.default_rng(seed)
    # as photos are: bounded, neighbouring pixels alike, some pictures full of contrast and some flat
    coarse = rng.uniform(-1.5, 1.5, (count, channels, 4, 4)) * rng.uniform(0.5, 1.0, (count, 1, 1, 1))
    fine = rng.uniform(-0.3, 0.3, (count, channels, PIXELS, PIXELS))
    return (np.kron(coarse, np.ones((1, 1, 3, 3))) + fine).astype(np.float32)


def batches(images):
    return (images[at : at + 4] for at in range(0, len(images), 4))


def table_of(graph, images=None):
    return observe(graph, batches(pictures() if images is None else images), threads=1)


def run(model, images, names=()):
    """Outputs (or the tensors ``names``) of a graph or a model, every node computed as it is written."""
    if names:
        model = expose(model, names)
    elif isinstance(model, Graph):
        model = model.to_bytes()
    elif not isinstance(model, bytes):
        model = model.SerializeToString()
    session = open_session(model, threads=1, optimize=False)
    return session.run(list(names) or None, {session.get_inputs()[0].name: images})


def sqnr_db(reference, value):
    noise = float(np.square(np.float64(reference) - value).sum())
    return 200.0 if noise == 0 else 10 * np.log10(float(np.square(np.float64(reference)).sum()) / noise)
