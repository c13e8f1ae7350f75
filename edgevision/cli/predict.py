"""``edgevision predict``."""

from __future__ import annotations

import argparse
import json

from edgevision.cli.output import print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--top", type=int, default=5, help="how many classes to show (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of one inference (default 1)")


def run(options: argparse.Namespace) -> int:
    """Print one result per picture; with ``--json`` one JSON object a line."""
    from edgevision.errors import EdgeVisionError, UsageError
    from edgevision.runtime import load
    from edgevision.tasks import Classification

    if options.top < 1:
        raise UsageError(f"--top must be 1 or more; got {options.top}")
    failures: list[EdgeVisionError] = []
    with load(options.bundle, threads=options.threads) as session:
        for path in options.images:
            try:
                result = session.predict([path])[0]
            except EdgeVisionError as error:
                # one bad picture does not cost the others their results
                failures.append(error)
                continue
            if options.json:
                print(json.dumps({"image": path, **result.to_dict(options.top)}), flush=True)
            elif isinstance(result, Classification):
                print(path)
                print_table(("  class", "probability"),
                            [(f"  {name}", f"{p:.4f}") for name, p in result.top(options.top)])  # fmt: skip
            else:
                print(path)
                for name, value in result.to_dict()["outputs"].items():
                    low, high = ("?" if value[key] is None else f"{value[key]:.4g}" for key in ("min", "max"))
                    print(f"  {name}: {value['shape']} {low} … {high}")
    if failures:
        raise type(failures[0])("; ".join(str(error) for error in failures))
    return 0
