"""MobileNetV2 with its ImageNet weights, compressed for storage: size against accuracy, and what unpacking costs.

Weights share 2^bits values a layer, biases corrected on 200 photos; judged on the 300 others in ONNX Runtime. Needs
EDGEVISION_DATA; the sets are small (one answer is 0.33 points). Times are CPU milliseconds, the least of several.

    python benchmarks/compression.py [FOLDER]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import edgevision as ev
from edgevision.data.base import Subset
from edgevision.pipeline.convert import ConvertOptions
from edgevision_benchmarks.accuracy import evaluate
from provenance import save, show

VARIANTS = {
    "fp32": (None, "lossless", 8, 7, 6, 5, 4),
    "int8": (None, "lossless", 7, 6, 5, 4),
}
REPEATS = 7


def main() -> None:
    """Convert, evaluate, time, and write the CSV."""
    data = Path(os.environ.get("EDGEVISION_DATA", ""))
    if not (data / "weights").is_dir():
        sys.exit("EDGEVISION_DATA must name the folder with imagenet-mini and weights")
    photos = ev.open_dataset(f"csv:{data}/imagenet-mini/labels.csv")
    # two of every five photos: both parts hold classes from the whole list
    calibration = Subset(photos, [i for i in range(len(photos)) if i % 5 < 2])
    test = Subset(photos, [i for i in range(len(photos)) if i % 5 >= 2])
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(sys.argv[1] if len(sys.argv) > 1 else scratch)
        bundles = [
            ev.convert(
                "mobilenet_v2",
                weights=data / "weights" / "mobilenet_v2_imagenet.safetensors",
                targets=["onnxruntime"],
                precision=precision,
                data=calibration,
                out=out,
                options=ConvertOptions(compress=compress),
            )[0]
            for precision, variants in VARIANTS.items()
            for compress in variants
        ]
        rows = [row(bundle, bundles[0], test, len(calibration)) for bundle in bundles]
    show(rows)
    print(save("compression", rows, ["onnxruntime"]))


def row(bundle: ev.Bundle, float_bundle: ev.Bundle, test: Subset, calibration_photos: int) -> dict[str, object]:
    """One line of the table."""
    path, float_path = bundle.path, float_bundle.path
    assert path is not None
    assert float_path is not None
    # as it lies on the disk
    opened, exact = ev.Bundle.open(path), ev.Bundle.open(float_path)
    with ev.load(path) as session, ev.load(float_path) as reference:
        found = evaluate(session, test, reference=reference)
    stored, whole = opened.stored_engine_bytes, exact.engine_bytes
    assert stored is not None
    return {
        "target": opened.manifest.target,
        "precision": opened.manifest.precision,
        "compression": opened.compression or "none",
        "top1": found.top1,
        "agreement": found.agreement,
        "engine_bytes": opened.engine_bytes,
        "stored_bytes": stored,
        "times_smaller_than_fp32": round(whole / stored, 2),
        "bundle_bytes": path.stat().st_size,
        "open_bundle_cpu_ms": round(least_ms(lambda: ev.Bundle.open(path)), 1),
        "load_session_cpu_ms": round(least_ms(lambda: ev.load(path).close()), 1),
        "calibration_photos": calibration_photos,
        "test_photos": len(test),
    }


def least_ms(call: Callable[[], object]) -> float:
    """CPU milliseconds of a call, the least of several."""
    times = []
    for _ in range(REPEATS):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return 1e3 * min(times)


if __name__ == "__main__":
    main()
