"""What `Session.infer` costs over the engine's own call: the same tensor, the same loaded engine, in turns.

python benchmarks/overhead.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import edgevision as ev
from edgevision.graph import Graph
from provenance import save, show

ROUNDS = 3000
TARGETS = ("onnxruntime", "openvino", "ncnn")


def pointwise() -> Graph:
    """A network of next to no work, so that the call itself is what is measured."""
    from onnx import TensorProto, helper, numpy_helper

    from edgevision_converters.canonical import canonicalize

    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "weight")
    node = helper.make_node("Conv", ["images", "weight"], ["output"], "conv")
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 4, 8, 8])
    graph = helper.make_graph([node], "pointwise", [images], [output], [weight])
    return canonicalize(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def own_call(session: Any, image: np.ndarray) -> Callable[[], object]:
    """The engine's own call, as a careful user would write it: inputs shared, outputs owned."""
    engine = session._engine
    if session.bundle.manifest.target == "onnxruntime":
        native = engine._session
        return lambda: native.run(["output"], {"images": image})
    if session.bundle.manifest.target == "openvino":
        request, ports = engine._request(1)
        return lambda: request.infer({"images": image}, share_inputs=True, share_outputs=True)[ports[0][1]].copy()
    import ncnn

    def run() -> object:
        extractor = engine._net.create_extractor()
        extractor.input("in0", ncnn.Mat(image[0]))
        return np.asarray(extractor.extract("out0")[1])

    return run


def main() -> None:
    """Measure every engine and write the CSV."""
    image = np.ones((1, 3, 8, 8), np.float32)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for bundle in ev.convert(pointwise(), targets=TARGETS, out=Path(folder), preprocess="unit"):
            with ev.load(bundle) as session:
                native = own_call(session, image)
                ours, theirs = [], []
                for _ in range(ROUNDS):
                    ours.append(_timed(lambda: session.infer({"images": image})))
                    theirs.append(_timed(native))
                rows.append(
                    {
                        "target": bundle.manifest.target,
                        "session_us": round(statistics.median(ours), 2),
                        "engine_us": round(statistics.median(theirs), 2),
                        "overhead_us": round(statistics.median(ours) - statistics.median(theirs), 2),
                        "runs": ROUNDS,
                    }
                )
    show(rows)
    print(save("overhead", rows, TARGETS))


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begun) / 1e3


if __name__ == "__main__":
    main()
