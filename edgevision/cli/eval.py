"""``edgevision eval``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from edgevision.cli.decoder import add_decoder, open_decoder
from edgevision.cli.output import print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--data", required=True, metavar="KIND:PATH", help="labelled pictures; for a detector "
                        "coco:instances.json or a VOC folder")  # fmt: skip
    parser.add_argument("--images", metavar="DIR", help="where the pictures of a COCO file lie, if not in images/ or "
                        "JPEGImages/ beside it")  # fmt: skip
    parser.add_argument("--reference", metavar="BUNDLE", help="bundle to agree with, usually the FP32 one")
    add_decoder(parser)
    parser.add_argument("--split", default="test", help="part of the data, where it is divided (default test; all)")
    parser.add_argument("--limit", type=int, help="evaluate so many pictures, evenly spaced")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures in one call (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of one inference (default 1)")


def run(options: argparse.Namespace) -> int:
    """Print accuracy (of a detector: COCO's mAP), and agreement with the reference."""
    from edgevision.bundle import Bundle
    from edgevision.data.datasets import complaints
    from edgevision_benchmarks.accuracy import evaluate_bundle, open_data

    bundle = Bundle.open(options.bundle)
    if bundle.manifest.postprocess is not None and (fixed := bundle.manifest.postprocess.fixed) is not None:
        told = f"the graph itself suppresses: mAP counts only boxes above {fixed.confidence:g}, at IoU {fixed.iou:g}"
        print(f"edgevision eval: {told}", file=sys.stderr)
    split = None if options.split == "all" else options.split
    dataset = open_data(options.data, split, images=options.images)
    for line in complaints(dataset):
        print(f"edgevision eval: {line}", file=sys.stderr)
    found = evaluate_bundle(
        bundle,
        dataset,
        reference=options.reference,
        batch_size=options.batch_size,
        limit=options.limit,
        threads=options.threads,
        decoder=open_decoder(options.decoder),
    ).to_dict()
    if options.json:
        print_json(found)
    else:
        _print(found)
    return 0


def _print(found: dict[str, Any]) -> None:
    per_class = found.pop("per_class", {})
    for key, value in found.items():
        if value is None or value == {}:
            continue
        text = ", ".join(f"{part:.4f}" for part in value) if isinstance(value, list) else value
        print(f"{key:<14} {text:.4f}" if isinstance(text, float) else f"{key:<14} {text}")
    if per_class:
        print_table(
            ("class", "objects", "mAP", "mAP50", "recall"),
            [(name, str(row["objects"]), *(f"{row[key]:.4f}" for key in ("map", "map50", "recall")))
             for name, row in per_class.items()],
        )  # fmt: skip
