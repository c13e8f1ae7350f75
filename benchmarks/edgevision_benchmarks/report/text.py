"""The report as CSV, as Markdown and as a table for a terminal."""

from __future__ import annotations

import csv
import io
import sys
from typing import Any

from edgevision.dependencies import installed
from edgevision_benchmarks.report.counted import HEADINGS, counted
from edgevision_benchmarks.report.layout import (
    ABSENT,
    accuracy_name,
    by_latency,
    columns,
    comparisons,
    energy_told,
    failed_scenarios,
    flagged,
    labels,
    percent,
    points,
    precision_name,
    size,
    target_name,
    thread_count,
)
from edgevision_benchmarks.report.report import Report, Run
from edgevision_benchmarks.result import Result

# width of tables that are not drawn on a terminal
_WIDTH = 160


def csv_text(report: Report) -> str:
    """One line per row; nested values become columns such as ``latency_ms_p50`` and ``accuracy_ci95_low``."""
    rows = [_flat(row, report) for row in report.results]
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _flat(row: Result, report: Report) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.to_dict().items():
        if key in {"median_ci95", "accuracy_ci95", "agreement_ci95"}:
            flat[f"{key}_low"], flat[f"{key}_high"] = value or ("", "")
        elif key in {"latency_ms", "cpu_ms", "end_to_end_ms", "preprocess_ms", "postprocess_ms"}:
            for name in ("p50", "p90", "p95", "p99", "mean", "min", "std"):
                # a tail of too few runs is None, and files of earlier versions have no p95
                told = None if value is None else value.get(name)
                flat[f"{key}_{name}"] = "" if told is None else told
        elif key in {"tails_ci95", "samples", "conditions", "layers", "correct", "accuracy_resamples"}:
            continue  # results.json holds them
        elif key in {"offline", "server"}:
            for name in ("samples_per_second", "batch") if key == "offline" else ("queries_per_second", "bound_ms"):
                flat[f"{key}_{name}"] = "" if value is None or value.get(name) is None else value[name]
        elif key == "flags":
            flat[key] = "; ".join(value)
        elif key == "round_p50_ms":
            flat[key] = " ".join(repr(median) for median in value)
        else:
            flat[key] = "" if value is None else value
    flat["machine"] = report.runs[row.run].machine
    flat["date"] = report.runs[row.run].provenance.get("date", "")
    return flat


def markdown(report: Report) -> str:
    """The report as Markdown: results, comparison with FP32, machines, provenance."""
    shown = columns(report)
    heading = [f"{column.heading} ({column.hint})" if column.hint else column.heading for column in shown]
    lines = [f"# {_escape(report.title)}", "", *_table(heading, [c.best is not None for c in shown], _rows(report))]
    lines += [*_against(report), *_counted(report)]
    if report.errors:
        lines += ["", "## Failures", ""]
        lines += [f"- {_escape(_failure(row))}" for row in report.errors]
    if doubts := _doubts(report):
        lines += ["", "## Flagged", "", *(f"- {_escape(doubt)}" for doubt in doubts)]
    lines += ["", "## Measured on", ""]
    for index, run in enumerate(report.runs):
        lines.append(f"{index + 1}. {_escape(run.label)}")
        lines += [f"   - {_escape(fact)}" for fact in _facts(run)]
        if energy := energy_told(report, index):
            lines.append(f"   - energy: {_escape(energy)}")
    lines += ["", "## Bundles", ""]
    unique = {row.bundle: row for row in report.results}
    body = [
        [row.bundle, size(row.size_bytes), row.engine_version or ABSENT, row.sha256 or row.engine_sha256 or ABSENT]
        for row in unique.values()
    ]
    lines += _table(["Bundle", "Bytes", "Engine version", "SHA-256"], [False, True, False, False], body)
    return "\n".join(lines) + "\n"


