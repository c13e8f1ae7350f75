"""Five networks trained here on CIFAR-10: what INT8 keeps of them, method by method, on every engine here.

SqueezeNet 1.1, MobileNetV1, V2, V3-small and RepVGG-A0, narrow, trained for minutes on 9,000 pictures (1,000 more
choose the epoch) and judged on 2,000 others (one answer is 0.05 points). Methods: ``naive`` (min-max ranges, one step
for each weight tensor, nothing equalized or corrected), ``default`` and ``long`` (300 pictures, no labels) and
``qat`` (self-distillation, trained for ONNX Runtime, its ranges taken by the others). TensorRT's plan is run by its
own float reference: its row tells the plan's loss, not an engine's.

``--part collapse``: a RepVGG-A0 trained at ten times the learning rate. Channels die early, the batch norms of their
identity branches divide by next to nothing, and the fused weights get outliers.

``--part rescaled``: equal functions quantize equally. Channels are multiplied by random factors between 1/16 and 16
where that is an identity in float, and the default is asked again. ``--part speed``: SqueezeNet 1.1 at 224 × 224.

Networks and bundles are kept in the folder of the runs: a second call goes on where the first one stopped. Remove its
``bundles`` when the code of calibration or conversion has changed.
Needs EDGEVISION_DATA; the pictures were compressed anew by their source, which costs accuracy.

    python benchmarks/cifar10.py --runs FOLDER [--part table|collapse|rescaled|speed] [--only NAME]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edgevision as ev
from edgevision.bundle import Bundle
from edgevision.data.base import Dataset
from edgevision.parity import sqnr_db
from edgevision.pipeline.convert import ConvertOptions, open_job
from edgevision.pipeline.quantize import QuantizeOptions
from edgevision.training.config import RECIPES, TrainConfig
from edgevision_calibration.planning import make_plan
from edgevision_calibration.scheme import scheme_for
from edgevision_calibration.weights import weight_axis
from edgevision_converters.export import Source, open_source
from other_networks.engines import engine_outputs, plan_outputs
from provenance import printed, save, show
from rescaling import rescaled, seen_on
from speed import speeds

ENGINES = ("onnxruntime", "openvino", "ncnn")
# the plan of an engine that needs a GPU, run in float
PLANS = ("tensorrt",)
TARGETS = (*ENGINES, *PLANS)
METHODS = ("naive", "default", "long", "qat")


@dataclass(frozen=True)
class Net:
    """A network, how it is trained (minutes on one core) and for how many epochs its integers are."""

    name: str
    width: float
    settings: TrainConfig
    qat_epochs: int = 3
    rescaled: bool = True
    variant: str = ""

    @property
    def folder(self) -> str:
        """Its folder among the runs, and what the rows call it."""
        return f"{self.name}-{self.variant}" if self.variant else self.name


_SHORT = replace(
    RECIPES["cifar10"], batch_size=32, lr=0.05, label_smoothing=0.1, ema_decay=0.998, threads=1, channels_last=True
)
NETS = (
    Net("repvgg_a0", 0.25, replace(_SHORT, epochs=30, batch_size=64, lr=0.1, ema_decay=0.995)),
    Net("mobilenet_v2", 0.25, replace(_SHORT, epochs=30)),
    # it has no batch norm, which is what lets the others bear such a rate
    Net("squeezenet1_1", 0.5, replace(_SHORT, epochs=40, optimizer="adamw", lr=0.001, weight_decay=0.01)),
    Net("mobilenet_v1", 0.25, replace(_SHORT, epochs=25)),
    # h-swish lets no factor through
    Net("mobilenet_v3_small", 0.5, replace(_SHORT, epochs=10), rescaled=False),
)
COLLAPSING = replace(NETS[0], settings=replace(NETS[0].settings, epochs=20, lr=1.0, warmup_epochs=0.0), variant="steep")


@dataclass(frozen=True)
class Place:
    """Where pictures come from and networks go."""

    train: str
    test: Dataset
    runs: Path


def trained(net: Net, place: Place) -> Source:
    """The network of a run folder, trained first where it is not finished."""
    torch.manual_seed(0)
    model = ev.create_model(net.name, num_classes=10, in_channels=3, input_size=32, width=net.width)
    # the test pictures choose nothing: every tenth training picture is held out for that
    ev.train(model, place.train, out=place.runs / net.folder, config=net.settings)
    return open_source(place.runs / net.folder)


def logits(bundle: Bundle, place: Place, out: Path) -> np.ndarray:
    """Outputs ``[N, 10]`` on the test pictures, by the engine, or by the plan where there is no engine here."""
    run = engine_outputs(bundle, place.test) if bundle.manifest.target in ENGINES else None
    outputs = run or plan_outputs(bundle, place.test, out)
    return next(iter(outputs.values()))


def naive(source: Source, place: Place, out: Path) -> list[Bundle]:
    """What a quantizer without any of our means does: min-max ranges, one step for each weight tensor."""
    options = ConvertOptions(equalize=False, ranges="minmax")
    job = open_job(
        source.graph, targets=TARGETS, precisions=["int8"], data=place.train, preprocess=source.preprocess,
        out=out, name=source.name, classes=source.classes, options=options,
    )  # fmt: skip
    graph, table = job.calibration()
    nodes = {node.input[1]: node for node in graph.nodes if len(node.input) > 1}
    bundles = []
    for target in TARGETS:
        plan = make_plan(graph, table, scheme_for(target), ranges="minmax", bias_correction=False)
        steps = {}
        for name in plan.weights:
            weight = graph.initializers[name]
            # one step, written once for each output channel, as every engine's file wants it
            steps[name] = np.full(weight.shape[weight_axis(nodes[name])], np.abs(weight).max() / 127, np.float32)
        bundles.append(job.trial(target, replace(plan, weights=steps)))
    return bundles


def learned(net: Net, source: Source, place: Place, out: Path) -> list[Bundle]:
    """Bundles of the network trained for integers."""
    folder = place.runs / f"{net.folder}-qat"
    options = QuantizeOptions(method="qat", epochs=net.qat_epochs)
    ev.quantize(place.runs / net.folder, data=place.train, out=folder, options=options)
    return ev.convert(folder, targets=TARGETS, precision="int8", data=place.train, name=source.name, out=out)


def quantized(net: Net, source: Source, method: str, place: Place) -> tuple[list[Bundle], Path]:
    """INT8 bundles of one method for all targets, and the folder they were made in."""
    out = place.runs / "bundles" / net.folder / method
    if method == "naive":
        return naive(source, place, out), out
    if method == "qat":
        return learned(net, source, place, out), out
    options = ConvertOptions(method=method)
    common: dict[str, Any] = {"targets": TARGETS, "precision": "int8", "data": place.train, "options": options}
    return ev.convert(place.runs / net.folder, out=out, **common), out


def floats(source: str | Path | Any, place: Place, out: Path, **arguments: Any) -> dict[str, np.ndarray]:
    """FP32 outputs by target; a plan is compared with ONNX Runtime's."""
    bundles = ev.convert(source, targets=ENGINES, precision="fp32", data=place.train, out=out, **arguments)
    found = {bundle.manifest.target: logits(bundle, place, out) for bundle in bundles}
    return {**found, **dict.fromkeys(PLANS, found[ENGINES[0]])}


