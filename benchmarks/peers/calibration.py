"""One calibration pass over MobileNetV2: CPU time and peak memory beside ONNX Runtime's calibrators, in one run.

Each row is a process of its own. Needs EDGEVISION_DATA.

    python benchmarks/peers/calibration.py [--images 100,300] [--percentile]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from provenance import save, show

DATA = Path(os.environ.get("EDGEVISION_DATA", ""))


def calibrate(method: str, model: str, count: int) -> dict[str, object]:
    """One pass, in this process: pictures are decoded and preprocessed by the same code for all methods."""
    from edgevision.data import batches, open_dataset
    from edgevision.data.base import Subset
    from edgevision.preprocess import PRESETS

    dataset = open_dataset(f"csv:{DATA}/imagenet-mini/labels.csv")
    # 500 photos: more than that are the same ones again, which memory and time do not notice
    chosen = Subset(dataset, [index % len(dataset) for index in range(count)])
    feed = (batch for batch, _ in batches(chosen, PRESETS["imagenet"], 1))
    before, begun = _peak_mb(), time.process_time()
    if method == "edgevision":
        from edgevision.graph import Graph
        from edgevision_calibration.observe import observe

        observe(Graph.open(model), feed)
    elif method == "plain inference":
        import onnxruntime

        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        for batch in feed:
            session.run(None, {"images": batch})
    else:
        _peer(method, model, feed)
    return {
        "method": method,
        "images": count,
        "cpu_s": round(time.process_time() - begun, 2),
        "peak_mb": round(_peak_mb()),
        "growth_mb": round(_peak_mb() - before),
    }


def _peer(method: str, model: str, feed: object) -> None:
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    class Reader:
        def get_next(self) -> dict[str, object] | None:
            batch = next(feed, None)  # type: ignore[call-overload]
            return None if batch is None else {"images": batch}

    kind = {"ONNX Runtime min-max": "MinMax", "ONNX Runtime percentile": "Percentile"}[method]
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            model, calibrate_method=getattr(CalibrationMethod, kind), augmented_model_path=f"{folder}/augmented.onnx"
        )
        calibrator.collect_data(Reader())
        calibrator.compute_data()


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    """Run every method in turns, each in a child process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", default="100,300")
    parser.add_argument("--percentile", action="store_true", help="also ONNX Runtime's percentile (6 GB per 100)")
    parser.add_argument("--child", nargs=3, metavar=("METHOD", "MODEL", "COUNT"))
    options = parser.parse_args()
    if options.child:
        print(json.dumps(calibrate(options.child[0], options.child[1], int(options.child[2]))))
        return
    if not (DATA / "weights").is_dir():
        sys.exit("EDGEVISION_DATA must name the folder with imagenet-mini and weights")
    from edgevision_converters.export import open_source

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = open_source("mobilenet_v2", weights=DATA / "weights" / "mobilenet_v2_imagenet.safetensors")
        model = str(source.graph.save(Path(folder) / "mobilenet_v2.onnx"))
        methods = ["plain inference", "edgevision", "ONNX Runtime min-max"]
        jobs = [(method, count) for count in map(int, options.images.split(",")) for method in methods]
        if options.percentile:
            jobs.append(("ONNX Runtime percentile", 100))
        for method, count in jobs:
            command = [sys.executable, __file__, "--child", method, model, str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            show(rows[-1:])
    print(save("calibration-mobilenet_v2", rows, ("onnxruntime", "numpy")))


if __name__ == "__main__":
    main()