def _against(report: Report) -> list[str]:
    """Every quantized row beside its FP32 row."""
    found = comparisons(report)
    body = [
        [
            item.row.model,
            target_name(item.row.target),
            precision_name(item.row),
            str(item.row.threads or "auto"),
            f"{item.speedup:.2f} × as fast",
            points(item.accuracy_points),
            percent(item.row.agreement),
            ABSENT if item.size_ratio is None else f"{item.size_ratio:.2f}",
        ]
        for item in found
    ]
    names = ["Model", "Engine", "Precision", "Threads", "Speed", accuracy_name(report), "Agreement", "Size"]
    table = _table(names, [False] * 4 + [True] * 4, body)
    return ["", "## Against FP32 on the same engine", "", *table] if found else []


def _counted(report: Report) -> list[str]:
    found = counted(report)
    body = [
        [each.row.model, target_name(each.row.target), precision_name(each.row), each.device, *each.figures]
        for each in found
    ]
    names = ["Model", "Engine", "Precision", "Core", *HEADINGS]
    table = _table(names, [False] * 4 + [True] * len(HEADINGS), body)
    return ["", "## Counted under emulation: no latency", "", *table] if found else []


def _facts(run: Run) -> list[str]:
    machine, made = run.environment, run.provenance
    cpu = machine.get("cpu", {})
    return [
        f"processor: {cpu.get('name')}, {cpu.get('usable_cores')} of {cpu.get('logical_cores')} cores",
        f"system: {machine.get('os')}, {machine.get('kernel')}, {machine.get('python')}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in machine.get("packages", {}).items()),
        f"data: {made.get('data') or 'none'}",
        f"command: {made.get('command')}",
    ]


def _rows(report: Report) -> list[list[str]]:
    shown = columns(report)
    return [[column.text(row) for column in shown] for _, row in by_latency(report)]


def _table(heading: list[str], right: list[bool], rows: list[list[str]]) -> list[str]:
    rule = ["---:" if is_right else "---" for is_right in right]
    lines = [heading, rule, *([_escape(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _escape(text: Any) -> str:
    escaped = " ".join(str(text).split())
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "\\`"), ("*", "\\*")):
        escaped = escaped.replace(character, entity)
    return escaped


def terminal_table(report: Report) -> str:
    """The rows as text: drawn by rich where it is installed, in plain columns elsewhere."""
    shown = columns(report)
    # what a person compares first; the files hold the rest
    left_out = {"p95", "p99", "Top-5", "First", "CPU", "SQNR", "Before", "After", "Steady", "Images/s"}
    shown = [column for column in shown if column.heading not in left_out]
    heading = [column.heading for column in shown]
    right = [column.best is not None for column in shown]
    rows = [[column.text(row) for column in shown] for _, row in by_latency(report)]
    text = _rich_table(heading, right, rows) if installed("rich") else _plain_table(heading, right, rows)
    notes = ["Times in ms: median of the engine alone ± 95% confidence."]
    unstable = [row for row in report.results if row.stable is False]
    if unstable:
        notes.append(f"{len(unstable)} of {len(report.results)} rows were not steady: the machine was busy.")
    notes += _doubts(report)
    notes += [f"failed: {_failure(row)}" for row in report.errors]
    return "\n".join([text, *notes])


def _doubts(report: Report) -> list[str]:
    """What casts doubt on rows, and which scenarios gave no figure, one line a row and reason."""
    names = labels(report)
    found = [f"{names[index]}: {flag}" for index, row in flagged(report) for flag in row.flags]
    return found + [
        f"{names[index]}: {line}" for index, row in enumerate(report.results) for line in failed_scenarios(row)
    ]


def _failure(row: dict[str, Any]) -> str:
    return f"{row['bundle']} ({thread_count(row['threads'])}): {row['error']}"


def _rich_table(heading: list[str], right: list[bool], rows: list[list[str]]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, is_right in zip(heading, right, strict=True):
        table.add_column(name, justify="right" if is_right else "left", no_wrap=is_right)
    for row in rows:
        # Text: names from files are no markup
        table.add_row(*(Text(cell) for cell in row))
    stream = io.StringIO()
    width = None if sys.stdout.isatty() else _WIDTH
    Console(file=stream, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n")


def _plain_table(heading: list[str], right: list[bool], rows: list[list[str]]) -> str:
    widths = [max(len(row[index]) for row in [heading, *rows]) for index in range(len(heading))]
    lines = []
    for row in [heading, ["-" * width for width in widths], *rows]:
        cells = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
