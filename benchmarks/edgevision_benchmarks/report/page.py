"""The report as one HTML file that stands alone: no font, script, style or picture is fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from edgevision.dependencies import require
from edgevision_benchmarks.report.charts import LATENCY, SIZE, Cost, Scatter, legend, scatter, shapes, target_colors
from edgevision_benchmarks.report.counted import HEADINGS, counted
from edgevision_benchmarks.report.facets import facets, filters
from edgevision_benchmarks.report.layout import (
    ABSENT,
    Column,
    accuracy_name,
    by_latency,
    columns,
    comparisons,
    compressed,
    differing,
    energy_told,
    failed_scenarios,
    flagged,
    labels,
    number,
    percent,
    points,
    precision_name,
    size,
    target_name,
    thread_count,
)
from edgevision_benchmarks.report.report import Report, Run
from edgevision_benchmarks.result import Result

MEASURES = {"agreement": "Agreement with FP32", "cosine": "Cosine with FP32"}
ACCURACY = {"Top-1": "Top-1 accuracy", "mAP": "mAP, IoU 0.50 to 0.95", "Accuracy": "Top-1 accuracy or mAP"}


@dataclass(frozen=True)
class Bar:
    """One bar: shares of the longest bar's length, in percent; ``end_to_end`` and ``p90`` are None where unknown."""

    label: str
    index: int
    color: int
    engine: float
    p90: float | None
    end_to_end: float | None
    text: str


def html(report: Report) -> str:
    """Render the report; every name in it is escaped.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    made = template(
        "report.html.j2",
        purpose="write the HTML report",
        number=number,
        points=points,
        percent=percent,
        precision_name=precision_name,
        size=size,
        target_name=target_name,
        thread_count=thread_count,
    )
    script = resource("report.js")
    shown, quality, ordered = columns(report), accuracy_name(report), by_latency(report)
    page: str = made.render(
        report=report,
        style=resource("report.css"),
        script=script,
        # the page may run this one script and fetch nothing
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        glance=_glance(report),
        scatters=_scatters(report, LATENCY),
        size_scatters=_scatters(report, SIZE) if compressed(report) else [],
        measures={"accuracy": ACCURACY[quality], **MEASURES},
        accuracy_name=quality,
        intervals=any(row.accuracy_ci95 or row.agreement_ci95 for row in report.results),
        legend=legend(report),
        shapes=shapes(report),
        bars=_bars(report),
        comparisons=comparisons(report),
        columns=shown,
        rows=[(index, row, _sort_keys(row, shown)) for index, row in ordered],
        facts=[_facts(run, _readings(report, index)) for index, run in enumerate(report.runs)],
        filters=filters(report),
        facets=facets(report),
        names=labels(report),
        flagged=flagged(report),
        scenario_failures=[(index, line) for index, row in enumerate(report.results) for line in failed_scenarios(row)],
        layered=[(index, row) for index, row in ordered if row.layers],
        counted=counted(report),
        counted_headings=HEADINGS,
        bundles=list({row.bundle: row for row in report.results}.values()),
        several=differing(report),
        unstable=sum(row.stable is False for row in report.results),
        absent=ABSENT,
    )
    return page


def template(name: str, *, purpose: str, **filters: Callable[..., Any]) -> Any:
    """A Jinja2 template of this package that escapes every value, with its filters.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    jinja2 = require("jinja2", purpose=purpose)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(filters)
    return environment.from_string(resource(name))


def resource(name: str) -> str:
    """A template, style sheet or script of this package."""
    return files("edgevision_benchmarks.report").joinpath(name).read_text(encoding="utf-8")


def _scatters(report: Report, cost: Cost) -> list[tuple[str, Scatter]]:
    # two drawings, one shown by the style sheet: shrinking a wide one to a phone would shrink its letters too
    drawn = {
        "wide": scatter(report, width=960, height=460, font=14, cost=cost),
        "narrow": scatter(report, width=380, height=400, font=13, cost=cost),
    }
    return [(name, plot) for name, plot in drawn.items() if plot is not None]


def _glance(report: Report) -> list[tuple[str, str, str]]:
    """The few findings a reader wants first: what, figure, which row."""
    found: list[tuple[str, str, str]] = []
    names = labels(report)
    timed = [(index, row) for index, row in enumerate(report.results) if row.p50]
    if timed:
        index, row = min(timed, key=lambda pair: pair[1].p50 or 0.0)
        found.append(("Fastest", f"{number(row.p50)} ms", names[index]))
    judged = [(index, row) for index, row in timed if row.accuracy is not None]
    if judged:
        # of equally accurate rows the faster
        index, row = max(judged, key=lambda pair: (pair[1].accuracy or 0.0, -(pair[1].p50 or 0.0)))
        found.append(("Most accurate", percent(row.accuracy), names[index]))
    quantized = [item for item in comparisons(report) if item.row.precision == "int8"]
    if quantized:
        best = max(quantized, key=lambda item: item.speedup)
        found.append(("Largest gain of INT8", f"{best.speedup:.2f} ×", names[report.results.index(best.row)]))
    # as they lie in the bundles, where some are compressed
    key = "stored_bytes" if compressed(report) else "engine_bytes"
    smallest = [(index, row) for index, row in enumerate(report.results) if getattr(row, key)]
    if smallest:
        index, row = min(smallest, key=lambda pair: int(getattr(pair[1], key)))
        found.append(("Smallest", size(getattr(row, key)), names[index]))
    return found


