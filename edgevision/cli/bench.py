"""``edgevision bench``."""

from __future__ import annotations

import argparse
import sys

from edgevision.cli.bench_devices import add_device_arguments, run_on_devices
from edgevision.cli.keep import keep
from edgevision.cli.output import counts, names, print_json


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
    parser.add_argument(
        "--queries",
        type=int,
        default=64,
        metavar="N",
        help="least runs of a row over all rounds (default 64; p99: 662)",
    )
    parser.add_argument(
        "--scenarios", type=names, default=[], metavar="offline,server", help="of MLPerf's, besides one query in flight"
    )
    parser.add_argument("--offline-batch", type=int, default=8, metavar="N", help="batch of offline (default 8)")
    parser.add_argument(
        "--latency-bound", type=float, metavar="MS", help="of server: what the 99th percentile must keep"
    )
    parser.add_argument("--seed", type=int, default=0, help="of server: of the arrivals (default 0)")
    parser.add_argument("--layers", action="store_true", help="time of each layer, where the engine tells it")
    parser.add_argument("--history", metavar="FILE|URL", help="keep the results in this SQLite file or database, too")
    parser.add_argument("--title", help="title of the report")
    parser.add_argument("-o", "--out", metavar="DIR", help="write the report (HTML, Markdown, CSV, JSON) here")
    add_device_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print the table, write the report."""
    if options.device or options.cluster:
        return run_on_devices(options)
    from edgevision_benchmarks.bench import bench
    from edgevision_benchmarks.history import History

    # a wrong address must be told before minutes of measuring, not after them
    history = History.open(options.history) if options.history else None
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
        min_queries=options.queries,
        scenarios=tuple(options.scenarios),
        offline_batch=options.offline_batch,
        latency_bound_ms=options.latency_bound,
        seed=options.seed,
        layers=options.layers,
    )
    if options.json:
        print_json(report.to_dict())
    else:
        print(report.table())
    # after the table: a full disk or a missing extra must not cost what was measured
    keep(report, history, *([lambda: report.save(options.out)] if options.out else []))
    for failure in report.errors:
        print(f"edgevision bench: {failure['bundle']}: {failure['error']}", file=sys.stderr)
    return 1 if report.errors else 0
