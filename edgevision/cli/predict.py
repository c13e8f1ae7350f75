"""``edgevision predict``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgevision.cli.decoder import add_decoder, open_decoder
from edgevision.cli.output import names, print_table

if TYPE_CHECKING:
    from edgevision.bundle import Bundle
    from edgevision.errors import EdgeVisionError
    from edgevision.runtime import Session
    from edgevision.runtime.frames import Frame
    from edgevision.runtime.stream import StreamResult, StreamStatistics
    from edgevision.tasks import TaskResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("sources", nargs="+", metavar="SOURCE",
                        help="picture files, folders, patterns, videos, or the number of a camera")  # fmt: skip
    parser.add_argument("-o", "--out", metavar="DIR", help="draw a detector's boxes and save pictures and videos here")
    parser.add_argument("--top", type=int, default=5, help="how many classes to show (default 5)")
    parser.add_argument("--confidence", type=float, help="least score of a box (default the bundle's)")
    parser.add_argument(
        "--iou", type=float, help="overlap from which the worse of two boxes goes (default the bundle's)"
    )
    parser.add_argument("--classes", type=names, metavar="A,B", help="boxes of these classes alone: names or numbers")
    add_decoder(parser)
    parser.add_argument("--stream", action="store_true",
                        help="overlap decoding, inference and the rest, and tell throughput and latency")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="threads of one inference (default 1)")


def run(options: argparse.Namespace) -> int:
    """Print one result per picture; with ``--json`` one JSON object a line."""
    from edgevision.bundle import Bundle
    from edgevision.errors import UsageError
    from edgevision.runtime import load

    if options.top < 1:
        raise UsageError(f"--top must be 1 or more; got {options.top}")
    bundle = Bundle.open(options.bundle)
    labels = _check(bundle, options)
    with load(bundle, threads=options.threads, decoder=open_decoder(options.decoder)) as session:
        _set_thresholds(session, options)
        printer = _Printer(session, options, labels)
        try:
            _predict(session, options, printer)
        except BaseException:
            printer.saver.abort()
            raise
    printer.saver.close()
    if printer.failures:
        raise type(printer.failures[0])("; ".join(str(error) for error in printer.failures))
    return 0


def _check(bundle: Bundle, options: argparse.Namespace) -> frozenset[int] | None:
    """Class numbers of ``--classes``, once every option is known to make sense for the bundle's task."""
    from edgevision.errors import UsageError
    from edgevision.registry import unknown_name

    manifest = bundle.manifest
    given = {
        "-o": options.out, "--confidence": options.confidence, "--iou": options.iou, "--classes": options.classes,
        "--decoder": options.decoder,
    }  # fmt: skip
    if manifest.task != "detection":
        if used := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"{used[0]} is for detectors; {manifest.name} does {manifest.task}")
        return None
    if options.classes is None:
        return None
    numbers = {name: index for index, name in enumerate(manifest.classes)}
    labels = set()
    for name in options.classes:
        if name not in numbers and not name.isdecimal():
            raise UsageError(unknown_name("class", name, list(manifest.classes)))
        labels.add(numbers.get(name, int(name) if name.isdecimal() else -1))
    return frozenset(labels)


def _set_thresholds(session: Session, options: argparse.Namespace) -> None:
    from dataclasses import replace

    given = {"confidence": options.confidence, "iou": options.iou}
    changed = {name: value for name, value in given.items() if value is not None}
    if session.postprocess is not None and changed:
        session.postprocess = replace(session.postprocess, **changed)


def _predict(session: Session, options: argparse.Namespace, printer: _Printer) -> None:
    """All sources, in one stream or picture by picture; Ctrl-C ends a camera, which has no end of its own."""
    frames = _Frames(options.sources, printer.failures)
    stream = session.stream(frames, errors="return") if options.stream else None
    results = _one_by_one(session, frames) if stream is None else stream.results()
    try:
        for item in results:
            printer.show(item)
    except KeyboardInterrupt:
        if not frames.camera:
            raise
    if stream is not None:
        _print_statistics(stream.statistics)


