"""Zero padding in a node of its own becomes part of the convolution or pool after it."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from edgevision_converters.passes.editor import Editor, attribute, set_attributes

# ops whose results are never negative: a zero on the border never wins a maximum against them
_NON_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softplus", "Softmax", "Abs", "Exp"})


def merge_padding(model: ModelProto) -> ModelProto:
    """Merge `Pad` into the Conv, AveragePool or MaxPool that reads it.

    Requires: attributes written out (`write_out_attributes`), constants are initializers, opset 11 or later.
    Ensures: no zero `Pad` of height and width stands before a Conv; before an AveragePool, none where the pool itself
        pads nothing or counts its padding; before a MaxPool, none over values that are never negative.
    """
    editor = Editor(model)
    for node in list(editor.nodes):
        if node.op_type != "Pad":
            continue
        pads = _spatial_zero_pads(editor, node)
        readers = editor.consumers(node.output[0])
        if pads is None or not readers or editor.is_output(node.output[0]):
            continue
        if not all(_can_take(editor, reader, node) for reader in readers):
            continue
        for reader in readers:
            own = attribute(reader, "pads", [0] * 4)
            set_attributes(reader, pads=[a + b for a, b in zip(own, pads, strict=True)])
            if reader.op_type == "AveragePool":
                set_attributes(reader, count_include_pad=1)
        editor.bypass(node)
    return editor.finish()


def _spatial_zero_pads(editor: Editor, node: NodeProto) -> list[int] | None:
    """``[top, left, bottom, right]`` of a `Pad` that adds zeros around height and width alone."""
    pads, value, axes = (editor.input_constant(node, index) for index in (1, 2, 3))
    given = [len(node.input) > index and bool(node.input[index]) for index in (2, 3)]
    if pads is None or attribute(node, "mode", "constant") != "constant":
        return None
    if (given[0] and (value is None or value.any())) or given[1]:
        return None  # axes are an input since opset 18 and rare
    values = [int(pad) for pad in pads]
    if len(values) != 8 or min(values) < 0 or any(values[axis] for axis in (0, 1, 4, 5)) or axes is not None:
        return None
    return [values[2], values[3], values[6], values[7]]


def _can_take(editor: Editor, reader: NodeProto, pad: NodeProto) -> bool:
    if attribute(reader, "auto_pad", "NOTSET") != "NOTSET" or len(attribute(reader, "kernel_shape", [])) != 2:
        return False
    if list(reader.input).index(pad.output[0]) != 0:
        return False
    if reader.op_type == "Conv":
        return True
    if attribute(reader, "ceil_mode", 0):
        return False  # windows that begin inside the padding would count otherwise
    kernel = attribute(reader, "kernel_shape")
    pads = _spatial_zero_pads(editor, pad) or [0] * 4
    own = attribute(reader, "pads", [0] * 4)
    merged = [a + b for a, b in zip(own, pads, strict=True)]
    if any(merged[axis] >= kernel[axis] or merged[axis + 2] >= kernel[axis] for axis in (0, 1)):
        return False  # engines refuse a padding as large as the window
    if reader.op_type == "AveragePool":
        return not any(own) or bool(attribute(reader, "count_include_pad", 0))
    if reader.op_type == "MaxPool" and len(reader.output) == 1:
        maker = editor.producer(pad.input[0])
        return maker is not None and _never_negative(editor, maker)
    return False


def _never_negative(editor: Editor, maker: NodeProto) -> bool:
    if maker.op_type == "Clip":
        least = editor.input_constant(maker, 1)
        return least is not None and float(least.reshape(-1)[0]) >= 0
    return maker.op_type in _NON_NEGATIVE
