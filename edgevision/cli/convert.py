"""``edgevision convert``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from edgevision.cli.output import names, print_json, print_table, read_lines
from edgevision.cli.source import add_source_arguments, source_arguments

if TYPE_CHECKING:
    from edgevision.bundle import Bundle
    from edgevision.parity import Verification

# of weights where --compress names no number
_SHARED_BITS = "6"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_source_arguments(parser)
    parser.add_argument("--targets", type=names, default=["onnxruntime", "openvino", "ncnn", "tensorrt"], metavar="A,B",
                        help="onnxruntime, openvino, ncnn, tensorrt (default: all)")  # fmt: skip
    parser.add_argument("--precision", type=names, default=["fp32"], metavar="P", help="fp32, fp16, int8, or several")
    parser.add_argument("--data", metavar="KIND:PATH", help="pictures to calibrate with; needed for int8")
    parser.add_argument("-o", "--out", default="bundles", metavar="DIR", help="folder of the bundles (default bundles)")
    parser.add_argument("--name", help="name of the bundles (default: the source's)")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line")
    parser.add_argument("--decoder", metavar="NAME[:KEY=VALUE,…]", help="for a detector: how its outputs become boxes: "
                        "yolov8, yolox, fastestdet, ultraface, nanodet, …, or package.module:function of yours, which "
                        "load() is given; keys: confidence, iou, and the decoder's own")  # fmt: skip
    parser.add_argument("--nms", default="device", metavar="WHERE", help="where boxes are decoded and suppressed: "
                        "device, where thresholds stay open (default), or graph: the engine gives detections, by the "
                        "decoder's thresholds (onnxruntime, openvino, tensorrt)")  # fmt: skip
    parser.add_argument("--ranges", default="mse", metavar="M", help="range method: mse, minmax, percentile, entropy, "
                        "moving_average; auto: for each tensor the one measured best (default mse)")  # fmt: skip
    parser.add_argument("--max-drop", type=float, metavar="POINTS", help="leave as many layers in float as it takes to "
                        "lose at most so many points on --val-data, e.g. 0.5")  # fmt: skip
    parser.add_argument("--val-data", metavar="KIND:PATH", help="pictures to measure the loss on, best with labels")
    parser.add_argument("--time-budget", type=float, metavar="S", help="seconds for each target: calibration, "
                        "learned rounding and the search of --max-drop, which has what the others leave")  # fmt: skip
    parser.add_argument("--method", default="default", help="default, or long: learn weights and steps (minutes)")
    parser.add_argument("--compress", nargs="?", const=_SHARED_BITS, metavar="BITS", help="store packed bundles; "
                        f"weights share 2^BITS values a layer (1 to 8, by default {_SHARED_BITS}; with --data they "
                        "lose less), or 'lossless': nothing changes but the size")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="time limit of a native converter")
    parser.add_argument("--force", action="store_true", help="convert again what is finished already")
    parser.add_argument("--no-verify", action="store_true", help="leave the parity check out")
    parser.add_argument("--explain", action="store_true", help="print each op's precision and why")


def run(options: argparse.Namespace) -> int:
    """Convert, prove parity, print the bundles."""
    from edgevision.pipeline.convert import ConvertOptions, convert

    bundles = convert(
        options.source,
        targets=options.targets,
        precision=options.precision,
        data=options.data,
        out=options.out,
        **source_arguments(options),
        name=options.name,
        classes=read_lines(options.classes) if options.classes else None,
        val_data=options.val_data,
        options=ConvertOptions(
            calibration_images=options.calibration_images,
            ranges=options.ranges,
            equalize=not options.no_equalize,
            method=options.method,
            timeout_s=options.timeout,
            force=options.force,
            max_drop=options.max_drop,
            time_budget_s=options.time_budget,
            compress=options.compress,
            decoder=options.decoder,
            nms=options.nms,
        ),
    )
    warnings = _warnings(bundles)
    for finding in warnings:
        print(f"edgevision convert: {finding['severity']}: {finding['message']}", file=sys.stderr)
    checks = [None if options.no_verify else _verify(bundle) for bundle in bundles]
    if options.json:
        rows = [_row(bundle, check) for bundle, check in zip(bundles, checks, strict=True)]
        print_json({"bundles": rows, "warnings": warnings})
    else:
        _print(bundles, checks)
        for bundle in bundles:
            _print_search(bundle)
    if options.explain:
        _explain(bundles, sys.stderr if options.json else sys.stdout)
    failed = [bundle for bundle, check in zip(bundles, checks, strict=True) if check is not None and not check.passed]
    for bundle in failed:
        hint = f"edgevision verify {bundle.path} --layers"
        print(f"edgevision convert: {bundle.path} misses its parity thresholds; see {hint}", file=sys.stderr)
    beyond = [bundle for bundle in bundles if not _search(bundle).get("met", True)]
    for bundle in beyond:
        found = _search(bundle)
        told = f"{bundle.path} loses {found['drop']:.2f} points; at most {found['max_drop']:g} were allowed"
        why = "" if found["complete"] else ": the time budget ended the search, and the same command goes on with it"
        print(f"edgevision convert: {told}{why}", file=sys.stderr)
    return 3 if failed or beyond else 0


def _warnings(bundles: list[Bundle]) -> list[dict[str, str]]:
    """What the calibration found doubtful; bundles of one calibration share it."""
    found = [finding for bundle in bundles for finding in _calibration(bundle).get("findings", [])]
    return [finding for index, finding in enumerate(found) if finding not in found[:index]]


def _calibration(bundle: Bundle) -> dict[str, Any]:
    return dict(bundle.manifest.provenance.get("calibration", {}))


def _search(bundle: Bundle) -> dict[str, Any]:
    """What the precision search found; empty where there was none."""
    return dict(_calibration(bundle).get("search", {}))


def _verify(bundle: Bundle) -> Verification | None:
    """Parity on this machine; None where the engine is not here (TensorRT compiles on the device)."""
    from edgevision.dependencies import installed
    from edgevision.parity import verify

    if bundle.manifest.target == "tensorrt" or not installed(bundle.manifest.target):
        return None
    return verify(bundle)


def _row(bundle: Bundle, check: Verification | None) -> dict[str, Any]:
    return {
        "path": str(bundle.path),
        "target": bundle.manifest.target,
        "precision": bundle.manifest.precision,
        "size_bytes": bundle.engine_bytes,
        "stored_bytes": bundle.stored_engine_bytes,
        "compression": bundle.compression,
        "verified": None if check is None else check.passed,
        "cosine": None if check is None else check.fp32.cosine,
        "sqnr_db": None if check is None else check.fp32.sqnr_db,
        "search": _search(bundle) or None,
    }


def _print(bundles: list[Bundle], checks: list[Verification | None]) -> None:
    rows = []
    for bundle, check in zip(bundles, checks, strict=True):
        verdict = ("on the device", "", "") if check is None else (
            "holds" if check.passed else "FAILS", f"{check.fp32.cosine:.5f}", f"{check.fp32.sqnr_db:.1f}"
        )  # fmt: skip
        kilobytes = f"{bundle.engine_bytes / 1e3:.0f}"
        if bundle.compression is not None:
            kilobytes += f" → {(bundle.stored_engine_bytes or 0) / 1e3:.0f}"
        rows.append((str(bundle.path), kilobytes, *verdict))
    print_table(("bundle", "kB", "parity", "cosine", "SQNR dB"), rows)


def _print_search(bundle: Bundle) -> None:
    found = _search(bundle)
    if not found:
        return
    print(
        f"\n{bundle.path}: loses {found['drop']:.2f} points of {found['measure']} on {found['pictures']} pictures "
        f"(all-int8 {found['int8_drop']:.2f}, limit {found['max_drop']:g}); {len(found['float_nodes'])} layers "
        f"in float, {found['tried']} plans tried" + ("" if found["complete"] else ", ended by the time budget")
    )
    times = {"this plan": "latency_ms", "all-int8": "int8_latency_ms", "FP32": "fp32_latency_ms"}
    measured = [f"{label} {found[key]:.3f} ms" for label, key in times.items() if found[key] is not None]
    if measured:
        print(f"  {found['engine']}, one thread, least of many: {', '.join(measured)}")
    costs = found["cost_ms"]
    if found["float_nodes"]:
        rows = [(node, f"{costs[node]:+.3f}" if node in costs else "") for node in found["float_nodes"]]
        print_table(("  layer in float", "costs ms"), [(f"  {node}", cost) for node, cost in rows])


def _explain(bundles: list[Bundle], stream: Any) -> None:
    from edgevision_converters.explain import explain

    for bundle in bundles:
        print(f"\n{bundle.path}", file=stream)
        for line in explain(bundle):
            print(f"  {line}", file=stream)
