"""YOLOv6-N learns blood cells here: mAP of FP32 and INT8 on every engine.

BCCD's own split: 205 photos to train on, 87 to judge by (1,137 cells of three classes). The network starts from random
weights and is trained with the settings below; the photos that it is judged by choose the epoch that is kept, too, as
there are no others. INT8 is calibrated on the training photos, without their boxes. Methods: ``default`` (after
training) and ``qat`` (trained for the engine's own integers afterwards, with itself as the teacher).

``--part speed``: least milliseconds of the network alone, FP32 and INT8 in one run.

Network and bundles are kept in the folder of the runs: a second call goes on where the first one stopped. Remove its
``bundles`` when the code of calibration or conversion has changed. Needs EDGEVISION_DATA.

    python benchmarks/bccd.py --runs FOLDER [--part table|speed] [--methods default qat] [--epochs N]
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import edgevision as ev
from edgevision.bundle import Bundle
from edgevision.detection.evaluation import DetectionMetrics
from edgevision.pipeline.convert import ConvertOptions
from edgevision.pipeline.quantize import QuantizeOptions
from edgevision.training.detection.config import RECIPES
from edgevision_benchmarks.accuracy import evaluate_bundle
from provenance import printed, save
from speed import speeds

ENGINES = ("onnxruntime", "openvino", "ncnn")
METHODS = ("default", "qat")
NAME = "yolov6_n"
INPUT = 256
# cells have no upper side
SETTINGS = replace(RECIPES["few"].with_epochs(48), flip_vertical=0.5)
QAT_EPOCHS = 10
FIGURES = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "recall")


def trained(epochs: int, data: Path, runs: Path) -> Path:
    """The run folder of the network, trained first where it is not finished."""
    torch.manual_seed(0)
    model = ev.create_model(NAME, num_classes=3, input_size=INPUT)
    out = runs / f"{NAME}-{INPUT}-{epochs}"
    train, test = parts(data)
    ev.train(model, train, val_data=test, out=out, config=SETTINGS.with_epochs(epochs))
    return out


def parts(data: Path) -> tuple[str, str]:
    """Names of the photos to train on and to judge by."""
    train, test = (f"coco:{data / 'bccd' / 'coco' / f'instances_{part}.json'}" for part in ("train", "val"))
    return train, test


def bundles_of(run: Path, method: str, data: Path) -> list[Bundle]:
    """Bundles of one method for all engines; ``fp32`` is one, too."""
    train, _ = parts(data)
    out = run.parent / "bundles" / run.name / method
    common: dict[str, Any] = {"targets": ENGINES, "data": train, "out": out, "name": NAME}
    if method == "fp32":
        return ev.convert(run, precision="fp32", **common)
    if method == "qat":
        return [bundle for engine in ENGINES for bundle in learned_for(engine, run, train, common)]
    return ev.convert(run, precision="int8", options=ConvertOptions(method=method), **common)


def learned_for(engine: str, run: Path, train: str, common: dict[str, Any]) -> list[Bundle]:
    """The bundle of the network that was trained for one engine's integers."""
    learned = run.parent / f"{run.name}-qat-{engine}"
    options = QuantizeOptions(method="qat", epochs=QAT_EPOCHS)
    ev.quantize(run, data=train, out=learned, target=engine, options=options)
    return ev.convert(learned, precision="int8", **{**common, "targets": [engine]})


def judged(bundle: Bundle, data: Path) -> DetectionMetrics:
    """mAP by the engine on the photos to judge by."""
    assert bundle.path is not None
    metrics = evaluate_bundle(bundle.path, parts(data)[1]).detection
    assert metrics is not None
    return metrics


def table(run: Path, epochs: int, methods: Sequence[str], data: Path) -> Iterator[dict[str, Any]]:
    """A row for the network in torch, and one for every method and engine."""
    checkpoint = ev.load_checkpoint(run)
    common = {"network": NAME, "input": INPUT, "epochs": epochs, "train_minutes": round(minutes(run), 1)}
    yield {**common, "method": "fp32", "target": "torch", **points(checkpoint.metrics)}
    reference: dict[str, float] = {}
    for method in ("fp32", *methods):
        figures = {bundle.manifest.target: judged(bundle, data) for bundle in bundles_of(run, method, data)}
        maps = {target: 100.0 * (found.map or 0.0) for target, found in figures.items()}
        reference = reference or maps
        for target, found in figures.items():
            yield {
                **common,
                "method": method,
                "target": target,
                **points({name: getattr(found, name) for name in FIGURES}),
                "loss": round(reference[target] - maps[target], 2),
                "spread": round(max(maps.values()) - min(maps.values()), 2),
                "photos": found.n,
                "cells": found.objects,
            }


def points(figures: Any) -> dict[str, float | str]:
    """Shares 0..1 as points 0..100."""
    return {name: "" if figures.get(name) is None else round(100.0 * figures[name], 2) for name in FIGURES}


def minutes(run: Path) -> float:
    """Of training, validations left out."""
    with (run / "metrics.csv").open(encoding="utf-8") as stream:
        return sum(float(row["seconds"]) for row in csv.DictReader(stream)) / 60.0


def speed(run: Path, data: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Least and usual milliseconds of every engine on one thread, both precisions in one run."""
    bundles = [*bundles_of(run, "fp32", data), *bundles_of(run, "default", data)]
    yield from ({"network": NAME, "input": INPUT, **row} for row in speeds(bundles, ENGINES, rounds))


def main() -> None:
    """Train what is missing, measure one part, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trained network and its bundles")
    parser.add_argument("--part", choices=("table", "speed"), default="table")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["default"])
    parser.add_argument("--epochs", type=int, default=SETTINGS.epochs, help="of training (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="save nothing")
    options = parser.parse_args()
    data = Path(os.environ.get("EDGEVISION_DATA", ""))
    if not (data / "bccd" / "coco").is_dir():
        sys.exit("EDGEVISION_DATA must name the folder with bccd")
    run = trained(options.epochs, data, options.runs)
    measured = (
        speed(run, data, options.rounds)
        if options.part == "speed"
        else table(run, options.epochs, options.methods, data)
    )
    rows = list(printed(measured))
    if not options.dry:
        other = "" if options.epochs == SETTINGS.epochs else f"_{options.epochs}_epochs"
        print(save(f"bccd_{options.part}{other}", rows, (*ENGINES, "torch", "faster-coco-eval")))


if __name__ == "__main__":
    main()
