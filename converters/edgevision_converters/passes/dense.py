"""Dense layers are `Gemm` with weights ``[out, in]``, in whatever op they were written."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from edgevision_converters.passes.editor import Editor, attribute, set_attributes
from edgevision_converters.passes.shapes import Shape, static_shapes


def unify_dense(model: ModelProto) -> ModelProto:
    """Turn `MatMul` of a matrix with constant weights, and the bias added to it, into `Gemm`; transpose weights once.

    Requires: static shapes; constants are initializers.
    Ensures: every `Gemm` with constant weights has transA 0, transB 1, alpha 1 and beta 1, so that its weights are
        ``[out, in]`` and axis 0 is the output channel; its bias, where constant, is ``[out]``.
    """
    editor = Editor(model)
    shapes = static_shapes(model)
    for node in list(editor.nodes):
        if node.op_type == "MatMul":
            _from_matmul(editor, node, shapes)
        if node.op_type == "Gemm":
            _normalise(editor, node)
    return editor.finish()


def _from_matmul(editor: Editor, node: NodeProto, shapes: dict[str, Shape]) -> None:
    weight = editor.input_constant(node, 1)
    if weight is None or weight.ndim != 2 or len(shapes.get(node.input[0], ())) != 2 or weight.dtype != np.float32:
        return
    inputs, output = list(node.input), node.output[0]
    add = editor.only_consumer(output)
    if add is not None and add.op_type == "Add":
        position = 1 - list(add.input).index(output)
        bias = editor.input_constant(add, position)
        if bias is not None and bias.size == weight.shape[1] and bias.reshape(-1).shape[-1:] == bias.shape[-1:]:
            inputs.append(add.input[position])
            output = add.output[0]
            editor.remove([add])
    node.CopyFrom(editor.make_node("Gemm", inputs, [output], node.name))
    editor.changed()


def _normalise(editor: Editor, node: NodeProto) -> None:
    weight = editor.input_constant(node, 1)
    if weight is None or attribute(node, "transA", 0):
        return
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    transposed = bool(attribute(node, "transB", 0))
    out = weight.shape[0] if transposed else weight.shape[1]
    if len(node.input) > 2 and node.input[2]:
        bias = editor.input_constant(node, 2)
        plain = bias is not None and bias.size in (1, out) and bias.shape[-1:] == (bias.size,)
        if bias is None or not plain:
            if beta != 1.0:
                return
        elif bias.shape != (out,) or beta != 1.0:
            whole = np.broadcast_to(bias.reshape(-1), out)
            editor.replace_constant(node, 2, (whole * np.float32(beta)).astype(np.float32))
    if not transposed or alpha != 1.0:
        matrix = weight if transposed else weight.T
        editor.replace_constant(node, 1, (matrix * np.float32(alpha)).astype(np.float32))
    set_attributes(node, transB=1, transA=None, alpha=None, beta=None)
