"""`trt_check`: refuse, on the host, an ONNX that TensorRT would refuse, slow down or read wrongly on the device.

The device is where the engine is compiled, often long after and far from here; what can be known before is said
here, with the node's name and the mend. Rules were read from NVIDIA's parser for 8.5 (the oldest served) and tried
on a parser that builds without a GPU; each says why it is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgevision.errors import ModelError, UnsupportedOpError
from edgevision_converters.tensorrt.lookup import Lookup, attribute, every_node, where

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# The newest opset that TensorRT 8.5 and 8.6 know. They do not refuse a newer one: they misread it. ReduceMean of
# opset 18 has its axes as an input, which 8.5 does not look at, and reduces over every axis.
NEWEST_OPSET = 17

# Ops marked "Y" in onnx/onnx-tensorrt, docs/operators.md, branch 8.5-GA; later versions only add to them.
SUPPORTED_OPS = frozenset(
    {
        "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
        "AveragePool", "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Concat", "Constant",
        "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace",
        "DequantizeLinear", "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike",
        "Flatten", "Floor", "GRU", "Gather", "GatherElements", "GatherND", "Gemm", "GlobalAveragePool",
        "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "HardSigmoid",
        "HardSwish", "Identity", "If", "InstanceNormalization", "IsNaN", "LRN", "LSTM", "LeakyRelu", "Less",
        "LessOrEqual", "Log", "LogSoftmax", "Loop", "LpNormalization", "LpPool", "MatMul", "Max", "MaxPool",
        "Mean", "MeanVarianceNormalization", "Min", "Mod", "Mul", "Neg", "NonMaxSuppression", "NonZero",
        "Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "RNN", "RandomNormal",
        "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Reciprocal", "ReduceL1",
        "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
        "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence", "RoiAlign", "Round",
        "Scan", "Scatter", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign",
        "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt",
        "Squeeze", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu",
        "Unsqueeze", "Upsample", "Where", "Xor",
    }
)  # fmt: skip

# Inputs that the same table wants constant: op → positions.
CONSTANT_INPUTS = {
    "CumSum": (1,),
    "InstanceNormalization": (1, 2),
    "Slice": (3,),
    "Squeeze": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
}

_RESIZE_MODES = ("nearest", "linear")
_RESIZE_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
_RESIZE_NEAREST = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
# Ops of NVIDIA's plugin library: (domain, op) → attribute → its values; None for any. Any other attribute would be
# passed over without a word, and its default taken.
PLUGINS: dict[tuple[str, str], dict[str, tuple[object, ...] | None]] = {
    ("TRT", "EfficientNMS_TRT"): {
        "plugin_version": ("1",),
        "background_class": None,
        "box_coding": (0, 1),
        "class_agnostic": (0, 1),
        "iou_threshold": None,
        "max_output_boxes": None,
        "score_activation": (0, 1),
        "score_threshold": None,
    }
}
# boxes and scores; anchors, which only encoded boxes need, are a third
_PLUGIN_INPUTS, _PLUGIN_OUTPUTS = (2, 3), 4
_FUSED_BEFORE_ACTIVATION = frozenset({"Conv", "ConvTranspose", "Gemm", "BatchNormalization"})


def trt_check(model: ModelProto) -> None:
    """Return where TensorRT 8.5 to 11 would take the model; raise where one of them would not.

    Raises:
        UnsupportedOpError: an op, or a setting of it, that the parser of TensorRT 8.5 does not have.
        ModelError: newer than opset 17, free height or width, or Q/DQ of another form than int8 with zero
            point 0, float32 weights behind Q → DQ and float32 biases.
    """
    _check_form(model)
    lookup = Lookup(model)
    for node in every_node(model.graph):
        _check_op(node)
    for node in lookup.nodes:
        _check_settings(lookup, node)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            _check_zero_point(lookup, node)
            _check_pair(lookup, node)
            _check_scale(lookup, node)
        elif node.op_type in ("Relu", "Clip"):
            _check_fusion(lookup, node)
        elif node.op_type == "Concat":
            _check_concat(lookup, node)
        elif node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            _check_quantized_layer(lookup, node)


def _check_form(model: ModelProto) -> None:
    if model.functions:
        names = ", ".join(function.name for function in model.functions)
        raise ModelError(f"the model defines functions of its own ({names}); inline them: onnx.inliner")
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > NEWEST_OPSET:
            raise ModelError(
                f"the model is of opset {opset.version}; TensorRT 8.5 and 8.6 read up to {NEWEST_OPSET} and misread "
                "what is newer: lower it with edgevision_converters.tensorrt.opset.lower_opset"
            )
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in constants:
            continue
        free = [i for i, dim in enumerate(value.type.tensor_type.shape.dim) if not dim.HasField("dim_value") and i]
        if free:
            raise ModelError(
                f"input {value.name!r} is free in dimension {free[0]}; only the batch may be: export the model with "
                "the height and width it will run at"
            )


def _check_op(node: NodeProto) -> None:
    if node.op_type.startswith("QLinear") or node.op_type in ("ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"):
        raise UnsupportedOpError(
            f"{where(node)} computes on integers itself (QOperator form), which TensorRT does not read: quantize into "
            "QuantizeLinear → DequantizeLinear (Q/DQ form) instead"
        )
    if (node.domain, node.op_type) in PLUGINS:
        _check_plugin(node)
        return
    if node.domain not in ("", "ai.onnx"):
        raise UnsupportedOpError(
            f"{where(node)} is of domain {node.domain!r}; TensorRT reads the standard ONNX ops only: export the model "
            "without it, or keep it out of the graph"
        )
    if node.op_type not in SUPPORTED_OPS:
        raise UnsupportedOpError(
            f"TensorRT 8.5 has no {where(node)}: export the model with another op in its place, or choose the target "
            "onnxruntime"
        )


def _check_plugin(node: NodeProto) -> None:
    """Attributes and tensors as the plugin reads them."""
    known = PLUGINS[node.domain, node.op_type]
    given = {its.name: attribute(node, its.name) for its in node.attribute}
    for name, value in given.items():
        valid = known.get(name)
        if name not in known or (valid is not None and value not in valid):
            expected = f"known are {', '.join(known)}" if name not in known else f"expected one of {valid}"
            raise UnsupportedOpError(f"{where(node)} sets {name}={value!r}; {expected}")
    if missing := [name for name in known if name not in given]:
        raise UnsupportedOpError(f"{where(node)} does not say {missing[0]}, whose default differs between versions")
    if len(node.input) not in _PLUGIN_INPUTS or len(node.output) != _PLUGIN_OUTPUTS:
        raise UnsupportedOpError(
            f"{where(node)} has {len(node.input)} inputs and {len(node.output)} outputs; it takes boxes and scores "
            "(and anchors), and gives number, boxes, scores and classes"
        )


def _check_settings(lookup: Lookup, node: NodeProto) -> None:
    """Settings that the parser's table excludes for an op it has."""
    for position in CONSTANT_INPUTS.get(node.op_type, ()):
        if lookup.input(node, position) and lookup.constant(node, position) is None:
            raise UnsupportedOpError(
                f"{where(node)}: TensorRT 8.5 wants its input {position} ({lookup.input(node, position)!r}) to be "
                "constant; fold constants before converting"
            )
    if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
        raise UnsupportedOpError(f"{where(node)}: TensorRT 8.5 has no output 'Indices' of MaxPool; do without it")
    if node.op_type == "Resize":
        _one_of(node, "mode", "nearest", _RESIZE_MODES)
        _one_of(node, "coordinate_transformation_mode", "half_pixel", _RESIZE_COORDINATES)
        _one_of(node, "nearest_mode", "round_prefer_floor", _RESIZE_NEAREST)


