"""``edgevision bench``."""

from __future__ import annotations

import argparse
import sys

from edgevision.cli.output import counts, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE")
    parser.add_argument("--data", metavar="KIND:PATH", help="labelled pictures, for accuracy")
    parser.add_argument("--threads", type=counts, default=[1], metavar="N,M", help="of one inference (default 1)")
    parser.add_argument("--split", default="test", help="part of the data, where it is divided (default test; all)")
    parser.add_argument("--reference", metavar="BUNDLE", help="bundle to agree with (default: the FP32 one)")
    parser.add_argument("--limit", type=int, help="measure accuracy on so many pictures, evenly spaced")
    parser.add_argument("--rounds", type=int, default=3, help="turns over all bundles (default 3)")
    parser.add_argument("--seconds", type=float, default=1.0, help="measured time of each turn (default 1)")
    parser.add_argument("--title", help="title of the report")
    parser.add_argument("-o", "--out", metavar="DIR", help="write the report (HTML, Markdown, CSV, JSON) here")


def run(options: argparse.Namespace) -> int:
    """Measure, print the table, write the report."""
    from edgevision_benchmarks.bench import bench

    report = bench(
        options.bundles,
        options.data,
        threads=options.threads,
        split=None if options.split == "all" else options.split,
        reference=options.reference,
        title=options.title,
        limit=options.limit,
        rounds=options.rounds,
        seconds=options.seconds,
        # what a device runs; and no engine has to compile for another batch size
        batch_size=1,
    )
    if options.json:
        print_json(report.to_dict())
    else:
        print(report.table())
    # after the table: a full disk or a missing extra must not cost what was measured
    if options.out:
        report.save(options.out)
    for failure in report.errors:
        print(f"edgevision bench: {failure['bundle']}: {failure['error']}", file=sys.stderr)
    return 1 if report.errors else 0
