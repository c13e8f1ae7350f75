"""ONNX Runtime takes the canonical graph as it is, and INT8 as Q/DQ."""

from __future__ import annotations

from edgevision_calibration.plan import QuantPlan
from edgevision_converters.qdq import dequantized_names, quantize_dequantize
from edgevision_converters.target import ConversionRequest, EngineFiles


def convert(request: ConversionRequest) -> EngineFiles:
    """One ONNX file, ``engine/model.onnx``."""
    model = request.graph.to_bytes() if request.plan is None else quantized_model(request, request.plan)
    names = {} if request.plan is None else dequantized_names(request.plan)
    return EngineFiles({"model": ("engine/model.onnx", model)}, tensor_names=names)


def quantized_model(request: ConversionRequest, plan: QuantPlan) -> bytes:
    """The graph with the plan written in as Q/DQ, serialized."""
    return bytes(quantize_dequantize(request.graph, plan).SerializeToString(deterministic=True))
