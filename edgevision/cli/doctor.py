"""``edgevision doctor``.

Exit codes: 0 examined; 1 a bundle cannot be opened; 2 wrong usage; 3 with ``--strict``: no runtime is installed, an
installed one is doubtful, or the bundle cannot run here or its prediction was refuted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from edgevision.cli.output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="judge this bundle on this machine, and prove it")
    parser.add_argument("sibling", nargs="?", metavar="FP32", help="the float bundle to compare with (default: the one "
                        "beside it)")  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of measuring a bundle (default 10; 0 measures none)"
    )
    parser.add_argument("--strict", action="store_true", help="exit 3 where something is missing or doubtful")


def run(options: argparse.Namespace) -> int:
    """Examine the machine, or judge a bundle on it."""
    return _machine(options) if options.bundle is None else _bundle(options)


def _machine(options: argparse.Namespace) -> int:
    from edgevision.devices.doctor import describe, doctor, doubts, try_imports

    found = try_imports(doctor())
    if options.json:
        print_json(found)
    else:
        print(describe(found))
    return _strict(options, doubts(found))


def _bundle(options: argparse.Namespace) -> int:
    from edgevision.devices.judge import describe, judge
    from edgevision.errors import UsageError

    if not 0 <= options.seconds <= 3600:
        raise UsageError(f"--seconds must be between 0 and 3600; got {options.seconds:g}")
    found = judge(
        options.bundle,
        options.sibling,
        timer=time_bundle if options.seconds else None,
        seconds=options.seconds,
    )
    if options.json:
        print_json(found)
    else:
        print(describe(found))
    against = [doubt["what"] for doubt in found["doubts"]]
    if "refutes" in found["verdict"]:
        against.append(found["verdict"])
    return _strict(options, against)


def time_bundle(path: str, seconds: float) -> Sequence[int]:
    """Run times of a bundle in nanoseconds, one thread, in a process of its own: a crash there is a message here.

    Raises:
        EngineError: it does not load or run.
    """
    from edgevision_benchmarks.probes import run_worker
    from edgevision_benchmarks.timing import TimingOptions

    limits = TimingOptions(
        min_runs=5, min_seconds=seconds, max_seconds=max(2 * seconds, 0.1), max_warmup_seconds=min(1.0, seconds)
    )
    job = {"kind": "time", "bundle": path, "threads": 1, "batch": 1, "pictures": [], "options": limits.to_dict()}
    answer = run_worker(job, timeout_s=600 + 4 * seconds)
    return [int(value) for value in answer["engine"]["wall_ns"]]


def _strict(options: argparse.Namespace, against: Sequence[str]) -> int:
    if not options.strict or not against:
        return 0
    for what in against:
        print(f"edgevision doctor: {what}", file=sys.stderr)
    return 3
