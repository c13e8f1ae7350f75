"""A picture's file in, boxes out: Ultralytics' predictor and we, with the same network on the same engine, in one run.

The peer makes its detector (640 pixels, random weights, normalization statistics from the photos, so that scores differ
from place to place) and exports it; we convert that same ONNX file with ``--decoder yolov8``. Both are then given the
same files, a dozen of coco128, with the same thresholds and threads, and take turns. The least score is such that 64
places of a picture are above it on the average. Our YOLOv6-N, somewhat larger, is a row of its own.

Times are milliseconds of a picture: the least of all rounds, averaged over the pictures. ``wall_ms`` and ``cpu_ms`` are
of the whole call, from the file to boxes in its pixels; the parts are wall time, as each side tells them, ``rest_ms``
is what they leave: reading the file, and building the result. ``of_peer`` and ``cpu_of_peer`` are ratios to the peer's
FP32, ``around_inference_of_peer`` that of all parts but the inference. The machine may be shared: compare within the
table only, and where others are at work the CPU's times, not the wall's. Needs EDGEVISION_DATA.

    python benchmarks/peers/detection_end_to_end.py --peers-python PYTHON [--model yolov8n] [--threads 1,2] [--rounds N]

Ultralytics runs as a program in an environment of its own, whose interpreter is PYTHON, by its documented calls alone::

    python -m venv peers && peers/bin/pip install ultralytics onnx onnxslim onnxruntime openvino

It suppresses boxes by torchvision's C++ function. Where no build of torchvision fits a torch for the processor alone,
``torchvision/_C.so`` can be built from that function's source; the figures of 2026-11-21 were taken so.

OpenVINO left to itself computes in bfloat16 where the processor can. The peer's rows are of FP32 unless they say
``as exported``: there nothing but the number of threads is told.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(os.environ.get("EDGEVISION_DATA", ""))
ENGINES = ("onnxruntime", "openvino")
SIZE = 640
PICTURES = 12
# places of a picture above the least score, on the average
PLACES = 64
IOU, MAX_DETECTIONS = 0.7, 300
PEER, AS_EXPORTED, OURS, OURS_FP16 = "Ultralytics", "Ultralytics, as exported", "edgevision", "edgevision, fp16"
OWN = "yolov6_n"
PARTS = ("preprocess", "inference", "postprocess")
# what is left of the whole: reading the file, and with the peer all that it does besides
REST = "rest"
# pictures a contestant runs before the clock in each of its turns
_WARM_UP = 2
# boxes of the two sides that are one: more than a pixel's difference in most of them would break it
_SAME_IOU = 0.95

# wall and CPU milliseconds of the whole, then of each part
Times = dict[str, float]


@dataclass
class Contestant:
    """One side: who, with which network, and its two calls.

    Attributes:
        name: for the table.
        model: the network.
        turn: runs the pictures once: times of each.
        boxes: what it finds in each picture: boxes, scores, labels.
        least: least times so far, by picture.
    """

    name: str
    model: str
    turn: Callable[[], list[Times]]
    boxes: Callable[[], list[dict[str, list[Any]]]]
    walls: list[float] = field(default_factory=list)
    least: dict[int, Times] = field(default_factory=dict)

    def take_turn(self) -> None:
        """Run, and keep what was quicker than before."""
        for index, times in enumerate(self.turn()):
            self.walls.append(times["wall"])
            before = self.least.setdefault(index, times)
            self.least[index] = {key: min(before[key], times[key]) for key in times}

    def mean(self, key: str) -> float:
        """Least time of a picture, averaged over the pictures."""
        return float(np.mean([times[key] for times in self.least.values()]))


def observe_photos(network: Any, batches: Iterable[Any]) -> None:
    """Normalization statistics of batches, so that a network of random weights tells one picture from another."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    network.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    network.eval()


def export_peer(name: str, pictures: Sequence[str], folder: Path) -> None:
    """The peer's detector as ONNX and OpenVINO files in ``folder``; runs in the peer's environment."""
    import cv2
    import torch
    from ultralytics import YOLO

    torch.manual_seed(0)
    os.chdir(folder)
    detector = YOLO(f"{name}.yaml")
    pixels = (cv2.resize(cv2.imread(path), (SIZE, SIZE))[:, :, ::-1].copy() for path in pictures)
    observe_photos(detector.model, (torch.from_numpy(photo).permute(2, 0, 1)[None] / 255 for photo in pixels))
    for form in ("onnx", "openvino"):
        detector.export(format=form, imgsz=SIZE)


