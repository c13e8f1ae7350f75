"""What a reader can choose by: devices, engines, precisions, models, and which of them each row has."""

from __future__ import annotations

from dataclasses import dataclass

from edgevision_benchmarks.report.layout import precision_name, target_name
from edgevision_benchmarks.report.report import Report
from edgevision_benchmarks.result import Result

HEADINGS = ("Device", "Engine", "Precision", "Model")


@dataclass(frozen=True)
class Filter:
    """One group of choices: its heading, its number among the groups, and what can be chosen."""

    heading: str
    number: int
    values: tuple[str, ...]


def filters(report: Report) -> list[Filter]:
    """The groups that there is anything to choose in."""
    values = _values(report)
    return [Filter(HEADINGS[n], n, each) for n, each in enumerate(values) if len(each) > 1]


def facets(report: Report) -> list[str]:
    """Of each row the numbers of its device, engine, precision and model among the values of `filters`."""
    values = _values(report)
    return [
        " ".join(str(values[n].index(value)) for n, value in enumerate(_row_values(report, row)))
        for row in report.results
    ]


def _values(report: Report) -> list[tuple[str, ...]]:
    found: list[dict[str, None]] = [{} for _ in HEADINGS]
    for row in report.results:
        for known, value in zip(found, _row_values(report, row), strict=True):
            known[value] = None
    return [tuple(sorted(known, key=str.lower)) for known in found]


def _row_values(report: Report, row: Result) -> tuple[str, ...]:
    return (report.runs[row.run].device, target_name(row.target), precision_name(row), row.model)
