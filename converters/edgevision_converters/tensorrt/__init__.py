"""TensorRT: ONNX that every parser from 8.5 to 11 takes, to be compiled on the device that runs it."""

from edgevision_converters.tensorrt.check import trt_check
from edgevision_converters.tensorrt.convert import OPSET, convert, engine_options

__all__ = ["OPSET", "convert", "engine_options", "trt_check"]