def _one_of(node: NodeProto, name: str, default: str, valid: tuple[str, ...]) -> None:
    value = attribute(node, name, default)
    if value not in valid:
        raise UnsupportedOpError(f"{where(node)}: TensorRT 8.5 has no {name} {value!r}; it has {', '.join(valid)}")


def _check_zero_point(lookup: Lookup, node: NodeProto) -> None:
    data = lookup.constant(node, 0)
    if node.op_type == "DequantizeLinear" and data is not None and data.dtype == np.int32:
        raise ModelError(_int32_bias(node))
    zero_point = lookup.constant(node, 2)
    if not lookup.input(node, 2):
        raise ModelError(
            f"{where(node)} has no zero point; TensorRT 8.5 wants all three inputs: add an int8 zero point of 0"
        )
    if zero_point is None:
        raise ModelError(f"{where(node)} computes its zero point; TensorRT wants it constant: an int8 0")
    if zero_point.dtype == np.int32:
        raise ModelError(_int32_bias(node))
    if zero_point.dtype != np.int8:
        what = "weights" if data is not None else "activations"
        raise ModelError(
            f"{where(node)} has a {zero_point.dtype} zero point; TensorRT reads the integers as int8, which gives "
            f"wrong numbers: quantize {what} to symmetric int8"
        )
    if zero_point.any():
        value = zero_point.reshape(-1)[np.flatnonzero(zero_point)[0]]
        raise ModelError(
            f"{where(node)} has the zero point {value}; TensorRT knows symmetric quantization only: quantize "
            f"{'weights' if data is not None else 'activations'} with zero point 0"
        )