def table(net: Net, place: Place, methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for every method and target of one network."""
    source = trained(net, place)
    labels = np.asarray(place.test.labels)
    fp32 = floats(place.runs / net.folder, place, place.runs / "bundles" / net.folder / "fp32")
    common = {"network": net.folder, "width": net.width, "epochs": net.settings.epochs, "test_pictures": len(labels)}
    for target in ENGINES:
        yield {**common, "method": "fp32", "target": target, "top1": top1(fp32[target], labels)}
    for method in methods:
        bundles, out = quantized(net, source, method, place)
        for bundle in bundles:
            target = bundle.manifest.target
            answers = logits(bundle, place, out)
            yield {
                **common,
                "method": method,
                "target": shown(target),
                "top1": top1(answers, labels),
                "loss": round(top1(fp32[target], labels) - top1(answers, labels), 2),
                "agreement": agreement(fp32[target], answers),
                "sqnr_db": round(sqnr_db(fp32[target], answers), 1),
                "qat_epochs": net.qat_epochs if method == "qat" else "",
            }


def compare_rescaled(net: Net, place: Place, seeds: Iterable[int]) -> Iterator[dict[str, Any]]:
    """INT8 by default of a network as it was and with its channels rescaled, a row for every seed and target."""
    source = trained(net, place)
    labels = np.asarray(place.test.labels)
    bundles, out = quantized(net, source, "default", place)
    before = {bundle.manifest.target: logits(bundle, place, out) for bundle in bundles}
    fp32 = floats(place.runs / net.folder, place, place.runs / "bundles" / net.folder / "fp32")
    assert source.preprocess is not None
    peaks = seen_on(source.graph, [ev.open_dataset(place.train), place.test], source.preprocess)
    for seed in seeds:
        other = rescaled(source.graph, peaks, seed=seed)
        replaced = replace(source, graph=other.graph)
        folder = place.runs / "bundles" / net.folder / f"rescaled-{seed}"
        about: dict[str, Any] = {
            "preprocess": source.preprocess,
            "classes": source.classes,
            "name": source.name,
        }
        same = floats(other.graph, place, folder, **about)[ENGINES[0]]
        found = ev.convert(other.graph, targets=TARGETS, precision="int8", data=place.train, out=folder, **about)
        plain = folder / "naive"
        crude = {bundle.manifest.target: logits(bundle, place, plain) for bundle in naive(replaced, place, plain)}
        for bundle in found:
            target = bundle.manifest.target
            after = logits(bundle, place, folder)
            yield {
                "network": net.folder,
                "target": shown(target),
                "seed": seed,
                "channels": other.channels,
                "channels_rescaled": other.rescaled,
                "fp32_top1": top1(fp32[target], labels),
                "fp32_rescaled_sqnr_db": round(sqnr_db(fp32[ENGINES[0]], same), 1),
                "fp32_rescaled_agreement": agreement(fp32[ENGINES[0]], same),
                "int8_top1": top1(before[target], labels),
                "int8_rescaled_top1": top1(after, labels),
                "difference": round(top1(after, labels) - top1(before[target], labels), 2),
                "int8_agreement": agreement(fp32[target], before[target]),
                "int8_rescaled_agreement": agreement(fp32[target], after),
                "naive_rescaled_top1": top1(crude[target], labels),
                "test_pictures": len(labels),
            }


def speed(data: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Least milliseconds of SqueezeNet 1.1 on one thread; the weights are random, which no kernel's time depends on."""
    torch.manual_seed(0)
    model = ev.create_model("squeezenet1_1").eval()
    photos = f"csv:{data}/imagenet-mini/labels.csv[:64]"
    with tempfile.TemporaryDirectory() as out:
        bundles = ev.convert(
            model, targets=ENGINES, precision=["fp32", "int8"], data=photos, out=out, name="squeezenet1_1",
            preprocess="imagenet",
        )  # fmt: skip
        yield from speeds(bundles, ENGINES, rounds)


def top1(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Percent of ``[N, classes]`` that answer their label."""
    return round(100.0 * float((outputs.argmax(1) == labels).mean()), 2)


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Percent of equal answers."""
    return round(100.0 * float((first.argmax(1) == second.argmax(1)).mean()), 2)


def shown(target: str) -> str:
    """The target, and whether its plan stands for it."""
    return target if target in ENGINES else f"{target} (plan)"


def main() -> None:
    """Train what is missing, measure one part, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of trained networks and bundles")
    parser.add_argument("--part", choices=("table", "collapse", "rescaled", "speed"), default="table")
    parser.add_argument("--only", choices=[net.name for net in NETS], help="one network; nothing is saved")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=2, help="random factors to try (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of timing (default: %(default)s)")
    options = parser.parse_args()
    data = Path(os.environ.get("EDGEVISION_DATA", ""))
    if not (data / "cifar10-jpeg").is_dir():
        sys.exit("EDGEVISION_DATA must name the folder with cifar10-jpeg")
    torch.set_num_threads(1)
    cifar = data / "cifar10-jpeg"
    place = Place(f"folder:{cifar}/train.zip", ev.open_dataset(f"folder:{cifar}/test.zip"), options.runs)
    rows: list[dict[str, Any]] = []
    if options.part == "speed":
        rows += speed(data, options.rounds)
    for net in (COLLAPSING,) if options.part == "collapse" else NETS:
        if options.part == "speed" or options.only not in {None, net.name}:
            continue
        if options.part in {"table", "collapse"}:
            rows += printed(table(net, place, options.methods))
        elif net.rescaled:
            rows += printed(compare_rescaled(net, place, range(options.seeds)))
    if options.part == "speed":
        show(rows)
    if options.only is None:
        print(save(f"cifar10_{options.part}", rows, (*ENGINES, "torch")))


if __name__ == "__main__":
    main()
