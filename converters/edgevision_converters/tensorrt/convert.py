"""Canonical graph or Q/DQ model → the ONNX that a TensorRT bundle holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgevision.errors import UsageError
from edgevision.registry import unknown_name
from edgevision_converters.tensorrt.check import NEWEST_OPSET, trt_check
from edgevision_converters.tensorrt.half import to_half
from edgevision_converters.tensorrt.lookup import Lookup, attribute
from edgevision_converters.tensorrt.opset import lower_opset

if TYPE_CHECKING:
    from onnx import ModelProto

    from edgevision.graph import Graph

#: Opset of the ONNX in a bundle, unless the graph came in an older one.
OPSET = NEWEST_OPSET
PRECISIONS = ["fp32", "fp16", "int8"]


def convert(
    graph: Graph,
    qdq_model: ModelProto | None,
    precision: str,
    finish: Callable[[ModelProto], ModelProto] | None = None,
) -> bytes:
    """The ONNX of a TensorRT bundle: opset 17, checked by `trt_check`, compiled on the device at first load.

    Args:
        graph: the canonical float32 graph.
        qdq_model: the graph with the plan of the scheme ``tensorrt`` written in as Q/DQ, for ``int8``; else None.
        precision: ``fp32``, ``fp16`` (float16 inside, float32 at inputs and outputs) or ``int8``.
        finish: what is done to the lowered model before it is checked; what it adds is float32 in every precision.

    Returns:
        The serialized ONNX model, the same bytes for the same input.

    Raises:
        UsageError: no such precision, or one that does not go with ``qdq_model``.
        UnsupportedOpError: an op that TensorRT, or opset 17, has not.
        ModelError: another form of Q/DQ than TensorRT takes; a weight beyond float16.
    """
    if precision not in PRECISIONS:
        raise UsageError(unknown_name("precision", precision, PRECISIONS))
    if (precision == "int8") != (qdq_model is not None):
        raise UsageError(
            f"precision {precision} {'needs' if precision == 'int8' else 'takes no'} Q/DQ model; "
            f"got {'none' if qdq_model is None else 'one'}"
        )
    model = lower_opset(graph.model if qdq_model is None else qdq_model, OPSET)
    _state_kernel_shapes(model)
    if precision == "fp16":
        model = to_half(model)
    if finish is not None:
        model = finish(model)
    trt_check(model)
    return bytes(model.SerializeToString(deterministic=True))


def engine_options(
    precision: str, *, max_batch: int = 8, opt_batch: int = 1, sparse: bool = False, plugins: bool = False
) -> dict[str, Any]:
    """``engine_options`` of the bundle's manifest, as the runtime's builder reads them.

    Args:
        precision: ``fp32``, ``fp16`` or ``int8``; with ``int8`` the layers that stay in float may use float16.
        max_batch: greatest batch of one launch; the runtime runs greater ones in pieces.
        opt_batch: the batch that kernels are chosen for.
        sparse: whether layers have 2:4 zeros, for which there are kernels from compute capability 8.0 on.
        plugins: whether the model holds ops of NVIDIA's plugin library.

    Raises:
        UsageError: no such precision, or not ``1 <= opt_batch <= max_batch``.
    """
    if precision not in PRECISIONS:
        raise UsageError(unknown_name("precision", precision, PRECISIONS))
    if not 1 <= opt_batch <= max_batch:
        raise UsageError(f"opt_batch must be 1 to max_batch; got opt_batch {opt_batch}, max_batch {max_batch}")
    return {
        "fp16": precision != "fp32",
        "int8": precision == "int8",
        "batch": {"min": 1, "opt": opt_batch, "max": max_batch},
        # left out where it says nothing, so that bundles stay what they were
        **({"sparse": True} if sparse else {}),
        **({"plugins": True} if plugins else {}),
    }


def _state_kernel_shapes(model: ModelProto) -> None:
    """Write ``kernel_shape`` where it is left to the weights' shape.

    Weights behind Q/DQ are no constants to TensorRT 8.5's parser: it takes the kernel's size from the attribute alone.
    """
    from onnx import helper

    lookup = Lookup(model)
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose") or attribute(node, "kernel_shape") is not None:
            continue
        source = node.input[1]
        while source not in lookup.constants and source in lookup.producer:
            source = lookup.producer[source].input[0]
        if source in lookup.constants:
            node.attribute.append(helper.make_attribute("kernel_shape", list(lookup.constants[source].shape[2:])))
