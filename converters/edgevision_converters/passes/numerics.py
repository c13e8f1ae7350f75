"""Running two versions of a model on the same random pictures, and saying how far apart they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from edgevision.dependencies import require
from edgevision.errors import ModelError, UnsupportedOpError

Array = npt.NDArray[Any]


def run(model: ModelProto, feed: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
    """Run a model once in ONNX Runtime, unoptimized, on one thread of the CPU.

    Raises:
        UnsupportedOpError: an op has no implementation there.
        ModelError: the model does not load or run.
    """
    ort = require("onnxruntime", purpose="prove that a converted graph computes the same")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong arrives as an exception
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(outputs, dict(feed))
    except Exception as error:  # the engine's exceptions share no base class of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "NOT_IMPLEMENTED" in reason or "No Op registered" in reason or "is not a registered" in reason:
            raise UnsupportedOpError(f"ONNX Runtime has no implementation for an op of the graph: {reason}") from error
        raise ModelError(f"ONNX Runtime cannot run the graph: {reason}") from error
    return [np.asarray(result) for result in results]


def random_input(shape: Sequence[int], seed: int = 0) -> npt.NDArray[np.float32]:
    """Standard normal values, the same on every machine."""
    return np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)


def relative_difference(reference: Sequence[Array], candidate: Sequence[Array]) -> float:
    """Largest difference of any output over the largest magnitude of that output.

    Integer and boolean outputs count the share of unequal values. Infinite where shapes differ, or where one is
    finite and the other is not.
    """
    worst = 0.0
    for expected, got in zip(reference, candidate, strict=True):
        if expected.shape != got.shape:
            return float("inf")
        if expected.size == 0:
            continue
        if not np.issubdtype(expected.dtype, np.floating):
            worst = max(worst, float(np.mean(expected != got)))
            continue
        finite = np.isfinite(expected)
        if not np.array_equal(finite, np.isfinite(got)):
            return float("inf")
        if finite.any():
            a, b = expected[finite].astype(np.float64), got[finite].astype(np.float64)
            scale = max(float(np.abs(a).max()), float(np.finfo(np.float32).tiny))
            worst = max(worst, float(np.abs(a - b).max()) / scale)
    return worst
