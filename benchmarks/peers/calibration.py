"""What the calibration of MobileNetV2 costs: CPU time and peak memory beside ONNX Runtime's and NNCF's, in one run.

Each row is a process of its own; the pictures are decoded and preprocessed by the same code for all, and counted in.
The whole default is all that `convert` does between the network and the four plans: equalization, the observing pass,
the checks of pictures and preprocess, and a plan for each target; NNCF serves one engine, and so does the row for
OpenVINO alone. Needs EDGEVISION_DATA.

    python benchmarks/peers/calibration.py [--images 100,300,1000] [--percentile] [--rounds N] [--peers-python PYTHON]

NNCF wants packages that EdgeVision does not, so it runs in an environment of its own, whose interpreter is PYTHON::

    python -m venv peers && peers/bin/pip install -e . nncf openvino onnx onnxruntime
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from provenance import save, show

DATA = Path(os.environ.get("EDGEVISION_DATA", ""))
TARGETS = ("onnxruntime", "openvino", "ncnn", "tensorrt")
PLAIN, PASS, DEFAULT = "plain inference", "edgevision, observing pass", "edgevision, whole default"
ONE_ENGINE = "edgevision, default for OpenVINO alone"
MIN_MAX, PERCENTILE = "ONNX Runtime min-max", "ONNX Runtime percentile"
NNCF_OPENVINO, NNCF_ONNX = "NNCF on OpenVINO", "NNCF on ONNX"


class Pictures:
    """The pictures of one calibration, decoded and preprocessed each time they are gone through.

    Attributes:
        chosen: the samples: 500 photos, more than that are the same ones again, which time and memory do not notice.
    """

    def __init__(self, count: int) -> None:
        from edgevision.data import open_dataset
        from edgevision.data.base import Subset

        photos = open_dataset(f"csv:{DATA}/imagenet-mini/labels.csv")
        self.chosen = Subset(photos, [index % len(photos) for index in range(count)])

    def __iter__(self) -> Iterator[np.ndarray]:
        from edgevision.data import batches
        from edgevision.preprocess import PRESETS

        return (batch for batch, _ in batches(self.chosen, PRESETS["imagenet"], 1))

    def __len__(self) -> int:
        return len(self.chosen)


def plain_inference(model: str, pictures: Pictures) -> Callable[[], object]:
    """ONNX Runtime alone: what any calibration costs at least."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda: [session.run(None, {"images": batch}) for batch in pictures]


def observing_pass(model: str, pictures: Pictures) -> Callable[[], object]:
    """Our pass that fills the calibration table."""
    from edgevision.graph import Graph
    from edgevision_calibration.observe import observe
    from edgevision_calibration.table import samples_per_picture

    return lambda: observe(Graph.open(model), pictures, samples=samples_per_picture(len(pictures)))


def whole_default(model: str, pictures: Pictures) -> Callable[[], object]:
    """Everything of ours between the network and the four plans, as `convert` calls it."""
    return _default(model, pictures, TARGETS)


def default_for_openvino(model: str, pictures: Pictures) -> Callable[[], object]:
    """The same for one engine."""
    return _default(model, pictures, ("openvino",))


def _default(model: str, pictures: Pictures, targets: Sequence[str]) -> Callable[[], object]:
    from edgevision.pipeline.convert import ConvertOptions, open_job

    # `convert` imports them where it comes to them
    for module in ("diagnostics", "equalization", "planning"):
        import_module(f"edgevision_calibration.{module}")
    folder = tempfile.TemporaryDirectory()
    job = open_job(
        model,
        targets=targets,
        precisions=["int8"],
        data=pictures.chosen,
        preprocess="imagenet",
        out=folder.name,
        options=ConvertOptions(calibration_images=len(pictures)),
    )

    def calibrate() -> None:
        with folder:
            for target in targets:
                job.plan(target)

    return calibrate


def onnxruntime_min_max(model: str, pictures: Pictures) -> Callable[[], object]:
    """ONNX Runtime's default calibrator."""
    return _calibrator("MinMax", model, pictures)


def onnxruntime_percentile(model: str, pictures: Pictures) -> Callable[[], object]:
    """ONNX Runtime's percentile calibrator."""
    return _calibrator("Percentile", model, pictures)


