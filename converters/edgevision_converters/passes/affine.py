"""Batch norms and per-channel constants are folded into the convolution or dense layer before them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from edgevision_converters.passes.editor import Editor, attribute, set_attributes
from edgevision_converters.passes.shapes import Shape, static_shapes

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """y = x · scale + shift, one value per channel of axis 1: float64 ``[C]`` each."""

    scale: Float64
    shift: Float64


def fold_batch_norms(model: ModelProto) -> ModelProto:
    """Fold `BatchNormalization` into the Conv, ConvTranspose or Gemm that alone feeds it.

    Ioffe and Szegedy 2015, section 3.1: at inference y = γ (x − μ) / √(σ² + ε) + β is affine per channel, and so
    part of the layer before it. Computed in float64.

    Requires: static shapes; constants are initializers.
    Ensures: a batch norm is left only where something else also reads the layer's output, or no layer is before it.
        The fused layer keeps the layer's node name and the batch norm's output name.
    """
    return _fold(model, _batch_norm)


def fold_channel_affine(model: ModelProto) -> ModelProto:
    """Fold Mul, Div, Add and Sub with a constant per channel into the Conv, ConvTranspose or Gemm before them.

    Requires: static shapes; constants are initializers.
    Ensures: no such op reads a layer whose output nobody else reads. Names as in `fold_batch_norms`.
    """
    return _fold(model, _channel_affine)


def _fold(model: ModelProto, match: Callable[[Editor, NodeProto, str, int, int], Affine | None]) -> ModelProto:
    editor = Editor(model)
    shapes = static_shapes(model)
    for layer in list(editor.nodes):
        channels = _out_channels(editor, layer, shapes)
        # an affine op may follow another one: Conv → BatchNormalization → Mul
        while channels is not None:
            output = layer.output[0]
            follower = editor.only_consumer(output)
            rank = len(shapes.get(output, ()))
            affine = match(editor, follower, output, channels, rank) if follower is not None else None
            if follower is None or affine is None or not _apply(editor, layer, affine):
                break
            layer.output[0] = follower.output[0]
            editor.remove([follower])
    return editor.finish()


def _out_channels(editor: Editor, layer: NodeProto, shapes: dict[str, Shape]) -> int | None:
    """Channels of a layer whose weights and bias are constants; None for anything else."""
    if layer.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return None
    if editor.input_constant(layer, 1) is None:
        return None
    if len(layer.input) > 2 and layer.input[2] and editor.input_constant(layer, 2) is None:
        return None
    shape = shapes.get(layer.output[0])
    return shape[1] if shape is not None and len(shape) >= 2 else None


def _batch_norm(editor: Editor, node: NodeProto, source: str, channels: int, rank: int) -> Affine | None:
    if node.op_type != "BatchNormalization" or node.input[0] != source or attribute(node, "training_mode", 0):
        return None
    constants = [editor.input_constant(node, index) for index in (1, 2, 3, 4)]
    if any(value is None or value.size != channels for value in constants):
        return None
    gamma, beta, mean, variance = (np.asarray(value, np.float64).reshape(-1) for value in constants)
    scale = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    if not np.isfinite(scale).all():
        return None
    return Affine(scale, beta - mean * scale)


def _channel_affine(editor: Editor, node: NodeProto, source: str, channels: int, rank: int) -> Affine | None:
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or list(node.input).count(source) != 1:
        return None
    position = list(node.input).index(source)
    if position == 1 and node.op_type == "Div":
        return None
    constant = editor.input_constant(node, 1 - position)
    if constant is None or constant.ndim > rank:
        return None
    value = _per_channel(constant, channels, rank)
    if value is None:
        return None
    zero, one = np.zeros(channels), np.ones(channels)
    if node.op_type == "Mul":
        return Affine(value, zero)
    if node.op_type == "Div":
        return Affine(1 / value, zero) if (value != 0).all() else None
    if node.op_type == "Add":
        return Affine(one, value)
    return Affine(one, -value) if position == 0 else Affine(-one, value)


def _per_channel(constant: npt.NDArray[np.generic], channels: int, rank: int) -> Float64 | None:
    """A constant that broadcasts over all but axis 1, as ``[C]``."""
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(np.asarray(constant, np.float64).reshape(-1), channels)


def _apply(editor: Editor, layer: NodeProto, affine: Affine) -> bool:
    weight = np.asarray(editor.input_constant(layer, 1), np.float64)
    bias = editor.input_constant(layer, 2)
    channels = len(affine.scale)
    old_bias = np.zeros(channels) if bias is None else np.asarray(bias, np.float64)
    if layer.op_type == "Gemm":
        alpha, beta = attribute(layer, "alpha", 1.0), attribute(layer, "beta", 1.0)
        if old_bias.size not in (1, channels) or (old_bias.ndim == 2 and old_bias.shape[0] != 1):
            return False
        weight, old_bias = weight * alpha, old_bias * beta
        scaled = weight * (affine.scale[:, None] if attribute(layer, "transB", 0) else affine.scale)
    elif layer.op_type == "Conv":
        scaled = weight * affine.scale.reshape(-1, *[1] * (weight.ndim - 1))  # [O, I/g, kH, kW]
    else:
        groups = attribute(layer, "group", 1)
        per_group = affine.scale.reshape(groups, 1, channels // groups)
        grouped = weight.reshape(groups, -1, channels // groups, *weight.shape[2:])  # [g, I/g, O/g, kH, kW]
        scaled = (grouped * per_group.reshape(*per_group.shape, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    new_bias = np.broadcast_to(old_bias.reshape(-1), channels) * affine.scale + affine.shift
    scaled32, bias32 = scaled.astype(np.float32), new_bias.astype(np.float32)
    if not (np.isfinite(scaled32).all() and np.isfinite(bias32).all()):
        return False
    if layer.op_type == "Gemm":
        set_attributes(layer, alpha=None, beta=None)
    editor.replace_constant(layer, 1, scaled32)
    _set_bias(editor, layer, bias32)
    return True


def _set_bias(editor: Editor, layer: NodeProto, bias: npt.NDArray[np.float32]) -> None:
    if len(layer.input) > 2 and layer.input[2]:
        editor.replace_constant(layer, 2, bias)
        return
    del layer.input[2:]
    weight = layer.input[1]
    stem = weight.removesuffix(".weight")
    layer.input.append(editor.add_constant(f"{stem}.bias", bias))
    editor.changed()
