"""A bundle's outputs on pictures: by its engine, or by its plan where the engine needs a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import edgevision as ev
from edgevision.bundle import PLAN, Bundle
from edgevision.data import batches
from edgevision.data.base import Dataset
from edgevision.parity import sqnr_db
from edgevision.pipeline.workspace import Workspace
from other_networks.case import Outputs

Run = Callable[[npt.NDArray[np.float32]], Outputs]


def engine_outputs(bundle: Bundle, pictures: Dataset) -> Outputs:
    """What the bundle's engine answers, picture by picture."""
    with ev.load(bundle) as session:
        return _collect(session.run, bundle, pictures)


def plan_outputs(bundle: Bundle, pictures: Dataset, out: Path) -> Outputs:
    """What an INT8 bundle's plan answers: its Q/DQ form in float, with no optimization.

    Args:
        bundle: converted into ``out``.
        pictures: to run.
        out: where the conversion kept its graph.
    """
    from edgevision_calibration.observe import open_session
    from edgevision_calibration.plan import QuantPlan
    from edgevision_converters.qdq import quantize_dequantize

    graph = Workspace(out).find_graph(bundle.manifest.provenance["graph_sha256"])
    assert graph is not None, f"{out} no longer holds the graph of {bundle.manifest.name}"
    model = quantize_dequantize(graph, QuantPlan.from_json(bundle.read(PLAN)))
    session = open_session(model.SerializeToString(), threads=1, optimize=False)
    names = [output.name for output in session.get_outputs()]

    def run(batch: npt.NDArray[np.float32]) -> dict[str, Any]:
        return dict(zip(names, session.run(names, {graph.input_name: batch}), strict=True))

    return _collect(run, bundle, pictures)


def _collect(run: Run, bundle: Bundle, pictures: Dataset) -> Outputs:
    runs = [run(batch) for batch, _ in batches(pictures, bundle.manifest.preprocess, 1)]
    return {name: np.concatenate([outputs[name] for outputs in runs]) for name in runs[0]}


def least_sqnr(fp32: Outputs, int8: Outputs) -> float:
    """Signal-to-quantization-noise ratio of the output where it is least, dB."""
    return min(sqnr_db(fp32[name], int8[name]) for name in fp32)
