"""Builds docs/report-example: the zoo measured on this machine and counted on an emulated ARM core, as one report.

MobileNetV2 has its ImageNet weights; SqueezeNet 1.1, RepVGG-A0 and YOLOv6-N have those of the checkpoints that are
named (classifiers trained on CIFAR-10, the detector on blood cells), else random ones, of which only times are told.
FP32 and INT8, three engines, one thread and two; the emulated core has no OpenVINO and no times, only counts and
answers. Bundles are made by `edgevision.convert`, everything else by the command line, from a folder where the data is
``data``, so that no path of this machine gets into the results; that it did not is checked at the end.

What is measured already is kept in the folder of the work: a second call goes on where the first one stopped, and
``--part`` does one of the three alone: what is measured here, what is counted, the page of both.
Needs EDGEVISION_DATA; for the emulated core QEMU, for the screenshot Chromium.

    python benchmarks/report_example.py --work FOLDER [--checkpoints squeezenet1_1=RUN repvgg_a0=RUN yolov6_n=RUN]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import edgevision as ev
from provenance import edgevision

TARGETS = ("onnxruntime", "openvino", "ncnn")
# the engines that the emulated core has
EMULATED_TARGETS = ("onnxruntime", "ncnn")
OUT = Path(__file__).resolve().parent.parent / "docs" / "report-example"
TITLE = "EdgeVision's zoo: FP32 and INT8 on three engines"
LARGEST_BYTES = 3_000_000


@dataclass(frozen=True)
class Pictures:
    """What INT8 is calibrated on and what accuracy is measured on, as the command line names them."""

    name: str
    calibration: str
    test: str


IMAGENET = Pictures("imagenet", "csv:data/imagenet-mini/labels.csv[::2]", "csv:data/imagenet-mini/labels.csv[1::2]")
CIFAR10 = Pictures("cifar10", "folder:data/cifar10-jpeg/train.zip", "folder:data/cifar10-jpeg/test.zip")
CELLS = Pictures("bccd", "coco:data/bccd/coco/instances_train.json", "coco:data/bccd/coco/instances_val.json")


@dataclass(frozen=True)
class Net:
    """A network of the zoo, what its checkpoint was trained on, and its weights where there is no checkpoint."""

    name: str
    trained_on: Pictures
    weights: str | None = None


NETS = (
    Net("mobilenet_v2", CIFAR10, "data/weights/mobilenet_v2_imagenet.safetensors"),
    Net("squeezenet1_1", CIFAR10),
    Net("repvgg_a0", CIFAR10),
    Net("yolov6_n", CELLS),
)


@dataclass(frozen=True)
class Converted:
    """A network's bundles, and the pictures they are judged on; None where the weights are random."""

    name: str
    bundles: tuple[str, ...]
    test: str | None


def converted(net: Net, checkpoint: Path | None) -> Converted:
    """Bundles of one network for all engines, FP32 and INT8, in ``bundles``."""
    pictures = IMAGENET if checkpoint is None else net.trained_on
    judged = checkpoint is not None or net.weights is not None
    name = f"{net.name}-{pictures.name}" if judged else f"{net.name}-random"
    common = {"targets": TARGETS, "precision": ["fp32", "int8"], "data": pictures.calibration, "name": name}
    if checkpoint is not None:
        bundles = ev.convert(checkpoint, out="bundles", **common)
    elif net.weights is not None:
        bundles = ev.convert(net.name, weights=net.weights, out="bundles", **common)
    else:
        torch.manual_seed(0)
        model = ev.create_model(net.name).eval()
        bundles = ev.convert(model, preprocess="imagenet", out="bundles", **common)
    return Converted(name, tuple(str(bundle.path) for bundle in bundles), pictures.test if judged else None)


def measured(nets: Sequence[Converted], place: str, limit: int, arguments: Sequence[str]) -> Iterator[Path]:
    """The results of one place, a file for each network; what is there already is not measured again."""
    for net in nets:
        kept = Path("raw") / f"{net.name}-{place}.json"
        if not kept.is_file():
            data = [] if net.test is None else ["--data", net.test, "--split", "all", "--limit", str(limit)]
            begun = time.monotonic()
            edgevision("bench", *net.bundles, *data, *arguments, "-o", f"made/{kept.stem}")
            print(f"{kept.stem}: {time.monotonic() - begun:.0f} s", flush=True)
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(f"made/{kept.stem}/results.json", kept)
        yield kept


def emulated(net: Converted) -> Converted:
    """The part of it that the emulated core has engines for, and pictures: there is nothing there to take mAP with."""
    bundles = (path for path in net.bundles if any(f"-{target}-" in path for target in EMULATED_TARGETS))
    return Converted(net.name, tuple(bundles), None if net.test == CELLS.test else net.test)


