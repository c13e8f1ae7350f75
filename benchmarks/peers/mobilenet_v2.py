"""One network quantized by ONNX Runtime, by NNCF and by us, each file judged and timed on both engines in one run.

MobileNetV2 with its ImageNet weights on imagenet-mini: three of every five photos (300) calibrate, the two others (200)
judge top-1, agreement with FP32 and the noise of the logits. Both sets are small: one answer is half a point. Other
networks of the zoo have no such weights here and are timed alone, with random ones. Times are CPU milliseconds of a
picture at one thread: all files of an engine run in turns in one process, and the machine may be shared, so compare
within the table only. Needs EDGEVISION_DATA.

    python benchmarks/peers/mobilenet_v2.py [--model squeezenet1_1] [--long] [--rounds N] [--peers-python PYTHON]

NNCF wants packages that EdgeVision does not, so it runs in an environment of its own, whose interpreter is PYTHON::

    python -m venv peers && peers/bin/pip install -e . nncf openvino onnx onnxruntime
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from provenance import save, show

DATA = Path(os.environ.get("EDGEVISION_DATA", ""))
JUDGED = "mobilenet_v2"
ENGINES = ("onnxruntime", "openvino")
# pictures an engine runs before the clock, and at a time while it is on
_WARM_UP, _TURN = 3, 10
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class File:
    """A quantized (or FP32) network: by whom, where it lies, and which engines take it."""

    made_by: str
    path: Path
    engines: tuple[str, ...]


def split() -> tuple[Any, Any]:
    """Calibration and test photos of imagenet-mini."""
    from edgevision.data import open_dataset
    from edgevision.data.base import Subset

    photos = open_dataset(f"csv:{DATA}/imagenet-mini/labels.csv")
    everyone = range(len(photos))
    return (
        Subset(photos, [index for index in everyone if index % 5 < 3]),
        Subset(photos, [index for index in everyone if index % 5 >= 3]),
    )


class Pictures:
    """Preprocessed calibration photos, float32 ``[1, 3, 224, 224]`` each, made anew each time."""

    def __iter__(self) -> Iterator[np.ndarray]:
        from edgevision.data import batches
        from edgevision.preprocess import PRESETS

        return (batch for batch, _ in batches(split()[0], PRESETS["imagenet"], 1))


def export(name: str, path: Path) -> Path:
    """The network as canonical ONNX: with its ImageNet weights where we have them, else with random ones."""
    from edgevision_converters.export import open_source

    if name == JUDGED:
        return open_source(name, weights=DATA / "weights" / "mobilenet_v2_imagenet.safetensors").graph.save(path)
    import torch

    from edgevision.models import create_model

    torch.manual_seed(0)
    return open_source(create_model(name).eval(), input_size=(224, 224)).graph.save(path)


def quantize_by_onnxruntime(model: Path, folder: Path) -> File:
    """ONNX Runtime's quantizer with its usual advice: Q/DQ, uint8 activations, int8 weights per channel, min-max."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    feed = iter(Pictures())

    class Reader:
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(feed, None)
            return None if batch is None else {"images": batch}

    prepared, made = folder / "prepared.onnx", folder / "onnxruntime.onnx"
    quant_pre_process(str(model), str(prepared))
    quantize_static(
        str(prepared),
        str(made),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return File("ONNX Runtime, per channel", made, ENGINES)


def quantize_by_nncf(kind: str, model: Path, folder: Path) -> None:
    """NNCF's default, in the peers' own environment; writes ``nncf.onnx`` or ``nncf.xml`` and ``.bin``."""
    import nncf

    if kind == "onnx":
        import onnx

        data = nncf.Dataset(Pictures(), lambda batch: {"images": batch})
        onnx.save(nncf.quantize(onnx.load(model), data), folder / "nncf.onnx")
        return
    import openvino

    made = nncf.quantize(openvino.Core().read_model(model), nncf.Dataset(Pictures()))
    openvino.save_model(made, folder / "nncf.xml", compress_to_fp16=False)


def quantize_by_us(model: Path, folder: Path, method: str) -> list[File]:
    """Our bundles' own engine files."""
    from edgevision.pipeline.convert import ConvertOptions, convert

    calibration, _ = split()
    bundles = convert(
        model,
        targets=ENGINES,
        precision="int8",
        data=calibration,
        preprocess="imagenet",
        out=folder / "bundles",
        options=ConvertOptions(method=method, calibration_images=len(calibration)),
    )
    made_by = "edgevision" if method == "default" else f"edgevision, {method}"
    files = []
    for bundle in bundles:
        target, stem = bundle.manifest.target, folder / f"edgevision-{method}-{bundle.manifest.target}"
        if target == "openvino":
            stem.with_suffix(".xml").write_bytes(bundle.engine_file("model"))
            stem.with_suffix(".bin").write_bytes(bundle.engine_file("weights"))
            files.append(File(made_by, stem.with_suffix(".xml"), (target,)))
        else:
            stem.with_suffix(".onnx").write_bytes(bundle.engine_file("model"))
            files.append(File(made_by, stem.with_suffix(".onnx"), (target,)))
    return files


def all_files(options: argparse.Namespace, folder: Path) -> list[File]:
    """FP32, and INT8 by everyone."""
    model = export(options.model, folder / "fp32.onnx")
    files = [File("FP32", model, ENGINES), quantize_by_onnxruntime(model, folder)]
    if options.peers_python:
        for kind, suffix in (("onnx", ".onnx"), ("openvino", ".xml")):
            command = [options.peers_python, __file__, "--nncf", kind, str(model), str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
            engines = ENGINES if kind == "onnx" else ("openvino",)
            files.append(File(f"NNCF on {kind}", (folder / "nncf").with_suffix(suffix), engines))
    else:
        print("NNCF's rows are left out: --peers-python names an interpreter that has it")
    files += quantize_by_us(model, folder, "default")
    return files + (quantize_by_us(model, folder, "long") if options.long else [])


def open_onnxruntime(path: Path) -> Run:
    """ONNX Runtime with all its optimizations, one thread."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def open_openvino(path: Path) -> Run:
    """OpenVINO for one picture at a time, as it is quickest, one thread."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({model.input(0): [1, *(size.get_length() for size in list(model.input(0).partial_shape)[1:])]})
    request = core.compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    ).create_infer_request()
    return lambda batch: request.infer({0: batch}, share_inputs=True)[0]


def judged(run: Run, reference: np.ndarray, pictures: list[np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """Top-1, agreement with the reference logits ``[N, classes]``, and their noise."""
    from edgevision.parity import sqnr_db, top1_agreement

    logits = np.concatenate([np.array(run(picture)) for picture in pictures])
    return {
        "top1_pct": round(100 * float((logits.argmax(axis=1) == labels).mean()), 1),
        "agreement_pct": round(100 * top1_agreement(reference, logits), 1),
        "sqnr_db": round(sqnr_db(reference, logits), 2),
    }


def timed(runs: Mapping[str, Run], pictures: list[np.ndarray], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of every run, by file; the files take turns, in another order each time."""
    order = list(runs)
    times: dict[str, list[float]] = {name: [] for name in order}
    shuffle = np.random.default_rng(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            for picture in pictures[:_WARM_UP]:
                runs[name](picture)
            for picture in pictures[:_TURN]:
                begun = time.process_time_ns()
                runs[name](picture)
                times[name].append((time.process_time_ns() - begun) / 1e6)
    return times


def measure(files: list[File], engine: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of one engine."""
    from edgevision.data import batches
    from edgevision.preprocess import PRESETS

    opener = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}[engine]
    runs = {file.made_by: opener(file.path) for file in files if engine in file.engines}
    test = split()[1]
    pictures = [batch for batch, _ in batches(test, PRESETS["imagenet"], 1)]
    quality: dict[str, dict[str, float]] = {}
    if options.model == JUDGED:
        labels = np.asarray([sample.label for sample in test])
        # one reference for both engines: ONNX Runtime's FP32
        fp32 = open_onnxruntime(files[0].path)
        reference = np.concatenate([fp32(picture) for picture in pictures])
        quality = {name: judged(run, reference, pictures, labels) for name, run in runs.items()}
    times = timed(runs, pictures, options.rounds)
    return [
        {
            "model": options.model,
            "engine": engine,
            "quantized_by": name,
            **quality.get(name, {}),
            "least_ms": round(min(times[name]), 2),
            "median_ms": round(float(np.median(times[name])), 2),
            "least_of_fp32": round(min(times[name]) / min(times["FP32"]), 3),
            "median_of_fp32": round(float(np.median(times[name]) / np.median(times["FP32"])), 3),
            "calibration_photos": 300,
            "test_photos": len(test) if quality else 0,
            "threads": 1,
        }
        for name in runs
    ]


def main() -> None:
    """Quantize, judge, time, and write the CSV."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=JUDGED, help="a zoo network; others than mobilenet_v2 are timed alone")
    parser.add_argument("--long", action="store_true", help="also our long method (minutes)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--peers-python", help="interpreter of an environment with NNCF")
    parser.add_argument("--nncf", nargs=3, metavar=("KIND", "MODEL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.nncf:
        quantize_by_nncf(options.nncf[0], Path(options.nncf[1]), Path(options.nncf[2]))
        return
    if not (DATA / "weights").is_dir():
        sys.exit("EDGEVISION_DATA must name the folder with imagenet-mini and weights")
    with tempfile.TemporaryDirectory() as folder:
        files = all_files(options, Path(folder))
        rows = [row for engine in ENGINES for row in measure(files, engine, options)]
    show(rows)

    told = {"nncf": _version_of(options.peers_python, "nncf")} if options.peers_python else {}
    print(save(f"peers-{options.model}", [{**row, **told} for row in rows], ("onnxruntime", "openvino")))


def _version_of(python: str, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
