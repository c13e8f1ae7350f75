"""ONNX ops in torch: one small function each, looked up by op type.

Every function takes the node's inputs (tensors; None for one that is left out) and its attributes and returns the
output, or a tuple of them. Constants arrive as tensors, so shapes and axes are read with ``tolist()``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from edgevision_calibration.torch_graph.layers import LAYERS
from edgevision_calibration.torch_graph.resize import resize

Inputs = list[Any]
Attributes = dict[str, Any]
Op = Callable[[Inputs, Attributes], Any]


def _numbers(value: Tensor) -> list[Any]:
    return list(value.reshape(-1).tolist())


def _axes(x: Inputs, a: Attributes, position: int = 1) -> list[int] | None:
    """Axes of an op that takes them as an input since opset 13 or 18, as an attribute before."""
    if len(x) > position and x[position] is not None:
        return [int(axis) for axis in _numbers(x[position])]
    return None if a.get("axes") is None else [int(axis) for axis in a["axes"]]


def _clip(x: Inputs, a: Attributes) -> Tensor:
    low = float(x[1]) if len(x) > 1 and x[1] is not None else a.get("min")
    high = float(x[2]) if len(x) > 2 and x[2] is not None else a.get("max")
    return torch.clamp(x[0], low, high)


def _hard_sigmoid(x: Inputs, a: Attributes) -> Tensor:
    return torch.clamp(x[0] * a.get("alpha", 0.2) + a.get("beta", 0.5), 0.0, 1.0)


def _prelu(x: Inputs, a: Attributes) -> Tensor:
    return torch.where(x[0] < 0, x[0] * x[1], x[0])


def _split(x: Inputs, a: Attributes) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    sizes = _numbers(x[1]) if len(x) > 1 and x[1] is not None else a.get("split")
    if sizes is None:
        # equal parts, the last one smaller where they do not divide
        return tuple(torch.chunk(x[0], int(a["num_outputs"]), axis))
    return tuple(torch.split(x[0], [int(size) for size in sizes], axis))


def _slice(x: Inputs, a: Attributes) -> Tensor:
    out: Tensor = x[0]
    starts, ends = _numbers(x[1]), _numbers(x[2])
    axes = _axes(x, {}, 3) or list(range(len(starts)))
    steps = _numbers(x[4]) if len(x) > 4 and x[4] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = out.shape[axis]
        # a backward slice that ends before the first element says so with a large negative number
        stop = None if step < 0 and end < -size else end
        chosen = range(size)[slice(start, stop, step)]
        if step == 1:
            out = out.narrow(axis, chosen.start, len(chosen))
        else:
            out = out.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    return out


def _reshape(x: Inputs, a: Attributes) -> Tensor:
    shape = [int(size) for size in _numbers(x[1])]
    if not a.get("allowzero", 0):
        shape = [x[0].shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    out: Tensor = x[0].reshape(shape)
    return out


def _flatten(x: Inputs, a: Attributes) -> Tensor:
    axis = a.get("axis", 1) % (x[0].ndim + 1)
    rows = 1
    for size in x[0].shape[:axis]:
        rows *= size
    out: Tensor = x[0].reshape(rows, -1)
    return out


def _squeeze(x: Inputs, a: Attributes) -> Tensor:
    axes = _axes(x, a)
    out: Tensor = x[0].squeeze() if axes is None else x[0].squeeze(tuple(axes))
    return out


def _unsqueeze(x: Inputs, a: Attributes) -> Tensor:
    out: Tensor = x[0]
    axes = _axes(x, a) or []
    for axis in sorted(axis % (x[0].ndim + len(axes)) for axis in axes):
        out = out.unsqueeze(axis)
    return out


def _transpose(x: Inputs, a: Attributes) -> Tensor:
    out: Tensor = x[0].permute(a.get("perm") or list(range(x[0].ndim))[::-1])
    return out


def _gather(x: Inputs, a: Attributes) -> Tensor:
    axis = a.get("axis", 0) % x[0].ndim
    indices = x[1] % x[0].shape[axis]
    chosen = x[0].index_select(axis, indices.reshape(-1).to(torch.int64))
    out: Tensor = chosen.reshape(*x[0].shape[:axis], *indices.shape, *x[0].shape[axis + 1 :])
    return out


def _reduce(function: Callable[..., Tensor]) -> Op:
    def op(x: Inputs, a: Attributes) -> Tensor:
        axes = _axes(x, a)
        if axes is None and a.get("noop_with_empty_axes", 0):
            out: Tensor = x[0]
            return out
        return function(x[0], axes or list(range(x[0].ndim)), bool(a.get("keepdims", 1)))

    return op


def _gemm(x: Inputs, a: Attributes) -> Tensor:
    left = x[0].T if a.get("transA", 0) else x[0]
    right = x[1] if a.get("transB", 0) else x[1].T
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    if alpha == beta == 1.0 and len(x) > 2 and x[2] is not None and x[2].ndim == 1:
        return F.linear(left, right, x[2])
    out: Tensor = alpha * F.linear(left, right)
    return out + beta * x[2] if len(x) > 2 and x[2] is not None else out


def _cast(x: Inputs, a: Attributes) -> Tensor:
    # TensorProto's numbers of the types that shapes and masks take
    types = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}
    out: Tensor = x[0].to(types[a["to"]])
    return out


def _shape(x: Inputs, a: Attributes) -> Tensor:
    shape = list(x[0].shape)
    return torch.tensor(shape[a.get("start", 0) : a.get("end", len(shape))], dtype=torch.int64)


def _expand(x: Inputs, a: Attributes) -> Tensor:
    # the wider of both along every axis, counted from the last one
    wanted = [int(size) for size in _numbers(x[1])]
    own = [1] * (len(wanted) - x[0].ndim) + list(x[0].shape)
    wanted = [1] * (len(own) - len(wanted)) + wanted
    out: Tensor = x[0].expand([max(pair) for pair in zip(own, wanted, strict=True)])
    return out


def _div(x: Inputs, a: Attributes) -> Tensor:
    if x[0].is_floating_point():
        out: Tensor = x[0] / x[1]
        return out
    return torch.div(x[0], x[1], rounding_mode="trunc")


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    def op(x: Inputs, a: Attributes) -> Tensor:
        out: Tensor = x[0]
        for other in x[1:]:
            out = function(out, other)
        return out

    return op


def _unary(function: Callable[[Tensor], Tensor]) -> Op:
    return lambda x, a: function(x[0])


OPS: dict[str, Op] = {
    **LAYERS,
    "Abs": _unary(torch.abs),
    "Add": lambda x, a: x[0] + x[1],
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Concat": lambda x, a: torch.cat(x, a["axis"]),
    "Div": _div,
    "Dropout": lambda x, a: x[0],
    "Elu": lambda x, a: F.elu(x[0], a.get("alpha", 1.0)),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(torch.floor),
    "Gather": _gather,
    "Gelu": lambda x, a: F.gelu(x[0], approximate=a.get("approximate", "none")),
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda x, a: x[0] * torch.clamp(x[0] / 6.0 + 0.5, 0.0, 1.0),
    "Identity": lambda x, a: x[0],
    "LeakyRelu": lambda x, a: F.leaky_relu(x[0], a.get("alpha", 0.01)),
    "Log": _unary(torch.log),
    "LogSoftmax": lambda x, a: torch.log_softmax(x[0], a.get("axis", -1)),
    "MatMul": lambda x, a: torch.matmul(x[0], x[1]),
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Mish": _unary(F.mish),
    "Mul": lambda x, a: x[0] * x[1],
    "Neg": _unary(torch.neg),
    "PRelu": _prelu,
    "Pow": lambda x, a: torch.pow(x[0], x[1]),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: torch.amax(x, axes, keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: torch.mean(x, axes, keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: torch.amin(x, axes, keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: torch.sum(x, axes, keep)),
    "Relu": _unary(torch.relu),
    "Reshape": _reshape,
    "Resize": resize,
    "Shape": _shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda x, a: torch.softmax(x[0], a.get("axis", -1)),
    "Softplus": _unary(F.softplus),
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": lambda x, a: x[0] - x[1],
    "Tanh": _unary(torch.tanh),
    "Tile": lambda x, a: x[0].tile(tuple(_numbers(x[1]))),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
