"""OpenVINO takes the canonical graph, or its Q/DQ form, through its own ONNX reader, in a child process."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from edgevision.dependencies import require
from edgevision_converters.child import run_python
from edgevision_converters.onnxruntime import quantized_model
from edgevision_converters.qdq import dequantized_names
from edgevision_converters.target import ConversionRequest, EngineFiles


def convert(request: ConversionRequest) -> EngineFiles:
    """The IR's two files, ``engine/model.xml`` and ``engine/model.bin``.

    Raises:
        ConversionError: OpenVINO cannot read the graph, crashed or ran out of time.
    """
    require("openvino", purpose="convert to OpenVINO")
    source = request.workdir / "source.onnx"
    model = request.graph.to_bytes() if request.plan is None else quantized_model(request, request.plan)
    source.write_bytes(model)
    target = request.workdir / "model.xml"
    run_python(
        "edgevision_converters.openvino:save_ir",
        {"source": str(source), "target": str(target), "half": request.precision == "fp16"},
        timeout_s=request.timeout_s,
        what="OpenVINO's model reader",
    )
    files = {
        "model": ("engine/model.xml", target.read_bytes()),
        "weights": ("engine/model.bin", target.with_suffix(".bin").read_bytes()),
    }
    names = {} if request.plan is None else dequantized_names(request.plan)
    return EngineFiles(files, tensor_names=names, versions={"openvino": version("openvino")})


def save_ir(source: str, target: str, half: bool) -> None:
    """Read an ONNX file and write the IR; runs in the child process."""
    openvino = require("openvino", purpose="convert to OpenVINO")
    model = openvino.convert_model(source)
    # the reader names results after their producers; the bundle's names are the graph's
    openvino.save_model(model, str(Path(target)), compress_to_fp16=half)
