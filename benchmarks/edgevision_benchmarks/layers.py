"""Time of each layer, as the engine itself tells it: ONNX Runtime's profiler, OpenVINO's performance counters.

Asked for in a session of its own: counting costs time, which must not be in the latency that is reported.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgevision.bundle import Bundle
from edgevision.dependencies import require
from edgevision.runtime.openvino import capabilities, properties

Feed = Mapping[str, npt.NDArray[Any]]
Layer = dict[str, Any]

# inferences a layer's median is taken of; the first few warm up
RUNS, WARM_UP = 30, 5


def layer_times(bundle: Bundle, feed: Feed, threads: int, runs: int = RUNS) -> list[Layer] | None:
    """Median time of each layer, the costliest first: ``name``, ``op``, ``ms``.

    Engines fuse layers: a name may stand for several of the model's. None where the engine tells nothing.

    Raises:
        MissingDependencyError: the engine is not installed.
    """
    tell = _TELLERS.get(bundle.manifest.target)
    if tell is None:
        return None
    times: dict[tuple[str, str], list[float]] = tell(bundle, feed, threads, runs)
    found = [
        {"name": name, "op": op, "ms": float(f"{statistics.median(each):.4g}")} for (name, op), each in times.items()
    ]
    return sorted(found, key=lambda layer: -layer["ms"])


def _onnxruntime(bundle: Bundle, feed: Feed, threads: int, runs: int) -> dict[tuple[str, str], list[float]]:
    from edgevision.runtime.onnxruntime import DISABLED_OPTIMIZERS

    ort = require("onnxruntime", purpose="time the layers of ONNX Runtime bundles")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    settings.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="edgevision-layers-") as folder:
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(
            bundle.engine_file("model"),
            settings,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=DISABLED_OPTIMIZERS,
        )
        for _ in range(WARM_UP + runs):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            key = (name.removesuffix("_kernel_time"), str(event["args"].get("op_name", "")))
            times.setdefault(key, []).append(event["dur"] / 1e3)
    return {key: each[WARM_UP:] or each for key, each in times.items()}


def _openvino(bundle: Bundle, feed: Feed, threads: int, runs: int) -> dict[tuple[str, str], list[float]]:
    ov = require("openvino", purpose="time the layers of OpenVINO bundles")
    core = ov.Core()
    model = core.read_model(bundle.engine_file("model"), bundle.engine_file("weights"))
    model.reshape({name: list(array.shape) for name, array in feed.items()})
    settings = properties(bundle.manifest.precision, threads, lambda: capabilities(core))
    request = core.compile_model(model, "CPU", {**settings, "PERF_COUNT": True}).create_infer_request()
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(WARM_UP + runs):
        request.infer(feed)
        if number < WARM_UP:
            continue
        for info in request.get_profiling_info():
            milliseconds = info.real_time.total_seconds() * 1e3
            if milliseconds > 0:
                times.setdefault((str(info.node_name), str(info.node_type)), []).append(milliseconds)
    return times


_TELLERS: dict[str, Callable[[Bundle, Feed, int, int], dict[tuple[str, str], list[float]]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