def _bars(report: Report) -> list[tuple[str, list[Bar]]]:
    """Bars by run and model, each group on a scale of its own."""
    names, colors = labels(report, model=False), target_colors(report)
    groups: dict[tuple[int, str], list[tuple[int, Result]]] = {}
    for index, row in by_latency(report):
        if row.p50:
            groups.setdefault((row.run, row.model), []).append((index, row))
    drawn = []
    for (run, model), rows in groups.items():
        longest = max(max(_ends(row)) for _, row in rows)
        heading = f"{model}: {report.runs[run].label}" if len(report.runs) > 1 else model
        drawn.append((heading, [_bar(index, row, names[index], colors[row.target], longest) for index, row in rows]))
    return drawn


def _ends(row: Result) -> list[float]:
    ends = [row.p50 or 0.0]
    if row.end_to_end_ms is not None:
        ends.append(row.end_to_end_ms["p50"])
    return ends


def _bar(index: int, row: Result, label: str, color: int, longest: float) -> Bar:
    def share(value: float | None) -> float | None:
        return None if value is None else round(min(100.0, 100.0 * value / longest), 2)

    end_to_end = None if row.end_to_end_ms is None else row.end_to_end_ms["p50"]
    text = f"{number(row.p50)} ms"
    if end_to_end is not None:
        text += f", {number(end_to_end)} ms end to end"
    return Bar(label, index, color, share(row.p50) or 0.0, share(row.tail("p90")), share(end_to_end), text)


def _sort_keys(row: Result, shown: list[Column]) -> str:
    return json.dumps([column.key(row) for column in shown])


def _readings(report: Report, index: int) -> list[tuple[str, str]]:
    """Readings of the machine before, during and after one run's first measured row, and whose energy was told."""
    told = energy_told(report, index)
    energy = [("Energy", told)] if told else []
    row = next((row for row in report.results if row.run == index and row.conditions), None)
    if row is None or row.conditions is None:
        return energy
    moments = [row.conditions.get(moment) or {} for moment in ("before", "during", "after")]
    shown = {
        "Clock before, during, after": ("frequency_mhz", " MHz"),
        "Temperature before, during, after": ("temperature_c", " °C"),
        "Throttling": ("throttling", ""),
        "Power mode": ("power_mode", ""),
    }
    found = []
    for name, (key, unit) in shown.items():
        texts = list(dict.fromkeys(_reading(moment.get(key), unit) for moment in moments))
        found.append((name, " → ".join(texts)))
    return found + energy


def _facts(run: Run, readings: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    machine, made = run.environment, run.provenance
    cpu = machine.get("cpu", {})
    features = cpu.get("features")
    facts = [
        ("Processor", f"{cpu.get('name', ABSENT)} ({cpu.get('architecture', ABSENT)})"),
        ("Cores", f"{cpu.get('usable_cores', ABSENT)} usable of {cpu.get('logical_cores', ABSENT)}"),
        ("Instructions", ", ".join(features) if features else str(cpu.get("why") or ABSENT)),
        ("GPU", ", ".join(gpu["name"] for gpu in machine.get("gpus", [])) or str(machine.get("why_no_gpu") or ABSENT)),
        ("Clock", _reading(machine.get("clock_mhz"), " MHz")),
        ("Governor", _reading(machine.get("governor"))),
        ("Temperature", _reading(machine.get("temperature_c"), " °C")),
        ("Load average", _reading(machine.get("load_average"))),
        ("Memory", size((machine.get("memory_bytes") or {}).get("value"))),
        ("System", ", ".join(str(machine[key]) for key in ("os", "kernel", "python") if machine.get(key))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in machine.get("packages", {}).items())),
        ("Date", str(made.get("date") or ABSENT)),
        ("Data", str(made.get("data") or "none given: accuracy was not measured")),
        ("End-to-end input", str(made.get("end_to_end_input") or "not measured")),
        ("Command", str(made.get("command") or ABSENT)),
        *readings,
    ]
    return run.label, facts


def _reading(reading: dict[str, Any] | None, unit: str = "") -> str:
    value = (reading or {}).get("value")
    if value is None:
        return str((reading or {}).get("why") or ABSENT)
    if isinstance(value, dict):
        parts = [f"{name} {_plain(each, unit)}" for name, each in value.items()]
        # of many cores with one clock, one figure
        same = {_plain(each, unit) for each in value.values()}
        return f"{same.pop()} ({len(parts)} ×)" if len(same) == 1 and len(parts) > 2 else ", ".join(parts)
    if isinstance(value, list) and value and all(isinstance(each, (int, float)) for each in value):
        low, high = min(value), max(value)
        return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"
    return f"{value}{unit}"


def _plain(value: Any, unit: str) -> str:
    return f"{number(value)}{unit}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
