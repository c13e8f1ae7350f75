"""``edgevision bench --device`` and ``--cluster``: the same bench on other machines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.cli.keep import keep
from edgevision.cli.output import print_json, print_table

if TYPE_CHECKING:
    from edgevision.remote.arm.cost import Cost
    from edgevision.remote.devices import DeviceResult

# option of the verb → its flag; what the devices measure, they are told by these
_FORWARDED = {
    "threads": "--threads",
    "rounds": "--rounds",
    "seconds": "--seconds",
    "queries": "--queries",
    "scenarios": "--scenarios",
    "offline_batch": "--offline-batch",
    "latency_bound": "--latency-bound",
    "seed": "--seed",
    "layers": "--layers",
}
_COSTS_FILE = "cost.json"


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that send a bench elsewhere."""
    group = parser.add_argument_group("other machines")
    group.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="URL",
        help="ssh://USER@HOST[:PORT][?python=PATH&dir=PATH], emulated://cortex-a72 or local; may be repeated",
    )
    group.add_argument("--cluster", metavar="URL", help="scheduler of a Dask cluster, e.g. tcp://desk:8786")
    group.add_argument("--kind", action="append", default=[], help="resource of its workers to use (default: every)")
    group.add_argument(
        "--cost-baseline",
        metavar="FILE",
        help="cost.json of an earlier emulated bench: exit 3 where instructions or bytes have grown",
    )


def run_on_devices(options: argparse.Namespace) -> int:
    """Measure elsewhere, merge, print, save; 1 where a device failed, 3 where a cost has grown."""
    from edgevision.errors import UsageError
    from edgevision.remote.arm.cost import compare_costs, costs_of, load_costs, save_costs
    from edgevision.remote.devices import merged
    from edgevision_benchmarks.history import History

    if options.device and options.cluster:
        raise UsageError("--device and --cluster exclude each other")
    # what is wrong with these must be told before minutes of measuring, not after them
    baseline = load_costs(options.cost_baseline) if options.cost_baseline else None
    history = History.open(options.history) if options.history else None
    results = _measured(options)
    for result in results:
        for note in (*result.notes, *([result.error] if result.error else [])):
            print(f"edgevision bench: {note}", file=sys.stderr)
    if all(result.document is None for result in results):
        if options.json:
            print_json({"devices": [_told(result) for result in results]})
        return 1
    report = merged(results, title=options.title)
    costs = costs_of([result.document for result in results if result.document is not None])
    if options.json:
        print_json({**report.to_dict(), "devices": [_told(result) for result in results]})
    else:
        print(report.table())
        _print_costs(costs)
    saves: list[Callable[[], object]] = []
    if options.out and costs:
        saves.append(lambda: save_costs(Path(options.out) / _COSTS_FILE, costs))
    if options.out:
        saves.append(lambda: report.save(options.out))
    keep(report, history, *saves)
    for failure in report.errors:
        print(f"edgevision bench: {failure['bundle']}: {failure['error']}", file=sys.stderr)
    grown = [] if baseline is None else compare_costs(baseline, costs)
    for change in grown:
        print(f"edgevision bench: {change}", file=sys.stderr)
    failed = bool(report.errors) or any(result.error for result in results)
    return 3 if grown else int(failed)


def _measured(options: argparse.Namespace) -> list[DeviceResult]:
    from edgevision.remote.devices import bench_devices
    from edgevision.remote.fleet import bench_cluster
    from edgevision.remote.job import prepare
    from edgevision_benchmarks.bench import command_line

    job = prepare(
        options.bundles,
        options.data,
        split=None if options.split == "all" else options.split,
        limit=options.limit,
        reference=options.reference,
        arguments=_arguments(options),
        typed=command_line(),
    )
    if options.cluster:
        return bench_cluster(job, options.cluster, kinds=options.kind, out=options.out)
    return bench_devices(job, options.device, out=options.out)


def _arguments(options: argparse.Namespace) -> list[str]:
    words: list[str] = []
    for name, flag in _FORWARDED.items():
        value = getattr(options, name, None)
        if value is None or value is False or value == []:
            continue
        words.append(flag)
        if value is not True:
            words.append(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return words


def _told(result: DeviceResult) -> dict[str, Any]:
    return {"device": result.device.name, "kept": result.kept, "notes": result.notes, "error": result.error}


def _print_costs(costs: Sequence[Cost]) -> None:
    if not costs:
        return
    from edgevision.remote.arm.cost import NOTE

    print(f"\nOne inference, {NOTE}")
    columns = ("device", "model", "engine", "precision", "M instructions", "MB moved", "M multiplies", "M dot")
    print_table(
        columns,
        [
            (cost.device, cost.model, cost.target, cost.precision, _millions(cost.counts["instructions"]),
             _millions(cost.bytes_moved), _millions(cost.counts["multiply"]), _millions(cost.counts["dot"]))
            for cost in costs
        ],
    )  # fmt: skip


def _millions(count: int) -> str:
    return f"{count / 1e6:.3f}"