def serve_peer(engine: str, model: str, threads: int, as_exported: bool) -> None:
    """Answer requests, a line of JSON each, with the peer's predictor; runs in the peer's environment."""
    import cv2
    import torch

    # the answers' own way out: whatever the peer prints goes to the errors
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    _tell_engine(engine, threads, as_exported)
    from ultralytics import YOLO

    detector = YOLO(model, task="detect")
    for line in sys.stdin:
        asked = json.loads(line)
        settings = {
            "imgsz": SIZE, "conf": asked["confidence"], "iou": IOU, "max_det": MAX_DETECTIONS, "device": "cpu",
            "verbose": False,
        }  # fmt: skip
        for path in asked["pictures"][: asked["warm_up"]]:
            detector.predict(path, **settings)
        told = []
        for path in asked["pictures"]:
            begun, cpu = time.perf_counter_ns(), time.process_time_ns()
            result = detector.predict(path, **settings)[0]
            spent = {"wall": _ms(time.perf_counter_ns() - begun), "cpu": _ms(time.process_time_ns() - cpu)}
            found = {"boxes": result.boxes.xyxy, "scores": result.boxes.conf, "labels": result.boxes.cls}
            told.append(
                {
                    "times": {**spent, **result.speed, REST: spent["wall"] - sum(result.speed.values())},
                    "found": {key: value.tolist() for key, value in found.items()},
                }
            )
        print(json.dumps(told), file=answers, flush=True)


def _tell_engine(engine: str, threads: int, as_exported: bool) -> None:
    """Give the engine's own library the number of threads that is asked for, whoever opens it afterwards."""
    if engine == "onnxruntime":
        import onnxruntime

        open_session = onnxruntime.InferenceSession.__init__

        def opened(self: Any, model: Any, sess_options: Any = None, *others: Any, **named: Any) -> None:
            sess_options = sess_options or onnxruntime.SessionOptions()
            sess_options.intra_op_num_threads = threads
            open_session(self, model, sess_options, *others, **named)

        onnxruntime.InferenceSession.__init__ = opened
        return
    import openvino

    compile_model = openvino.Core.compile_model
    told = {"INFERENCE_NUM_THREADS": threads, **({} if as_exported else {"INFERENCE_PRECISION_HINT": "f32"})}

    def compiled(self: Any, model: Any, device_name: Any = None, config: Any = None, **named: Any) -> Any:
        return compile_model(self, model, device_name, {**(config or {}), **told}, **named)

    openvino.Core.compile_model = compiled


def _ms(nanoseconds: int) -> float:
    return nanoseconds / 1e6


@contextmanager
def peer(python: str, engine: str, threads: int, model: Path, as_exported: bool) -> Iterator[Any]:
    """A process of the peer's: a function from a request to its answer."""
    command = [python, __file__, "--serve", engine, str(model), str(threads), str(int(as_exported))]
    # a file, not a pipe: nobody reads what is printed until it fails
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=model.parent
        )
        to_child, from_child = child.stdin, child.stdout
        assert to_child is not None
        assert from_child is not None

        def ask(request: Mapping[str, Any]) -> Any:
            to_child.write(json.dumps(request) + "\n")
            to_child.flush()
            line = from_child.readline()
            if not line:
                child.wait()
                errors.seek(0)
                sys.exit(f"{' '.join(command)} failed:\n{_last_line(errors.read())}")
            return json.loads(line)

        try:
            yield ask
        finally:
            to_child.close()
            child.wait()


