"""FP32 and INT8 of the same network, engine by engine: how much sooner the integers are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import edgevision as ev
from edgevision.bundle import Bundle


def speeds(bundles: Sequence[Bundle], targets: Sequence[str], rounds: int) -> Iterator[dict[str, Any]]:
    """Least and usual milliseconds of every engine on one thread, both precisions in one run; a row for each engine."""
    report = ev.bench(bundles, rounds=rounds, seconds=1.0, end_to_end=False)
    times = {(row.target, row.precision): row.latency_ms for row in report.results if row.latency_ms is not None}
    for target in targets:
        fp32, int8 = times[target, "fp32"], times[target, "int8"]
        yield {
            "target": target,
            "fp32_min_ms": round(fp32["min"], 3),
            "int8_min_ms": round(int8["min"], 3),
            "times_faster": round(fp32["min"] / int8["min"], 3),
            "p50_times_faster": round(fp32["p50"] / int8["p50"], 3),
            "threads": 1,
            "rounds": rounds,
        }
