"""``edgevision sensitivity``."""

from __future__ import annotations

import argparse
import sys

from edgevision.cli.output import print_json, print_table, read_lines
from edgevision.cli.source import add_source_arguments, source_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_source_arguments(parser)
    parser.add_argument("--target", default="onnxruntime", metavar="T",
                        help="engine whose INT8 is examined: onnxruntime, openvino, ncnn, tensorrt "
                        "(default onnxruntime)")  # fmt: skip
    parser.add_argument("--data", required=True, metavar="KIND:PATH", help="pictures to calibrate and to measure with")
    parser.add_argument("--pictures", type=int, metavar="N", help="how many the layers are measured on (default 16)")
    parser.add_argument("-o", "--out", metavar="DIR", help="write the ranking (JSON, CSV, SVG) here; the calibration "
                        "is kept here as well")  # fmt: skip
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line")
    parser.add_argument("--ranges", default="mse", help="range method, as in convert (default mse)")


def run(options: argparse.Namespace) -> int:
    """Measure, print the ranking, write it where that is asked for."""
    import tempfile

    from edgevision.pipeline.convert import ConvertOptions
    from edgevision.pipeline.sensitivity import save_sensitivity, sensitivity

    with tempfile.TemporaryDirectory(prefix="edgevision-") as scratch:
        result = sensitivity(
            options.source,
            target=options.target,
            data=options.data,
            pictures=options.pictures,
            out=options.out or scratch,
            **source_arguments(options),
            classes=read_lines(options.classes) if options.classes else None,
            options=ConvertOptions(
                calibration_images=options.calibration_images,
                ranges=options.ranges,
                equalize=not options.no_equalize,
            ),
        )
    if options.out:
        for path in save_sensitivity(result, options.out):
            print(path, file=sys.stderr)
    if options.json:
        print_json(result.to_dict())
        return 0
    print_table(
        ("layer", "op", "SQNR dB", "share", "MMAC"),
        [
            (layer.node, layer.op, f"{layer.sqnr_db:.1f}", f"{layer.share:.1%}", f"{layer.macs / 1e6:.2f}")
            for layer in result.layers
        ],
    )
    print(
        f"all layers together: {result.sqnr_db:.1f} dB (the sum of the layers' noise: {result.sum_db:.1f} dB), "
        f"{result.target}, {result.pictures} pictures"
    )
    return 0
