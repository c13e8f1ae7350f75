"""What a model must be before it can become canonical, with one clear message for each thing it may not be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from edgevision.errors import ModelError, UnsupportedOpError
from edgevision_converters.passes.editor import opset_of

_STANDARD = ("", "ai.onnx")
_QUANTIZED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "ConvInteger",
        "MatMulInteger",
    }
)
_COLOURS = (1, 3, 4)
# no two runs of such a model agree, so that nothing could be proved of it
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def check_ops(model: ModelProto, label: str) -> None:
    """Refuse quantized models, foreign ops, random numbers and control flow.

    Raises:
        ModelError: the model is quantized already, or draws random numbers.
        UnsupportedOpError: an op outside the ONNX standard, or with a graph inside; names op, node and domain.
    """
    opset = opset_of(model)
    for node in model.graph.node:
        where = f"node {node.name or (node.output[0] if node.output else '?')!r}"
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
            raise ModelError(
                f"{label}: the model is quantized already ({node.op_type} at {where}); give the float model it was "
                "made from: every target gets its own quantization"
            )
        if node.op_type in _RANDOM:
            raise ModelError(
                f"{label}: the model draws random numbers ({node.op_type} at {where}), so that no two runs agree; "
                "export it in eval mode, without noise"
            )
        if node.domain not in _STANDARD:
            raise UnsupportedOpError(
                f"{label}: op {node.op_type} of domain {node.domain!r} at {where} is outside the ONNX standard; no "
                "target has it: export the model with standard ops"
            )
        if not onnx.defs.has(node.op_type, max(opset, 1), ""):
            raise UnsupportedOpError(
                f"{label}: op {node.op_type} of domain 'ai.onnx' at {where} does not exist in opset {opset}; no "
                "target has it: export the model with standard ops"
            )
        if any(entry.HasField("g") or entry.graphs for entry in node.attribute):
            raise UnsupportedOpError(
                f"{label}: op {node.op_type} of domain 'ai.onnx' at {where} holds a graph of its own (control flow); "
                "no target converts it: export the model with the branch or loop unrolled"
            )


def check_structure(model: ModelProto, label: str) -> None:
    """Run ONNX's own checker.

    Raises:
        ModelError: the graph is not well-formed.
    """
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{label}: not a well-formed ONNX graph: {_first_line(error)}") from error
    except ValueError as error:  # beyond protobuf's 2 GiB
        raise ModelError(f"{label}: cannot be checked: {_first_line(error)}") from error


def check_weights(model: ModelProto, label: str) -> None:
    """Refuse NaN anywhere, and infinities in anything but a scalar (bounds of a Clip, value of a Pad).

    Raises:
        ModelError: names the initializer.
    """
    for name, tensor in _constants(model):
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16):
            continue
        values = np.asarray(numpy_helper.to_array(tensor), np.float64)
        nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        if nan or (infinite and values.size > 1):
            raise ModelError(
                f"{label}: initializer {name!r} holds {nan} NaN and {infinite} infinite of {values.size} values; the "
                "training that made these weights diverged: export a good checkpoint"
            )


def check_input(model: ModelProto, label: str, input_size: tuple[int, int] | None) -> ModelProto:
    """Require one picture input ``[B, C, H, W]`` of float32 and fix its channels, height and width.

    Raises:
        ModelError: anything else; the message says what came and what to do.
    """
    inputs = list(model.graph.input)
    if len(inputs) != 1:
        listed = ", ".join(f"{value.name}{_dimensions(value)}" for value in inputs) or "none"
        raise ModelError(f"{label}: expected one input, a batch of pictures; the model has {len(inputs)}: {listed}")
    value = inputs[0]
    kind = value.type.tensor_type
    if kind.elem_type != TensorProto.FLOAT:
        name = TensorProto.DataType.Name(kind.elem_type).lower() if kind.elem_type else value.type.WhichOneof("value")
        raise ModelError(
            f"{label}: input {value.name!r} is {name}; expected float32 (normalisation belongs to the preprocess, "
            "not to the model): export the model with a float32 input"
        )
    if not kind.HasField("shape") or len(kind.shape.dim) != 4:
        raise ModelError(
            f"{label}: input {value.name!r} has shape {_dimensions(value)}; expected 4 dimensions "
            "[batch, channels, height, width]"
        )
    fixed = ModelProto()
    fixed.CopyFrom(model)
    _fix_picture(fixed, label, input_size)
    return fixed


def _fix_picture(model: ModelProto, label: str, input_size: tuple[int, int] | None) -> None:
    value = model.graph.input[0]
    dims = value.type.tensor_type.shape.dim
    sizes = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]
    if sizes[3] in _COLOURS and sizes[1] not in _COLOURS and _may_be_channels_last(model):
        raise ModelError(
            f"{label}: input {value.name!r} has shape {_dimensions(value)}, channels last (NHWC); expected channels "
            "first [batch, channels, height, width]: export with an NCHW input (tf2onnx: --inputs-as-nchw "
            f"{value.name})"
        )
    if sizes[1] is None:
        sizes[1] = _channels_of_first_convolution(model)
    if sizes[1] is None:
        raise ModelError(
            f"{label}: input {value.name!r} has shape {_dimensions(value)}: the number of channels is dynamic; export "
            "the model with a fixed one"
        )
    if input_size is None and (sizes[2] is None or sizes[3] is None):
        raise ModelError(
            f"{label}: input {value.name!r} has shape {_dimensions(value)}: height and width are dynamic; pass "
            "input_size=(height, width), on the command line --input-size 224 or --input-size 240x320"
        )
    if input_size is not None:
        if min(input_size) < 1:
            raise ModelError(f"{label}: input_size must be (height, width) in pixels; got {input_size}")
        for size, wanted in zip(sizes[2:], input_size, strict=True):
            if size not in (None, wanted):
                raise ModelError(
                    f"{label}: the input is fixed at {sizes[2]}×{sizes[3]} (height × width) and cannot become "
                    f"{input_size[0]}×{input_size[1]}; leave input_size out, or export the model with that size"
                )
        sizes[2:] = input_size
    for dim, size in zip(list(dims)[1:], sizes[1:], strict=True):
        dim.Clear()
        dim.dim_value = int(size or 0)


def _may_be_channels_last(model: ModelProto) -> bool:
    """False where a convolution or pool reads the input: it would read it as channels first, whatever its shape."""
    name = model.graph.input[0].name
    readers = [node for node in model.graph.node if name in node.input]
    return not any(node.op_type in ("Conv", "BatchNormalization", "MaxPool", "AveragePool") for node in readers)


def _channels_of_first_convolution(model: ModelProto) -> int | None:
    name = model.graph.input[0].name
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] == name and node.input[1] in weights:
            group = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
            return int(weights[node.input[1]].dims[1]) * int(group)
    return None


def _constants(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        yield from ((_constant_name(node), entry.t) for entry in node.attribute if entry.HasField("t"))


def _constant_name(node: NodeProto) -> str:
    return str(node.output[0] if node.output else node.name)


def _dimensions(value: ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return "[unknown]"
    names = [dim.dim_param or (str(dim.dim_value) if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim]
    return f"[{', '.join(names)}]"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
