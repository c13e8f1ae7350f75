"""``edgevision report``."""

from __future__ import annotations

import argparse

from edgevision.cli.output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="results.json of one or more benches")
    parser.add_argument("-o", "--out", default="report", metavar="DIR", help="folder of the report (default report)")
    parser.add_argument("--title", help="title of the report")


def run(options: argparse.Namespace) -> int:
    """Merge results and write HTML, Markdown, CSV and JSON."""
    from edgevision_benchmarks.report import Report

    report = Report.merged([Report.load(path) for path in options.results], title=options.title)
    written = report.save(options.out)
    if options.json:
        print_json({"report": str(written), "results": len(report.results)})
    else:
        print(written)
    return 0
