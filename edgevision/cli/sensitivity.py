"""``edgevision sensitivity``."""

from __future__ import annotations

import argparse
import sys

from edgevision.cli.output import image_size, print_json, print_table, read_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("source", metavar="SOURCE", help="an ONNX file, a Checkpoint folder or a name of the zoo")
    parser.add_argument("--target", default="onnxruntime", metavar="T",
                        help="engine whose INT8 is examined: onnxruntime, openvino, ncnn, tensorrt "
                        "(default onnxruntime)")  # fmt: skip
    parser.add_argument("--data", required=True, metavar="KIND:PATH", help="pictures to calibrate and to measure with")
    parser.add_argument("--pictures", type=int, metavar="N", help="how many the layers are measured on (default 16)")
    parser.add_argument("--calibration-images", type=int, default=300, metavar="N", help="pictures the ranges are "
                        "taken from (default 300)")  # fmt: skip
    parser.add_argument("-o", "--out", metavar="DIR", help="write the ranking (JSON, CSV, SVG) here; the calibration "
                        "is kept here as well")  # fmt: skip
    parser.add_argument("--preprocess", metavar="NAME|TOML", help="how pictures become the input")
    parser.add_argument("--weights", metavar="FILE", help="weights of a zoo network (.safetensors, .pt, .pth)")
    parser.add_argument("--width", type=float, help="width multiplier of a zoo network")
    parser.add_argument("--input-size", type=image_size, metavar="SIZE", help="SIZE or HEIGHTxWIDTH, where it is open")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line")
    parser.add_argument("--ranges", default="mse", help="range method, as in convert (default mse)")
    parser.add_argument("--no-equalize", action="store_true", help="examine the network's channels as they are")


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
            preprocess=options.preprocess,
            weights=options.weights,
            input_size=options.input_size,
            classes=read_lines(options.classes) if options.classes else None,
            model_arguments=None if options.width is None else {"width": options.width},
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
