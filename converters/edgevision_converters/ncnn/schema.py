"""Which weights a layer has in the ``.bin`` file, in order, as its parameters say.

A *tagged* blob starts with four bytes that tell its type; a *raw* one is plain float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgevision.errors import ModelError
from edgevision_converters.ncnn.param import Layer

# layers whose float weights ncnn also takes as float16
WEIGHTED = frozenset(
    f"{kind}{rank}"
    for kind in ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
    for rank in ("", "1D", "3D")
) | {"InnerProduct", "Gemm"}


@dataclass(frozen=True)
class Slot:
    """One weight blob: how many values, and whether a tag stands before them."""

    count: int
    tagged: bool


def weight_slots(layer: Layer) -> list[Slot]:
    """Weight blobs of a layer, in file order; empty for layers without weights.

    Raises:
        ModelError: the layer's weights have a form that is not known here.
    """
    reader = _READERS.get(layer.type)
    return reader(layer) if reader else []


def _tagged(count: int) -> Slot:
    return Slot(count, True)


def _raw(count: int) -> Slot:
    return Slot(count, False)


def _convolution(layer: Layer) -> list[Slot]:
    out_channels, int8 = layer.integer(0), layer.integer(8)
    dynamic = 28 if layer.type.startswith("Deconvolution") else 19
    if layer.integer(dynamic):
        return []  # the weights come as a second input
    slots = [_tagged(layer.integer(6))]
    if layer.integer(5):
        slots.append(_raw(out_channels))
    if int8:
        if layer.type == "Convolution":
            scales = out_channels
        elif layer.type == "ConvolutionDepthWise":
            scales = layer.integer(7, 1) if int8 % 100 == 1 else 1
        else:
            raise ModelError(f"layer {layer.name}: {layer.type} has no INT8 form in ncnn")
        slots += [_raw(scales), _raw(1)]
    if int8 > 100:
        slots.append(_raw(1))
    return slots


def _inner_product(layer: Layer) -> list[Slot]:
    slots = [_tagged(layer.integer(2))]
    if layer.integer(1):
        slots.append(_raw(layer.integer(0)))
    if layer.integer(8):
        slots += [_raw(layer.integer(0)), _raw(1)]
    return slots


def _gemm(layer: Layer) -> list[Slot]:
    _refuse_integers(layer, 18)
    m, n, k = layer.integer(7), layer.integer(8), layer.integer(9)
    slots = []
    if layer.integer(4):
        slots.append(_tagged(m * k))
    if layer.integer(5):
        slots.append(_tagged(n * k))
    if layer.integer(6) and layer.integer(10) != -1:
        slots.append(_tagged({0: 1, 1: m, 2: m, 3: m * n, 4: n}[layer.integer(10)]))
    return slots


def _attention(layer: Layer) -> list[Slot]:
    _refuse_integers(layer, 18)
    embed, weights = layer.integer(0), layer.integer(2)
    query = weights // embed
    key, value = layer.integer(3, embed), layer.integer(4, embed)
    return [
        _tagged(embed * query), _raw(embed),
        _tagged(embed * key), _raw(embed),
        _tagged(embed * value), _raw(embed),
        _tagged(query * embed), _raw(query),
    ]  # fmt: skip


def _recurrent(gates: int) -> Callable[[Layer], list[Slot]]:
    def slots(layer: Layer) -> list[Slot]:
        _refuse_integers(layer, 8)
        out, weights = layer.integer(0), layer.integer(1)
        hidden = layer.integer(3, out) if layer.type == "LSTM" else out
        directions = 2 if layer.integer(2) == 2 else 1
        # GRU keeps the bias of the new gate's hidden part apart: four rows for three gates
        bias_rows = 4 if layer.type == "GRU" else gates
        found = [
            _tagged(weights),
            _tagged(hidden * bias_rows * directions),
            _tagged(out * hidden * gates * directions),
        ]
        return found + ([_tagged(hidden * out * directions)] if hidden != out else [])

    return slots


def _memory(layer: Layer) -> list[Slot]:
    sides = [layer.integer(key) for key in (0, 1, 11, 2)]
    if not any(sides):
        return []
    count = 1
    for side in sides:
        count *= max(side, 1)
    return [Slot(count, layer.integer(21, 1) == 0)]


def _padding(layer: Layer) -> list[Slot]:
    per_channel = layer.integer(6)
    return [_raw(per_channel)] if per_channel else []


def _embed(layer: Layer) -> list[Slot]:
    _refuse_integers(layer, 18)
    return [_tagged(layer.integer(3))] + ([_raw(layer.integer(0))] if layer.integer(2) else [])


def _scale(layer: Layer) -> list[Slot]:
    size = layer.integer(0)
    return [] if size == -233 else [_raw(size)] * (2 if layer.integer(1) else 1)


def _affine(size_key: int, switch_key: int, blobs: int) -> Callable[[Layer], list[Slot]]:
    def slots(layer: Layer) -> list[Slot]:
        return [_raw(layer.integer(size_key))] * blobs if layer.integer(switch_key, 1) else []

    return slots


def _requantize(layer: Layer) -> list[Slot]:
    bias = layer.integer(2)
    return [_raw(layer.integer(0, 1)), _raw(layer.integer(1, 1))] + ([_raw(bias)] if bias else [])


def _dequantize(layer: Layer) -> list[Slot]:
    bias = layer.integer(1)
    return [_raw(layer.integer(0, 1))] + ([_raw(bias)] if bias else [])


def _deformable(layer: Layer) -> list[Slot]:
    return [_tagged(layer.integer(6))] + ([_raw(layer.integer(0))] if layer.integer(5) else [])


def _refuse_integers(layer: Layer, key: int) -> None:
    if layer.integer(key):
        raise ModelError(f"layer {layer.name}: integer weights of {layer.type} are not read here")


_READERS: dict[str, Callable[[Layer], list[Slot]]] = {
    **{kind: _convolution for kind in WEIGHTED if "onvolution" in kind},
    "InnerProduct": _inner_product,
    "Gemm": _gemm,
    "MultiHeadAttention": _attention,
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
    "MemoryData": _memory,
    "Padding": _padding,
    "Embed": _embed,
    "Scale": _scale,
    "BatchNorm": lambda layer: [_raw(layer.integer(0))] * 4,
    "PReLU": lambda layer: [_raw(layer.integer(0))],
    "Bias": lambda layer: [_raw(layer.integer(0))],
    "LayerNorm": _affine(0, 2, 2),
    "GroupNorm": _affine(1, 3, 2),
    "InstanceNorm": _affine(0, 2, 2),
    "RMSNorm": _affine(0, 2, 1),
    "Normalize": lambda layer: [_raw(layer.integer(3))],
    "Quantize": lambda layer: [_raw(layer.integer(0, 1))],
    "Dequantize": _dequantize,
    "Requantize": _requantize,
    "DeformableConv2D": _deformable,
}
