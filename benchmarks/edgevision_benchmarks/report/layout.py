"""What every view shows: columns, how a value is written, which rows compare with which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgevision_benchmarks.report.report import Report
from edgevision_benchmarks.result import Result

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
    several_runs = len(report.runs) > 1
    always = {"Model", "Engine", "Precision", "Threads", "Latency"}
    every = [
        Column("Model", lambda row: row.model, lambda row: row.model.lower()),
        Column("Engine", lambda row: target_name(row.target), lambda row: target_name(row.target).lower()),
        Column("Precision", precision_name, lambda row: f"{row.precision} {row.compression or ''}"),
        Column("Threads", lambda row: str(row.threads or "auto"), lambda row: float(row.threads)),
        Column("Batch", lambda row: str(row.batch), lambda row: float(row.batch)),
        Column("Latency", _latency, lambda row: row.p50, "low", "engine alone, median, ms"),
        Column("Top-1", lambda row: percent(row.accuracy), lambda row: row.accuracy, "high"),
        Column("Agreement", lambda row: percent(row.agreement), lambda row: row.agreement, "high", "with FP32"),
        Column("Cosine", lambda row: _cosine(row.cosine), lambda row: row.cosine, "high", "with FP32"),
        Column("SQNR", lambda row: number(row.sqnr_db), lambda row: row.sqnr_db, "high", "against FP32, dB"),
        Column("Size", lambda row: size(row.engine_bytes), lambda row: _float(row.engine_bytes), "low", "engine files"),
        Column(
            "Stored",
            lambda row: size(row.stored_bytes),
            lambda row: _float(row.stored_bytes) if compressed(report) else None,
            "low",
            "engine files in the bundle",
        ),
        Column("p90", lambda row: _time(row.latency_ms, "p90"), lambda row: _of(row.latency_ms, "p90"), "low", "ms"),
        Column("p99", lambda row: _time(row.latency_ms, "p99"), lambda row: _of(row.latency_ms, "p99"), "low", "ms"),
        Column(
            "End to end",
            lambda row: _time(row.end_to_end_ms, "p50"),
            lambda row: _of(row.end_to_end_ms, "p50"),
            "low",
            "picture file to result, median, ms",
        ),
        Column("CPU", lambda row: _time(row.cpu_ms, "min"), lambda row: _of(row.cpu_ms, "min"), "low", "least, ms"),
        Column("Images/s", lambda row: number(row.images_per_second), lambda row: row.images_per_second, "high"),
        Column("Top-5", lambda row: percent(row.top5), lambda row: row.top5, "high"),
        Column(
            "Memory",
            lambda row: size(row.peak_memory_bytes),
            lambda row: _float(row.peak_memory_bytes),
            "low",
            "peak of the process",
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
    if len({row.batch for row in report.results}) <= 1:
        every = [column for column in every if column.heading != "Batch"]
    if several_runs:
        every.append(Column("Run", lambda row: str(row.run + 1), lambda row: float(row.run)))
    return [
        column
        for column in every
        if column.heading in always or any(column.key(row) is not None for row in report.results)
    ]


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


def _time(times: dict[str, float] | None, key: str) -> str:
    return number(_of(times, key))


def _of(times: dict[str, float] | None, key: str) -> float | None:
    return None if times is None else times[key]


def _float(value: int | None) -> float | None:
    return None if value is None else float(value)