class _Frames:
    """Pictures of all sources; what is wrong with one of them is noted and does not cost the others."""

    def __init__(self, sources: list[str], failures: list[EdgeVisionError]) -> None:
        self._sources, self._failures = sources, failures
        self.camera = False

    def __iter__(self) -> Iterator[Frame]:
        from edgevision.errors import EdgeVisionError
        from edgevision.runtime.frames import open_source, source_names

        for argument in self._sources:
            try:
                for name in source_names(argument):
                    try:
                        source = open_source(name)
                        self.camera |= source.kind == "camera"
                        yield from source.frames()
                    except EdgeVisionError as error:
                        self._failures.append(error)
            except EdgeVisionError as error:
                self._failures.append(error)


def _one_by_one(session: Session, frames: _Frames) -> Iterator[StreamResult]:
    from edgevision.errors import EdgeVisionError
    from edgevision.runtime.stream import StreamResult

    for frame in frames:
        try:
            yield StreamResult(frame, session.predict([frame.image])[0], None, 0.0)
        except EdgeVisionError as error:
            yield StreamResult(frame, None, error, 0.0)


class _Printer:
    """Prints each result and hands what is to be drawn to the saver."""

    def __init__(self, session: Session, options: argparse.Namespace, labels: frozenset[int] | None) -> None:
        from edgevision.runtime.saving import Saver

        self._json, self._top, self._labels = bool(options.json), options.top, labels
        self._saves = options.out is not None
        self.saver = Saver(options.out)
        self.failures: list[EdgeVisionError] = []

    def show(self, item: StreamResult) -> None:
        frame: Any = item.frame
        if item.error is not None or item.result is None:
            if item.error is not None:
                self.failures.append(item.error)
            return
        result = self._of_wanted_classes(item.result)
        saved = self.saver.save(frame, result) if self._saves else None
        if self._json:
            print(json.dumps(self._record(frame, result, saved)), flush=True)
        else:
            self._print(frame, result, saved)

    def _of_wanted_classes(self, result: TaskResult) -> TaskResult:
        from edgevision.detection.detections import Detections

        if self._labels is None or not isinstance(result, Detections):
            return result
        kept = [index for index, label in enumerate(result.labels.tolist()) if label in self._labels]
        return Detections(result.boxes[kept], result.scores[kept], result.labels[kept], result.classes)

    def _record(self, frame: Frame, result: TaskResult, saved: str | None) -> dict[str, Any]:
        from edgevision.detection.detections import Detections

        number = {} if frame.number is None else {"frame": frame.number}
        values = result.to_dict() if isinstance(result, Detections) else result.to_dict(self._top)
        return {"image": frame.name, **number, **values, **({} if saved is None else {"saved": saved})}

    def _print(self, frame: Frame, result: TaskResult, saved: str | None) -> None:
        from edgevision.detection.detections import Detections
        from edgevision.tasks import Classification

        heading = frame.name if frame.number is None else f"{frame.name} [{frame.number}]"
        if isinstance(result, Classification):
            print(heading)
            print_table(("  class", "probability"),
                        [(f"  {name}", f"{p:.4f}") for name, p in result.top(self._top)])  # fmt: skip
        elif isinstance(result, Detections):
            count = len(result)
            print(f"{heading}: {count or 'no'} object{'' if count == 1 else 's'}" + (f" → {saved}" if saved else ""))
            if count:
                rows = zip(result.names, result.scores.tolist(), result.boxes.tolist(), strict=True)
                print_table(("  class", "score", "left", "top", "right", "bottom"),
                            [(f"  {name}", f"{score:.3f}", *(f"{side:.1f}" for side in box))
                             for name, score, box in rows])  # fmt: skip
        else:
            print(heading)
            for name, value in result.to_dict()["outputs"].items():
                low, high = ("?" if value[key] is None else f"{value[key]:.4g}" for key in ("min", "max"))
                print(f"  {name}: {value['shape']} {low} … {high}")


def _print_statistics(found: StreamStatistics) -> None:
    """Throughput and latency, on standard error."""
    if not found.latency_ms:
        return
    rate = "" if found.frames_per_second is None else f", {found.frames_per_second:.1f} pictures/s"
    latency = ", ".join(f"{key} {found.latency_ms[key]:.1f}" for key in ("p50", "p90", "p99"))
    stages = ", ".join(f"{name} {value:.1f}" for name, value in found.stage_ms.items())
    print(f"edgevision predict: {found.frames} pictures{rate}; latency ms: {latency}; stages ms: {stages}; "
          f"{found.requests} requests", file=sys.stderr)  # fmt: skip
