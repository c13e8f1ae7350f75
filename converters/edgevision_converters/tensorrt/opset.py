"""`lower_opset`: the same model in opset 17, the newest that TensorRT 8.5 and 8.6 read rightly.

Most changes of an op between two opsets only admit more types; those need nothing. The others are handled one by
one below, and what cannot be said in opset 17 is an error that names the node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgevision.errors import ModelError, UnsupportedOpError
from edgevision_converters.tensorrt.lookup import Lookup, attribute, every_node, where

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# ONNX 1.12, the first release with opset 17, writes this version of the file format.
IR_VERSION = 8

# axes moved from an attribute to an input in opset 18
_REDUCTIONS = frozenset(
    {
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSumSquare",
    }
)  # fmt: skip
_GRID_SAMPLE_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def lower_opset(model: ModelProto, version: int = 17) -> ModelProto:
    """A copy of ``model`` in opset ``version``; a model of that opset or older keeps its own.

    Raises:
        ModelError: the model names no opset.
        UnsupportedOpError: a node uses what the older opset has not.
    """
    from onnx import ModelProto

    lowered = ModelProto()
    lowered.CopyFrom(model)
    opsets = [opset for opset in lowered.opset_import if opset.domain in ("", "ai.onnx")]
    if not opsets:
        raise ModelError("the model names no version of the standard ONNX ops; export it again")
    lowered.ir_version = min(lowered.ir_version, IR_VERSION)
    if opsets[0].version <= version:
        return lowered
    lookup = Lookup(lowered)
    for node in every_node(lowered.graph):
        if node.domain in ("", "ai.onnx"):
            _lower_node(lookup, node, opsets[0].version, version)
    opsets[0].version = version
    _drop_unused_initializers(lowered)
    return lowered


def _lower_node(lookup: Lookup, node: NodeProto, came: int, version: int) -> None:
    from onnx import defs

    try:
        new = defs.get_schema(node.op_type, came, "")
        old = defs.get_schema(node.op_type, version, "")
    except defs.SchemaError:
        raise UnsupportedOpError(
            f"opset {version}, the newest that TensorRT 8.5 reads, has no {where(node)}: export the model with "
            f"opset {version}, or with another op in its place"
        ) from None
    if new.since_version == old.since_version:
        return
    if node.op_type in _REDUCTIONS:
        _axes_to_attribute(lookup, node)
    elif node.op_type == "Split":
        _explicit_split(lookup, node)
    elif node.op_type == "GridSample":
        _set(node, "mode", _GRID_SAMPLE_MODES.get(attribute(node, "mode", "linear"), attribute(node, "mode")))
    _drop_new_attributes(node, new, old, version)
    if len(node.input) > old.max_input:
        raise UnsupportedOpError(f"{where(node)} has {len(node.input)} inputs; opset {version} has {old.max_input}")


def _axes_to_attribute(lookup: Lookup, node: NodeProto) -> None:
    if len(node.input) > 1 and node.input[1]:
        axes = lookup.constant(node, 1)
        if axes is None:
            raise UnsupportedOpError(f"{where(node)} computes its axes; TensorRT 8.5 wants them constant")
        if axes.size:
            _set(node, "axes", [int(axis) for axis in axes.reshape(-1)])
    if attribute(node, "noop_with_empty_axes", 0) and not attribute(node, "axes"):
        raise UnsupportedOpError(f"{where(node)} reduces over no axes; leave it out")
    _remove(node, "noop_with_empty_axes")
    del node.input[1:]


def _explicit_split(lookup: Lookup, node: NodeProto) -> None:
    """``num_outputs`` (opset 18) allows a smaller last part; opset 13 wants parts of unequal length spelt out."""
    from onnx import numpy_helper

    parts = attribute(node, "num_outputs")
    _remove(node, "num_outputs")
    if parts is None or (len(node.input) > 1 and node.input[1]):
        return
    length = _dimension(lookup, node.input[0], attribute(node, "axis", 0))
    if length is None:
        raise UnsupportedOpError(f"{where(node)} splits a dimension of unknown length; infer shapes first")
    if length % parts == 0:
        return
    most = -(-length // parts)
    sizes = np.asarray([most] * (parts - 1) + [length - most * (parts - 1)], np.int64)
    name = f"{node.output[0]}_split"
    lookup.model.graph.initializer.append(numpy_helper.from_array(sizes, name))
    node.input[:] = [node.input[0], name]


def _dimension(lookup: Lookup, name: str, axis: int) -> int | None:
    graph = lookup.model.graph
    for value in [*graph.input, *graph.value_info, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        if value.name == name and -len(dims) <= axis < len(dims) and dims[axis].HasField("dim_value"):
            return int(dims[axis].dim_value)
    return None


def _drop_new_attributes(node: NodeProto, new: Any, old: Any, version: int) -> None:
    """An attribute that the older opset has not may go where it has its default value."""
    from onnx import helper

    for name in [its.name for its in node.attribute if its.name not in old.attributes]:
        default = new.attributes[name].default_value if name in new.attributes else None
        initial = helper.get_attribute_value(default) if default is not None and default.type else None
        initial = initial.decode() if isinstance(initial, bytes) else initial
        if attribute(node, name) != initial:
            raise UnsupportedOpError(
                f"{where(node)} sets {name}={attribute(node, name)!r}, which opset {version}, the newest that TensorRT "
                "8.5 reads, has not: export the model without it"
            )
        _remove(node, name)


def _set(node: NodeProto, name: str, value: Any) -> None:
    from onnx import helper

    _remove(node, name)
    node.attribute.append(helper.make_attribute(name, value))


def _remove(node: NodeProto, name: str) -> None:
    kept = [candidate for candidate in node.attribute if candidate.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _drop_unused_initializers(model: ModelProto) -> None:
    used = {name for node in every_node(model.graph) for name in node.input}
    used |= {value.name for value in [*model.graph.output, *model.graph.input]}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
