"""``edgevision quantize``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from edgevision.cli.output import names, print_json, print_table
from edgevision.cli.source import add_source_arguments, source_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add_source_arguments(parser)
    parser.add_argument("--data", required=True, metavar="KIND:PATH", help="pictures; labels need not be known")
    parser.add_argument("--method", default="qat", help="qat, long, default, or report: the ranges of RepVGG blocks "
                        "before and after they are fused and equalized (default qat)")  # fmt: skip
    parser.add_argument("-o", "--out", metavar="DIR", help="folder of the quantized network, a SOURCE for convert")
    parser.add_argument("--target", default="onnxruntime", help="whose integers are trained for (default onnxruntime)")
    parser.add_argument("--epochs", type=int, metavar="N", help="of qat (default 10)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="of qat (default 32)")
    parser.add_argument("--lr", type=float, default=0.01, help="of qat, in quantization steps (default 0.01)")
    parser.add_argument(
        "--step-lr", type=float, default=1e-4, help="of qat, of the steps themselves; 0: observed ranges"
    )
    parser.add_argument("--augment", action="store_true", help="of qat: crop and flip pictures as in training")
    parser.add_argument("--grad-clip", type=float, default=0.0, help="of qat: largest norm of the gradients; 0: none")
    parser.add_argument("--ema-decay", type=float, default=0.0, help="of qat: keep the moving average, e.g. 0.995")
    parser.add_argument(
        "--label-weight", type=float, default=0.0, help="of qat: share of the labels in the loss, 0 to 1 (default 0)"
    )
    parser.add_argument("--keep-float", type=names, default=[], metavar="A,B", help="layers to leave in float: names "
                        "with * and ?, or an int8 bundle of convert --max-drop")  # fmt: skip
    parser.add_argument("--val-data", metavar="KIND:PATH", help="pictures to measure on")
    parser.add_argument("--ranges", default="mse", metavar="M", help="range method to begin with (default mse)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restart", action="store_true", help="start over, whatever the folder holds")


def run(options: argparse.Namespace) -> int:
    """Quantize and print what it cost, or print the report of RepVGG blocks."""
    from edgevision.errors import UsageError
    from edgevision.pipeline.quantize import QuantizeOptions, quantize

    if options.method == "report":
        return _report(options)
    if options.out is None:
        raise UsageError("where should the quantized network go? Give -o DIR")
    model = quantize(
        options.source,
        data=options.data,
        out=options.out,
        target=options.target,
        val_data=options.val_data,
        **source_arguments(options),
        options=QuantizeOptions(
            method=options.method,
            calibration_images=options.calibration_images,
            ranges=options.ranges,
            equalize=not options.no_equalize,
            epochs=options.epochs,
            batch_size=options.batch_size,
            lr=options.lr,
            step_lr=options.step_lr,
            augment=options.augment,
            grad_clip=options.grad_clip,
            ema_decay=options.ema_decay,
            label_weight=options.label_weight,
            keep_float=tuple(options.keep_float),
            seed=options.seed,
            restart=options.restart,
        ),
    )
    for finding in model.table.findings:
        print(f"edgevision quantize: {finding['severity']}: {finding['message']}", file=sys.stderr)
    if options.json:
        print_json(
            {
                "path": options.out,
                "method": model.method,
                "target": options.target,
                "metrics": dict(model.metrics),
                "float_layers": dict(model.plan.float_ops),
                "warnings": model.table.findings,
            }
        )
    else:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in model.metrics.items())
        print(f"{options.out}: {model.method} for {options.target}" + (f": {metrics}" if metrics else ""))
        print(f"next: edgevision convert {options.out} --precision int8 --data {options.data}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from edgevision.pipeline.quantize import reparameterization_report

    rows: list[dict[str, Any]] = reparameterization_report(
        options.source, data=options.data, weights=options.weights, preprocess=options.preprocess
    )
    if options.json:
        print_json({"blocks": rows})
    elif not rows:
        print("no blocks to fuse")
    else:
        print_table(tuple(rows[0]), [tuple(_cell(value) for value in row.values()) for row in rows])
    return 0


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
