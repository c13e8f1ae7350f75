"""One operator set for all graphs: as old as the newest op of the graph allows, at least 17."""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, version_converter

from edgevision.errors import ModelError
from edgevision_converters.passes.editor import Editor, attribute, opset_of, set_attributes

MINIMUM = 17


def upgrade_opset(model: ModelProto) -> ModelProto:
    """Convert a model of an older operator set to the least one that canonical graphs have.

    Requires: standard ops only.
    Ensures: opset 17 or later; initializers are no longer inputs' defaults.

    Raises:
        ModelError: ONNX's converter has no way up for an op of the graph.
    """
    if opset_of(model) >= MINIMUM:
        return model
    try:
        # shapes let the converter of Softmax-11 see that an axis is the last one, where nothing has to change
        shaped = onnx.shape_inference.infer_shapes(model, data_prop=True)
        converted = version_converter.convert_version(shaped, MINIMUM)
    except Exception as error:  # the converter's C++ side raises RuntimeError, ValueError and its own classes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"opset {opset_of(model)} cannot be upgraded to {MINIMUM}: {reason}; export the model again with opset "
            f"{MINIMUM} or later"
        ) from error
    del converted.graph.value_info[:]
    return converted


def lower_opset(model: ModelProto) -> ModelProto:
    """Stamp a model of a newer operator set as opset 17 where its nodes mean the same there.

    Old engines (TensorRT 8.5, ONNX Runtime 1.17) read no newer one. Later versions of most ops add types and
    optional attributes only; those that are at their defaults are dropped, `axes` and `split` inputs take the form
    of 17.

    Requires: constants are initializers.
    Ensures: opset 17, or the model as it came where a node needs more. Callers prove equality numerically.
    """
    if opset_of(model) <= MINIMUM:
        return stamp(model, MINIMUM)
    editor = Editor(model)
    if not all(_lower(editor, node) for node in editor.nodes):
        return stamp(model, opset_of(model))
    lowered = stamp(editor.finish(), MINIMUM)
    try:
        onnx.checker.check_model(lowered)
        onnx.shape_inference.infer_shapes(lowered, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return stamp(model, opset_of(model))
    return lowered


def stamp(model: ModelProto, opset: int) -> ModelProto:
    """A copy of the model that imports the standard operators alone, with the IR version of that time."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.opset_import[:]
    copy.opset_import.add(domain="", version=opset)
    copy.ir_version = 8 if opset <= 18 else 9 if opset <= 20 else 10
    return copy


# (op, attribute) → the value at which it changes nothing
_NEUTRAL = {
    ("Resize", "antialias"): 0,
    ("Resize", "keep_aspect_ratio_policy"): "stretch",
    ("AveragePool", "dilations"): None,
    ("Cast", "saturate"): 1,
    ("Cast", "round_mode"): "up",
    ("CastLike", "saturate"): 1,
}


def _lower(editor: Editor, node: NodeProto) -> bool:
    """Give a node the form of opset 17; False where that is not possible."""
    if not onnx.defs.has(node.op_type, MINIMUM, ""):
        return False
    if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
        if not _axes_to_attribute(editor, node):
            return False
    elif node.op_type == "Split":
        set_attributes(node, num_outputs=None)
        if len(node.input) < 2 and not _even_split(editor, node):
            return False
    schema = onnx.defs.get_schema(node.op_type, MINIMUM, "")
    for entry in list(node.attribute):
        if entry.name in schema.attributes:
            continue
        neutral = _NEUTRAL.get((node.op_type, entry.name), False)
        value = attribute(node, entry.name)
        if neutral is False or (value != neutral and not (neutral is None and set(value) == {1})):
            return False
        set_attributes(node, **{entry.name: None})
    return len(node.input) <= schema.max_input and len(node.output) <= schema.max_output


def _axes_to_attribute(editor: Editor, node: NodeProto) -> bool:
    noop = attribute(node, "noop_with_empty_axes", 0)
    set_attributes(node, noop_with_empty_axes=None)
    if len(node.input) < 2 or not node.input[1]:
        return not noop
    axes = editor.input_constant(node, 1)
    if axes is None or (axes.size == 0 and noop):
        return False
    del node.input[1:]
    editor.changed()
    if axes.size:
        set_attributes(node, axes=[int(axis) for axis in axes.reshape(-1)])
    return True


def _even_split(editor: Editor, node: NodeProto) -> bool:
    # without sizes both versions split evenly; an uneven last piece exists since 18 only
    from edgevision_converters.passes.shapes import static_shapes

    shape = static_shapes(editor.model).get(node.input[0])
    size = None if shape is None else shape[attribute(node, "axis", 0)]
    return size is not None and size % len(node.output) == 0
