"""Other people's networks with their published weights: what INT8 of our default settings keeps on every engine.

ResNet-20 (CIFAR-10), FastestDet (AP on coco128), MobileFaceNet (AUC of pairs) and UltraFace (faces found). FP32 and
INT8 bundles run on ONNX Runtime, OpenVINO and ncnn; TensorRT's plan is run by its own float reference, so its row
tells the plan's loss, not an engine's. Needs EDGEVISION_DATA and faster-coco-eval; the sets are small.

    python benchmarks/other_networks.py [--only NAME] [--rounds N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edgevision as ev
from edgevision.bundle import Bundle
from other_networks.case import Case, Figure, OpenCase
from other_networks.engines import engine_outputs, least_sqnr, plan_outputs
from other_networks.fastestdet import open_fastestdet
from other_networks.mobilefacenet import open_mobilefacenet
from other_networks.resnet20 import open_resnet20
from other_networks.ultraface import open_ultraface
from provenance import save, show

ENGINES = ("onnxruntime", "openvino", "ncnn")
# the plan of an engine that needs a GPU, run in float
PLANS = ("tensorrt",)
CASES: dict[str, OpenCase] = {
    "resnet20": open_resnet20,
    "fastestdet": open_fastestdet,
    "mobilefacenet": open_mobilefacenet,
    "ultraface": open_ultraface,
}


def measure(case: Case, out: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Convert, judge and time one network; a row per target and figure."""
    bundles = {(b.manifest.target, b.manifest.precision): b for b in converted(case, out)}
    times = timed([bundle for bundle in bundles.values() if bundle.manifest.target in ENGINES], rounds)
    for target in (*ENGINES, *PLANS):
        quantized = bundles[target, "int8"]
        # a plan is compared with FP32 of ONNX Runtime, which runs the same graph
        plain = bundles[target if target in ENGINES else ENGINES[0], "fp32"]
        fp32 = engine_outputs(plain, case.judged)
        int8 = (
            engine_outputs(quantized, case.judged) if target in ENGINES else plan_outputs(quantized, case.judged, out)
        )
        common = {
            "target": target if target in ENGINES else f"{target} (plan)",
            "sqnr_db": round(least_sqnr(fp32, int8), 1),
            "fp32_bytes": plain.engine_bytes if target in ENGINES else "",
            "int8_bytes": quantized.engine_bytes if target in ENGINES else "",
            "fp32_ms": times.get((target, "fp32"), ""),
            "int8_ms": times.get((target, "int8"), ""),
            "calibrated_on": case.calibrated_on,
            "calibration_pictures": len(case.calibration),
        }
        for figure in case.judge(fp32, int8):
            yield row(case.name, figure, common)


def converted(case: Case, out: Path) -> list[Bundle]:
    """FP32 and INT8 bundles for every engine, and TensorRT's INT8 for its plan; one calibration."""
    common: dict[str, Any] = {
        "name": case.name,
        "preprocess": case.preprocess,
        "data": case.calibration,
        "out": out,
        **case.arguments,
    }
    bundles = ev.convert(case.source, targets=ENGINES, precision=["fp32", "int8"], **common)
    return bundles + ev.convert(case.source, targets=PLANS, precision="int8", **common)


def timed(bundles: list[Bundle], rounds: int) -> dict[tuple[str, str], float]:
    """Least milliseconds of one picture on one thread, the bundles in turns; nothing for 0 rounds."""
    if not rounds:
        return {}
    report = ev.bench(bundles, rounds=rounds, seconds=0.5, batch_size=1, end_to_end=False)
    return {
        (result.target, result.precision): round(result.latency_ms["min"], 4)
        for result in report.results
        if result.latency_ms is not None
    }


def row(network: str, figure: Figure, common: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    times = (common["int8_ms"], common["fp32_ms"])
    ratio = round(times[0] / times[1], 3) if all(times) else ""
    return {
        "network": network,
        "target": common["target"],
        "measured_on": figure.measured_on,
        "count": figure.count,
        "metric": figure.metric,
        "fp32": round(figure.fp32, 4),
        "int8": round(figure.int8, 4),
        "loss": round(figure.loss, 4),
        "agreement": round(figure.agreement, 4),
        "agreement_of": figure.agreement_of,
        "lost": "" if figure.lost is None else figure.lost,
        "gained": "" if figure.gained is None else figure.gained,
        **{key: value for key, value in common.items() if key != "target"},
        "int8_of_fp32_time": ratio,
    }


def main() -> None:
    """Measure all networks, or the one named, and write the CSV of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, help="one network; nothing is saved")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing; 0 for none (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the bundles (default: a temporary one)")
    arguments = parser.parse_args()
    data = Path(os.environ.get("EDGEVISION_DATA", ""))
    if not (data / "weights").is_dir():
        sys.exit("EDGEVISION_DATA must name the folder with weights, cifar10, coco128, faces-orl and photos")
    with tempfile.TemporaryDirectory() as scratch:
        rows = []
        for name in [arguments.only] if arguments.only else CASES:
            found = list(measure(CASES[name](data), arguments.out or Path(scratch), arguments.rounds))
            show(found)
            rows += found
        if not arguments.only:
            print(save("other_networks", rows, (*ENGINES, "faster-coco-eval")))


if __name__ == "__main__":
    main()
