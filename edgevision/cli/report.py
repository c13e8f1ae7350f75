"""``edgevision report``."""

from __future__ import annotations

import argparse

from edgevision.cli.output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("results", nargs="*", metavar="RESULTS", help="results.json of one or more benches")
    parser.add_argument("-o", "--out", default="report", metavar="DIR", help="folder of the report (default report)")
    parser.add_argument("--title", help="title of the report")
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--compare",
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="set two results against each other; exit 3 where something got worse beyond what noise explains",
    )
    other.add_argument("--history", metavar="FILE|URL", help="plot the course of what bench --history kept")
    other.add_argument("--schema", action="store_true", help="print the JSON Schema of results.json")
    parser.add_argument(
        "--threshold",
        type=float,
        default=5.0,
        metavar="PERCENT",
        help="with --compare: growth of latency that does not count (default 5)",
    )
    parser.add_argument(
        "--memory-threshold",
        type=float,
        default=10.0,
        metavar="PERCENT",
        help="with --compare: growth of peak memory that does not count (default 10)",
    )
    parser.add_argument("--seed", type=int, default=0, help="with --compare: of the resampling (default 0)")


def run(options: argparse.Namespace) -> int:
    """Merge results into one report; or compare two, plot a history, print the schema."""
    from edgevision.errors import UsageError

    special = options.compare or options.history or options.schema
    if special and options.results:
        raise UsageError(f"{options.results[0]}: --compare, --history and --schema take no further results")
    if not special and not options.results:
        raise UsageError("name the results.json of one or more benches, or --compare, --history or --schema")
    if options.schema:
        from edgevision_benchmarks.schema import schema

        print_json(schema())
        return 0
    if options.compare:
        return _compare(options)
    return _history(options) if options.history else _merge(options)


def _merge(options: argparse.Namespace) -> int:
    from edgevision_benchmarks.report import Report

    report = Report.merged([Report.load(path) for path in options.results], title=options.title)
    written = report.save(options.out)
    if options.json:
        print_json({"report": str(written), "results": len(report.results)})
    else:
        print(written)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from edgevision_benchmarks.compare import compare, text
    from edgevision_benchmarks.report import Report

    before, after = (Report.load(path) for path in options.compare)
    found = compare(
        before,
        after,
        threshold=options.threshold / 100,
        memory_threshold=options.memory_threshold / 100,
        seed=options.seed,
    )
    if options.json:
        print_json(found.to_dict())
    else:
        print(text(found))
    return 3 if found.regressions else 0


def _history(options: argparse.Namespace) -> int:
    from edgevision_benchmarks.history import History
    from edgevision_benchmarks.report.course import save_course

    with History.open(options.history, create=False) as history:
        report = history.load()
    written = save_course(report, options.out, title=options.title)
    if options.json:
        print_json({"report": str(written), "runs": len(report.runs), "results": len(report.results)})
    else:
        print(written)
    return 0
