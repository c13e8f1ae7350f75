"""What was counted under emulation: a proxy of cost that has tables of its own and no column among measured times."""

from __future__ import annotations

from dataclasses import dataclass

from edgevision_benchmarks.report.report import Report
from edgevision_benchmarks.result import Result

HEADINGS = ("M instructions", "MB moved", "M multiplies", "M dot products")


@dataclass(frozen=True)
class Counted:
    """One inference of one row on an emulated core.

    Attributes:
        index: of the row in the report.
        row: the row itself, which has answers and no times.
        device: the core.
        figures: in the order of `HEADINGS`, three digits behind the point: a count is exact.
    """

    index: int
    row: Result
    device: str
    figures: tuple[str, ...]


def counted(report: Report) -> list[Counted]:
    """Every row that was counted, the fewest instructions of a model first."""
    counts = {
        (number, entry["model"], entry["target"], entry["precision"]): entry["counts"]
        for number, run in enumerate(report.runs)
        for entry in run.provenance.get("cost_proxy") or ()
    }
    found = []
    for index, row in enumerate(report.results):
        if (each := counts.get((row.run, row.model, row.target, row.precision))) is not None:
            moved = each["bytes_loaded"] + each["bytes_stored"]
            figures = (each["instructions"], moved, each["multiply"], each["dot"])
            told = tuple(f"{figure / 1e6:.3f}" for figure in figures)
            found.append((row.model, each["instructions"], Counted(index, row, report.runs[row.run].device, told)))
    return [each for _, _, each in sorted(found, key=lambda entry: entry[:2])]
