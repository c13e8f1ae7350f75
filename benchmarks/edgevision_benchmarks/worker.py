"""The measuring child: ``python -m edgevision_benchmarks.worker``, a JSON job in, a JSON answer out.

Jobs:

- ``{"kind": "time", "bundle": …, "threads": …, "batch": …, "pictures": [paths], "options": {TimingOptions}}``
- ``{"kind": "offline", "bundle": …, "threads": …, "batch": …, "pictures": [paths], "options": {TimingOptions}}``
- ``{"kind": "server", "bundle": …, "threads": …, "pictures": [paths], "options": {TimingOptions}, "server":
  {ServerOptions}}``
- ``{"kind": "layers", "bundle": …, "threads": …, "batch": …, "pictures": [paths]}``
- ``{"kind": "accuracy", "bundle": …, "threads": …, "data": "kind:path", "split": …, "reference": …, "limit": …,
  "batch_size": …}``

An answer has the job's results, or ``{"error": {"type": …, "message": …}}``.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.bundle import Bundle
from edgevision.devices.conditions import Conditions, flags, read_conditions
from edgevision.devices.energy import EnergyMeter
from edgevision.errors import BundleError, EdgeVisionError, UsageError
from edgevision.progress import set_enabled
from edgevision.runtime import Session, TensorSpec, load
from edgevision.tasks import interpret
from edgevision_benchmarks.accuracy import evaluate_bundle
from edgevision_benchmarks.detection_accuracy import answer_of
from edgevision_benchmarks.layers import layer_times
from edgevision_benchmarks.probes import peak_memory_bytes, steady_memory_bytes
from edgevision_benchmarks.scenarios import ServerOptions, greatest_rate, offline
from edgevision_benchmarks.timing import TimingOptions, measure


def main() -> int:
    """Do the job on standard input; the exit status is 0 whenever an answer was written."""
    # engines print on file descriptor 1; the answer must be alone there
    answer_stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # standard error is for last words; the parent shows the progress
    set_enabled(False)
    job = json.loads(sys.stdin.read())
    try:
        answer = do(job)
    except EdgeVisionError as error:
        answer = {"error": {"type": type(error).__name__, "message": str(error)}}
    except Exception as error:
        # whatever a third party's engine raises must reach the report as a row, not as a traceback
        traceback.print_exc()
        answer = {"error": {"type": type(error).__name__, "message": f"{type(error).__name__}: {error}"}}
    with answer_stream:
        json.dump(answer, answer_stream)
    return 0


def do(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do one job and return its answer.

    Raises:
        EdgeVisionError: the job cannot be done.
    """
    kinds: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
        "time": _time,
        "accuracy": _accuracy,
        "offline": _offline,
        "server": _server,
        "layers": _layers,
    }
    if job.get("kind") not in kinds:
        raise UsageError(f"unknown kind of job {job.get('kind')!r}: choose from {', '.join(kinds)}")
    return kinds[job["kind"]](job)


def _time(job: Mapping[str, Any]) -> dict[str, Any]:
    options = TimingOptions(**job["options"])
    start = time.perf_counter_ns()
    session = load(job["bundle"], threads=job["threads"])
    loaded = time.perf_counter_ns()
    with session:
        feed = ready_feed(session, job["batch"], job["pictures"])
        before = time.perf_counter_ns()
        session.infer(feed)
        first = time.perf_counter_ns() - before
        conditions = [read_conditions()]
        meter = EnergyMeter()
        engine = measure(lambda: session.infer(feed), options, window=meter)
        conditions.append(read_conditions(quick=True))
        # before end to end: the memory is the engine's, not that of decoded pictures
        peak, steady = peak_memory_bytes(), steady_memory_bytes()
        end_to_end = preprocess = postprocess = None
        if job["pictures"] and len(session.inputs) == 1:
            pictures = itertools.cycle(job["pictures"])
            end_to_end = measure(lambda: session(next(pictures)), options)
            preprocess = measure(lambda: session.place([next(pictures)]), _brief(options))
            postprocess = measure(_postprocessing(session, job["pictures"]), _brief(options))
        conditions.append(read_conditions())
        return {
            **_conditions(conditions),
            "energy_j": {**meter.per_inference(len(engine.wall_ns)).to_dict(), "source": meter.source},
            "load_ms": (loaded - start) / 1e6,
            "first_inference_ms": first / 1e6,
            "peak_memory_bytes": peak,
            "steady_memory_bytes": steady,
            "engine_sha256": session.bundle.digest,
            "engine": engine.to_dict(),
            "end_to_end": None if end_to_end is None else end_to_end.to_dict(),
            "preprocess": None if preprocess is None else preprocess.to_dict(),
            "postprocess": None if postprocess is None else postprocess.to_dict(),
            "engine_version": session.engine_version,
            "batch": len(feed[session.inputs[0].name]),
        }


