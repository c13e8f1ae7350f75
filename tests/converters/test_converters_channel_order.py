"""ShuffleNet's shuffles go into the weights' order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgevision_converters.canonical import canonicalize
from edgevision_converters.passes.numerics import relative_difference, run

# float32 sums in another order of the channels differ by about 1e-7 of their range per layer
CLOSE = 1e-5
SIZE = 8


class Net:
    """Writes the nodes of a small network, channels by name."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"t{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, f"node{len(self.nodes)}", **attributes))
        return names[0]

    def conv(self, source: str, taken: int, made: int, kernel: int = 1, group: int = 1) -> str:
        weight = self.rng.standard_normal((made, taken // group, kernel, kernel)).astype(np.float32)
        bias = self.rng.standard_normal(made).astype(np.float32)
        inputs = [source, self.constant(weight), self.constant(bias)]
        return self.op("Conv", *inputs, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, group=group)

    def shuffle(self, source: str, channels: int) -> str:
        wide = self.op("Reshape", source, self.constant(np.asarray([1, 2, channels // 2, SIZE, SIZE])))
        turned = self.op("Transpose", wide, perm=[0, 2, 1, 3, 4])
        return self.op("Reshape", turned, self.constant(np.asarray([1, channels, SIZE, SIZE])))

    def halves(self, source: str, channels: int) -> tuple[str, str]:
        first = self.op("Split", source, outputs=2, axis=1, num_outputs=2)
        return first, first[:-1] + "1"

    def unit(self, source: str, channels: int) -> str:
        """One unit of ShuffleNetV2: half the channels pass, half are worked on, and all are shuffled."""
        half = channels // 2
        passed, taken = self.halves(source, channels)
        made = self.op("Relu", self.conv(taken, half, half))
        made = self.op("Relu", self.conv(self.conv(made, half, half, 3, half), half, half))
        return self.shuffle(self.op("Concat", passed, made, axis=1), channels)

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [output], ["y"], "last")],
            "net",
            [helper.make_tensor_value_info("x", 1, ["batch", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("y", 1, [None] * 4)],
            self.constants,
        )
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def canonical(net: Net, output: str) -> Counter[str]:
    """Ops of the canonical graph, which is proved to compute the same for every picture of a batch."""
    model = net.model(output)
    graph = canonicalize(model)
    assert graph.input_shape[0] is None
    pictures = np.random.default_rng(1).standard_normal((3, 3, SIZE, SIZE)).astype(np.float32)
    expected = [np.concatenate([run(model, {"x": picture[None]})[0] for picture in pictures])]
    assert relative_difference(expected, run(graph.model, {"x": pictures})) < CLOSE
    return Counter(node.op_type for node in graph.nodes)


@pytest.mark.parametrize("units", [1, 3])
def test_a_chain_of_units_has_neither_shuffles_nor_gathers(units):
    net = Net()
    tensor = net.op("Relu", net.conv("x", 3, 12))
    for _ in range(units):
        tensor = net.unit(tensor, 12)
    ops = canonical(net, net.conv(net.conv(tensor, 12, 12, 3, 12), 12, 5))
    assert not {"Reshape", "Transpose", "Gather", "Split"} & set(ops)
    assert ops["Concat"] <= units + 1


def test_an_output_keeps_its_channels_in_order():
    net = Net()
    ops = canonical(net, net.unit(net.op("Relu", net.conv("x", 3, 12)), 12))
    # the permutation cannot go into weights behind the end
    assert not {"Reshape", "Transpose"} & set(ops)


def test_a_reader_that_knows_channels_gets_them_in_order():
    net = Net()
    tensor = net.unit(net.unit(net.conv("x", 3, 12), 12), 12)
    slopes = net.rng.standard_normal((12, 1, 1)).astype(np.float32)
    ops = canonical(net, net.conv(net.op("PRelu", tensor, net.constant(slopes)), 12, 4))
    assert ops["Gather"] <= 1


def test_grouped_layers_keep_their_shuffle():
    net = Net()
    shuffled = net.shuffle(net.conv(net.conv("x", 3, 12), 12, 12, group=2), 12)
    ops = canonical(net, net.conv(net.conv(shuffled, 12, 12, 3, 12), 12, 4, group=2))
    assert not {"Reshape", "Transpose"} & set(ops)
    assert ops["Gather"] == 1


def test_other_transposes_stay():
    net = Net()
    turned = net.op("Transpose", net.conv("x", 3, 12), perm=[0, 1, 3, 2])
    ops = canonical(net, net.conv(turned, 12, 4))
    assert ops == {"Conv": 2, "Transpose": 1}
