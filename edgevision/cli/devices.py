"""``edgevision devices``: the registry, and estimates marked as such.

Exit codes: 0 done; 1 a bundle or a results file cannot be read; 2 wrong usage, an unknown board, or one without rates.
"""

from __future__ import annotations

import argparse
from typing import Any

from edgevision.cli.output import names, print_json, print_table
from edgevision.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a board or core, every figure with its source; "
                        "\"this\" for the machine at hand")  # fmt: skip
    parser.add_argument("--estimate", metavar="BUNDLE", help="estimate the latency of this bundle")
    parser.add_argument("--on", type=names, default=[], metavar="NAME,…", help="boards to estimate on")
    parser.add_argument("--calibrate", nargs="+", default=[], metavar="RESULTS", help="results.json files of "
                        "edgevision bench: what engines reach on boards one has")  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="cores that work (default: the fastest kind's)")


def run(options: argparse.Namespace) -> int:
    """Show the registry, one entry of it, or estimates."""
    if options.estimate is not None:
        if options.name is not None:
            raise UsageError(f"name the boards to estimate on with --on {options.name}")
        return _estimate(options)
    if options.on or options.calibrate or options.threads:
        raise UsageError("--on, --calibrate and --threads belong to --estimate BUNDLE")
    return _list(options) if options.name is None else _show(options)


def _list(options: argparse.Namespace) -> int:
    from edgevision.devices.boards import BOARDS
    from edgevision.devices.cores import CORES
    from edgevision.devices.registry import describe, recognize

    match = recognize()
    boards = {name: describe(name) for name in BOARDS}
    cores = {name: describe(name) for name in CORES}
    if options.json:
        print_json({"this_machine": match.to_dict(), "boards": boards, "cores": cores})
        return 0
    header = ("board", "cores", "memory GB/s", "CPU FP32 GFLOPS", "CPU INT8 GOPS", "GPU FP16 TFLOPS", "GPU INT8 TOPS")
    print_table(header, [_board_row(name, board) for name, board in boards.items()])
    print()
    print_table(
        ("core", "instructions", "FP32", "FP16", "INT8"),
        [
            (name, " ".join(core["isa"]), *(_shown(core["rates"].get(key)) for key in ("fp32", "fp16", "int8")))
            for name, core in cores.items()
        ],
    )
    print(
        "\nRates of cores in operations per cycle. ? has not been looked up again; edgevision devices NAME shows where"
    )
    print("each figure is from.")
    print(f"This machine: {match.name or 'not recognized'} ({match.how})")
    return 0


def _board_row(name: str, board: dict[str, Any]) -> tuple[str, ...]:
    # the name first: the table puts columns of numbers to the right
    cores = " + ".join(f"{cluster['core']} × {cluster['count']}" for cluster in board["clusters"])
    peaks = board["peaks"]
    return (
        name,
        cores,
        _shown(board["bandwidth"]),
        _shown(peaks.get("cpu", {}).get("fp32")),
        _shown(peaks.get("cpu", {}).get("int8")),
        _shown(peaks.get("gpu", {}).get("fp16")),
        _shown(peaks.get("gpu", {}).get("int8")),
    )


def _shown(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    return f"{figure['value']:g}{'' if figure['verified'] else '?'}"


def _show(options: argparse.Namespace) -> int:
    from edgevision.devices.registry import describe, device_dict, recognize

    if options.name == "this":
        match = recognize()
        found = {"name": match.name, "kind": "board", "how": match.how}
        if match.device is not None:
            found |= device_dict(match.device)
    else:
        found = describe(options.name)
    if options.json:
        print_json(found)
    else:
        print("\n".join(_lines(found)))
    return 0


def _lines(found: dict[str, Any]) -> list[str]:
    """Every figure on a line of its own, its source below it."""
    lines = [f"{found['name']}: {found.get('title') or found.get('how')}"]
    if found.get("isa"):
        lines.append(f"  instructions: {', '.join(found['isa'])}")
    if found.get("isa_source"):
        lines.append(f"      {found['isa_source']}")
    for cluster in found.get("clusters", []):
        lines += _figure_lines(f"{cluster['count']}× {cluster['core']}", cluster["mhz"])
    for key in ("memory", "bandwidth", "jetpack", "tensorrt", "power"):
        if found.get(key) is not None:
            lines += _figure_lines(key, found[key])
    if found.get("compute_capability"):
        lines.append(f"  compute capability: {'.'.join(str(part) for part in found['compute_capability'])}")
    for precision, figure in found.get("rates", {}).items():
        lines += _figure_lines(precision.upper(), figure)
    for unit, rates in found.get("peaks", {}).items():
        for precision, figure in rates.items():
            lines += _figure_lines(f"{unit.upper()} {precision.upper()}, dense", figure)
    if found.get("note"):
        lines.append(f"  note: {found['note']}")
    return lines


def _figure_lines(label: str, figure: dict[str, Any]) -> list[str]:
    value = figure["value"] if isinstance(figure["value"], str) else f"{figure['value']:g}"
    mark = "" if figure["verified"] else ", not looked up again"
    return [f"  {label}: {value} {figure['unit']}".rstrip(), f"      {figure['source']}{mark}"]


def _estimate(options: argparse.Namespace) -> int:
    from edgevision.devices.estimate import estimate

    found = estimate(options.estimate, options.on, calibrate=options.calibrate, threads=options.threads)
    if options.json:
        print_json(found)
        return 0
    print(f"ESTIMATE, not measured: {found['bundle']}, {found['macs'] / 1e6:.1f} M multiplications, batch 1\n")
    header = ("board", "threads", "roofline ms", "ESTIMATE ms", "95% interval", "waits for memory")
    print_table(header, [_estimate_row(item) for item in found["estimates"]])
    for item in found["estimates"]:
        remarks = [item["basis"], *item["notes"]]
        if item["unverified"]:
            remarks.append(
                f"{len(item['unverified'])} figures not looked up again (edgevision devices {item['board']})"
            )
        print(f"\n{item['board']}: " + "; ".join(remarks))
    if found["calibration"]:
        print("\nMeasured, and used to calibrate:")
        rows = [
            (row["board"], row["model"], f"{row['engine']} {row['precision']}", str(row["threads"]),
             f"{row['measured_ms']:.2f}", f"{row['efficiency']:.0%}")
            for row in found["calibration"]
        ]  # fmt: skip
        print_table(("board", "model", "engine", "threads", "measured ms", "of the roofline"), rows)
    for reason in found["skipped"]:
        print(f"not used: {reason}")
    return 0


def _estimate_row(item: dict[str, Any]) -> tuple[str, ...]:
    interval = "" if item["low_ms"] is None else f"{item['low_ms']:.2f} to {item['high_ms']:.2f}"
    return (
        item["board"],
        str(item["threads"]) if item["threads"] else "GPU",
        f"{item['roofline_ms']:.2f}",
        "" if item["estimate_ms"] is None else f"≈ {item['estimate_ms']:.2f}",
        interval,
        f"{item['memory_share']:.0%}",
    )
