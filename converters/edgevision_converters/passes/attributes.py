"""What convolutions and pools leave to be inferred is written out."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from edgevision_converters.passes.editor import Editor, attribute, set_attributes
from edgevision_converters.passes.shapes import Shape, static_shapes

_WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})


def write_out_attributes(model: ModelProto) -> ModelProto:
    """Write kernel_shape, strides, dilations and pads of windowed ops; `auto_pad` becomes pads.

    Requires: static shapes.
    Ensures: no `auto_pad` other than on ConvTranspose, whose padding it defines differently; every Conv and pool has
        kernel_shape, strides and pads, every Conv also dilations and group.
    """
    editor = Editor(model)
    shapes = static_shapes(model)
    for node in editor.nodes:
        if node.op_type in _WINDOWED:
            _write_out(node, shapes)
    return editor.finish()


def _write_out(node: NodeProto, shapes: dict[str, Shape]) -> None:
    convolution = node.op_type in ("Conv", "ConvTranspose")
    kernel = attribute(node, "kernel_shape")
    if kernel is None and convolution:
        weight = shapes.get(node.input[1])
        kernel = None if weight is None else list(weight[2:])
    if not kernel or None in kernel:
        return
    spatial = len(kernel)
    strides = attribute(node, "strides", [1] * spatial)
    dilations = attribute(node, "dilations", [1] * spatial)
    auto_pad = attribute(node, "auto_pad", "NOTSET")
    pads = attribute(node, "pads", [0] * (2 * spatial))
    values = {"kernel_shape": kernel, "strides": strides}
    if convolution:
        values |= {"dilations": dilations, "group": attribute(node, "group", 1)}
    if auto_pad in ("SAME_UPPER", "SAME_LOWER") and node.op_type != "ConvTranspose":
        shape = shapes.get(node.input[0])
        if shape is None or None in shape[2:]:
            return
        sizes = [int(size or 0) for size in shape[2:]]
        pads = _same_pads(sizes, kernel, strides, dilations, upper=auto_pad == "SAME_UPPER")
        auto_pad = "NOTSET"
    if auto_pad == "VALID":
        auto_pad = "NOTSET"
    values["auto_pad"] = None if auto_pad == "NOTSET" else auto_pad
    if auto_pad == "NOTSET":
        values["pads"] = pads
    set_attributes(node, **values)


def _same_pads(
    sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int], *, upper: bool
) -> list[int]:
    """Pads by which the output has ceil(size / stride) positions; an odd one goes to the end for SAME_UPPER."""
    begins, ends = [], []
    for size, window, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        positions = -(-size // stride)
        total = max(0, (positions - 1) * stride + (window - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return begins + ends
