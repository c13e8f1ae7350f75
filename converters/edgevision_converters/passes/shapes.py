"""Static shapes of every tensor, inferred without carrying the weights along."""

from __future__ import annotations

from typing import TypeAlias

import onnx
from onnx import ModelProto, TypeProto, ValueInfoProto, helper

from edgevision.errors import ModelError

Shape: TypeAlias = "tuple[int | None, ...]"

BATCH = "batch"
# Shape computations work on a handful of integers; anything larger is a weight, whose value no shape depends on.
_SMALL = 1024


def skeleton(model: ModelProto) -> ModelProto:
    """A copy of ``model`` in which large initializers are inputs: light enough to infer shapes of again and again."""
    light = ModelProto()
    graph = model.graph
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    listed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        size = 1
        for dimension in tensor.dims:
            size *= dimension
        if size <= _SMALL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def infer(model: ModelProto, batch: int | None = None) -> dict[str, ValueInfoProto]:
    """Infer shapes and types of all tensors that nodes make, and of the inputs.

    Args:
        model: any model; weights may be left out as `skeleton` does.
        batch: value of the first dimension of the first input; None leaves it as it is.

    Raises:
        ModelError: a node cannot take the shapes that it is given.
    """
    light = skeleton(model)
    if batch is not None:
        set_batch(light.graph.input[0], batch)
        # shapes that the file claims for its outputs hold for its own batch only
        for value in light.graph.output:
            value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"shapes do not fit together: {str(error).strip().splitlines()[0]}") from error
    graph = inferred.graph
    return {value.name: value for value in [*graph.value_info, *graph.output, *graph.input]}


def static_shapes(model: ModelProto, batch: int | None = None) -> dict[str, Shape]:
    """Tensor name → shape, None for unknown dimensions; tensors of unknown rank are left out."""
    shapes: dict[str, Shape] = {}
    for name, value in infer(model, batch).items():
        shape = shape_of(value)
        if shape is not None:
            shapes[name] = shape
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer})
    return shapes


def shape_of(value: ValueInfoProto) -> Shape | None:
    """Shape of a value; None where it has none."""
    tensor: TypeProto.Tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)


def known(shape: Shape | None) -> tuple[int, ...] | None:
    """The shape when every dimension of it is a number, else None."""
    if shape is None:
        return None
    sizes = tuple(size for size in shape if size is not None)
    return sizes if len(sizes) == len(shape) else None


def set_batch(value: ValueInfoProto, batch: int | str) -> None:
    """Set the first dimension of ``value``: a number, or a symbol for a free one."""
    dimension = value.type.tensor_type.shape.dim[0]
    dimension.Clear()
    if isinstance(batch, int):
        dimension.dim_value = batch
    else:
        dimension.dim_param = batch


def annotate(model: ModelProto, one: dict[str, ValueInfoProto], many: dict[str, ValueInfoProto]) -> ModelProto:
    """Write shapes of all tensors into a model, owned by the caller, in place.

    A dimension is written where two inferences, at batch 1 and at a larger one, agree; it is ``batch`` where it is
    the batch in both, and left open elsewhere.
    """
    batch_one, batch_many = (_first(found[model.graph.input[0].name]) for found in (one, many))
    made = dict.fromkeys(name for node in model.graph.node for name in node.output if name)
    outputs = {value.name for value in model.graph.output}
    del model.graph.value_info[:]
    for name in made:
        if name in one and name not in outputs:
            value = model.graph.value_info.add()
            value.name = name
            _write(value, one[name], many.get(name), batch_one, batch_many)
    for value in model.graph.output:
        if value.name in one:
            _write(value, one[value.name], many.get(value.name), batch_one, batch_many)
    return model


def _write(
    value: ValueInfoProto, one: ValueInfoProto, many: ValueInfoProto | None, batch_one: int, batch_many: int
) -> None:
    value.type.CopyFrom(one.type)
    first, second = shape_of(one), shape_of(many) if many is not None else None
    if first is None:
        return
    if second is None or len(second) != len(first):
        value.type.tensor_type.ClearField("shape")
        return
    for axis, (a, b) in enumerate(zip(first, second, strict=True)):
        dimension = value.type.tensor_type.shape.dim[axis]
        dimension.Clear()
        if a is not None and a == b:
            dimension.dim_value = a
        elif axis == 0 and a == batch_one and b == batch_many:
            dimension.dim_param = BATCH


def _first(value: ValueInfoProto) -> int:
    return int(value.type.tensor_type.shape.dim[0].dim_value)
