"""What every view shows: columns, how a value is written, which rows compare with which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgevision_benchmarks.report.report import Report
from edgevision_benchmarks.result import Result
from edgevision_benchmarks.statistics import TAILS

TARGETS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "ncnn": "ncnn", "tensorrt": "TensorRT"}

# what stands where there is no value
ABSENT = "–"

SortKey = float | str | None


@dataclass(frozen=True)
class Column:
    """One column: its heading, how a row is written in it and what it is sorted by.

    ``best`` is ``"low"`` or ``"high"`` where less or more is better, and marks numbers.
    """

    heading: str
    text: Callable[[Result], str]
    key: Callable[[Result], SortKey]
    best: str | None = None
    hint: str = ""


@dataclass(frozen=True)
class Comparison:
    """A quantized row against the FP32 row of the same model, engine, threads and run."""

    row: Result
    base: Result

    @property
    def speedup(self) -> float:
        """Median of FP32 over this row's: above 1 is faster."""
        assert self.row.p50 is not None
        assert self.base.p50 is not None
        return self.base.p50 / self.row.p50

    @property
    def accuracy_points(self) -> float | None:
        """Change of accuracy, percentage points."""
        if self.row.accuracy is None or self.base.accuracy is None:
            return None
        return 100 * (self.row.accuracy - self.base.accuracy)

    @property
    def size_ratio(self) -> float | None:
        """Engine files over FP32's, as they are stored where one of them is compressed."""
        packed = self.row.compression is not None or self.base.compression is not None
        row, base = (
            (self.row.stored_bytes, self.base.stored_bytes)
            if packed
            else (self.row.engine_bytes, self.base.engine_bytes)
        )
        return row / base if row and base else None


def comparisons(report: Report) -> list[Comparison]:
    """Every row of other weights that has an FP32 counterpart on the same engine, in the report's order."""
    # of two, the one that is stored as it is: it comes last and stays
    exact = sorted((row for row in report.results if row.exact and row.p50), key=lambda row: row.compression is None)
    bases = {(row.run, row.model, row.target, row.threads, row.batch): row for row in exact}
    found = []
    for row in report.results:
        base = bases.get((row.run, row.model, row.target, row.threads, row.batch))
        if base is not None and not row.exact and row.p50:
            found.append(Comparison(row, base))
    return found


def columns(report: Report) -> list[Column]:
    """The columns that this report has anything to say in, in their order."""
    always = {"Model", "Engine", "Precision", "Threads", "Latency"}
    every = [*_names(), *_quality_columns(report), *_sizes(report), *_times(), *_scenarios(), *_costs()]
    if len({row.batch for row in report.results}) <= 1:
        every = [column for column in every if column.heading != "Batch"]
    if len(report.runs) > 1:
        every.append(Column("Run", lambda row: str(row.run + 1), lambda row: float(row.run)))
    return [
        column
        for column in every
        if column.heading in always or any(column.key(row) is not None for row in report.results)
    ]


def _names() -> list[Column]:
    return [
        Column("Model", lambda row: row.model, lambda row: row.model.lower()),
        Column("Engine", lambda row: target_name(row.target), lambda row: target_name(row.target).lower()),
        Column("Precision", precision_name, lambda row: f"{row.precision} {row.compression or ''}"),
        Column("Threads", lambda row: str(row.threads or "auto"), lambda row: float(row.threads)),
        Column("Batch", lambda row: str(row.batch), lambda row: float(row.batch)),
        Column("Latency", _latency, lambda row: row.p50, "low", "engine alone, median, ms"),
    ]


def _quality_columns(report: Report) -> list[Column]:
    name = accuracy_name(report)
    return [
        Column(name, lambda row: _accuracy(row, name), lambda row: row.accuracy, "high"),
        Column("mAP50", lambda row: percent(row.map50), lambda row: row.map50, "high", "at IoU 0.5"),
        Column("Top-5", lambda row: percent(row.top5), lambda row: row.top5, "high"),
        Column("Quality", _quality, lambda row: None if row.quality_met is None else _quality(row), hint="99% of FP32"),
        Column("Agreement", lambda row: percent(row.agreement), lambda row: row.agreement, "high", "with FP32"),
        Column("Cosine", lambda row: _cosine(row.cosine), lambda row: row.cosine, "high", "with FP32"),
        Column("SQNR", lambda row: number(row.sqnr_db), lambda row: row.sqnr_db, "high", "against FP32, dB"),
    ]


