"""MobileNetV2 with its ImageNet weights: INT8 from 300 photos, judged on the 200 others, on every engine here.

Accuracy, agreement with FP32 and latency of FP32 and INT8 come from one run, the engines in turns. TensorRT's plan is
run by its own float reference: its row tells the plan's loss, not an engine's. Needs EDGEVISION_DATA; the sets are
small (one answer is half a point).

    python benchmarks/mobilenet_v2.py [FOLDER]
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import edgevision as ev
from edgevision.data.base import Subset
from edgevision.parity import sqnr_db
from other_networks.case import Outputs
from other_networks.engines import engine_outputs, plan_outputs
from provenance import save, show

TARGETS = ("onnxruntime", "openvino", "ncnn")
PLAN = "tensorrt"


def main() -> None:
    """Convert, evaluate, time, and write the CSV."""
    data = Path(os.environ.get("EDGEVISION_DATA", ""))
    if not (data / "weights").is_dir():
        sys.exit("EDGEVISION_DATA must name the folder with imagenet-mini and weights")
    photos = ev.open_dataset(f"csv:{data}/imagenet-mini/labels.csv")
    # three of every five photos: both parts hold classes from the whole list
    calibration = Subset(photos, [i for i in range(len(photos)) if i % 5 < 3])
    test = Subset(photos, [i for i in range(len(photos)) if i % 5 >= 3])
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(sys.argv[1] if len(sys.argv) > 1 else scratch)
        common: dict[str, Any] = {
            "weights": data / "weights" / "mobilenet_v2_imagenet.safetensors",
            "data": calibration,
            "out": out,
        }
        bundles = ev.convert("mobilenet_v2", targets=TARGETS, precision=["fp32", "int8"], **common)
        report = ev.bench(bundles, test, rounds=5, seconds=1.0, batch_size=1)
        outputs = {(b.manifest.target, b.manifest.precision): _only(engine_outputs(b, test)) for b in bundles}
        (planned,) = ev.convert("mobilenet_v2", targets=[PLAN], precision="int8", **common)
        by_plan = _only(plan_outputs(planned, test, out))
    expected = outputs[TARGETS[0], "fp32"]
    times = {(row.target, row.precision): row.latency_ms["p50"] for row in report.results}
    least = {(row.target, row.precision): row.latency_ms["min"] for row in report.results}
    rows = [
        {
            "target": row.target,
            "precision": row.precision,
            "top1": row.accuracy,
            "agreement": row.agreement,
            "sqnr_db": round(sqnr_db(expected, outputs[row.target, row.precision]), 2),
            "p50_ms": times[row.target, row.precision],
            "p50_of_fp32": round(times[row.target, row.precision] / times[row.target, "fp32"], 3),
            "min_of_fp32": round(least[row.target, row.precision] / least[row.target, "fp32"], 3),
            "size_bytes": row.size_bytes,
            "calibration_photos": len(calibration),
            "test_photos": len(test),
            "threads": row.threads,
        }
        for row in report.results
    ]
    rows.append(
        {
            **dict.fromkeys(rows[0], ""),
            "target": f"{PLAN} (plan)",
            "precision": "int8",
            "top1": float((by_plan.argmax(1) == np.asarray(test.labels)).mean()),
            "agreement": float((by_plan.argmax(1) == expected.argmax(1)).mean()),
            "sqnr_db": round(sqnr_db(expected, by_plan), 2),
            "calibration_photos": len(calibration),
            "test_photos": len(test),
        }
    )
    show(rows)
    print(save("mobilenet_v2", rows, TARGETS))


def _only(outputs: Outputs) -> np.ndarray:
    """The one output there is, ``[N, 1000]``."""
    return next(iter(outputs.values()))


if __name__ == "__main__":
    main()
