"""Small graphs, hand-made plans and their fake-quantized form, for the ncnn tests."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgevision.graph import Graph, attributes
from edgevision_calibration.plan import ActivationQuant, QuantPlan
from edgevision_calibration.scheme import scheme_for


class Net:
    """Builds a canonical graph node by node, with seeded random weights."""

    def __init__(self, channels=3, height=20, width=24, seed=0, opset=18):
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.shape = ["batch", channels, height, width]
        self.nodes, self.initializers = [], []
        self.channels = {"images": channels}

    def constant(self, name, value):
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind, inputs, channels=None, output=None, **attrs):
        inputs = [inputs] if isinstance(inputs, str) else inputs
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind.lower()}_{len(self.nodes)}", **attrs))
        self.channels[output] = channels or self.channels.get(inputs[0])
        return output

    def conv(self, x, out, kernel=3, stride=1, group=1, pad=None, **more):
        pad = kernel // 2 if pad is None else pad
        fan_in = self.channels[x] // group * kernel * kernel
        index = len(self.nodes)
        weight = self.rng.normal(0, 1.4 / fan_in**0.5, (out, self.channels[x] // group, kernel, kernel))
        # channels of unequal range, as trained nets have them
        weight *= self.rng.uniform(0.3, 2.0, (out, 1, 1, 1))
        inputs = [
            x,
            self.constant(f"w{index}", weight.astype(np.float32)),
            self.constant(f"b{index}", self.rng.normal(0, 0.1, out).astype(np.float32)),
        ]
        return self.op(
            "Conv", inputs, out, strides=[stride] * 2, pads=[pad] * 4, kernel_shape=[kernel] * 2, group=group, **more
        )

    def linear(self, x, inputs, out, trans_b=1, **more):
        index = len(self.nodes)
        weight = self.rng.normal(0, inputs**-0.5, (out, inputs)).astype(np.float32)
        names = [
            self.constant(f"w{index}", weight if trans_b else np.ascontiguousarray(weight.T)),
            self.constant(f"b{index}", self.rng.normal(0, 0.1, out).astype(np.float32)),
        ]
        return self.op("Gemm", [x, *names], out, transB=trans_b, **more)

    def relu6(self, x):
        low, high = f"low{len(self.nodes)}", f"high{len(self.nodes)}"
        self.constant(low, np.float32(0)), self.constant(high, np.float32(6))
        return self.op("Clip", [x, low, high])

    def graph(self, *outputs, opsets=()):
        def value(name, shape):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        proto = helper.make_graph(
            self.nodes,
            "net",
            [value("images", self.shape)],
            [value(name, None) for name in outputs],
            self.initializers,
        )
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in opsets)]
        model = helper.make_model(proto, opset_imports=imports, ir_version=10)
        return Graph(onnx.shape_inference.infer_shapes(model))


def chain():
    """Dense 3×3 convolutions with ReLU: integers from end to end."""
    net = Net()
    x = net.op("Relu", net.conv("images", 16, stride=2))
    x = net.op("Relu", net.conv(x, 24))
    x = net.op("Relu", net.conv(x, 24, kernel=1))
    return net.graph(net.op("Identity", net.conv(x, 8), output="features"))


def inverted_residual():
    """Pointwise, depthwise, pointwise with ReLU6 and an addition, as MobileNetV2's block."""
    net = Net()
    x = net.relu6(net.conv("images", 16, stride=2))
    y = net.relu6(net.conv(x, 48, kernel=1))
    y = net.relu6(net.conv(y, 48, group=48))
    y = net.conv(y, 16, kernel=1)
    x = net.op("Add", [x, y], 16)
    return net.graph(net.conv(x, 12, kernel=1))


def hardswish_squeeze():
    """HardSwish behind convolutions, and squeeze-and-excite, as MobileNetV3's block."""
    net = Net()
    x = net.op("HardSwish", net.conv("images", 16, stride=2))
    s = net.op("GlobalAveragePool", x)
    s = net.op("Relu", net.conv(s, 8, kernel=1))
    s = net.op("HardSigmoid", net.conv(s, 16, kernel=1), alpha=1 / 6, beta=0.5)
    x = net.op("Mul", [x, s], 16)
    return net.graph(net.op("HardSwish", net.conv(x, 24, kernel=1)))


