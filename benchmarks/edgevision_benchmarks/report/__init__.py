"""`Report`: results with their provenance; HTML, Markdown, CSV and JSON are views of it."""

from edgevision_benchmarks.report.report import Report, Run

__all__ = ["Report", "Run"]
