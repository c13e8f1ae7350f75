"""What any right engine may answer: a fake-quantized model executed in intervals.

Two right executions of one plan differ in two ways only: sums of float32 come in another order, and a value that lies
so near to the middle between two integers may be rounded either way. Interval arithmetic follows both through the
network, in float64: where nothing lies near a middle the interval is a point.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional as F  # noqa: N812

from edgevision.graph import attributes

Interval = tuple[torch.Tensor, torch.Tensor]


class Enclosure:
    """Runs an ONNX model of the ops of `tests.graphs` with Q/DQ on intervals.

    Args:
        model: the model, Q/DQ written in.
        rounding: relative error of a float32 sum, as a share of the sum of its terms' magnitudes.
        least_integer: what an engine may clip int8 activations at, besides -128.
    """

    def __init__(self, model: onnx.ModelProto, *, rounding: float = 2e-6, least_integer: int = -128) -> None:
        self.model = model
        self.rounding = rounding
        self.least_integer = least_integer
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def __call__(self, feed: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Output → least and greatest right answer, float64."""
        start = torch.from_numpy(feed.astype(np.float64))
        values: dict[str, Any] = {self.model.graph.input[0].name: (start, start)}
        for name, array in self.constants.items():
            exact = torch.from_numpy(np.array(array, np.float64))
            values[name] = (exact, exact)
        for node in self.model.graph.node:
            inputs = [values[name] if name else None for name in node.input]
            result = getattr(self, f"run_{node.op_type}")(inputs, attributes(node), node)
            values[node.output[0]] = result
        return {out.name: tuple(end.numpy() for end in values[out.name]) for out in self.model.graph.output}

    def widened(self, middle: torch.Tensor, radius: torch.Tensor, magnitude: torch.Tensor) -> Interval:
        reach = radius + self.rounding * magnitude
        return middle - reach, middle + reach

    def linear(self, apply: Any, x: Interval, weight: torch.Tensor, bias: torch.Tensor | None) -> Interval:
        """``apply(x, w)``, linear in both, plus a bias that is added already in ``apply``'s first call."""
        middle, radius = (x[0] + x[1]) / 2, (x[1] - x[0]) / 2
        size = torch.maximum(x[0].abs(), x[1].abs())
        magnitude = apply(size, weight.abs(), None if bias is None else bias.abs())
        return self.widened(apply(middle, weight, bias), apply(radius, weight.abs(), None), magnitude)

    def run_Conv(self, inputs: list[Any], values: dict[str, Any], node: onnx.NodeProto) -> Interval:  # noqa: N802
        top, left, bottom, right = values.get("pads", [0, 0, 0, 0])
        how = {
            "stride": tuple(values.get("strides", [1, 1])),
            "dilation": tuple(values.get("dilations", [1, 1])),
            "groups": values.get("group", 1),
        }

        def apply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, **how)

        bias = inputs[2][0].reshape(-1) if len(inputs) > 2 and inputs[2] is not None else None
        return self.linear(apply, inputs[0], inputs[1][0], bias)

    def run_Gemm(self, inputs: list[Any], values: dict[str, Any], node: onnx.NodeProto) -> Interval:  # noqa: N802
        weight = inputs[1][0] if values.get("transB", 0) else inputs[1][0].T
        bias = inputs[2][0].reshape(-1) if len(inputs) > 2 and inputs[2] is not None else None
        return self.linear(F.linear, inputs[0], weight, bias)

    def run_MatMul(self, inputs: list[Any], values: dict[str, Any], node: onnx.NodeProto) -> Interval:  # noqa: N802
        return self.linear(F.linear, inputs[0], inputs[1][0].T, None)

    def run_QuantizeLinear(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        x, (scale, _), (zero, _) = inputs
        kind = self.constants[node.input[2]].dtype
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
        if scale.ndim == 1 and scale.numel() > 1:
            shape = [1] * x[0].ndim
            shape[values.get("axis", 1)] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        if node.input[0] in self.constants:
            # weights are rounded once, by one rule
            exact = torch.clamp(torch.round(self._float32(x[0] / scale)) + zero, low, high)
            return exact, exact
        ends = []
        for end, sign in ((x[0], -1.0), (x[1], 1.0)):
            ratio = end / scale
            # a division in float32, or a product with a rounded reciprocal
            ratio = ratio + sign * (ratio.abs() * 2.5e-7 + 1e-9)
            # halves to either side
            ends.append(torch.ceil(ratio - 0.5) if sign < 0 else torch.floor(ratio + 0.5))
        least = max(low, self.least_integer) if kind == np.int8 else low
        return torch.clamp(ends[0] + zero, low, high), torch.clamp(ends[1] + zero, least, high)

    def run_DequantizeLinear(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        x, (scale, _) = inputs[0], inputs[1]
        zero = inputs[2][0] if len(inputs) > 2 else torch.zeros_like(scale)
        if scale.ndim == 1 and scale.numel() > 1:
            shape = [1] * x[0].ndim
            shape[values.get("axis", 1)] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        return (x[0] - zero) * scale, (x[1] - zero) * scale

    def run_Relu(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        return tuple(torch.relu(end) for end in inputs[0])

    def run_Clip(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        low = float(inputs[1][0]) if len(inputs) > 1 and inputs[1] is not None else -math.inf
        high = float(inputs[2][0]) if len(inputs) > 2 and inputs[2] is not None else math.inf
        return tuple(torch.clamp(end, low, high) for end in inputs[0])

    def run_Sigmoid(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        low, high = (torch.sigmoid(end) for end in inputs[0])
        # engines approximate the exponential
        return low - 10 * self.rounding, high + 10 * self.rounding

    def run_HardSigmoid(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        slope, offset = values.get("alpha", 0.2), values.get("beta", 0.5)
        low, high = (torch.clamp(end * slope + offset, 0.0, 1.0) for end in inputs[0])
        return low - self.rounding, high + self.rounding

    def run_HardSwish(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        middle, radius = (inputs[0][0] + inputs[0][1]) / 2, (inputs[0][1] - inputs[0][0]) / 2
        # nowhere steeper than 1.5
        return self.widened(F.hardswish(middle), 1.5 * radius, middle.abs())

    def run_Add(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        (a, b), (c, d) = inputs
        return self.widened((a + b + c + d) / 2, (b - a + d - c) / 2, a.abs() + c.abs())

    def run_Mul(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        (a, b), (c, d) = inputs
        corners = torch.stack(torch.broadcast_tensors(a * c, a * d, b * c, b * d))
        low, high = corners.amin(0), corners.amax(0)
        return self.widened((low + high) / 2, (high - low) / 2, high.abs() + low.abs())

    def run_Div(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        (a, b), (c, d) = inputs
        return self.run_Mul([(a, b), (1 / d, 1 / c)], values, node)

    def run_Sub(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        (a, b), (c, d) = inputs
        return self.run_Add([(a, b), (-d, -c)], values, node)

    def run_BatchNormalization(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        x, factor, offset, mean, variance = inputs[0], *(value[0].reshape(1, -1, 1, 1) for value in inputs[1:])
        slope = factor / torch.sqrt(variance + values.get("epsilon", 1e-5))
        low, high = ((end - mean) * slope + offset for end in x)
        size = (torch.maximum(x[0].abs(), x[1].abs()) + mean.abs()) * slope.abs() + offset.abs()
        return self.widened((low + high) / 2, (high - low).abs() / 2, size)

    def run_Concat(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        return tuple(torch.cat([x[i] for x in inputs], values["axis"]) for i in (0, 1))

    def run_MaxPool(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        kernel, stride, padding = self._window(values)
        return tuple(F.max_pool2d(end, kernel, stride, padding) for end in inputs[0])

    def run_AveragePool(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        kernel, stride, padding = self._window(values)
        counted = bool(values.get("count_include_pad", 0))

        def apply(x: torch.Tensor) -> torch.Tensor:
            return F.avg_pool2d(x, kernel, stride, padding, count_include_pad=counted)

        low, high = inputs[0]
        return self.widened((apply(low) + apply(high)) / 2, apply(high - low) / 2, apply(low.abs() + high.abs()))

    def _window(self, values: dict[str, Any]) -> tuple[Any, Any, Any]:
        pads = values.get("pads", [0, 0, 0, 0])
        assert pads[:2] == pads[2:]
        return tuple(values["kernel_shape"]), tuple(values.get("strides", [1, 1])), tuple(pads[:2])

    def run_GlobalAveragePool(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        low, high = (end.mean((2, 3), keepdim=True) for end in inputs[0])
        size = torch.maximum(inputs[0][0].abs(), inputs[0][1].abs()).mean((2, 3), keepdim=True)
        return self.widened((low + high) / 2, (high - low) / 2, size)

    def run_GlobalMaxPool(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        return tuple(end.amax((2, 3), keepdim=True) for end in inputs[0])

    def run_ReduceMax(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        return tuple(end.amax(tuple(values["axes"]), keepdim=bool(values.get("keepdims", 1))) for end in inputs[0])

    def run_Flatten(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        return tuple(end.flatten(1) for end in inputs[0])

    def run_Identity(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        return inputs[0]

    def run_Resize(self, inputs: list[Any], values: Any, node: onnx.NodeProto) -> Interval:  # noqa: N802
        return tuple(end.repeat_interleave(2, 2).repeat_interleave(2, 3) for end in inputs[0])

    @staticmethod
    def _float32(value: torch.Tensor) -> torch.Tensor:
        return value.float().double()
