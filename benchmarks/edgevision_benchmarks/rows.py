"""From what the measuring processes answered to the fields of a row."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgevision_benchmarks.result import QUALITY_TARGET, Result
from edgevision_benchmarks.statistics import sketch, summarize
from edgevision_benchmarks.timing import Samples, combine

# layers kept of a network: the rest together is a line of its own
LAYERS = 40


def timed_fields(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fields of a `Result` out of the answers to its rounds' jobs of kind ``time``."""
    measured = [Samples.from_dict(answer["engine"]) for answer in rounds]
    engine = combine(measured)
    end_to_end = None
    if all(answer["end_to_end"] is not None for answer in rounds):
        end_to_end = combine([Samples.from_dict(answer["end_to_end"]) for answer in rounds]).wall.to_dict()
    batch = rounds[0]["batch"]
    peaks = [answer["peak_memory_bytes"] for answer in rounds if answer["peak_memory_bytes"] is not None]
    steady = [answer["steady_memory_bytes"] for answer in rounds if answer.get("steady_memory_bytes") is not None]
    return {
        "batch": batch,
        "latency_ms": engine.wall.to_dict(),
        "median_ci95": engine.wall.median_ci95,
        "tails_ci95": {name: list(pair) for name, pair in engine.wall.tails_ci95.items()},
        "p90_bound_ms": engine.wall.p90_bound,
        "n_runs": engine.wall.n,
        "stable": engine.stable,
        "round_p50_ms": engine.round_p50_ms,
        "images_per_second": 1e3 * batch / engine.wall.p50 if engine.wall.p50 > 0 else None,
        "cpu_ms": engine.cpu.to_dict(),
        "end_to_end_ms": end_to_end,
        "preprocess_ms": _stage(rounds, "preprocess"),
        "postprocess_ms": _stage(rounds, "postprocess"),
        "load_ms": statistics.median(answer["load_ms"] for answer in rounds),
        "first_load_ms": rounds[0]["load_ms"],
        "first_inference_ms": statistics.median(answer["first_inference_ms"] for answer in rounds),
        "peak_memory_bytes": max(peaks, default=None),
        "steady_memory_bytes": round(statistics.median(steady)) if steady else None,
        "engine_version": rounds[0]["engine_version"],
        **_conditions(rounds),
        "samples": tuple(
            {"n": len(each.wall_ns), "ms": sketch(each.wall_ns), "peak_memory_bytes": answer["peak_memory_bytes"]}
            for each, answer in zip(measured, rounds, strict=True)
        ),
    }


def _stage(rounds: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any] | None:
    stages = [answer.get(name) for answer in rounds]
    if any(stage is None for stage in stages):
        return None
    return summarize([value for stage in stages if stage for value in stage["wall_ns"]]).to_dict()


def _conditions(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Before the first round, during the middle one, after the last; flags of all rounds, one a topic."""
    read = [answer["conditions"] for answer in rounds if answer.get("conditions")]
    if not read:
        return {}
    raised = [flag for answer in rounds for flag in answer.get("flags", [])]
    by_topic = {flag.partition(":")[0]: flag for flag in reversed(raised)}
    energies = [answer["energy_j"] for answer in rounds if answer.get("energy_j")]
    values = [energy["value"] for energy in energies if energy.get("value") is not None]
    return {
        "conditions": {
            "before": read[0]["before"],
            "during": read[len(read) // 2]["during"],
            "after": read[-1]["after"],
        },
        "flags": tuple(reversed(by_topic.values())),
        "energy_j": statistics.median(values) if values else None,
        "why_no_energy": None if values else next((str(each["why"]) for each in energies if each.get("why")), None),
    }


def scenario_fields(further: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Fields ``offline``, ``server``, ``layers`` out of the answers to those jobs, by kind."""
    fields: dict[str, Any] = {}
    if answers := further.get("offline"):
        fields["offline"] = _offline(answers)
    if answers := further.get("server"):
        fields["server"] = dict(answers[-1])
    if (answers := further.get("layers")) and answers[-1].get("layers"):
        fields["layers"] = _layers(answers[-1]["layers"])
    return fields


def _offline(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if failures := [answer["error"] for answer in rounds if "error" in answer]:
        return {"error": failures[0]}
    seconds = sum(answer["seconds"] for answer in rounds)
    samples = sum(answer["samples"] for answer in rounds)
    return {
        "samples_per_second": samples / seconds if seconds > 0 else None,
        "rounds": [answer["samples_per_second"] for answer in rounds],
        "batch": rounds[0]["batch"],
        "samples": samples,
        "seconds": seconds,
    }


def _layers(layers: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    kept = list(layers[:LAYERS])
    if rest := layers[LAYERS:]:
        total = float(f"{sum(layer['ms'] for layer in rest):.4g}")
        kept.append({"name": f"{len(rest)} further layers", "op": "", "ms": total})
    return tuple(kept)


def judged(rows: Sequence[Result]) -> list[Result]:
    """Set each row against its reference: did it keep MLPerf's 99% of FP32's accuracy?"""
    known = {(row.bundle, row.threads): row.accuracy for row in rows if row.accuracy is not None}
    found = []
    for row in rows:
        base = known.get((row.reference or "", row.threads))
        if base is not None and row.accuracy is not None:
            # half a picture's rounding must not decide
            met = row.accuracy >= QUALITY_TARGET * base - 1e-12
            row = replace(row, reference_accuracy=base, quality_met=met)
        found.append(row)
    return found
