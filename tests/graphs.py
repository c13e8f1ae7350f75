"""Random small networks for property tests, as hypothesis strategies of plain numbers that shrink well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

MAP_OPS = (
    "conv", "depthwise", "grouped", "add", "concat", "max_pool", "avg_pool", "upsample", "relu", "relu6",
    "hard_swish", "sigmoid", "batch_norm", "shared",
)  # fmt: skip
HEAD_OPS = ("linear", "relu", "relu6", "hard_swish", "sigmoid", "add", "concat")


@dataclass(frozen=True)
class Layer:
    """One layer; numbers beyond what there is to choose from wrap around, so that every draw is a network."""

    kind: str
    back: int = 0  # how many tensors back its input lies
    other: int = 1  # likewise for the second input of an addition or concatenation
    channels: int = 4
    kernel: int = 1
    stride: int = 1
    variant: int = 0


@dataclass(frozen=True)
class Recipe:
    """A whole network: feature maps, then perhaps a global pool and linear layers."""

    maps: tuple[Layer, ...]
    head: tuple[Layer, ...] | None
    size: tuple[int, int] = (8, 8)
    seed: int = 0
    spread: bool = False  # channels of very unequal size, and dead ones

    def model(self) -> onnx.ModelProto:
        """The network with its random weights: one input ``images [N, 3, H, W]``, what nobody reads is an output."""
        return _Builder(self).build()

    def pictures(self, count: int, seed: int = 1) -> np.ndarray:
        """float32 ``[count, 3, H, W]``, smooth and noisy ones in turn."""
        rng = np.random.default_rng(seed)
        coarse = (
            rng.normal(0.0, 1.0, (count, 3, 2, 2)).repeat(-(-self.size[0] // 2), 2).repeat(-(-self.size[1] // 2), 3)
        )
        fine = rng.normal(0.0, 0.5, (count, 3, *self.size))
        return np.ascontiguousarray(coarse[:, :, : self.size[0], : self.size[1]] + fine, np.float32)


def _layers(kinds: tuple[str, ...], least: int, most: int) -> st.SearchStrategy[tuple[Layer, ...]]:
    layer = st.builds(
        Layer,
        kind=st.sampled_from(kinds),
        back=st.sampled_from([0, 0, 0, 1, 2]),
        other=st.integers(0, 4),
        channels=st.sampled_from([4, 1, 3, 8, 16]),
        kernel=st.sampled_from([1, 3, 2, 5]),
        stride=st.sampled_from([1, 2]),
        variant=st.integers(0, 5),
    )
    return st.lists(layer, min_size=least, max_size=most).map(tuple)


def recipes(most: int = 7) -> st.SearchStrategy[Recipe]:
    """Networks of at most ``most`` layers and three more behind a global pool."""
    return st.builds(
        Recipe,
        maps=_layers(MAP_OPS, 1, most),
        head=st.none() | _layers(HEAD_OPS, 0, 3),
        size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
        seed=st.integers(0, 1 << 16),
        spread=st.booleans(),
    )


class _Builder:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.rng = np.random.default_rng(recipe.seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"images": (3, *recipe.size)}

    def build(self) -> onnx.ModelProto:
        made = ["images"]
        for layer in self.recipe.maps:
            made.append(getattr(self, layer.kind)(made[-1 - layer.back % len(made)], layer, made))
        if self.recipe.head is not None:
            made = [self.flat(made[-1])]
            for layer in self.recipe.head:
                made.append(getattr(self, layer.kind)(made[-1 - layer.back % len(made)], layer, made))
        read = {name for node in self.nodes for name in node.input}
        outputs = [name for node in self.nodes for name in node.output if name not in read]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *self.shapes["images"]])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *self.shapes[name]]) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    def op(self, kind: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], f"{kind.lower()}{len(self.nodes)}", **attributes))
        self.shapes[name] = shape
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def convolution(self, x: str, out: int, kernel: int, group: int = 1, *, stride: int = 1, variant: int = 0) -> str:
        channels, *size = self.shapes[x]
        kernel = kernel if min(size) >= kernel else 1
        dilation = 2 if variant == 1 and kernel == 3 and min(size) >= 5 else 1
        reach = dilation * (kernel - 1)
        # in turn: as many pixels as before; none padded; the last row and column padded alone, as TensorFlow does
        pads = [reach // 2] * 2 + [reach - reach // 2] * 2
        if variant == 2 and min(size) > reach:
            pads = [0, 0, 0, 0]
        elif variant == 3 and min(size) >= reach and reach:
            pads = [0, 0, 1, 1]
        weight = self.rng.normal(
            0.0, 1.4 / (channels // group * kernel**2) ** 0.5, (out, channels // group, kernel, kernel)
        )
        bias = self.rng.normal(0.0, 0.2, out)
        if self.recipe.spread:
            factors = np.exp2(self.rng.uniform(-3.0, 3.0, out)) * (self.rng.uniform(size=out) > 0.1)
            weight, bias = weight * factors.reshape(-1, 1, 1, 1), bias * factors
        inputs = [x, self.constant(weight)] + ([] if variant == 4 else [self.constant(bias)])
        sides = [(side + pads[i] + pads[i + 2] - reach - 1) // stride + 1 for i, side in enumerate(size)]
        return self.op(
            "Conv", inputs, (out, *sides), group=group, kernel_shape=[kernel] * 2, pads=pads, strides=[stride] * 2,
            dilations=[dilation] * 2,
        )  # fmt: skip

    def batch_norm(self, x: str, layer: Layer, made: list[str]) -> str:
        """Behind a convolution it folds; behind a concatenation, or before a padded convolution, it cannot."""
        channels = self.shapes[x][0]
        factor, offset, mean = (self.constant(self.rng.normal(one, 0.3, channels)) for one in (1.0, 0.0, 0.0))
        variance = self.constant(self.rng.uniform(0.5, 2.0, channels))
        return self.op("BatchNormalization", [x, factor, offset, mean, variance], self.shapes[x], epsilon=1e-5)

    def shared(self, x: str, layer: Layer, made: list[str]) -> str:
        """A convolution with the weights of an earlier one, where their channels fit."""
        for node in self.nodes:
            if node.op_type == "Conv" and self.shapes[node.input[0]] == self.shapes[x] and node.input[0] != x:
                attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
                return self.op("Conv", [x, *node.input[1:]], self.shapes[node.output[0]], **attributes)
        return self.convolution(x, self.shapes[x][0], 3)

    def conv(self, x: str, layer: Layer, made: list[str]) -> str:
        return self.convolution(x, layer.channels, layer.kernel, stride=layer.stride, variant=layer.variant)

    def depthwise(self, x: str, layer: Layer, made: list[str]) -> str:
        channels = self.shapes[x][0]
        # variant 5: two outputs for each input
        out = channels * 2 if layer.variant == 5 and channels <= 8 else channels
        return self.convolution(x, out, max(layer.kernel, 2), channels, stride=layer.stride, variant=layer.variant)

    def grouped(self, x: str, layer: Layer, made: list[str]) -> str:
        channels = self.shapes[x][0]
        group = next((g for g in (4, 2, 3) if channels % g == 0 and channels > g), 1)
        return self.convolution(x, group * 3, layer.kernel, group, stride=layer.stride, variant=layer.variant)

    def linear(self, x: str, layer: Layer, made: list[str]) -> str:
        inputs = self.shapes[x][0]
        weight = self.rng.normal(0.0, inputs**-0.5, (layer.channels, inputs))
        bias = self.constant(self.rng.normal(0.0, 0.2, layer.channels))
        if layer.variant == 0:
            return self.op("Gemm", [x, self.constant(weight.T), bias], (layer.channels,))
        if layer.variant == 1:
            product = self.op("MatMul", [x, self.constant(weight.T)], (layer.channels,))
            return self.op("Add", [product, bias], (layer.channels,))
        return self.op("Gemm", [x, self.constant(weight), bias], (layer.channels,), transB=1)

    def add(self, x: str, layer: Layer, made: list[str]) -> str:
        alike = [name for name in made if self.shapes[name] == self.shapes[x] and name != x]
        if alike and layer.variant % 2 == 0:
            other = alike[layer.other % len(alike)]
        elif len(self.shapes[x]) == 3:
            other = self.convolution(x, self.shapes[x][0], 3 if min(self.shapes[x][1:]) >= 3 else 1)
        else:
            other = self.linear(x, Layer("linear", channels=self.shapes[x][0], variant=2), made)
        return self.op("Add", [x, other] if layer.variant < 3 else [other, x], self.shapes[x])

    def concat(self, x: str, layer: Layer, made: list[str]) -> str:
        fitting = [name for name in made if self.shapes[name][1:] == self.shapes[x][1:]]
        other = fitting[layer.other % len(fitting)]
        if self.shapes[x][0] + self.shapes[other][0] > 32:
            return self.relu(x, layer, made)
        parts = [x, other] if layer.variant % 2 else [other, x]
        return self.op("Concat", parts, (self.shapes[x][0] + self.shapes[other][0], *self.shapes[x][1:]), axis=1)

    def max_pool(self, x: str, layer: Layer, made: list[str]) -> str:
        return self.pool("MaxPool", x, layer)

    def avg_pool(self, x: str, layer: Layer, made: list[str]) -> str:
        return self.pool("AveragePool", x, layer, count_include_pad=int(layer.variant == 1))

    def pool(self, kind: str, x: str, layer: Layer, **attributes: Any) -> str:
        channels, *size = self.shapes[x]
        kernel = max(2, min(layer.kernel, 3))
        if min(size) < kernel:
            return self.op("Relu", [x], self.shapes[x])
        pad = 1 if kernel == 3 and layer.variant < 3 else 0
        sides = [(side + 2 * pad - kernel) // layer.stride + 1 for side in size]
        return self.op(
            kind, [x], (channels, *sides), kernel_shape=[kernel] * 2, strides=[layer.stride] * 2, pads=[pad] * 4,
            **attributes,
        )  # fmt: skip

    def upsample(self, x: str, layer: Layer, made: list[str]) -> str:
        channels, *size = self.shapes[x]
        if max(size) > 12:
            return self.op("Relu", [x], self.shapes[x])
        # torch's nearest, and the form of newer exporters; the same pixels at a factor of 2
        how = (
            {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            if layer.variant % 2
            else {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"}
        )
        inputs = [x, "", self.constant([1.0, 1.0, 2.0, 2.0])]
        return self.op("Resize", inputs, (channels, size[0] * 2, size[1] * 2), mode="nearest", **how)

    def relu(self, x: str, layer: Layer, made: list[str]) -> str:
        return self.op("Relu", [x], self.shapes[x])

    def relu6(self, x: str, layer: Layer, made: list[str]) -> str:
        return self.op("Clip", [x, self.constant(0.0), self.constant(6.0)], self.shapes[x])

    def sigmoid(self, x: str, layer: Layer, made: list[str]) -> str:
        gate = self.op("Sigmoid", [x], self.shapes[x])
        # variant 5: x · sigmoid(x), SiLU
        return self.op("Mul", [x, gate], self.shapes[x]) if layer.variant == 5 else gate

    def hard_swish(self, x: str, layer: Layer, made: list[str]) -> str:
        shape = self.shapes[x]
        if layer.variant % 2 == 0:
            return self.op("HardSwish", [x], shape)
        if layer.variant == 1:
            gate = self.op("HardSigmoid", [x], shape, alpha=1 / 6, beta=0.5)
            return self.op("Mul", [x, gate], shape)
        # written out, as exporters of opset 11 do
        lifted = self.op("Add", [x, self.constant(3.0)], shape)
        gate = self.op("Clip", [lifted, self.constant(0.0), self.constant(6.0)], shape)
        return self.op("Div", [self.op("Mul", [x, gate], shape), self.constant(6.0)], shape)

    def flat(self, x: str) -> str:
        channels, *size = self.shapes[x]
        if len(size) == 2 and channels * size[0] * size[1] <= 128 and self.recipe.seed % 3 == 0:
            return self.op("Flatten", [x], (channels * size[0] * size[1],))
        pooled = self.op("GlobalAveragePool" if self.recipe.seed % 3 else "GlobalMaxPool", [x], (channels, 1, 1))
        return self.op("Flatten", [pooled], (channels,))
