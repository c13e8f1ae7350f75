"""``edgevision models``."""

from __future__ import annotations

import argparse

from edgevision.cli.output import print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("name", nargs="?", help="show only the models whose name holds this")


def run(options: argparse.Namespace) -> int:
    """List the zoo."""
    from edgevision.models import model_table

    table = [info for info in model_table() if options.name is None or options.name in info.name]
    if options.json:
        print_json({"models": [info.to_dict() for info in table]})
        return 0
    rows = [
        (
            info.name,
            info.task,
            _millions(info.parameters),
            _millions(info.multiply_adds),
            f"{info.input_size}",
            info.description,
        )
        for info in table
    ]
    print_table(("model", "task", "parameters", "mult-adds", "input", "description"), rows)
    return 0


def _millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f} M" if count < 1e8 else f"{count / 1e6:.0f} M"
