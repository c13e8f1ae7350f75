"""Canonical ONNX and a plan → ncnn's ``.param`` and ``.bin``, in FP32, FP16 and INT8. Host side: needs onnx and pnnx.

::

    Graph ──pnnx (child process)──► .param/.bin ──cleanup──► compared with ONNX Runtime, tensor by tensor
                                                                  │ which blob is which tensor
    QuantPlan ────────────────────────────────────► quantize ◄────┘
                                                       │
                                                   NcnnFiles

There is no INT8 tool for ncnn on the package index, so the integer layers are written here, blob by blob.
"""

from edgevision_converters.ncnn.convert import NcnnFiles, convert
from edgevision_converters.ncnn.model import NcnnModel

__all__ = ["NcnnFiles", "NcnnModel", "convert"]
