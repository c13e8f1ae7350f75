"""A network's model with its detector's decoding and suppression behind it, or these alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper

from edgevision.detection.decoders import DECODERS
from edgevision.detection.decoders.end2end import OUTPUTS
from edgevision.detection.postprocess import Postprocess
from edgevision.errors import UsageError
from edgevision_converters.end2end.families import FAMILIES
from edgevision_converters.end2end.nodes import Nodes
from edgevision_converters.end2end.suppression import (
    PLUGIN_DOMAIN,
    choose,
    detections_per_picture,
    suppress,
    suppress_by_plugin,
)
from edgevision_converters.passes.editor import Editor
from edgevision_converters.passes.numerics import run

Shapes = Mapping[str, Sequence[int | None]]

# of models that hold nothing else; what is written here is the same in every opset from 13 on
_OPSET = 17
# greatest K of TensorRT's TopK
_MOST_IN_TENSORRT = 3840


def append_detections(
    model: ModelProto, shapes: Shapes, postprocess: Postprocess, size: tuple[int, int], *, plugin: bool = False
) -> ModelProto:
    """A copy of a model whose outputs are the detections instead of the network's own.

    The outputs are those that the decoder ``end2end`` reads: int32 ``num_detections`` ``[B, 1]``, float32
    ``detection_boxes`` ``[B, M, 4]`` xyxy in pixels of the input, float32 ``detection_scores`` ``[B, M]``, best
    first, and int32 ``detection_classes`` ``[B, M]``. M is ``max_detections``, or the number of candidates where that
    is smaller.

    Args:
        model: of the network, float or Q/DQ, in opset 13 or later.
        shapes: of its outputs, by name: ``[B, …]``, static but for the batch.
        postprocess: how the outputs become boxes: all of it is done in the graph, by the same rules.
        size: height and width of the network's input, in pixels.
        plugin: whether TensorRT's EfficientNMS suppresses, rather than ONNX's NonMaxSuppression.

    Raises:
        UsageError: a decoder that the graph cannot have, or more candidates than TensorRT sorts.
        EngineError: outputs of another form than the decoder's.
    """
    editor = Editor(model)
    if taken := {name for node in editor.nodes for name in node.output} & set(OUTPUTS):
        raise UsageError(f"the network has a tensor {min(taken)!r} already, which --nms graph makes: rename it")
    if plugin and postprocess.max_candidates > _MOST_IN_TENSORRT:
        raise UsageError(
            f"TensorRT sorts up to {_MOST_IN_TENSORRT} values; got max_candidates {postprocess.max_candidates}"
        )
    nodes = Nodes(editor, shapes)
    classes = _classes(nodes, postprocess, size)
    head = FAMILIES[postprocess.decoder](nodes, size, _options(postprocess))
    chosen = choose(nodes, head, postprocess, classes)
    (suppress_by_plugin if plugin else suppress)(nodes, chosen, postprocess, classes)
    made = editor.finish()
    graph = made.graph
    graph.value_info.extend(graph.output)
    del graph.output[:]
    graph.output.extend(_outputs(_batch(model), detections_per_picture(chosen, postprocess)))
    if plugin:
        made.opset_import.append(helper.make_opsetid(PLUGIN_DOMAIN, 1))
    return made


def detections_model(shapes: Shapes, postprocess: Postprocess, size: tuple[int, int]) -> ModelProto:
    """What `append_detections` appends, as a model of its own whose inputs are the network's outputs."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape[1:]]) for name, shape in shapes.items()
    ]
    empty = helper.make_model(
        helper.make_graph([], "detections", values, []), opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8
    )
    return append_detections(empty, shapes, postprocess, size)


def detections_of(
    outputs: Mapping[str, npt.NDArray[Any]], postprocess: Postprocess, size: tuple[int, int]
) -> dict[str, npt.NDArray[Any]]:
    """What the appended nodes make of a network's outputs ``[B, …]``, by ONNX Runtime; see `append_detections`."""
    model = detections_model({name: value.shape for name, value in outputs.items()}, postprocess, size)
    return dict(zip(OUTPUTS, run(model, outputs), strict=True))


def check_decoder(postprocess: Postprocess) -> None:
    """Refuse a decoder whose work no graph here does.

    Raises:
        UsageError: a function of somebody's own, or a graph that suppresses already.
    """
    if postprocess.decoder not in FAMILIES:
        raise UsageError(
            f"--nms graph knows the decoders {', '.join(FAMILIES)}; what {postprocess.decoder} reads is decoded on "
            "the device: leave --nms graph out"
        )


def _classes(nodes: Nodes, postprocess: Postprocess, size: tuple[int, int]) -> int:
    """Number of classes; the decoder itself says whether outputs of these shapes are its own."""
    check_decoder(postprocess)
    nothing = {name: np.zeros(shape, np.float32) for name, shape in nodes.shapes.items()}
    postprocess.candidates(nothing, size)
    count = postprocess.count_classes(nothing, size)
    assert count is not None
    return count


def _options(postprocess: Postprocess) -> dict[str, Any]:
    """Every option of the decoder, with its own default where none is given."""
    parameters = inspect.signature(DECODERS.resolve(postprocess.decoder)).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
    return {**defaults, **postprocess.options}


def _batch(model: ModelProto) -> int | str:
    """The batch as the model's input has it: a number, or a name."""
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    return int(first.dim_value) if first.HasField("dim_value") else str(first.dim_param or "batch")


def _outputs(batch: int | str, most: int) -> list[onnx.ValueInfoProto]:
    shapes = ([batch, 1], [batch, most, 4], [batch, most], [batch, most])
    kinds = (TensorProto.INT32, TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32)
    return [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in zip(OUTPUTS, kinds, shapes, strict=True)
    ]
