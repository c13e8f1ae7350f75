"""`bench`: bundles side by side on this machine, in interleaved rounds, each round in a process of its own."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgevision.bundle import Bundle
from edgevision.data.base import Dataset, evenly_spaced
from edgevision.devices.cpu import usable_cores
from edgevision.devices.environment import environment
from edgevision.errors import EdgeVisionError, EngineError, UsageError
from edgevision.progress import Progress
from edgevision_benchmarks.accuracy import agreement, evaluate_bundle, open_data
from edgevision_benchmarks.detection_accuracy import answer_of, box_agreement, from_plain
from edgevision_benchmarks.probes import run_worker
from edgevision_benchmarks.report import Report
from edgevision_benchmarks.result import Result
from edgevision_benchmarks.rows import identified, judged, judged_fields, scenario_fields, timed_fields
from edgevision_benchmarks.scenarios import SCENARIOS
from edgevision_benchmarks.timing import TimingOptions

# pictures the end-to-end time is taken over: a few, so that one odd size does not decide
PICTURES = 8


@dataclass(frozen=True)
class BenchOptions:
    """How `bench` measures.

    Attributes:
        threads: numbers of threads of one inference to try; 0 lets the engine choose.
        batch: pictures in one inference, for engines whose batch is free.
        rounds: every bundle is measured so many times, in turns: A B C A B C.
        seconds: measured time of each round and each of engine and end to end; warm-up not counted.
        min_runs: least number of runs of each round …
        min_queries: … and of all rounds together: 64 are what the 90th percentile takes, 662 the 99th
            (`edgevision_benchmarks.statistics.least_queries`); a slow network's limit of time comes before it.
        end_to_end: time picture file → result as well.
        limit: pictures accuracy is measured on; None for all.
        batch_size: pictures in one call while accuracy is measured.
        timeout_s: time limit of one child process, seconds.
        scenarios: of MLPerf's, besides one query in flight: ``offline``, ``server``.
        offline_batch: pictures in one inference of the Offline scenario.
        latency_bound_ms: what the 99th percentile must keep in the Server scenario.
        seed: of the arrivals in the Server scenario.
        layers: ask the engine for the time of each layer, in a session of its own.

    Raises:
        UsageError: a value that no run could have.
    """

    threads: tuple[int, ...] = (1,)
    batch: int = 1
    rounds: int = 3
    seconds: float = 1.0
    min_runs: int = 20
    end_to_end: bool = True
    limit: int | None = None
    batch_size: int = 32
    timeout_s: float = 600.0
    min_queries: int = 64
    scenarios: tuple[str, ...] = ()
    offline_batch: int = 8
    latency_bound_ms: float | None = None
    seed: int = 0
    layers: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scenarios", tuple(self.scenarios))
        if unknown := [name for name in self.scenarios if name not in SCENARIOS]:
            raise UsageError(f"unknown scenario {unknown[0]!r}: choose from {', '.join(SCENARIOS)}")
        if "server" in self.scenarios and not (self.latency_bound_ms and self.latency_bound_ms > 0):
            raise UsageError("the Server scenario needs a latency bound in milliseconds: --latency-bound MS")
        if self.offline_batch < 1 or self.min_queries < 0 or self.seed < 0:
            raise UsageError("offline_batch must be 1 or more, min_queries and seed 0 or more")
        if not self.threads or min(self.threads) < 0:
            raise UsageError(f"threads must be 0 (the engine chooses) or more; got {list(self.threads)}")
        if self.rounds < 1 or self.batch < 1 or self.min_runs < 1 or self.seconds < 0 or self.timeout_s <= 0:
            raise UsageError("rounds, batch and min_runs must be 1 or more, seconds 0 or more, timeout_s above 0")

    def timing(self) -> TimingOptions:
        """Limits of one round's loop: a slow network ends it after four times ``seconds``, but not before 4 s."""
        runs = max(self.min_runs, -(-self.min_queries // self.rounds))
        return TimingOptions(
            min_runs=runs,
            min_seconds=self.seconds,
            max_runs=max(5000, runs),
            max_seconds=max(4.0, 4 * self.seconds),
            max_warmup_seconds=max(0.5, min(2.0, self.seconds)),
        )


@dataclass
class _Candidate:
    """A bundle to measure, and what has been found out of it."""

    path: str
    bundle: Bundle
    times: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    # (threads, kind of job) → answers of the rounds, or what went wrong
    further: dict[tuple[int, str], list[dict[str, Any]]] = field(default_factory=dict)
    # of the engine files as they were when the bundle was opened
    digest: str | None = None
    evaluation: dict[str, Any] | None = None
    evaluation_failure: str | None = None
    reference: str | None = None


def bench(
    bundles: str | Path | Bundle | Sequence[str | Path | Bundle],
    data: str | Path | Dataset | None = None,
    *,
    threads: int | Sequence[int] = (1,),
    split: str | None = "test",
    reference: str | Path | None = None,
    title: str | None = None,
    command: Sequence[str] | None = None,
    **options: Any,
) -> Report:
    """Measure bundles side by side: latency, memory, load time, size and, with data, accuracy.

    The discipline is MLPerf Inference's (V. J. Reddi et al., arXiv 1911.02549; MLCommons inference policies): one query
    in flight (SingleStream), and on demand Offline and Server; a warm-up that is not measured, least durations and
    numbers of queries; tails with intervals, and only where there are queries enough; accuracy and latency from the
    same files, held by their hash; a quality target against FP32. Durations are a board's, not a submission's.

    Rounds go in turns over all bundles and thread counts, so that the ratio of two rows is taken from one stretch of
    time, and each is a fresh process, so that rounds are independent repetitions (T. Kalibera and R. Jones, Rigorous
    benchmarking in reasonable time, ISMM 2013) and a crash costs one row.

    Args:
        bundles: paths, or saved bundles.
        data: ``kind:path``, a path, or an open data set; None measures no accuracy and times a synthetic picture.
        threads: one or several numbers of threads.
        split: part of the data set, where it is divided; None for all of it.
        reference: bundle to agree with; by default the FP32 bundle of the same model among ``bundles``, ONNX
            Runtime's first.
        title: of the report.
        command: command line to record; by default this process's own.
        options: fields of `BenchOptions`.

    Returns:
        The report; rows that failed carry ``error`` and the others go on.

    Raises:
        BundleError: a bundle cannot be opened (before anything is measured).
        DataError: the data cannot be opened (likewise).
        UsageError: an option that no run could have, or no bundles.
    """
    counts = (threads,) if isinstance(threads, int) else tuple(dict.fromkeys(threads))
    settings = _settings(counts, options)
    candidates = [_candidate(item) for item in _listed(bundles)]
    if not candidates:
        raise UsageError("bench needs at least one bundle")
    if reference is not None:
        Bundle.open(reference)
    dataset = None if data is None else open_data(data, split)
    begun = datetime.now(timezone.utc)
    machine = environment()
    with tempfile.TemporaryDirectory(prefix="edgevision-bench-") as scratch:
        pictures = _pictures(dataset, Path(scratch)) if settings.end_to_end else []
        _measure(candidates, settings, pictures)
    if data is not None:
        _evaluate(candidates, settings, data, split, None if reference is None else str(reference))
    provenance = {
        "date": begun.isoformat(timespec="seconds"),
        "command": command_line(command),
        "data": None if dataset is None else dataset.name,
        "end_to_end_input": _picture_source(dataset) if settings.end_to_end else None,
        "options": {**vars(settings), "threads": list(settings.threads), "scenarios": list(settings.scenarios)},
        "timing": settings.timing().to_dict(),
    }
    rows = judged([_result(candidate, count, settings) for candidate in candidates for count in settings.threads])
    return Report.single(rows, machine, provenance, title=title)


def _settings(threads: tuple[int, ...], options: dict[str, Any]) -> BenchOptions:
    try:
        return BenchOptions(threads=threads, **options)
    except TypeError as error:
        raise UsageError(f"bench: {error}") from error


def _listed(bundles: str | Path | Bundle | Sequence[str | Path | Bundle]) -> list[str | Path | Bundle]:
    return [bundles] if isinstance(bundles, (str, Path, Bundle)) else list(bundles)


def _candidate(item: str | Path | Bundle) -> _Candidate:
    if isinstance(item, Bundle):
        if item.path is None:
            raise UsageError(f"bundle {item.manifest.name} has not been saved; save it, so that a process can open it")
        return _Candidate(str(item.path), item, digest=item.digest)
    bundle = Bundle.open(item)
    return _Candidate(str(item), bundle, digest=bundle.digest)


def _measure(candidates: list[_Candidate], settings: BenchOptions, pictures: list[str]) -> None:
    order = [(candidate, count) for count in settings.threads for candidate in candidates]
    with Progress("measuring", settings.rounds * len(order)) as progress:
        for number in range(settings.rounds):
            for candidate, count in order:
                progress.advance(0, f"{_label(candidate)}, round {number + 1}")
                if count not in candidate.failures:
                    _round(candidate, count, settings, pictures)
                progress.advance()
    once = [*(["server"] if "server" in settings.scenarios else []), *(["layers"] if settings.layers else [])]
    for kind in once:
        with Progress(f"measuring {kind}", len(order)) as progress:
            for candidate, count in order:
                progress.advance(0, _label(candidate))
                if count in candidate.times:
                    _further(candidate, count, kind, settings, pictures)
                progress.advance()


def _round(candidate: _Candidate, count: int, settings: BenchOptions, pictures: list[str]) -> None:
    job = {
        "kind": "time",
        "bundle": candidate.path,
        "threads": count,
        "batch": settings.batch,
        "pictures": pictures,
        "options": settings.timing().to_dict(),
    }
    try:
        answer = _ask(candidate, job, settings)
    except EngineError as error:
        # a row is one bundle measured alike in all rounds, or none
        candidate.failures[count] = str(error)
        candidate.times.pop(count, None)
        return
    candidate.times.setdefault(count, []).append(answer)
    if "offline" in settings.scenarios:
        _further(candidate, count, "offline", settings, pictures)


def _further(candidate: _Candidate, count: int, kind: str, settings: BenchOptions, pictures: list[str]) -> None:
    """One more scenario of a row; what fails in it does not cost the row."""
    job = {
        "kind": kind,
        "bundle": candidate.path,
        "threads": count,
        "batch": settings.offline_batch if kind == "offline" else settings.batch,
        "pictures": pictures,
        "options": settings.timing().to_dict(),
        "server": {
            "bound_ms": settings.latency_bound_ms,
            "seed": settings.seed,
            "min_seconds": min(30, settings.seconds),
        },
    }
    try:
        answer = _ask(candidate, job, settings)
    except EngineError as error:
        answer = {"error": str(error)}
    candidate.further.setdefault((count, kind), []).append(answer)


def _ask(candidate: _Candidate, job: dict[str, Any], settings: BenchOptions) -> dict[str, Any]:
    """Have a job done in a process of its own, on the very engine files that the row is about."""
    answer = run_worker(job, timeout_s=settings.timeout_s)
    digest = answer.pop("engine_sha256", None)
    if None not in (digest, candidate.digest) and digest != candidate.digest:
        raise EngineError("the bundle's file was changed while it was being measured; measure it again")
    return answer


def _evaluate(
    candidates: list[_Candidate],
    settings: BenchOptions,
    data: str | Path | Dataset,
    split: str | None,
    reference: str | None,
) -> None:
    answers: dict[str, Any] = {}
    for candidate in candidates:
        candidate.reference = reference or _reference_of(candidate, candidates)
    # the references first: the answers of the others are compared with theirs
    chosen = {candidate.reference for candidate in candidates}
    order = sorted(candidates, key=lambda candidate: candidate.path not in chosen)
    # a bundle that cannot run was reported already
    order = [candidate for candidate in order if candidate.times]
    if not isinstance(data, (str, Path)):
        for candidate in order:  # evaluated in this process, where `evaluate` draws bars of its own
            _evaluate_one(candidate, settings, data, split, answers)
        return
    with Progress("evaluating", len(order)) as progress:
        for candidate in order:
            progress.advance(0, _label(candidate))
            _evaluate_one(candidate, settings, data, split, answers)
            progress.advance()


def _evaluate_one(
    candidate: _Candidate,
    settings: BenchOptions,
    data: str | Path | Dataset,
    split: str | None,
    answers: dict[str, Any],
) -> None:
    known = answers.get(candidate.reference or "")
    itself = candidate.reference == candidate.path
    job = {
        "bundle": candidate.path,
        "reference": None if known is not None or itself else candidate.reference,
        "split": split,
        "limit": settings.limit,
        "batch_size": settings.batch_size,
        "threads": usable_cores(),
    }
    if candidate.bundle.manifest.task == "tensors" and (itself or candidate.reference is None):
        return  # raw outputs say nothing by themselves
    try:
        found = _evaluation(job, data, candidate, settings)
    except EdgeVisionError as error:
        candidate.evaluation_failure = f"accuracy: {error}"
        return
    predictions = np.asarray(found.pop("predictions"), np.int64)
    if (boxes := found.pop("detections", None)) is not None:
        answers[candidate.path] = from_plain(boxes)
        compared = answers[candidate.path] if itself else known
        if compared is not None:
            found["agreement"] = box_agreement(answers[candidate.path], compared, found["confidence"])
    if len(predictions):
        answers[candidate.path] = predictions
        compared = predictions if itself else known
        if compared is not None:
            found["agreement"], found["agreement_ci95"] = agreement(predictions, compared)
    candidate.evaluation = found


def _evaluation(
    job: dict[str, Any], data: str | Path | Dataset, candidate: _Candidate, settings: BenchOptions
) -> dict[str, Any]:
    if isinstance(data, (str, Path)):
        return _ask(candidate, {"kind": "accuracy", "data": str(data), **job}, settings)
    # an open data set cannot be handed to another process by name
    arguments = {key: value for key, value in job.items() if key != "bundle"}
    return answer_of(evaluate_bundle(job["bundle"], data, judge=False, **arguments))


def _reference_of(candidate: _Candidate, candidates: list[_Candidate]) -> str | None:
    """The FP32 bundle of the same model: ONNX Runtime's, else the same engine's, else any that ran."""
    mine = candidate.bundle.manifest
    possible = [
        other
        for other in candidates
        if other.bundle.manifest.name == mine.name
        and other.bundle.manifest.precision == "fp32"
        and other.times
        # shared weights answer otherwise than the network they were made from
        and other.bundle.compression in (None, "lossless")
    ]
    possible.sort(
        key=lambda other: (other.bundle.manifest.target != "onnxruntime", other.bundle.manifest.target != mine.target)
    )
    return possible[0].path if possible else None


def _result(candidate: _Candidate, count: int, settings: BenchOptions) -> Result:
    failures = [candidate.failures.get(count), candidate.evaluation_failure]
    row = identified(candidate.path, candidate.bundle, count, batch=settings.batch)
    row = replace(row, error="; ".join(failure for failure in failures if failure) or None)
    if rounds := candidate.times.get(count):
        row = replace(row, **timed_fields(rounds))
    if (found := candidate.evaluation) is not None and count in candidate.times:
        row = replace(row, **judged_fields(found), reference=candidate.reference)
    further = {kind: answers for (threads, kind), answers in candidate.further.items() if threads == count}
    return replace(row, **scenario_fields(further))


def _pictures(dataset: Dataset | None, folder: Path) -> list[str]:
    """Picture files for the end-to-end time: the data set's own, or a synthetic photo."""
    if dataset is None or not len(dataset):
        path = folder / "synthetic.jpg"
        _synthetic().save(path, quality=90)
        return [str(path)]
    paths = []
    for index, sample in enumerate(evenly_spaced(dataset, PICTURES)):
        if isinstance(sample.image, (str, Path)):
            paths.append(str(sample.image))
            continue
        image = sample.image if isinstance(sample.image, Image.Image) else Image.fromarray(np.asarray(sample.image))
        paths.append(str(folder / f"{index}.png"))
        image.save(paths[-1])
    return paths


def _picture_source(dataset: Dataset | None) -> str:
    if dataset is None or not len(dataset):
        return "synthetic JPEG of 640 × 480 pixels"
    return f"{min(PICTURES, len(dataset))} pictures of {dataset.name}"


def _synthetic() -> Image.Image:
    # smooth shapes with a little noise compress, and so decode, about as a photo does
    y, x = np.mgrid[0:480, 0:640] / 80.0
    waves = np.stack([np.sin(x + shift) * np.cos(y - shift) for shift in (0.0, 1.0, 2.0)], axis=-1)
    noise = np.random.default_rng(0).normal(0.0, 6.0, waves.shape)
    return Image.fromarray((127.5 + 100.0 * waves + noise).clip(0, 255).astype(np.uint8))


def _label(candidate: _Candidate) -> str:
    manifest = candidate.bundle.manifest
    return f"{manifest.name} {manifest.target} {manifest.precision}"


def without_password(argument: str) -> str:
    """An argument of the command line as it may be published: passwords of a database's URL are starred out."""
    if "://" not in argument:
        return argument
    return re.sub(r"(?<=password=)[^&\s]*", "***", re.sub(r"(://[^:/@\s]*):[^/\s]*@", r"\1:***@", argument))


def command_line(words: Sequence[str] | None = None) -> str:
    """A command, by default this process's own, as one line that may be published."""
    return shlex.join(map(without_password, words if words is not None else [Path(sys.argv[0]).name, *sys.argv[1:]]))
