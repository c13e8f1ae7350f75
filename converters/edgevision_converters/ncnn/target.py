"""ncnn as the pipeline sees it."""

from __future__ import annotations

from importlib.metadata import version

from edgevision_converters.ncnn.convert import convert as convert_graph
from edgevision_converters.target import ConversionRequest, EngineFiles


def convert(request: ConversionRequest) -> EngineFiles:
    """``engine/model.param`` and ``engine/model.bin``."""
    made = convert_graph(
        request.graph,
        precision=request.precision,
        plan=request.plan,
        workdir=request.workdir,
        timeout_s=request.timeout_s,
    )
    return EngineFiles(
        made.engine_files,
        made.engine_options,
        made.tensor_names,
        made.explanation,
        {"pnnx": version("pnnx")},
    )