def _sizes(report: Report) -> list[Column]:
    stored = _bytes_column("Stored", "stored_bytes", "engine files in the bundle")
    return [_bytes_column("Size", "engine_bytes", "engine files"), *([stored] if compressed(report) else [])]


def _times() -> list[Column]:
    return [
        *(_tail_column(name) for name in TAILS),
        _time_column("End to end", "end_to_end_ms", "p50", "picture file to result, median, ms"),
        _time_column("Before", "preprocess_ms", "p50", "picture file to tensor, median, ms"),
        _time_column("After", "postprocess_ms", "p50", "outputs to result, of a detector boxes, median, ms"),
        _time_column("CPU", "cpu_ms", "min", "least, ms"),
        Column("Images/s", lambda row: number(row.images_per_second), lambda row: row.images_per_second, "high"),
    ]


def _scenarios() -> list[Column]:
    return [
        Column(
            "Offline",
            lambda row: number(_of(row.offline, "samples_per_second")),
            lambda row: _of(row.offline, "samples_per_second"),
            "high",
            "throughput in batches, samples/s",
        ),
        Column(
            "Server",
            _server,
            lambda row: _of(row.server, "queries_per_second"),
            "high",
            "Poisson arrivals that keep the bound, queries/s",
        ),
    ]


def _costs() -> list[Column]:
    return [
        _bytes_column("Memory", "peak_memory_bytes", "peak of the process"),
        _bytes_column("Steady", "steady_memory_bytes", "memory after the runs"),
        Column(
            "Energy",
            lambda row: number(None if row.energy_j is None else 1e3 * row.energy_j),
            lambda row: row.energy_j,
            "low",
            "of one inference, mJ, idle included",
        ),
        Column("Load", lambda row: number(row.load_ms), lambda row: row.load_ms, "low", "ms"),
        Column(
            "First",
            lambda row: number(row.first_inference_ms),
            lambda row: row.first_inference_ms,
            "low",
            "inference, ms",
        ),
    ]


def _bytes_column(heading: str, name: str, hint: str) -> Column:
    return Column(heading, lambda row: size(getattr(row, name)), lambda row: _float(getattr(row, name)), "low", hint)


def _time_column(heading: str, name: str, key: str, hint: str) -> Column:
    return Column(
        heading, lambda row: _time(getattr(row, name), key), lambda row: _of(getattr(row, name), key), "low", hint
    )


def by_latency(report: Report) -> list[tuple[int, Result]]:
    """Rows with their index in the report, fastest first, failed ones last."""
    indexed = list(enumerate(report.results))
    return sorted(indexed, key=lambda pair: (pair[1].run, pair[1].p50 is None, pair[1].p50 or 0.0))


def labels(report: Report, *, model: bool = True) -> list[str]:
    """Names of the rows: what all rows share is left out, and the model too where a heading says it."""
    several = differing(report)
    found = []
    for row in report.results:
        parts = [row.model] if several["model"] and model else []
        parts += [target_name(row.target)] if several["target"] or not parts else []
        parts += [precision_name(row)] if several["precision"] or len(parts) == 1 else []
        text = " ".join(parts)
        if several["threads"]:
            text += f", {thread_count(row.threads)}"
        found.append(f"{text} ({row.run + 1})" if several["run"] else text)
    return found


def differing(report: Report) -> dict[str, bool]:
    """Which of model, target, precision, threads and run are not the same in all rows."""
    names = ("model", "target", "threads", "run")
    found = {name: len({getattr(row, name) for row in report.results}) > 1 for name in names}
    return {**found, "precision": len({precision_name(row) for row in report.results}) > 1}


def accuracy_name(report: Report) -> str:
    """What the rows' accuracy is: ``Top-1``, ``mAP`` where all are detectors, ``Accuracy`` where there are both."""
    metrics = {metric_of(row) for row in report.results if row.accuracy is not None}
    if len(metrics) > 1:
        return "Accuracy"
    return "mAP" if metrics == {"mAP"} else "Top-1"


def metric_of(row: Result) -> str:
    """What a row's accuracy is; rows of older versions do not say."""
    return row.metric or "top-1"