def _int32_bias(node: NodeProto) -> str:
    return (
        f"{where(node)} dequantizes int32 (a quantized bias), which TensorRT does not read: leave biases in float32 "
        "(quantize_bias=False)"
    )


def _check_scale(lookup: Lookup, node: NodeProto) -> None:
    scale = lookup.constant(node, 1)
    if scale is None:
        raise ModelError(f"{where(node)} computes its scale; TensorRT 8.5 wants it constant: calibrate ahead of time")
    if scale.dtype != np.float32:
        raise ModelError(f"{where(node)} has {scale.dtype} scales; TensorRT 8.5 wants float32")
    if not scale.size or not np.all(np.isfinite(scale)) or not np.all(scale > 0):
        raise ModelError(f"{where(node)} has a scale that is not a positive number; calibrate again")
    zero_point = lookup.constant(node, 2)
    if zero_point is not None and zero_point.size != scale.size:
        raise ModelError(
            f"{where(node)} has {scale.size} scales and {zero_point.size} zero points; TensorRT wants as many of each"
        )
    if scale.size > 1:
        _check_per_channel(lookup, node, scale.size)


def _check_per_channel(lookup: Lookup, node: NodeProto, channels: int) -> None:
    quantizer = lookup.made_by(node) if node.op_type == "DequantizeLinear" else node
    weight = lookup.constant(quantizer, 0) if quantizer is not None else None
    if weight is None:
        raise ModelError(
            f"{where(node)} has {channels} scales on an activation; TensorRT quantizes activations with one scale per "
            "tensor, and only weights per channel"
        )
    axis = attribute(node, "axis")
    if axis is None:
        # ONNX says 1, TensorRT 8.5 takes 0
        raise ModelError(f"{where(node)} has {channels} scales and no axis; state it: ONNX and TensorRT 8.5 disagree")
    if not -weight.ndim <= axis < weight.ndim or weight.shape[axis] != channels:
        raise ModelError(
            f"{where(node)} has {channels} scales along axis {axis} of weights {list(weight.shape)}; give one scale "
            "for each output channel"
        )


def _check_pair(lookup: Lookup, node: NodeProto) -> None:
    if node.op_type == "QuantizeLinear":
        data = lookup.constant(node, 0)
        if data is not None and data.dtype != np.float32:
            raise ModelError(f"{where(node)} quantizes {data.dtype} weights; TensorRT 8.5 wants float32 there")
        others = [reader for reader in lookup.readers.get(node.output[0], []) if reader.op_type != "DequantizeLinear"]
        if others or node.output[0] in {value.name for value in lookup.model.graph.output}:
            reader = where(others[0]) if others else "an output of the model"
            raise ModelError(
                f"the integers of {where(node)} reach {reader}; put a DequantizeLinear directly behind QuantizeLinear"
            )
        return
    quantizer = lookup.made_by(node)
    if quantizer is None or quantizer.op_type != "QuantizeLinear":
        stored = lookup.constant(node, 0)
        came = f"{stored.dtype} weights stored in the file" if stored is not None else "integers from elsewhere"
        raise ModelError(
            f"{where(node)} dequantizes {came}; TensorRT 8 wants float32 weights behind QuantizeLinear → "
            "DequantizeLinear (weights_as_float=True)"
        )
    ours, theirs = lookup.constant(node, 1), lookup.constant(quantizer, 1)
    if ours is None or theirs is None or not np.array_equal(ours.reshape(-1), theirs.reshape(-1)):
        raise ModelError(f"{where(node)} and {where(quantizer)} before it have other scales; give both the same one")
    if ours.size > 1 and attribute(node, "axis") != attribute(quantizer, "axis"):
        raise ModelError(f"{where(node)} and {where(quantizer)} before it have other axes; give both the same one")