def screenshot(page: Path, out: Path) -> None:
    """What headless Chromium shows of the page."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("there is no Chromium here to take the screenshot with")
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1700",
         f"--screenshot={out}", page.resolve().as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip


def collected(raw: Sequence[Path], out: Path) -> None:
    """The report of all results, with them, in ``out``."""
    edgevision("report", *map(str, raw), "-o", "made/report", "--title", TITLE)
    shutil.rmtree(out, ignore_errors=True)
    (out / "raw").mkdir(parents=True)
    for path in raw:
        shutil.copyfile(path, out / "raw" / path.name)
    for made, name in (("index.html", "report.html"), ("results.md", "report.md"), ("results.csv", "results.csv")):
        shutil.copyfile(Path("made/report") / made, out / name)
    screenshot(out / "report.html", out / "report.png")


def told(out: Path, secrets: Sequence[re.Pattern[str]]) -> list[str]:
    """Names and paths of this machine that a file of the example tells."""
    files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".png"]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    return [
        f"{name} tells {secret.pattern}" for name, text in texts.items() for secret in secrets if secret.search(text)
    ]


def secrets_here(paths: Sequence[Path]) -> list[re.Pattern[str]]:
    """What must not be told: the folders that things lie under here, and this machine's name."""
    places = {f"/{path.resolve().parts[1]}/" for path in (*paths, Path.home(), Path(sys.prefix), Path(__file__))}
    return [*map(re.compile, map(re.escape, sorted(places))), re.compile(rf"\b{re.escape(platform.node())}\b")]


def options_given() -> argparse.Namespace:
    """The options of this program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of bundles and of what is measured")
    parser.add_argument("-o", "--out", type=Path, default=OUT, help="folder of the example (default: %(default)s)")
    parser.add_argument("--checkpoints", nargs="+", default=[], metavar="NAME=RUN", help="trained networks")
    parser.add_argument("--part", choices=("here", "core", "page"), help="one part alone (default: all)")
    parser.add_argument("--only", nargs="+", choices=[net.name for net in NETS], help="these networks alone")
    parser.add_argument("--rounds", type=int, default=3, help="turns over all bundles (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each turn (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=200, help="to judge accuracy by (default: %(default)s)")
    parser.add_argument("--core", default="cortex-a72", help="emulated core (default: %(default)s)")
    parser.add_argument("--core-pictures", type=int, default=8, help="to judge by there (default: %(default)s)")
    return parser.parse_args()


def judged(raw: Sequence[Path], out: Path, secrets: Sequence[re.Pattern[str]]) -> None:
    """Refuse an example that tells too much, or is too large to keep."""
    if found := told(out, secrets):
        sys.exit("\n".join(found))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    rows = sum(len(json.loads(path.read_text())["results"]) for path in raw)
    print(f"{out}: {rows} rows, {size / 1e6:.2f} MB")
    if size > LARGEST_BYTES:
        sys.exit(f"more than {LARGEST_BYTES / 1e6:g} MB is too much to keep")


def main() -> None:
    """Convert, measure here and there, and put the example together."""
    options = options_given()
    data = Path(os.environ.get("EDGEVISION_DATA", ""))
    if not (data / "weights").is_dir():
        sys.exit("EDGEVISION_DATA must name the folder with imagenet-mini, cifar10-jpeg, bccd and weights")
    parts = [each.partition("=") for each in options.checkpoints]
    checkpoints = {name: Path(path).resolve() for name, _, path in parts}
    if unknown := set(checkpoints) - {net.name for net in NETS}:
        sys.exit(f"no network of the example is called {unknown.pop()}: choose from {[net.name for net in NETS]}")
    data, work, out = data.resolve(), options.work.resolve(), options.out.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    if not Path("data").exists():
        Path("data").symlink_to(data)
    torch.set_num_threads(1)
    nets = [converted(net, checkpoints.get(net.name)) for net in NETS if net.name in (options.only or (net.name,))]
    timed = ["--threads", "1,2", "--rounds", str(options.rounds), "--seconds", str(options.seconds), "--layers"]
    device = ["--device", f"emulated://{options.core}"]
    raw: list[Path] = []
    if options.part != "core":
        raw += measured(nets, platform.machine(), options.pictures, timed)
    if options.part != "here":
        raw += measured([emulated(net) for net in nets], options.core, options.core_pictures, device)
    if options.part in {None, "page"}:
        collected(raw, out)
        judged(raw, out, secrets_here([data, work, out, *checkpoints.values()]))


if __name__ == "__main__":
    main()