def _last_line(text: str) -> str:
    """What went wrong, without the peer's code around it."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def of_peer(ask: Any, name: str, model: str, pictures: Sequence[str], confidence: float) -> Contestant:
    """The peer as a contestant."""
    request = {"pictures": list(pictures), "confidence": confidence, "warm_up": _WARM_UP}
    return Contestant(
        name,
        model,
        lambda: [told["times"] for told in ask(request)],
        lambda: [told["found"] for told in ask({**request, "warm_up": 0})],
    )


def of_ours(bundle: Any, threads: int, pictures: Sequence[str], confidence: float, name: str = OURS) -> Contestant:
    """A bundle of ours as a contestant."""
    import edgevision as ev

    session = ev.load(bundle, threads=threads)
    session.postprocess = replace(session.postprocess, confidence=confidence, iou=IOU, max_detections=MAX_DETECTIONS)

    def turn() -> list[Times]:
        for path in pictures[:_WARM_UP]:
            session(path)
        times = []
        for path in pictures:
            begun, cpu = time.perf_counter_ns(), time.process_time_ns()
            session(path)
            spent = {"wall": _ms(time.perf_counter_ns() - begun), "cpu": _ms(time.process_time_ns() - cpu)}
            times.append({**spent, **parts(session, path)})
        return times

    def boxes() -> list[dict[str, list[Any]]]:
        return [
            {key: getattr(found, key).tolist() for key in ("boxes", "scores", "labels")}
            for found in session(list(pictures))
        ]

    return Contestant(name, bundle.manifest.name, turn, boxes)


def parts(session: Any, path: str) -> Times:
    """What `Session.predict` does, one step after the other."""
    from edgevision.images import to_image
    from edgevision.tasks import interpret

    laps = [time.perf_counter_ns()]
    picture = to_image(path)
    laps.append(time.perf_counter_ns())
    batch, placements = session.place([picture])
    laps.append(time.perf_counter_ns())
    outputs = session.run(batch)
    laps.append(time.perf_counter_ns())
    interpret(session.bundle.manifest, outputs, placements, session.postprocess)
    laps.append(time.perf_counter_ns())
    return {part: _ms(end - begin) for part, begin, end in zip((REST, *PARTS), laps[:-1], laps[1:], strict=True)}


def least_score(bundle: Any, pictures: Sequence[str]) -> float:
    """Score that `PLACES` places of a picture exceed, on the average: half way to the next one."""
    import edgevision as ev

    with ev.load(bundle) as session:
        session.postprocess = replace(session.postprocess, confidence=0.0)
        size = session.bundle.manifest.preprocess.size
        outputs = (session.run(session.place([path])[0]) for path in pictures)
        scores = [session.postprocess.candidates(output, size)[0].scores for output in outputs]
    best = np.sort(np.concatenate(scores))[::-1]
    around = best[len(pictures) * PLACES - 1 : len(pictures) * PLACES + 1]
    return float(around.mean())


def same_boxes(ours: list[dict[str, list[Any]]], theirs: list[dict[str, list[Any]]]) -> dict[str, object]:
    """Share of both sides' boxes that have a partner of their class on the other, and how far partners are apart."""
    from edgevision.detection import Detections
    from edgevision.detection.compare import partners

    count = paired = 0
    overlaps: list[float] = []
    for picture in zip(ours, theirs, strict=True):
        first, second = (
            Detections(
                np.asarray(found["boxes"], np.float32).reshape(-1, 4),
                np.asarray(found["scores"], np.float32),
                np.asarray(found["labels"], np.int64),
            )
            for found in picture
        )
        pairs = partners(first, second, iou=_SAME_IOU)
        count, paired = count + len(first) + len(second), paired + 2 * len(pairs)
        overlaps += [overlap for _, _, overlap in pairs]
    return {
        "same_boxes_pct": round(100 * paired / count, 1) if count else "",
        "mean_iou": round(float(np.mean(overlaps)), 4) if overlaps else "",
    }


def convert_all(options: argparse.Namespace, pictures: Sequence[str], folder: Path) -> list[tuple[str, list[Any]]]:
    """Names of contestants and their bundles, one for each engine that runs them."""
    from edgevision.pipeline.convert import ConvertOptions, convert

    command = [options.peers_python, __file__, "--export", options.model, str(folder), *pictures]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{options.peers_python} cannot export {options.model}: {_last_line(done.stderr)}")
    exported, out = folder / f"{options.model}.onnx", folder / "bundles"
    decoded = ConvertOptions(decoder="yolov8")
    return [
        (OURS, convert(exported, targets=ENGINES, out=out, options=decoded)),
        (OURS_FP16, convert(exported, targets=["openvino"], precision="fp16", out=out, options=decoded)),
        (OURS, convert(own_detector(pictures), targets=ENGINES, out=out, input_size=(SIZE, SIZE), name=OWN)),
    ]


def own_detector(pictures: Sequence[str]) -> Any:
    """Our YOLOv6-N of 80 classes, its weights as random as the peer's."""
    import torch

    from edgevision.models import create_model
    from edgevision.preprocess import PRESETS

    torch.manual_seed(0)
    detector = create_model(OWN, num_classes=80, input_size=SIZE)
    observe_photos(detector, (torch.from_numpy(PRESETS["letterbox"].batch([path])) for path in pictures))
    return detector


