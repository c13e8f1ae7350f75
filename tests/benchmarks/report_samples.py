"""A report with everything a report can hold; figures are invented and only their relations matter to the tests."""

from __future__ import annotations

from dataclasses import replace

from edgevision.devices.environment import environment
from edgevision_benchmarks.report import Report
from edgevision_benchmarks.result import Result
from edgevision_benchmarks.statistics import wilson

PROVENANCE = {
    "date": "2026-03-01T10:00:00+00:00",
    "command": "edgevision bench a.evb b.evb --data csv:photos/labels.csv",
    "data": "csv:photos/labels.csv",
    "end_to_end_input": "8 pictures of csv:photos/labels.csv",
    "options": {"rounds": 3},
    "timing": {"min_runs": 30},
}


def result(
    target: str, precision: str, p50: float | None, right: int | None, *, model: str = "mobilenet_v2", **more: object
) -> Result:
    times = None
    if p50 is not None:
        times = {"p50": p50, "p90": p50 * 1.08, "p99": p50 * 1.3, "mean": p50 * 1.01, "min": p50 * 0.97, "std": 0.1}
    values: dict[str, object] = {
        "bundle": f"bundles/{model}-{target}-{precision}.evb",
        "model": model,
        "target": target,
        "precision": precision,
        "threads": 1,
        "latency_ms": times,
        "median_ci95": None if p50 is None else (p50 * 0.99, p50 * 1.01),
        "n_runs": 0 if p50 is None else 90,
        "stable": None if p50 is None else True,
        "round_p50_ms": () if p50 is None else (p50, p50 * 1.02, p50),
        "images_per_second": None if p50 is None else 1000 / p50,
        "cpu_ms": times,
        "end_to_end_ms": None if times is None else {key: value + 3.4 for key, value in times.items()},
        "load_ms": None if p50 is None else 142.0,
        "first_load_ms": None if p50 is None else 320.0,
        "first_inference_ms": None if p50 is None else p50 * 2,
        "peak_memory_bytes": None if p50 is None else 121_000_000,
        "size_bytes": 13_100_000 if precision == "fp32" else 3_700_000,
        "engine_bytes": 14_000_000 if precision == "fp32" else 3_900_000,
        "sha256": f"{abs(hash((target, precision, model))):064x}",
        "engine_version": "1.2.3",
        "engine_sha256": "0" * 64,
    }
    if right is not None:
        values |= {
            "accuracy": right / 500,
            "accuracy_ci95": wilson(right, 500),
            "top5": 0.96,
            "n": 500,
            "agreement": 1.0 if precision == "fp32" else 0.96,
            "agreement_ci95": wilson(480, 500),
        }
    return Result(**{**values, **more})  # type: ignore[arg-type]


def one_row(**changes: object) -> Report:
    return Report.single([replace(result("alpha", "fp32", 5.0, 400), **changes)], {}, PROVENANCE)


def full_report() -> Report:
    return Report.single(
        [
            result("onnxruntime", "fp32", 11.2, 418),
            result("onnxruntime", "int8", 5.9, 411),
            result("openvino", "fp32", 9.2, 418),
            result("openvino", "int8", 4.6, 415),
            result("ncnn", "fp32", 20.2, 418),
            result("ncnn", "int8", 16.9, 413, stable=False),
            result("tensorrt", "int8", None, None, error="no NVIDIA driver here (libcuda.so.1 cannot be loaded)"),
        ],
        environment(),
        PROVENANCE,
    )


def everything_report() -> Report:
    """Two devices, scenarios, tails, layers, conditions and flags: whatever else a report can hold."""
    more: dict[str, object] = {
        "n_runs": 700,
        "tails_ci95": {"p90": [6.1, 6.6], "p95": [6.5, 7.1], "p99": [7.2, 9.0]},
        "p90_bound_ms": 6.7,
        "preprocess_ms": {"p50": 2.1, "p90": 2.3, "p95": None, "p99": None, "mean": 2.1, "min": 2.0, "std": 0.1},
        "postprocess_ms": {"p50": 0.1, "p90": 0.1, "p95": None, "p99": None, "mean": 0.1, "min": 0.1, "std": 0.0},
        "offline": {"samples_per_second": 231.0, "rounds": [230.0, 232.0], "batch": 8, "samples": 800, "seconds": 3.46},
        "server": {
            "queries_per_second": 97.0, "bound_ms": 25.0, "percentile": "p99", "latency_ms": 24.1, "queries": 970,
            "seed": 0, "trials": [],
        },
        "steady_memory_bytes": 99_000_000,
        "reference_accuracy": 0.836,
        "quality_met": False,
        "energy_j": 0.0123,
        "conditions": {
            moment: {
                "frequency_mhz": {"value": {"cpu0": clock, "cpu1": clock, "cpu2": clock}, "unit": "MHz"},
                "temperature_c": {"value": None, "unit": "°C", "why": "not available: no thermal zone"},
                "throttling": {"value": {"now": [], "occurred": []}, "unit": ""},
                "power_mode": {"value": "MAXN", "unit": ""},
            }
            for moment, clock in (("before", 2400), ("during", 2400), ("after", 1500))
        },
        "flags": ("frequency fell: from 2400 to 1500 MHz <while> it ran",),
        "layers": (
            {"name": "conv1<b>", "op": "Conv", "ms": 3.0},
            {"name": "head", "op": "Gemm", "ms": 1.0},
        ),
    }  # fmt: skip
    board = Report.single(
        [
            result("onnxruntime", "int8", 40.0, 411, **more),
            result("ncnn", "int8", 31.0, 409, server={"error": "the network's batch is fixed to 4"}),
            result("ncnn", "fp32", 55.0, 418, model="squeezenet"),
        ],
        {"board": {"value": "Raspberry Pi 5 Model B"}, "cpu": {"name": "4× Cortex-A76"}},
        {**PROVENANCE, "date": "2026-03-02T08:00:00+00:00"},
    )
    return Report.merged([full_report(), board])