def _accuracy(row: Result, name: str) -> str:
    text = percent(row.accuracy)
    if row.accuracy_ci95 is not None and row.accuracy is not None:
        half = max(row.accuracy_ci95[1] - row.accuracy, row.accuracy - row.accuracy_ci95[0])
        text += f" ±{100 * half:.1f}"
    return text if row.accuracy is None or name != "Accuracy" else f"{text} {metric_of(row)}"


def compressed(report: Report) -> bool:
    """Whether any bundle of the report is compressed."""
    return any(row.compression is not None for row in report.results)


def precision_name(row: Result) -> str:
    """Precision, and compression where there is any: ``FP32, 6 bits``."""
    return row.precision.upper() + (f", {row.compression}" if row.compression else "")


def thread_count(threads: int) -> str:
    """A number of threads in words."""
    if threads == 0:
        return "threads by the engine"
    return "1 thread" if threads == 1 else f"{threads} threads"


def target_name(target: str) -> str:
    """How an engine writes its own name."""
    return TARGETS.get(target, target)


def number(value: float | None) -> str:
    """Three significant digits without an exponent, e.g. ``4.52``, ``11.2``, ``1034``."""
    if value is None:
        return ABSENT
    if value == 0:
        return "0"
    magnitude = abs(value)
    digits = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 3
    return f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal."""
    return ABSENT if share is None else f"{100 * share:.1f}%"


def points(change: float | None) -> str:
    """A change in percentage points, with its sign."""
    return ABSENT if change is None else f"{change:+.1f} points".replace("-", "−")


def size(count: float | None) -> str:
    """Bytes in decimal units."""
    if count is None:
        return ABSENT
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{number(count)} {unit}"
        count /= 1000
    return f"{number(count)} GB"


def _latency(row: Result) -> str:
    text = number(row.p50)
    if row.median_ci95 is not None and row.p50 is not None:
        half = max(row.median_ci95[1] - row.p50, row.p50 - row.median_ci95[0])
        text += f" ±{number(half)}"
    return text


def _cosine(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}"


def _time(times: dict[str, Any] | None, key: str) -> str:
    return number(_of(times, key))


def _of(values: dict[str, Any] | None, key: str) -> float | None:
    found = None if values is None else values.get(key)
    return None if found is None else float(found)


def _tail_column(name: str) -> Column:
    """A percentile with its interval; there is none where there were too few runs for it."""

    def text(row: Result) -> str:
        told = number(row.tail(name))
        interval = (row.tails_ci95 or {}).get(name)
        return told if interval is None else f"{told} ({number(interval[0])}–{number(interval[1])})"

    return Column(name, text, lambda row: row.tail(name), "low", "ms, 95% interval")


def _quality(row: Result) -> str:
    if row.quality_met is None:
        return ABSENT
    return "met" if row.quality_met else "missed"


def _server(row: Result) -> str:
    if row.server is None or row.server.get("error"):
        return ABSENT
    found = row.server.get("queries_per_second")
    bound = f"{row.server.get('percentile')} ≤ {row.server.get('bound_ms'):g} ms"
    return f"none ({bound})" if found is None else f"{number(found)} ({bound})"


def flagged(report: Report) -> list[tuple[int, Result]]:
    """Rows that something casts doubt on, with their index."""
    return [(index, row) for index, row in enumerate(report.results) if row.flags]


def failed_scenarios(row: Result) -> list[str]:
    """Why a scenario that was asked for has no figure, one line each."""
    found = []
    for name, values in (("Offline", row.offline), ("Server", row.server)):
        why = None if values is None else values.get("error") or values.get("why")
        if why:
            found.append(f"{name}: {why}")
    return found


def energy_told(report: Report, run: int) -> str:
    """Whose energy the rows of a run tell, or why none of them tells any; empty for runs without measured rows."""
    rows = [row for row in report.results if row.run == run]
    told = dict.fromkeys(row.energy_source or "the sensors" for row in rows if row.energy_j is not None)
    if told:
        return f"of {', '.join(told)} while the engine ran; what is drawn when idle is in it"
    return next((row.why_no_energy for row in rows if row.why_no_energy), "")


def _float(value: int | None) -> float | None:
    return None if value is None else float(value)
