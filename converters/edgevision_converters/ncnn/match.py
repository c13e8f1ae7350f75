"""Which layer of the ncnn model is which Conv or Gemm of the graph: pnnx renames everything, weights stay equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.files import sha256_bytes
from edgevision.graph import Graph, attributes
from edgevision_converters.ncnn.model import NcnnModel

if TYPE_CHECKING:
    from onnx import NodeProto

# pnnx also makes an InnerProduct of a 1×1 convolution behind a global pool
_LAYERS = ("Convolution", "ConvolutionDepthWise", "InnerProduct")

# what pnnx may fuse behind a convolution: the layer's blob is then the tensor behind these
_POINTWISE = frozenset({
    "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Mish", "Mul", "Div", "Add", "Min", "Max",
    "Identity", "Flatten", "Reshape", "Squeeze", "BatchNormalization",
})  # fmt: skip


def match_layers(model: NcnnModel, graph: Graph, tensor_of: Mapping[str, str]) -> dict[str, NodeProto]:
    """Pair layers with nodes whose weights are equal bit for bit, confirmed by the values of their outputs.

    Args:
        model: the FP32 ncnn model.
        graph: the canonical graph it was made from.
        tensor_of: blob → tensor, as `probe.compare` found them.

    Returns:
        Layer name → node. Layers whose weights pnnx changed, or whose output is no tensor of the graph, are not in.
    """
    waiting: dict[str, list[NodeProto]] = {}
    for node in graph.nodes:
        weight = gemm_or_conv_weight(node, graph)
        if weight is not None:
            waiting.setdefault(_fingerprint(weight), []).append(node)
    found: dict[str, NodeProto] = {}
    for layer in model.layers:
        if layer.type not in _LAYERS or layer.name not in model.weights:
            continue
        candidates = waiting.get(_fingerprint(model.weights[layer.name][0].values), [])
        tensor = tensor_of.get(layer.tops[0])
        # equal weights twice (a head shared between scales): the output tells them apart
        for node in candidates:
            if tensor is not None and tensor in outputs_behind(node, graph):
                found[layer.name] = node
                candidates.remove(node)
                break
    return found


def gemm_or_conv_weight(node: NodeProto, graph: Graph) -> npt.NDArray[Any] | None:
    """Constant weight of a Conv or plain Gemm as ``[out_channels, …]``; None for everything else."""
    if node.op_type not in ("Conv", "Gemm") or len(node.input) < 2 or node.input[1] not in graph.initializers:
        return None
    weight = graph.initializers[node.input[1]]
    if node.op_type == "Conv":
        return weight
    values = attributes(node)
    if values.get("alpha", 1.0) != 1.0 or values.get("beta", 1.0) != 1.0 or values.get("transA", 0):
        return None
    return weight if values.get("transB", 0) else weight.T


def outputs_behind(node: NodeProto, graph: Graph) -> list[str]:
    """Output of a node, and the tensors a chain of fusable ops makes of it alone."""
    found = [str(node.output[0])]
    frontier = [str(node.output[0])]
    # x · hardsigmoid(x) and the like are three ops written out
    for _ in range(4):
        frontier = [
            str(output)
            for tensor in frontier
            for reader in graph.consumers.get(tensor, [])
            if reader.op_type in _POINTWISE
            for output in reader.output
        ]
        found += [tensor for tensor in frontier if tensor not in found]
    return found


def _fingerprint(weight: npt.NDArray[Any]) -> str:
    return sha256_bytes(np.ascontiguousarray(weight, "<f4").tobytes())
