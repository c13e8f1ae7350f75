"""The one pass: pictures through the canonical graph, every activation into a `CalibrationTable`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.dependencies import require
from edgevision.errors import CalibrationError, ModelError
from edgevision.graph import Graph
from edgevision_calibration.table import CalibrationTable

# clipping activations fold into the range of the tensor before them
CLIPPING_OPS = frozenset({"Relu", "Clip"})


def observed_tensors(graph: Graph) -> list[str]:
    """Names of the float activations any target may quantize.

    All of them, but for those that nothing but a Relu or Clip reads: engines fold these into the op before.
    """
    names = [graph.input_name]
    for node in graph.nodes:
        for name in node.output:
            readers = graph.consumers.get(name, [])
            clipped = bool(readers) and all(reader.op_type in CLIPPING_OPS for reader in readers)
            if name and not (clipped and name not in graph.output_names):
                names.append(name)
    return [name for name in dict.fromkeys(names) if len(graph.shapes.get(name, ())) >= 2]


def expose(graph: Graph, names: Iterable[str]) -> bytes:
    """The graph with ``names`` as its outputs, serialized."""
    from onnx import ModelProto, TensorProto, helper

    model = ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    # a graph input cannot be an output of its own
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name != graph.input_name
    )
    return bytes(model.SerializeToString())


def open_session(model: bytes, *, threads: int = 0, optimize: bool = True) -> Any:
    """An ONNX Runtime session of a serialized model; ``optimize=False`` runs every node as written.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    ort = require("onnxruntime", purpose="run model graphs", extra="convert")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # a waiting thread that spins steals the core that fills the histograms
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of its own
        raise ModelError(f"ONNX Runtime refuses the graph: {error}") from error


def observe(
    graph: Graph,
    batches: Iterable[npt.NDArray[np.float32]],
    *,
    preprocess_digest: str = "",
    source: str = "",
    threads: int = 0,
) -> CalibrationTable:
    """Run every batch once and collect the statistics of `observed_tensors`.

    Memory does not grow with the number of pictures.

    Args:
        graph: the canonical graph.
        batches: preprocessed pictures, float32 ``[B, C, H, W]`` each.
        preprocess_digest: hash of their preprocess, kept for provenance.
        source: what they are, kept for provenance.
        threads: ONNX Runtime's threads; 0 for all cores.

    Raises:
        CalibrationError: no pictures, or an activation is NaN or infinite.
    """
    names = observed_tensors(graph)
    inner = [name for name in names if name != graph.input_name]
    session = open_session(expose(graph, inner), threads=threads)
    table = CalibrationTable(graph.sha256, preprocess_digest, source=source)
    for batch in batches:
        activations = dict(zip(inner, session.run(inner, {graph.input_name: batch}), strict=True))
        if graph.input_name in names:
            activations[graph.input_name] = batch
        table.update(activations)
        table.images += len(batch)
    if table.images == 0:
        raise CalibrationError("there are no calibration images: give --data a folder or data set that holds some")
    return table
