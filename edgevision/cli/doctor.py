"""``edgevision doctor``."""

from __future__ import annotations

import argparse

from edgevision.cli.output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb has no options of its own."""


def run(options: argparse.Namespace) -> int:
    """Print the environment, the runtimes and INT8's prospects."""
    from edgevision.devices.doctor import describe, doctor

    found = doctor()
    if options.json:
        print_json(found)
    else:
        print(describe(found))
    return 0
