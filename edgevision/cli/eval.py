"""``edgevision eval``."""

from __future__ import annotations

import argparse

from edgevision.cli.output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--data", required=True, metavar="KIND:PATH", help="labelled pictures")
    parser.add_argument("--reference", metavar="BUNDLE", help="bundle to agree with, usually the FP32 one")
    parser.add_argument("--split", default="test", help="part of the data, where it is divided (default test; all)")
    parser.add_argument("--limit", type=int, help="evaluate so many pictures, evenly spaced")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures in one call (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of one inference (default 1)")


def run(options: argparse.Namespace) -> int:
    """Print accuracy, and agreement with the reference."""
    from edgevision_benchmarks.accuracy import evaluate_bundle

    found = evaluate_bundle(
        options.bundle,
        options.data,
        reference=options.reference,
        split=None if options.split == "all" else options.split,
        batch_size=options.batch_size,
        limit=options.limit,
        threads=options.threads,
    ).to_dict()
    if options.json:
        print_json(found)
    else:
        for key, value in found.items():
            if value is None or value == {}:
                continue
            text = ", ".join(f"{part:.4f}" for part in value) if isinstance(value, list) else value
            print(f"{key:<14} {text:.4f}" if isinstance(text, float) else f"{key:<14} {text}")
    return 0
