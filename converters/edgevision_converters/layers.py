"""Layer-wise parity: every tensor an engine shows, compared with the reference, to name the first that departs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.bundle import PLAN, Bundle
from edgevision.errors import EngineError, UsageError
from edgevision.graph import Graph
from edgevision.parity import cosine, sqnr_db
from edgevision.pipeline.workspace import Workspace
from edgevision.runtime.backend import EngineOptions
from edgevision.runtime.session import Session
from edgevision_calibration.observe import expose, observed_tensors, open_session
from edgevision_calibration.plan import QuantPlan
from edgevision_converters.qdq import dequantized_names, quantize_dequantize

# below this a layer computes something else: an integer engine that rounds each layer otherwise keeps more
DEPARTS_DB = {"fp32": 40.0, "fp16": 25.0, "int8": 8.0}


@dataclass(frozen=True)
class Layer:
    """One tensor of the graph as the engine computes it.

    Attributes:
        node: the node that makes it.
        op: its type.
        tensor: its name in the graph.
        cosine: cosine similarity with the reference.
        sqnr_db: signal-to-noise ratio against the reference, dB.
    """

    node: str
    op: str
    tensor: str
    cosine: float
    sqnr_db: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)


@dataclass(frozen=True)
class LayerComparison:
    """Every compared layer in topological order, and the first that departs (None: none does)."""

    layers: tuple[Layer, ...]
    first_departing: str | None


def compare_layers(
    bundle: str | Path | Bundle, *, graph: str | Path | Graph | None = None, threads: int = 1
) -> LayerComparison:
    """Run a golden input through the engine and the reference, and compare tensor by tensor.

    The reference is the graph in FP32, or, for INT8, the plan's fake-quantized execution. Tensors that the engine
    has fused away are left out.

    Args:
        bundle: what to examine.
        graph: the graph it was made from; by default the one kept beside the bundle when it was made.
        threads: threads of the engine.

    Raises:
        UsageError: the target shows no inner tensors, or the graph is not to be found or another one.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if opened.manifest.target == "tensorrt":
        raise UsageError("TensorRT fuses layers when it compiles: compare the onnxruntime bundle of the same plan")
    model = _graph(opened, graph)
    feed = opened.golden()["inputs"][model.input_name][:1]
    plan = QuantPlan.from_json(opened.read(PLAN)) if PLAN in opened.files else None
    expected = _reference(model, plan, feed)
    actual = _engine(opened, list(expected), feed, threads)
    layers = []
    for name, array in expected.items():
        if name in actual and actual[name].size == array.size:
            values = np.asarray(actual[name], np.float32).reshape(array.shape)
            node = model.producer[name]
            layers.append(Layer(node.name, node.op_type, name, cosine(array, values), sqnr_db(array, values)))
    limit = DEPARTS_DB[opened.manifest.precision]
    first = next((layer.node for layer in layers if layer.sqnr_db < limit), None)
    return LayerComparison(tuple(layers), first)


def _graph(bundle: Bundle, graph: str | Path | Graph | None) -> Graph:
    wanted = str(bundle.manifest.provenance.get("graph_sha256", ""))
    if isinstance(graph, Graph):
        found: Graph | None = graph
    elif graph is not None:
        found = Graph.open(graph)
    else:
        found = Workspace(bundle.path.parent).find_graph(wanted) if bundle.path is not None else None
    if found is None:
        raise UsageError(
            "the graph this bundle was made from is not beside it: name it with --graph, or convert the model again"
        )
    if found.sha256 != wanted:
        raise UsageError("the graph given is not the one this bundle was made from (SHA-256 differs)")
    return found


def _reference(
    graph: Graph, plan: QuantPlan | None, feed: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float32]]:
    """Tensor name → reference value; for a plan the dequantized value where the tensor is quantized."""
    names = [name for name in observed_tensors(graph) if name != graph.input_name]
    quantized = {} if plan is None else dequantized_names(plan)
    shown = {name: quantized.get(name, name) for name in names}
    model = graph if plan is None else Graph(quantize_dequantize(graph, plan))
    session = open_session(expose(model, shown.values()), optimize=plan is None)
    values = session.run(list(shown.values()), {graph.input_name: feed})
    return dict(zip(shown, values, strict=True))


def _engine(
    bundle: Bundle, names: list[str], feed: npt.NDArray[np.float32], threads: int
) -> Mapping[str, npt.NDArray[Any]]:
    """Inner tensors as the engine computes them; names it does not know are left out."""
    known = bundle.manifest.tensor_names
    if bundle.manifest.target == "ncnn":
        names = [name for name in names if name in known]
    try:
        return _run(bundle, names, feed, threads)
    except EngineError:
        # one tensor that was fused away spoils the request for all: ask for each alone
        found: dict[str, npt.NDArray[Any]] = {}
        for name in names:
            try:
                found[name] = _run(bundle, [name], feed, threads)[name]
            except EngineError:
                continue
        return found


def _run(
    bundle: Bundle, names: list[str], feed: npt.NDArray[np.float32], threads: int
) -> Mapping[str, npt.NDArray[Any]]:
    with Session(bundle, EngineOptions(threads=threads, layers=tuple(names))) as session:
        return session.infer({session.inputs[0].name: feed})