def _check_fusion(lookup: Lookup, node: NodeProto) -> None:
    """Q between a layer and its activation function makes two kernels of one.

    Where others read the integers too, the layer's own output is needed, and there is nothing to fuse.
    """
    layer = _behind_pair(lookup, node, 0)
    shared = len(lookup.readers.get(node.input[0], [])) > 1
    if layer is not None and layer.op_type in _FUSED_BEFORE_ACTIVATION and not shared:
        raise ModelError(
            f"QuantizeLinear stands between {where(layer)} and {where(node)}, which TensorRT then cannot fuse: "
            f"quantize the output of {where(node)} instead"
        )


def _behind_pair(lookup: Lookup, node: NodeProto, position: int) -> NodeProto | None:
    """The node whose output passes Q → DQ before it enters ``node``."""
    dequantizer = lookup.made_by(node, position)
    if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
        return None
    quantizer = lookup.made_by(dequantizer)
    return lookup.made_by(quantizer) if quantizer is not None else None


def _check_concat(lookup: Lookup, node: NodeProto) -> None:
    """Inputs of different scales are requantized one by one before they are joined, if integers are what is wanted."""
    if all(reader.op_type != "QuantizeLinear" for reader in lookup.readers.get(node.output[0], [])):
        return
    first: tuple[str, float] | None = None
    for position, name in enumerate(node.input):
        dequantizer = lookup.made_by(node, position)
        if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
            continue
        scale = lookup.constant(dequantizer, 1)
        if scale is None:
            continue
        value = float(scale.reshape(-1)[0])
        if first is None:
            first = (name, value)
        elif value != first[1]:
            raise ModelError(
                f"{where(node)} joins {first[0]!r} of scale {first[1]:.6g} and {name!r} of scale {value:.6g}; TensorRT "
                "joins integers of one scale only: give all its inputs the greatest one"
            )


def _check_quantized_layer(lookup: Lookup, node: NodeProto) -> None:
    dequantizer = lookup.made_by(node, 1)
    quantizer = lookup.made_by(dequantizer) if dequantizer and dequantizer.op_type == "DequantizeLinear" else None
    weight = lookup.constant(quantizer, 0) if quantizer is not None else None
    if dequantizer is None or weight is None:
        return
    activation = lookup.made_by(node, 0)
    if activation is None or activation.op_type != "DequantizeLinear":
        raise ModelError(
            f"{where(node)} has quantized weights and a float input; TensorRT computes in int8 only where both are: "
            "quantize its input too, or leave it in float"
        )
    if node.op_type in ("Conv", "ConvTranspose") and attribute(node, "kernel_shape") is None:
        # the weights are no constant to the parser, so it takes the kernel's size from here alone
        raise ModelError(f"{where(node)} has quantized weights and no kernel_shape; TensorRT 8.5 wants it stated")
    scale = lookup.constant(dequantizer, 1)
    if scale is not None and scale.size > 1:
        axis, expected = attribute(dequantizer, "axis") % weight.ndim, _output_axis(node, weight.ndim)
        if axis != expected:
            raise ModelError(
                f"{where(node)} has weight scales along axis {axis}; TensorRT takes them along the output channels, "
                f"axis {expected}"
            )


def _output_axis(node: NodeProto, rank: int) -> int:
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, rank - 1)