def _conditions(readings: list[Conditions]) -> dict[str, Any]:
    """The machine before and right after the engine's runs and at the end, and what is doubtful about it."""
    before, during, after = readings
    return {
        "conditions": {
            name: each.to_dict() for name, each in zip(("before", "during", "after"), readings, strict=True)
        },
        "flags": flags(before, during, after),
    }


def _brief(options: TimingOptions) -> TimingOptions:
    """For what comes before and after the engine: parts of the end-to-end time that need no tails of their own."""
    return replace(
        options,
        min_seconds=options.min_seconds / 4,
        max_seconds=max(0.25, options.max_seconds / 4),
        max_warmup_seconds=options.max_warmup_seconds / 4,
    )


def _offline(job: Mapping[str, Any]) -> dict[str, Any]:
    with load(job["bundle"], threads=job["threads"]) as session:
        feed = ready_feed(session, job["batch"], job["pictures"])
        batch = len(feed[session.inputs[0].name])
        found = offline(lambda: session.infer(feed), batch, TimingOptions(**job["options"]))
        return {**found, "engine_sha256": session.bundle.digest}


def _server(job: Mapping[str, Any]) -> dict[str, Any]:
    with load(job["bundle"], threads=job["threads"]) as session:
        feed = ready_feed(session, 1, job["pictures"])
        batch = len(feed[session.inputs[0].name])
        if batch != 1:
            raise UsageError(f"the network's batch is fixed to {batch}: the Server scenario sends one sample a query")
        options = ServerOptions(**job["server"])
        found = greatest_rate(lambda: session.infer(feed), options, TimingOptions(**job["options"]))
        return {**found, "engine_sha256": session.bundle.digest}


def _layers(job: Mapping[str, Any]) -> dict[str, Any]:
    with load(job["bundle"], threads=job["threads"]) as session:
        feed = ready_feed(session, job["batch"], job["pictures"])
        bundle = session.bundle
    return {"layers": layer_times(bundle, feed, job["threads"]), "engine_sha256": bundle.digest}


def _postprocessing(session: Session, pictures: list[str]) -> Callable[[], object]:
    """What makes results of the network's outputs (boxes, of a detector's), for one picture after the other."""
    ready = []
    for picture in pictures:
        batch, placements = session.place([picture])
        ready.append((session.run(batch), placements))
    turns = itertools.cycle(ready)
    manifest, postprocess = session.bundle.manifest, session.postprocess
    if postprocess is None:
        return lambda: interpret(manifest, next(turns)[0])
    return lambda: interpret(manifest, *next(turns), postprocess)


def _accuracy(job: Mapping[str, Any]) -> dict[str, Any]:
    evaluation = evaluate_bundle(
        job["bundle"],
        job["data"],
        reference=job["reference"],
        split=job["split"],
        limit=job["limit"],
        batch_size=job["batch_size"],
        threads=job["threads"],
        judge=False,
    )
    digest = Bundle.open(job["bundle"]).digest
    return {**answer_of(evaluation), "engine_sha256": digest}


def ready_feed(session: Session, batch: int, pictures: list[str]) -> dict[str, npt.NDArray[Any]]:
    """A feed of real values, ``batch`` pictures (or as many as the engine is fixed to): golden inputs, else pictures.

    Real values matter: denormal and constant inputs run at another speed. Only a network of several inputs and
    without golden ones is fed normally distributed noise.
    """
    try:
        golden = session.bundle.golden()["inputs"]
    except BundleError:
        golden = {}
    feed: dict[str, npt.NDArray[Any]] = {}
    for spec in session.inputs:
        count = spec.shape[0] or batch
        if spec.name in golden and len(golden[spec.name]):
            source = golden[spec.name]
        elif pictures and len(session.inputs) == 1:
            source = session.bundle.manifest.preprocess.batch(pictures[:count])
        else:
            source = _noise(spec, count)
        repeats = -(-count // len(source))
        tiled = np.concatenate([source] * repeats)[:count]
        feed[spec.name] = np.ascontiguousarray(tiled, dtype=spec.dtype)
    return feed


def _noise(spec: TensorSpec, count: int) -> npt.NDArray[Any]:
    shape = (count, *(1 if size is None else size for size in spec.shape[1:]))
    return np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)


if __name__ == "__main__":
    sys.exit(main())