def _calibrator(kind: str, model: str, pictures: Pictures) -> Callable[[], object]:
    """The collecting of ranges alone, without the quantization that follows."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    feed = iter(pictures)

    class Reader:
        def get_next(self) -> dict[str, object] | None:
            batch = next(feed, None)
            return None if batch is None else {"images": batch}

    def calibrate() -> None:
        with tempfile.TemporaryDirectory() as folder:
            calibrator = create_calibrator(
                model,
                calibrate_method=getattr(CalibrationMethod, kind),
                augmented_model_path=f"{folder}/augmented.onnx",
            )
            calibrator.collect_data(Reader())
            calibrator.compute_data()

    return calibrate


def nncf_openvino(model: str, pictures: Pictures) -> Callable[[], object]:
    """NNCF's default on the OpenVINO model, all pictures taken in."""
    import nncf
    import openvino

    return lambda: nncf.quantize(openvino.Core().read_model(model), nncf.Dataset(pictures), subset_size=len(pictures))


def nncf_onnx(model: str, pictures: Pictures) -> Callable[[], object]:
    """NNCF's default on the ONNX model, all pictures taken in."""
    import nncf
    import onnx

    data = nncf.Dataset(pictures, lambda batch: {"images": batch})
    return lambda: nncf.quantize(onnx.load(model), data, subset_size=len(pictures))


METHODS = {
    PLAIN: plain_inference,
    PASS: observing_pass,
    DEFAULT: whole_default,
    ONE_ENGINE: default_for_openvino,
    MIN_MAX: onnxruntime_min_max,
    PERCENTILE: onnxruntime_percentile,
    NNCF_OPENVINO: nncf_openvino,
    NNCF_ONNX: nncf_onnx,
}


def measure(method: str, model: str, count: int) -> dict[str, object]:
    """One calibration, in this process; imports and the opening of the pictures' list come before the clock starts."""
    calibrate = METHODS[method](model, Pictures(count))
    _forget_peak()
    begun, memory = _cpu_s(), _memory_mb("VmRSS")
    calibrate()
    spent, peak = _cpu_s() - begun, _memory_mb("VmHWM")
    packages = ("nncf", "openvino", "onnxruntime") if "NNCF" in method else ("onnxruntime",)
    return {
        "method": method,
        "images": count,
        "cpu_s": round(spent, 2),
        "with_imports_cpu_s": round(_cpu_s(), 2),
        "peak_mb": round(peak),
        "growth_mb": round(peak - memory),
        "of": " ".join(f"{package} {version(package)}" for package in packages),
    }


def _cpu_s() -> float:
    """CPU seconds of this process so far, of all its threads and the children it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _forget_peak() -> None:
    """Let the peak begin at what is held now: imports and exports may have held more for a moment."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return float(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


def main() -> None:
    """Run every method in turns, each in a child process, and keep the least CPU time of the rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", default="100,300,1000")
    parser.add_argument("--rounds", type=int, default=3, help="the least CPU time of so many counts")
    parser.add_argument("--percentile", action="store_true", help="also ONNX Runtime's percentile (6 GB per 100)")
    parser.add_argument("--peers-python", help="interpreter of an environment with NNCF")
    parser.add_argument("--child", nargs=3, metavar=("METHOD", "MODEL", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child[0], options.child[1], int(options.child[2]))))
        return
    if not (DATA / "weights").is_dir():
        sys.exit("EDGEVISION_DATA must name the folder with imagenet-mini and weights")
    from edgevision_converters.export import open_source

    methods = [PLAIN, PASS, DEFAULT, ONE_ENGINE, MIN_MAX]
    if options.peers_python:
        methods += [NNCF_OPENVINO, NNCF_ONNX]
    else:
        print("NNCF's rows are left out: --peers-python names an interpreter that has it")
    rows: dict[tuple[str, int], dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = open_source("mobilenet_v2", weights=DATA / "weights" / "mobilenet_v2_imagenet.safetensors")
        model = str(source.graph.save(Path(folder) / "mobilenet_v2.onnx"))
        jobs = [(method, count) for count in map(int, options.images.split(",")) for method in methods]
        if options.percentile:
            jobs.append((PERCENTILE, 100))
        for method, count in jobs * options.rounds:
            python = options.peers_python if "NNCF" in method else sys.executable
            row = _child([python, __file__, "--child", method, model, str(count)])
            show([row])
            kept = rows.setdefault((method, count), row)
            kept.update({key: min(kept[key], row[key]) for key in ("cpu_s", "with_imports_cpu_s")})
    for (_, count), row in rows.items():
        peer = rows.get((NNCF_OPENVINO, count))
        row["of_nncf_openvino"] = round(row["cpu_s"] / peer["cpu_s"], 3) if peer else ""
    print()
    show(list(rows.values()))
    print(save("calibration-mobilenet_v2", list(rows.values()), ("onnxruntime", "numpy")))


def _child(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


if __name__ == "__main__":
    main()
