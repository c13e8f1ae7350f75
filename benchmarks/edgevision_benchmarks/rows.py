"""From what the measuring processes answered to the fields of a row."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgevision.bundle import Bundle
from edgevision.files import sha256_file
from edgevision_benchmarks.probes import size_bytes
from edgevision_benchmarks.ratio import Rounds, median_interval
from edgevision_benchmarks.result import QUALITY_TARGET, Result
from edgevision_benchmarks.statistics import Summary, sketch, summarize
from edgevision_benchmarks.timing import Samples, combine

# layers kept of a network: the rest together is a line of its own
LAYERS = 40

# of an evaluation, what a row holds
_EVALUATED = (
    "accuracy", "accuracy_ci95", "accuracy_resamples", "metric", "map50", "top5", "n", "agreement", "agreement_ci95",
    "cosine", "sqnr_db", "correct", "pictures_sha256",
)  # fmt: skip


def identified(path: str, bundle: Bundle, threads: int, *, batch: int = 1) -> Result:
    """The row of a bundle as far as the bundle tells it: what it is, its sizes and its hashes.

    Args:
        path: as it was given.
        bundle: what lies there.
        threads: of one inference.
        batch: pictures in one inference.
    """
    manifest = bundle.manifest
    return Result(
        bundle=path,
        model=manifest.name,
        target=manifest.target,
        precision=manifest.precision,
        threads=threads,
        batch=batch,
        size_bytes=size_bytes(path),
        engine_bytes=bundle.engine_bytes,
        stored_bytes=bundle.stored_engine_bytes,
        compression=bundle.compression,
        sha256=sha256_file(path) if Path(path).is_file() else None,
        engine_sha256=bundle.digest,
    )


def judged_fields(found: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `Result` out of an evaluation's answer (see `edgevision_benchmarks.detection_accuracy.answer_of`)."""
    fields = {key: found[key] for key in _EVALUATED if key in found}
    # another process answered in JSON, which has no tuples
    return {key: tuple(each) if isinstance(each, list) else each for key, each in fields.items()}


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
        "median_ci95": _median_ci95(measured, engine.wall),
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
        **_energy(rounds),
        "samples": tuple(
            {"n": len(each.wall_ns), "ms": sketch(each.wall_ns), "peak_memory_bytes": answer["peak_memory_bytes"]}
            for each, answer in zip(measured, rounds, strict=True)
        ),
    }


def _median_ci95(rounds: Sequence[Samples], pooled: Summary) -> tuple[float, float] | None:
    """From the scatter of the rounds; of a single one by order statistics."""
    values = [sketch(each.wall_ns) for each in rounds]
    if not all(each[0] > 0 for each in values):
        return pooled.median_ci95
    factors = median_interval(Rounds.of(values, [len(each.wall_ns) for each in rounds]))
    return pooled.median_ci95 if factors is None else (factors[0] * pooled.p50, factors[1] * pooled.p50)


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
    return {
        "conditions": {
            "before": read[0]["before"],
            "during": read[len(read) // 2]["during"],
            "after": read[-1]["after"],
        },
        "flags": tuple(reversed(by_topic.values())),
    }


def _energy(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median of the rounds that have a reading, and what it is of; or why none has."""
    energies = [answer["energy_j"] for answer in rounds if answer.get("energy_j")]
    told = [energy for energy in energies if energy.get("value") is not None]
    if not told:
        return {"why_no_energy": next((str(each["why"]) for each in energies if each.get("why")), None)}
    return {
        "energy_j": statistics.median(energy["value"] for energy in told),
        "energy_source": told[0].get("source"),
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