def measure(
    options: argparse.Namespace, engine: str, threads: int, made: list[tuple[str, list[Any]]], pictures: Sequence[str]
) -> list[dict[str, object]]:
    """Rows of one engine and number of threads."""
    chosen = [(name, bundle) for name, bundles in made for bundle in bundles if bundle.manifest.target == engine]
    confidence = {
        bundle.manifest.name: least_score(bundle, pictures)
        for _, bundle in chosen
        if bundle.manifest.precision == "fp32"
    }
    folder = Path(chosen[0][1].path).parent.parent
    model = folder / (f"{options.model}.onnx" if engine == "onnxruntime" else f"{options.model}_openvino_model")
    with ExitStack() as stack:
        contestants = []
        for name in (PEER,) if engine == "onnxruntime" else (PEER, AS_EXPORTED):
            ask = stack.enter_context(peer(options.peers_python, engine, threads, model, name == AS_EXPORTED))
            contestants.append(of_peer(ask, name, options.model, pictures, confidence[options.model]))
        for name, bundle in chosen:
            contestants.append(of_ours(bundle, threads, pictures, confidence[bundle.manifest.name], name))
        found = [contestant.boxes() for contestant in contestants]
        shuffle = np.random.default_rng(0)
        for _ in range(options.rounds):
            for index in shuffle.permutation(len(contestants)):
                contestants[index].take_turn()
    by_peer = {contestant.name: contestant for contestant in contestants if contestant.name in (PEER, AS_EXPORTED)}
    return [
        {
            "engine": engine,
            "threads": threads,
            "made_by": one.name,
            "model": one.model,
            **{f"{key}_ms": round(one.mean(key), 2) for key in ("wall", "cpu", *PARTS, REST)},
            "median_wall_ms": round(float(np.median(one.walls)), 2),
            "of_peer": _ratio(one, by_peer[PEER], "wall"),
            "cpu_of_peer": _ratio(one, by_peer[PEER], "cpu"),
            "cpu_of_peer_as_exported": _ratio(one, by_peer.get(AS_EXPORTED), "cpu"),
            "around_inference_of_peer": _around(one, by_peer[PEER]),
            "least_score": f"{confidence[one.model]:.4g}",
            "boxes_per_picture": round(float(np.mean([len(picture["scores"]) for picture in boxes])), 1),
            **(same_boxes(boxes, found[0]) if one.model == options.model else {}),
            "pictures": len(pictures),
            "rounds": options.rounds,
        }
        for one, boxes in zip(contestants, found, strict=True)
    ]


def _ratio(one: Contestant, other: Contestant | None, key: str) -> float | str:
    return "" if other is None else round(one.mean(key) / other.mean(key), 3)


def _around(one: Contestant, other: Contestant) -> float:
    """Ratio of all but the inference: files, preprocess, postprocess and results."""
    mine, theirs = (sum(side.mean(part) for part in (*PARTS, REST) if part != "inference") for side in (one, other))
    return round(mine / theirs, 3)


def main() -> None:
    """Export, convert, race, and write the CSV."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers-python", help="interpreter of an environment with ultralytics")
    parser.add_argument("--model", default="yolov8n", help="a detector of the peer's whose outputs are YOLOv8's")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--export", nargs="+", metavar=("MODEL", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--serve", nargs=4, metavar=("ENGINE", "MODEL", "THREADS", "AS_EXPORTED"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.export:
        export_peer(options.export[0], options.export[2:], Path(options.export[1]))
        return
    if options.serve:
        engine, model, threads, as_exported = options.serve
        serve_peer(engine, model, int(threads), as_exported == "1")
        return
    if not options.peers_python:
        sys.exit("--peers-python names the interpreter of an environment with ultralytics")
    pictures = [str(path) for path in sorted((DATA / "coco128" / "images").glob("*.jpg"))[:PICTURES]]
    if not pictures:
        sys.exit("EDGEVISION_DATA must name the folder with coco128")
    # here: the peer's environment runs this file too, and has no edgevision
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from provenance import save, show

    with tempfile.TemporaryDirectory() as folder:
        made = convert_all(options, pictures, Path(folder))
        rows = [
            row
            for threads in map(int, options.threads.split(","))
            for engine in ENGINES
            for row in measure(options, engine, threads, made, pictures)
        ]
    show(rows)
    told = versions_of_peer(options.peers_python)
    print(save(f"peers-detection-{options.model}", [{**row, **told} for row in rows], ENGINES))


def versions_of_peer(python: str) -> dict[str, str]:
    """Versions in the peer's environment."""
    packages = ("ultralytics", "torch", "torchvision", "opencv-python", "opencv-python-headless", *ENGINES)
    code = (
        "import json, sys\nfrom importlib.metadata import distributions\n"
        "found = {one.name: one.version for one in distributions()}\n"
        "print(json.dumps({name: found[name] for name in sys.argv[1:] if name in found}))"
    )
    answer = subprocess.run([python, "-c", code, *packages], check=True, capture_output=True, text=True).stdout
    return {f"peer_{name}": told for name, told in json.loads(answer).items()}


if __name__ == "__main__":
    main()
