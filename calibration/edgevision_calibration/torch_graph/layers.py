"""Convolution, pooling, padding and normalization as ONNX defines them, in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

Inputs = list[Any]
Attributes = dict[str, Any]


def _pads(a: Attributes, rank: int) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis."""
    pads = [int(pad) for pad in a.get("pads") or [0] * (2 * rank)]
    return pads[:rank], pads[rank:]


def _pad_last(x: Tensor, before: list[int], after: list[int], value: float = 0.0, mode: str = "constant") -> Tensor:
    """Pad the last axes; torch counts them from the last one backwards."""
    flat = [size for pair in zip(before[::-1], after[::-1], strict=True) for size in pair]
    return F.pad(x, flat, mode, value) if mode == "constant" else F.pad(x, flat, mode)


def _conv(x: Inputs, a: Attributes) -> Tensor:
    rank = x[1].ndim - 2
    before, after = _pads(a, rank)
    image = x[0]
    if before != after:
        image, before = _pad_last(image, before, after), [0] * rank
    function: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    bias = x[2] if len(x) > 2 else None
    return function(
        image, x[1], bias, a.get("strides") or 1, before, a.get("dilations") or 1, a.get("group", 1)
    )  # fmt: skip


def _conv_transpose(x: Inputs, a: Attributes) -> Tensor:
    rank = x[1].ndim - 2
    before, after = _pads(a, rank)
    function: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    bias = x[2] if len(x) > 2 else None
    # padding takes pixels off the result, which may be done afterwards, side by side
    out = function(
        x[0], x[1], bias, a.get("strides") or 1, 0, a.get("output_padding") or 0, a.get("group", 1),
        a.get("dilations") or 1,
    )  # fmt: skip
    for axis in range(rank):
        out = out.narrow(axis + 2, before[axis], out.shape[axis + 2] - before[axis] - after[axis])
    return out


def _max_pool(x: Inputs, a: Attributes) -> Tensor:
    kernel = a["kernel_shape"]
    before, after = _pads(a, len(kernel))
    image = x[0]
    if before != after or any(pad > size // 2 for pad, size in zip(before, kernel, strict=True)):
        image, before = _pad_last(image, before, after, -torch.inf), [0] * len(kernel)
    function: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    return function(
        image, kernel, a.get("strides") or [1] * len(kernel), before, a.get("dilations") or 1,
        bool(a.get("ceil_mode", 0)),
    )  # fmt: skip


def _average_pool(x: Inputs, a: Attributes) -> Tensor:
    kernel = a["kernel_shape"]
    rank = len(kernel)
    before, after = _pads(a, rank)
    count_padding = bool(a.get("count_include_pad", 0))
    function: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    strides, ceil = a.get("strides") or [1] * rank, bool(a.get("ceil_mode", 0))
    if before == after:
        return function(x[0], kernel, strides, before, ceil, count_padding)
    pooled = function(_pad_last(x[0], before, after), kernel, strides, 0, ceil)
    if count_padding:
        return pooled
    inside = _pad_last(torch.ones_like(x[0][:1, :1]), before, after)
    return pooled / function(inside, kernel, strides, 0, ceil)


def _global_pool(function: Callable[..., Tensor]) -> Callable[[Inputs, Attributes], Tensor]:
    return lambda x, a: function(x[0], tuple(range(2, x[0].ndim)), keepdim=True)


def _pad(x: Inputs, a: Attributes) -> Tensor:
    pads = [int(pad) for pad in (x[1].tolist() if len(x) > 1 else a["pads"])]
    rank = x[0].ndim
    axes = [int(axis) % rank for axis in x[3].tolist()] if len(x) > 3 and x[3] is not None else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for number, axis in enumerate(axes):
        before[axis], after[axis] = pads[number], pads[number + len(axes)]
    value = float(x[2]) if len(x) > 2 and x[2] is not None else float(a.get("value", 0.0))
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        a.get("mode", "constant")
    ]
    if mode == "constant":
        return _pad_last(x[0], before, after, value)
    # torch mirrors and repeats the spatial axes alone
    return _pad_last(x[0], before[2:], after[2:], mode=mode)


def _channels(value: Tensor, rank: int) -> Tensor:
    return value.reshape(1, -1, *[1] * (rank - 2))


def _batch_norm(x: Inputs, a: Attributes) -> Tensor:
    gain, shift, mean, variance = (_channels(value, x[0].ndim) for value in x[1:5])
    out: Tensor = (x[0] - mean) * (gain / torch.sqrt(variance + a.get("epsilon", 1e-5))) + shift
    return out


def _instance_norm(x: Inputs, a: Attributes) -> Tensor:
    return F.instance_norm(x[0], weight=x[1], bias=x[2], eps=a.get("epsilon", 1e-5))


def _layer_norm(x: Inputs, a: Attributes) -> Tensor:
    shape = list(x[0].shape[a.get("axis", -1) % x[0].ndim :])
    return F.layer_norm(x[0], shape, x[1], x[2] if len(x) > 2 else None, a.get("epsilon", 1e-5))


def _depth_to_space(x: Inputs, a: Attributes) -> Tensor:
    size = a["blocksize"]
    if a.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x[0], size)
    B, C, H, W = x[0].shape
    blocks = x[0].reshape(B, size, size, C // size**2, H, W).permute(0, 3, 4, 1, 5, 2)
    out: Tensor = blocks.reshape(B, C // size**2, H * size, W * size)
    return out


def _space_to_depth(x: Inputs, a: Attributes) -> Tensor:
    size = a["blocksize"]
    B, C, H, W = x[0].shape
    blocks = x[0].reshape(B, C, H // size, size, W // size, size).permute(0, 3, 5, 1, 2, 4)
    out: Tensor = blocks.reshape(B, C * size**2, H // size, W // size)
    return out


LAYERS: dict[str, Callable[[Inputs, Attributes], Tensor]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "SpaceToDepth": _space_to_depth,
}
