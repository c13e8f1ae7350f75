"""What a canonical graph becomes before pnnx sees it: batch 1, and forms of four ops that pnnx lowers right.

No rewrite renames a tensor: what was `t` in the graph is `t` in the model pnnx reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgevision.dependencies import require
from edgevision.errors import ConversionError
from edgevision.graph import Graph, attributes, replace_nodes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def with_batch_of_one(graph: Graph) -> ModelProto:
    """A copy of the graph's model with batch 1 everywhere: ncnn knows no batch.

    Raises:
        ConversionError: shapes contradict each other once the batch is fixed.
    """
    onnx = require("onnx", purpose="convert to ncnn")
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    proto = model.graph
    batch = proto.input[0].type.tensor_type.shape.dim[0]
    name = batch.dim_param
    batch.dim_value = 1
    for value in proto.output:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            # a free first dimension is the batch, whatever the exporter called it
            if not dim.HasField("dim_value") and (axis == 0 or (name and dim.dim_param == name)):
                dim.dim_value = 1
    # shapes inferred with a free batch would now contradict the input's
    del proto.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise ConversionError(f"the graph has no consistent shapes at batch 1: {error}") from error
    return inferred  # type: ignore[no-any-return]


def rewrite_for_pnnx(model: ModelProto) -> ModelProto:
    """Rewrite what pnnx lowers wrongly or not at all; changes and returns ``model``, whose shapes are static."""
    writer = _Rewriter(model)
    for node in list(model.graph.node):
        rewrite = _REWRITES.get(node.op_type)
        if rewrite is None or not rewrite(writer, node):
            writer.nodes.append(node)
    replace_nodes(model, writer.nodes)
    return model


class _Rewriter:
    """Collects the nodes of the rewritten model."""

    def __init__(self, model: ModelProto) -> None:
        self.onnx: Any = require("onnx", purpose="convert to ncnn")
        self.model = model
        self.nodes: list[NodeProto] = []
        values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
        self._shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in values
            if value.type.tensor_type.HasField("shape")
        }

    def shape(self, tensor: str) -> list[int] | None:
        """Static shape of a tensor, None where it is not known."""
        found = self._shapes.get(tensor)
        return found if found is not None and all(found) else None

    def integers(self, name: str, values: list[int]) -> str:
        """Add a constant int64 vector and return its name."""
        array = np.asarray(values, np.int64)
        self.model.graph.initializer.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def floats(self, name: str, values: list[float]) -> str:
        """Add a constant float32 vector and return its name."""
        array = np.asarray(values, np.float32)
        self.model.graph.initializer.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, inputs: list[str], outputs: list[str], name: str, **values: Any) -> None:
        """Add a node."""
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, outputs, name=name, **values))


def _split_sizes(writer: _Rewriter, node: NodeProto) -> bool:
    """Equal parts left implicit become a Slice without sizes, on which ncnn crashes: write them out."""
    if len(node.input) > 1:
        return False
    values = attributes(node)
    axis = values.get("axis", 0)
    shapes = [writer.shape(output) for output in node.output]
    if "split" in values or any(shape is None for shape in shapes):
        return False
    sizes = writer.integers(f"{node.name}.sizes", [shape[axis] for shape in shapes if shape])
    writer.add("Split", [node.input[0], sizes], list(node.output), node.name, axis=axis)
    return True


def _reduce_one_by_one(writer: _Rewriter, node: NodeProto) -> bool:
    """pnnx knows ReduceMax and ReduceMin over one dimension, which is kept: a chain of those and a Reshape."""
    values = attributes(node)
    axes, shape = values.get("axes"), writer.shape(node.output[0])
    keep = values.get("keepdims", 1)
    if not axes or not shape or (keep and len(axes) == 1):
        return False
    source, output = node.input[0], node.output[0]
    for axis in axes:
        result = output if keep and axis == axes[-1] else f"{output}.over{axis}"
        writer.add(node.op_type, [source], [result], f"{node.name}.over{axis}", axes=[axis], keepdims=1)
        source = result
    if not keep:
        target = writer.integers(f"{node.name}.shape", shape)
        writer.add("Reshape", [source, target], [output], f"{node.name}.reshape")
    return True


def _instance_norm_in_4d(writer: _Rewriter, node: NodeProto) -> bool:
    """GroupNorm comes as an InstanceNormalization of 3 dimensions, which ncnn lacks: give it a fourth."""
    shape = writer.shape(node.input[0])
    if shape is None or len(shape) != 3:
        return False
    source, result = f"{node.input[0]}.4d", f"{node.output[0]}.4d"
    wide = writer.integers(f"{node.name}.shape4d", [*shape[:2], 1, shape[2]])
    narrow = writer.integers(f"{node.name}.shape3d", shape)
    writer.add("Reshape", [node.input[0], wide], [source], f"{node.name}.widen")
    writer.add("InstanceNormalization", [source, *node.input[1:]], [result], node.name, **attributes(node))
    writer.add("Reshape", [result, narrow], [node.output[0]], f"{node.name}.narrow")
    return True


# for whole factors these all take pixel ⌊x / factor⌋: no source position ever lies in the middle between two pixels
_SAME_NEAREST = {
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_ceil"),
}


def _nearest_as_torch(writer: _Rewriter, node: NodeProto) -> bool:
    """pnnx knows nearest neighbours in torch's way of saying it (asymmetric, floor) alone."""
    values = attributes(node)
    how = (
        values.get("coordinate_transformation_mode", "half_pixel"),
        values.get("nearest_mode", "round_prefer_floor"),
    )
    before, after = writer.shape(node.input[0]), writer.shape(node.output[0])
    if values.get("mode", "nearest") != "nearest" or how not in _SAME_NEAREST or not before or not after:
        return False
    if "axes" in values or any(large % small for large, small in zip(after, before, strict=True)):
        return False
    factors = [large // small for large, small in zip(after, before, strict=True)]
    scales = writer.floats(f"{node.name}.scales", [float(factor) for factor in factors])
    writer.add(
        "Resize", [node.input[0], "", scales], list(node.output), node.name,
        mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
    return True


_REWRITES = {
    "Resize": _nearest_as_torch,
    "Split": _split_sizes,
    "ReduceMax": _reduce_one_by_one,
    "ReduceMin": _reduce_one_by_one,
    "InstanceNormalization": _instance_norm_in_4d,
}
