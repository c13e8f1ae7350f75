"""TensorRT as the pipeline sees it: an ONNX file that the device compiles."""

from __future__ import annotations

from functools import partial

from edgevision_converters.qdq import quantize_dequantize
from edgevision_converters.target import ConversionRequest, EngineFiles
from edgevision_converters.tensorrt.convert import convert as convert_graph
from edgevision_converters.tensorrt.convert import engine_options
from edgevision_converters.tensorrt.sparsity import two_of_four_layers


def convert(request: ConversionRequest) -> EngineFiles:
    """``engine/model.onnx``, checked against what TensorRT's parser takes."""
    quantized = None if request.plan is None else quantize_dequantize(request.graph, request.plan)
    finish = None if request.nms is None else partial(request.with_nms, plugin=True)
    model = convert_graph(request.graph, quantized, request.precision, finish)
    sparse = bool(two_of_four_layers(request.graph))
    options = engine_options(request.precision, sparse=sparse, plugins=request.nms is not None)
    return EngineFiles({"model": ("engine/model.onnx", model)}, options)
