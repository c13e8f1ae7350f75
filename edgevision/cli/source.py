"""What the verbs that read a model have in common: how the model and its pictures are named."""

from __future__ import annotations

import argparse
from typing import Any

from edgevision.cli.output import image_size


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """``SOURCE`` and the options that complete it."""
    parser.add_argument("source", metavar="SOURCE", help="an ONNX file, a Checkpoint folder or a name of the zoo")
    parser.add_argument("--preprocess", metavar="NAME|TOML", help="how pictures become the input: imagenet, cifar10, "
                        "digits, unit, letterbox, imagenet-stretch, or a TOML file")  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", help="weights of a zoo network (.safetensors, .pt, .pth)")
    parser.add_argument("--width", type=float, help="width multiplier of a zoo network")
    parser.add_argument("--input-size", type=image_size, metavar="SIZE", help="SIZE or HEIGHTxWIDTH, where it is open")
    parser.add_argument("--calibration-images", type=int, default=300, metavar="N",
                        help="pictures the ranges are taken from (default 300)")  # fmt: skip
    parser.add_argument("--no-equalize", action="store_true", help="quantize the network's channels as they are")


def source_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The same options as arguments of the library's functions."""
    return {
        "preprocess": options.preprocess,
        "weights": options.weights,
        "input_size": options.input_size,
        "model_arguments": None if options.width is None else {"width": options.width},
    }
