"""A `QuantPlan` written into the graph as QuantizeLinear/DequantizeLinear: the one form that ONNX Runtime, OpenVINO
and TensorRT all read, and, run in float, the plan's own reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.graph import Graph, replace_nodes
from edgevision_calibration.plan import ActivationQuant, QuantPlan
from edgevision_calibration.weights import quantize_weight, weight_axis

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def quantize_dequantize(graph: Graph, plan: QuantPlan) -> ModelProto:
    """Insert Q/DQ after every activation of the plan, and before every quantized weight and bias.

    Weights become int8 behind DequantizeLinear, or stay float32 behind Q → DQ where the scheme says so; biases
    become int32 with scale ``s_activation · s_weight`` where it says so. Readers of an activation get the
    dequantized one (layers alone where the scheme says so); graph outputs stay as they are.
    """
    from onnx import ModelProto

    model = ModelProto()
    model.CopyFrom(graph.model)
    writer = _Writer(graph, plan, model)
    nodes = list(writer.activation(graph.input_name)) if graph.input_name in plan.activations else []
    for node in model.graph.node:
        # asked before the weights get other names
        rounded = [position for position in range(len(node.input)) if plan.reads_rounded(node, position)]
        nodes.extend(writer.weights(node))
        for position in rounded:
            node.input[position] = _dequantized(node.input[position])
        nodes.append(node)
        for name in list(node.output):
            if name in plan.activations:
                nodes.extend(writer.activation(name))
    replace_nodes(model, nodes)
    writer.drop_unused_initializers()
    return model


class _Writer:
    """Adds the constants a Q/DQ node needs to a copy of the graph's model."""

    def __init__(self, graph: Graph, plan: QuantPlan, model: ModelProto) -> None:
        self.graph = graph
        self.plan = plan
        self.model = model
        self._added: set[str] = set()

    def activation(self, name: str) -> list[NodeProto]:
        """Q → DQ behind an activation."""
        from onnx import helper

        quant = self.plan.activations[name]
        scale = self._constant(f"{name}_scale", np.float32(quant.scale))
        zero_point = self._constant(
            f"{name}_zero_point", np.asarray(quant.zero_point, self.plan.scheme.activation_dtype)
        )
        quantized = f"{name}_quantized"
        return [
            helper.make_node("QuantizeLinear", [name, scale, zero_point], [quantized], f"{name}_QuantizeLinear"),
            helper.make_node(
                "DequantizeLinear", [quantized, scale, zero_point], [_dequantized(name)], f"{name}_DequantizeLinear"
            ),
        ]

    def weights(self, node: NodeProto) -> list[NodeProto]:
        """DQ before a compute node's weight and bias; none for a node that stays in float."""
        if len(node.input) < 2 or node.input[1] not in self.plan.weights or node.name in self.plan.float_ops:
            return []
        weight_name = node.input[1]
        scales = self.plan.weights[weight_name]
        axis = weight_axis(node)
        activation = self.plan.activations[node.input[0]]
        nodes = self._weight(weight_name, scales, axis)
        node.input[1] = _dequantized(weight_name)
        if len(node.input) > 2 and node.input[2]:
            name, bias = self._bias_of(node)
            if self.plan.scheme.quantize_bias:
                nodes += self._bias(node, name, bias, activation, scales)
            elif name != node.input[2]:
                node.input[2] = self._constant(name, bias)
        return nodes

    def _bias_of(self, node: NodeProto) -> tuple[str, npt.NDArray[np.float32]]:
        """Name and values of a compute node's bias: the plan's in the place of the graph's."""
        name = str(node.input[2])
        bias = self.graph.initializers[name]
        # one bias may serve two nodes with other scales or corrections: the node's name keeps them apart
        own = f"{name}_{node.name}"
        if node.name in self.plan.biases:
            return own, self.plan.biases[node.name].reshape(bias.shape)
        return (own if self.plan.scheme.quantize_bias else name), bias

    def _weight(self, name: str, scales: npt.NDArray[np.float32], axis: int) -> list[NodeProto]:
        from onnx import helper

        if _dequantized(name) in self._added:
            return []
        self._added.add(_dequantized(name))
        per_tensor = len(scales) == 1
        scale = self._constant(f"{name}_scale", scales[0] if per_tensor else scales)
        zero_point = self._constant(f"{name}_zero_point", np.zeros([] if per_tensor else len(scales), np.int8))
        along: dict[str, Any] = {} if per_tensor else {"axis": axis}
        nodes = []
        source = name
        if self.plan.scheme.weights_as_float:
            source = f"{name}_quantized"
            nodes.append(
                helper.make_node(
                    "QuantizeLinear", [name, scale, zero_point], [source], f"{name}_QuantizeLinear", **along
                )
            )
        else:
            quantized = quantize_weight(self.graph.initializers[name], scales, axis)
            source = self._constant(f"{name}_quantized", quantized)
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [source, scale, zero_point], [_dequantized(name)],
                f"{name}_DequantizeLinear", **along,
            )
        )  # fmt: skip
        return nodes

    def _bias(
        self,
        node: NodeProto,
        name: str,
        bias: npt.NDArray[np.float32],
        activation: ActivationQuant,
        scales: npt.NDArray[np.float32],
    ) -> list[NodeProto]:
        """DQ that makes the bias ``name`` of int32."""
        from onnx import helper

        bias_scales = np.float32(activation.scale) * scales
        integers = np.clip(np.round(bias.reshape(-1) / bias_scales.astype(np.float64)), -(2**31), 2**31 - 1)
        per_tensor = len(bias_scales) == 1
        scale = self._constant(f"{name}_scale", bias_scales[0] if per_tensor else bias_scales)
        zero_point = self._constant(f"{name}_zero_point", np.zeros([] if per_tensor else len(bias_scales), np.int32))
        source = self._constant(f"{name}_quantized", integers.astype(np.int32))
        node.input[2] = _dequantized(name)
        along: dict[str, Any] = {} if per_tensor else {"axis": 0}
        return [
            helper.make_node(
                "DequantizeLinear", [source, scale, zero_point], [node.input[2]], f"{name}_DequantizeLinear", **along
            )
        ]

    def drop_unused_initializers(self) -> None:
        """Float weights that integers have replaced leave the file."""
        used = {name for node in self.model.graph.node for name in node.input}
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)

    def _constant(self, name: str, value: npt.NDArray[np.generic] | np.generic) -> str:
        from onnx import numpy_helper

        if name not in self._added:
            self._added.add(name)
            self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _dequantized(name: str) -> str:
    return f"{name}_dequantized"


def dequantized_names(plan: QuantPlan) -> dict[str, str]:
    """Activation of the plan → the tensor that holds its dequantized values in `quantize_dequantize`'s model."""
    return {name: _dequantized(name) for name in plan.activations}
