"""``edgevision verify``."""

from __future__ import annotations

import argparse
from typing import Any

from edgevision.cli.output import print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--threads", type=int, default=1, help="threads of one inference (default 1)")
    parser.add_argument("--layers", action="store_true", help="compare layer by layer and name the first that departs")
    parser.add_argument("--graph", metavar="ONNX", help="the canonical graph, where it is not beside the bundle")


def run(options: argparse.Namespace) -> int:
    """Compare the engine with the golden tensors, of a detector boxes too; 3 where a threshold is missed."""
    from edgevision.parity import verify

    result = verify(options.bundle, threads=options.threads)
    answer: dict[str, Any] = {"bundle": options.bundle, **result.to_dict()}
    layers = None
    if options.layers:
        from edgevision_converters.layers import compare_layers

        layers = compare_layers(options.bundle, graph=options.graph, threads=options.threads)
        answer["layers"] = [layer.to_dict() for layer in layers.layers]
        answer["first_departing"] = layers.first_departing
    if options.json:
        print_json(answer)
    else:
        _print(answer)
    return 0 if result.passed else 3


def _print(answer: dict[str, Any]) -> None:
    print(f"{answer['bundle']}: {'parity holds' if answer['passed'] else 'parity FAILS'} on {answer['engine']}")
    rows = []
    for label, key in (("FP32", "fp32"), ("fake-quantized reference", "reference")):
        found = answer[key]
        if found is not None:
            agreement = "" if found["top1_agreement"] is None else f"{found['top1_agreement']:.3f}"
            demanded = found["thresholds"]
            # no cosine is below this: boxes alone are judged, as of graphs that suppress by themselves
            nothing = demanded is None or demanded["cosine"] <= -1
            limits = "" if nothing else f"cosine {demanded['cosine']:.4f}, {demanded['sqnr_db']:.1f} dB"
            rows.append((label, f"{found['cosine']:.6f}", f"{found['sqnr_db']:.1f}", agreement,
                         "NaN" if found["max_difference"] is None else f"{found['max_difference']:.4g}",
                         limits))  # fmt: skip
    print_table(("against", "cosine", "SQNR dB", "top-1", "max diff", "demanded"), rows)
    _print_boxes(answer.get("detections", {}))
    if "layers" in answer:
        print_table(
            ("layer", "op", "tensor", "cosine", "SQNR dB"),
            [(row["node"], row["op"], row["tensor"], f"{row['cosine']:.5f}", f"{row['sqnr_db']:.1f}")
             for row in answer["layers"]],
        )  # fmt: skip
        first = answer["first_departing"]
        print("no layer departs" if first is None else f"first layer that departs: {first}")


def _print_boxes(detections: dict[str, dict[str, Any]]) -> None:
    """Boxes of the golden pictures, against FP32's and against those of the plan's reference."""
    rows = []
    for key, label in (("fp32", "boxes of FP32"), ("reference", "of the reference")):
        if (found := detections.get(key)) is None:
            continue
        limits = found["limits"]
        demanded = "" if limits is None else f"matched {limits['matched']:.3f}, IoU {limits['mean_iou']:.3f}"
        figures = (found["matched"], found["mean_iou"], found["score_difference"])
        rows.append((label, str(found["expected"]), str(found["actual"]),
                     *("" if value is None else f"{value:.4f}" for value in figures), demanded))  # fmt: skip
    if rows:
        print_table(("boxes against", "expected", "found", "matched", "mean IoU", "score diff", "demanded"), rows)
    lost = [found for found in detections.values() if not found["survives"]]
    if lost:
        print(
            f"NO SCORE SURVIVES: the reference found {lost[0]['expected']} boxes and its best score is "
            f"{lost[0]['best_expected']:.3f}; the engine's best is {lost[0]['best_actual']:.3f}. Convert again with "
            "pictures that hold objects (--data), or with --max-drop and annotated pictures (--val-data)"
        )
    elif any(found["matched"] is None for found in detections.values()):
        print("no golden picture holds a box above the confidence, so boxes say nothing; convert with such pictures")