def fire():
    """Two branches joined by Concat, as SqueezeNet's block, and a max pool."""
    net = Net()
    x = net.op("Relu", net.conv("images", 16, stride=2))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    s = net.op("Relu", net.conv(x, 8, kernel=1))
    a, b = net.op("Relu", net.conv(s, 12, kernel=1)), net.op("Relu", net.conv(s, 12))
    return net.graph(net.conv(net.op("Concat", [a, b], 24, axis=1), 10, kernel=1))


def classifier(trans_b=1):
    """Convolution, global pool, flatten, two fully connected layers."""
    net = Net()
    x = net.op("Relu", net.conv("images", 32, stride=2))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    x = net.op("Relu", net.linear(x, 32, 40, trans_b))
    return net.graph(net.linear(x, 40, 10, trans_b, output="logits"))


def grouped():
    """A convolution of four groups with several channels each."""
    net = Net()
    x = net.op("Relu", net.conv("images", 16, stride=2))
    x = net.op("Relu", net.conv(x, 24, group=4))
    return net.graph(net.conv(x, 8, kernel=1))


NETS = {
    function.__name__: function for function in (chain, inverted_residual, hardswish_squeeze, fire, classifier, grouped)
}


def run_onnx(model, images, extra=()):
    """Outputs, and the tensors named in ``extra``, of an ONNX model."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra if name not in present)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    fed = session.get_inputs()[0].name
    return dict(zip(names, session.run(names, {fed: images}), strict=True))


def images_for(graph, count=4, seed=1):
    return np.random.default_rng(seed).normal(0, 1, (count, *graph.input_shape[1:])).astype(np.float32)


def absmax_plan(graph, images, *, depthwise_float=True, per_group=False, float_ops=None):
    """A plan by hand: largest absolute value of inputs; of weights per output channel (or per group)."""
    compute = [node for node in graph.nodes if node.op_type in ("Conv", "Gemm")]
    inner = [node.input[0] for node in compute if node.input[0] in graph.producer]
    seen = {**run_onnx(graph.model, images, inner), graph.input_name: images}
    floats = dict(float_ops or {})
    activations, weights = {}, {}
    for node in compute:
        weight, values = graph.initializers[node.input[1]], attributes(node)
        groups = values.get("group", 1)
        if depthwise_float and groups > 1 and weight.shape[1] == 1:
            floats[node.name] = "depthwise"
        if node.name in floats:
            continue
        rows = weight if node.op_type == "Conv" or values.get("transB", 0) else weight.T
        largest = np.abs(rows).reshape(len(rows), -1).max(1)
        if per_group and groups > 1:
            largest = np.repeat(largest.reshape(groups, -1).max(1), len(rows) // groups)
        weights[node.input[1]] = (largest / 127).astype(np.float32)
        activations[node.input[0]] = ActivationQuant(float(np.abs(seen[node.input[0]]).max() / 127), 0)
    return QuantPlan(scheme_for("ncnn"), activations, weights, floats, graph.sha256)


def fake_quantized(graph, plan):
    """The graph with the plan's rounding written out in float ops: what integers should compute."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    made, nodes, constants = {}, [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    low, high = constant("q.low", -127), constant("q.high", 127)
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and node.name not in plan.float_ops and node.input[0] in plan.activations:
            source = node.input[0]
            if source not in made:
                step = constant(f"{source}.step", plan.activations[source].scale)
                nodes += [
                    helper.make_node("Div", [source, step], [f"{source}.d"]),
                    helper.make_node("Round", [f"{source}.d"], [f"{source}.r"]),
                    helper.make_node("Clip", [f"{source}.r", low, high], [f"{source}.c"]),
                    helper.make_node("Mul", [f"{source}.c", step], [f"{source}.q"]),
                ]
                made[source] = f"{source}.q"
            weight, steps = graph.initializers[node.input[1]], plan.weights[node.input[1]]
            columns = node.op_type == "Gemm" and not attributes(node).get("transB", 0)
            steps = steps if columns else steps.reshape(-1, *[1] * (weight.ndim - 1))
            node.input[1] = constant(f"{node.input[1]}.q", np.clip(np.rint(weight / steps), -127, 127) * steps)
            node.input[0] = made[source]
        nodes.append(node)
    del model.graph.value_info[:]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    model.graph.initializer.extend(constants)
    return model


def sqnr_db(reference, value):
    noise = float(np.square(np.float64(reference) - value).sum())
    return 200.0 if noise == 0 else 10 * np.log10(float(np.square(np.float64(reference)).sum()) / noise)
