"""Activations that are spelled out in elementary ops become the one op they are."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from edgevision_converters.passes.editor import Editor, attribute

# x·clip(x + 3, 0, 6)/6 is written with 1/6 as a float32 constant as often as with a division
_TOLERANCE = 1e-6


def fuse_hard_swish(model: ModelProto) -> ModelProto:
    """Fuse clip(x + 3, 0, 6) / 6 into `HardSigmoid` and x · HardSigmoid(x) into `HardSwish`.

    Howard et al. 2019 (MobileNetV3), section 5.2.

    Requires: opset 14 or later; constants are initializers.
    Ensures: none of the spellings x·(clip(x + 3, 0, 6)/6), (x·clip(x + 3, 0, 6))/6, x·HardSigmoid(x) is left whose
        inner values nobody else reads. The fused node keeps the name and the output of the last one.
    """
    editor = Editor(model)
    for node in list(editor.nodes):
        source = _six_times_hard_sigmoid_scaled(editor, node)
        if source is not None:
            _become(editor, node, "HardSigmoid", source, alpha=1.0 / 6.0, beta=0.5)
    for node in list(editor.nodes):
        source = _product_with_hard_sigmoid(editor, node) or _scaled_product(editor, node)
        if source is not None:
            _become(editor, node, "HardSwish", source)
    return editor.finish()


def _six_times_hard_sigmoid_scaled(editor: Editor, node: NodeProto) -> str | None:
    """x where ``node`` is clip(x + 3, 0, 6) / 6."""
    inner = _sixth(editor, node)
    return None if inner is None else _relu6_of_shifted(editor, inner, alone=True)


def _product_with_hard_sigmoid(editor: Editor, node: NodeProto) -> str | None:
    """x where ``node`` is x · HardSigmoid(x) with slope 1/6 and offset 1/2."""
    if node.op_type != "Mul":
        return None
    for gate, x in (node.input, tuple(node.input)[::-1]):
        maker = editor.producer(gate)
        if maker is None or maker.op_type != "HardSigmoid" or maker.input[0] != x:
            continue
        slope, offset = attribute(maker, "alpha", 0.2), attribute(maker, "beta", 0.5)
        if abs(slope - 1 / 6) < _TOLERANCE and abs(offset - 0.5) < _TOLERANCE and editor.only_consumer(gate) is node:
            return str(x)
    return None


def _scaled_product(editor: Editor, node: NodeProto) -> str | None:
    """x where ``node`` is (x · clip(x + 3, 0, 6)) / 6."""
    inner = _sixth(editor, node)
    product = None if inner is None else editor.producer(inner)
    if product is None or product.op_type != "Mul" or editor.only_consumer(product.output[0]) is None:
        return None
    for gate, x in (product.input, tuple(product.input)[::-1]):
        if _relu6_of_shifted(editor, gate, alone=True) == x:
            return str(x)
    return None


def _sixth(editor: Editor, node: NodeProto) -> str | None:
    """y where ``node`` is y / 6 or y · (1/6)."""
    if node.op_type == "Div" and _scalar(editor, node.input[1], 6.0):
        return str(node.input[0])
    if node.op_type == "Mul":
        for y, factor in (node.input, tuple(node.input)[::-1]):
            if _scalar(editor, factor, 1.0 / 6.0):
                return str(y)
    return None


def _relu6_of_shifted(editor: Editor, name: str, *, alone: bool) -> str | None:
    """x where tensor ``name`` is clip(x + 3, 0, 6) and, with ``alone``, has one reader."""
    clip = editor.producer(name)
    if clip is None or clip.op_type != "Clip" or len(clip.input) < 3:
        return None
    if not (_scalar(editor, clip.input[1], 0.0) and _scalar(editor, clip.input[2], 6.0)):
        return None
    add = editor.producer(clip.input[0])
    if add is None or add.op_type != "Add" or editor.only_consumer(add.output[0]) is not clip:
        return None
    if alone and editor.only_consumer(name) is None:
        return None
    for x, three in (add.input, tuple(add.input)[::-1]):
        if _scalar(editor, three, 3.0):
            return str(x)
    return None


def _scalar(editor: Editor, name: str, value: float) -> bool:
    """Whether ``name`` is a constant of one element equal to ``value``."""
    constant = editor.constant(name)
    return constant is not None and constant.size == 1 and bool(np.abs(constant - value).max() < _TOLERANCE)


def _become(editor: Editor, node: NodeProto, op_type: str, source: str, **attributes: float) -> None:
    """Turn ``node`` into another op on ``source``; what fed it before is left to `remove_dead`."""
    fused = editor.make_node(op_type, [source], [node.output[0]], node.name, **attributes)
    node.CopyFrom(fused)
    editor.changed()
