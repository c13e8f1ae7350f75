"""The one pass: pictures through the canonical graph, every activation into a `CalibrationTable`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.dependencies import require
from edgevision.errors import CalibrationError, ModelError
from edgevision.graph import Graph
from edgevision.runtime.onnxruntime import DISABLED_OPTIMIZERS
from edgevision_calibration.probe import Probe, Reading
from edgevision_calibration.table import SAMPLES, CalibrationTable, Digest

if TYPE_CHECKING:
    from onnx import NodeProto

# clipping activations fold into the range of the tensor before them
CLIPPING_OPS = frozenset({"Relu", "Clip"})
# pictures that run at once: each more takes the memory of a run
_MOST_AT_ONCE = 4
# pictures that go into the table together: numpy takes about as long for one as for all of them
_TAKEN_AT_ONCE = 8


def observed_tensors(graph: Graph) -> list[str]:
    """Names of the float activations any target may quantize.

    All of them, but for those that nothing but one Relu or Clip reads: engines fold it into the op before. Two of
    them, beside or behind each other, cannot both be folded, so that the tensor between is there to be quantized.
    """
    names = [graph.input_name]
    for node in graph.nodes:
        for name in node.output:
            readers = graph.consumers.get(name, [])
            clipped = len(readers) == 1 and readers[0].op_type in CLIPPING_OPS and node.op_type not in CLIPPING_OPS
            if name and not (clipped and name not in graph.output_names):
                names.append(name)
    return [name for name in dict.fromkeys(names) if len(graph.shapes.get(name, ())) >= 2]


def activated(graph: Graph, node: NodeProto) -> str | None:
    """The tensor that leaves a node after the Relu or Clip that only reads it; None for a graph output."""
    name = str(node.output[0])
    readers = graph.consumers.get(name, [])
    if len(readers) == 1 and readers[0].op_type in CLIPPING_OPS and name not in graph.output_names:
        name = str(readers[0].output[0])
    return None if name in graph.output_names else name


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
        return ort.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED_OPTIMIZERS
        )
    except Exception as error:  # onnxruntime's exceptions share no base class of its own
        raise ModelError(f"ONNX Runtime refuses the graph: {error}") from error


def run_probe(
    probe: Probe, input_name: str, batches: Iterable[npt.NDArray[np.float32]], *, threads: int = 0
) -> Iterator[tuple[npt.NDArray[np.float32], Iterator[Reading]]]:
    """Run every batch and hand it on with what ``probe`` reads of it, in their order.

    Several batches run side by side on one thread each: where all threads join in each layer of one picture they
    wait for each other for a quarter of the time.

    Args:
        probe: what to read.
        input_name: the graph's input.
        batches: preprocessed pictures, float32 ``[B, C, H, W]`` each.
        threads: how many batches run at once; 0 for as many as there are cores, but no more than 4.

    Raises:
        ModelError: ONNX Runtime refuses the graph.
    """
    session = open_session(probe.model, threads=1)
    at_once = threads or min(_usable_cores(), _MOST_AT_ONCE)
    waiting: deque[tuple[npt.NDArray[np.float32], Future[Any]]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        for batch in batches:
            waiting.append((batch, pool.submit(session.run, probe.outputs, {input_name: batch})))
            if len(waiting) >= at_once:
                done, future = waiting.popleft()
                yield done, probe.read(done, future.result())
        while waiting:
            done, future = waiting.popleft()
            yield done, probe.read(done, future.result())


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def observe(
    graph: Graph,
    batches: Iterable[npt.NDArray[np.float32]],
    *,
    preprocess_digest: str = "",
    source: str = "",
    threads: int = 0,
    begun: CalibrationTable | None = None,
    samples: int = SAMPLES,
) -> CalibrationTable:
    """Run every batch once and collect the statistics of `observed_tensors`.

    Memory does not grow with the number of pictures.

    Args:
        graph: the canonical graph.
        batches: preprocessed pictures, float32 ``[B, C, H, W]`` each.
        preprocess_digest: hash of their preprocess, kept for provenance.
        source: what they are, kept for provenance.
        threads: pictures that run at once, a thread each; 0 for all cores, up to 4.
        begun: what is known of this graph already, from other pictures; it is gone on with.
        samples: about how many values of each tensor a picture brings into its histogram, see
            `edgevision_calibration.table.samples_per_picture`.

    Raises:
        CalibrationError: no pictures, an activation is NaN or infinite, or ``begun`` is another graph's.
    """
    table = begun or CalibrationTable(graph.sha256)
    if table.graph_sha256 != graph.sha256:
        raise CalibrationError("the table that was begun is another graph's; calibrate this graph from the start")
    table.preprocess_digest, table.source = preprocess_digest, source
    batches = iter(batches)
    first = next(batches, None)
    if first is not None:
        _run(graph, chain([first], batches), table, threads, samples)
    if table.images == 0:
        raise CalibrationError("there are no calibration images: give --data a folder or data set that holds some")
    return table


def _run(
    graph: Graph, batches: Iterable[npt.NDArray[np.float32]], table: CalibrationTable, threads: int, samples: int
) -> None:
    probe = Probe(graph, observed_tensors(graph), values=samples)
    held: dict[str, list[Digest]] = {}
    waiting = 0
    for batch, readings in run_probe(probe, graph.input_name, batches, threads=threads):
        for name, *read in readings:
            held.setdefault(name, []).append(Digest.of(*read, samples=samples))
        table.images += len(batch)
        waiting += len(batch)
        if waiting >= _TAKEN_AT_ONCE:
            _take(table, held)
            waiting = 0
    _take(table, held)


def _take(table: CalibrationTable, held: dict[str, list[Digest]]) -> None:
    for name, parts in held.items():
        table.update(name, Digest.joined(parts))
    held.clear()
