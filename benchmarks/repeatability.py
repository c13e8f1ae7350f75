"""The same bench again and again: do its intervals overlap, do equals pass, and is a slow-down of a tenth caught?

Five calls of ``edgevision bench``, one after the other, of MobileNetV2 FP32 and INT8. Each pair of calls must have
overlapping 95% intervals of every median; five of the pairs are set against each other by ``edgevision report
--compare``, which must raise no alarm. In one more call every inference is followed by a tenth of its own time of
waiting awake: set against each of the five it must raise one, for a latency.

The engines are wrapped, in all calls alike, so that nothing but the waiting is different. Needs EDGEVISION_DATA.

    python benchmarks/repeatability.py --work FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import edgevision as ev
from edgevision.bundle import Bundle
from edgevision.runtime.backend import BACKENDS, Engine, EngineOptions
from edgevision_benchmarks.compare import THRESHOLD, compare
from edgevision_benchmarks.report import Report
from provenance import edgevision, save, show

TARGETS = ("onnxruntime", "openvino", "ncnn")
CALLS = 5
SLOW_DOWN = 0.10
# what a wrapped engine adds to each inference, as a share of its time
VARIABLE = "EDGEVISION_PLANTED"
_PREFIX = "wrapped-"


class Wrapped:
    """An engine that takes longer than it needs."""

    def __init__(self, engine: Engine, share: float) -> None:
        self._engine = engine
        self._share = share
        self.version = engine.version

    def infer(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Answer, and wait awake for a share of the time that took."""
        begun = time.perf_counter_ns()
        answer = self._engine.infer(feed)
        took = time.perf_counter_ns() - begun
        due = begun + took + round(self._share * took)
        while time.perf_counter_ns() < due:
            pass
        return dict(answer)

    def close(self) -> None:
        """Let go of the engine."""
        self._engine.close()


def open_engine(bundle: Bundle, options: EngineOptions) -> Wrapped:
    """What the entry points of `installed` name: the engine whose name stands behind the prefix, wrapped."""
    target = bundle.manifest.target.removeprefix(_PREFIX)
    return Wrapped(BACKENDS.resolve(target)(bundle, options), float(os.environ.get(VARIABLE, "0")))


def installed(folder: Path) -> Path:
    """A distribution, to be put on the path, that makes the wrapped engines known."""
    info = folder / "wrapped_engines-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wrapped-engines\nVersion: 1.0\n")
    lines = [f"{_PREFIX}{target} = repeatability:open_engine" for target in TARGETS]
    (info / "entry_points.txt").write_text("\n".join(["[edgevision.backends]", *lines, ""]))
    return folder


def wrapped(data: Path, out: Path) -> list[str]:
    """Bundles of MobileNetV2 for the wrapped engines."""
    made = ev.convert(
        "mobilenet_v2",
        weights=data / "weights" / "mobilenet_v2_imagenet.safetensors",
        targets=TARGETS,
        precision=["fp32", "int8"],
        data=f"csv:{data}/imagenet-mini/labels.csv[::2]",
        out=out / "bundles",
    )
    paths = []
    for bundle in made:
        assert bundle.path is not None
        path = out / f"{_PREFIX}{bundle.path.name}"
        target = f"{_PREFIX}{bundle.manifest.target}"
        Bundle(replace(bundle.manifest, target=target), {name: bundle.read(name) for name in bundle.files}).save(path)
        paths.append(str(path))
    return paths


def overlaps(first: Report, second: Report) -> Iterator[tuple[str, bool]]:
    """Of each row, whether the intervals of its median in two calls have a point in common."""
    for one, two in zip(first.results, second.results, strict=True):
        assert one.median_ci95 is not None
        assert two.median_ci95 is not None
        low = max(one.median_ci95[0], two.median_ci95[0])
        yield f"{one.target} {one.precision}", low <= min(one.median_ci95[1], two.median_ci95[1])


def judged(before: Path, after: Path, expect: int) -> dict[str, Any]:
    """What ``report --compare`` says, by its exit code, and how far the latencies were apart."""
    code = edgevision("report", "--compare", str(before), str(after), expect=(0, 3))
    found = compare(Report.load(before), Report.load(after))
    changes = [change for pair in found.pairs for change in pair.changes if change.measure == "latency"]
    return {
        "pair": f"{before.name} {after.name}",
        "alarm": code == 3,
        "expected": code == expect,
        "rows": len(changes),
        "rows_slower": sum(change.verdict == "worse" for change in changes),
        "least_ratio": round(min(change.change for change in changes), 4),
        "greatest_ratio": round(max(change.change for change in changes), 4),
        "widest_interval": round(max((c.high or 0.0) / (c.low or 1.0) for c in changes), 4),
    }


def table(folders: Sequence[Path], slow: Path) -> Iterator[dict[str, Any]]:
    """A row for each pair of calls; of equals five are compared, of the others the intervals alone are."""
    reports = {folder: Report.load(folder) for folder in folders}
    compared = {(folders[index], folders[(index + 1) % len(folders)]) for index in range(len(folders))}
    for first, second in itertools.combinations(folders, 2):
        apart = [name for name, together in overlaps(reports[first], reports[second]) if not together]
        pair = (first, second) if (first, second) in compared else (second, first)
        row = judged(*pair, expect=0) if pair in compared else {"pair": f"{first.name} {second.name}"}
        yield {**row, "planted": 0.0, "intervals_apart": " ".join(apart)}
    for folder in folders:
        row = judged(folder, slow, expect=3)
        yield {**row, "expected": row["expected"] and row["rows_slower"] > 0, "planted": SLOW_DOWN}


def main() -> None:
    """Measure, compare, write the CSV; exit 3 where a claim did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of bundles and of what is measured")
    parser.add_argument("--rounds", type=int, default=5, help="of each call (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each round (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="save nothing")
    options = parser.parse_args()
    data = Path(os.environ.get("EDGEVISION_DATA", ""))
    if not (data / "weights").is_dir():
        sys.exit("EDGEVISION_DATA must name the folder with imagenet-mini and weights")
    site = installed(options.work.resolve() / "site")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site), str(Path(__file__).resolve().parent)])
    bundles = wrapped(data, options.work)
    arguments = ["--rounds", str(options.rounds), "--seconds", str(options.seconds)]
    folders = [options.work / f"call{number + 1}" for number in range(CALLS)]
    slow = options.work / "slowed"
    # in the middle of the others, so that what changes on the machine meanwhile is not taken for it
    for folder in (*folders[: CALLS // 2], slow, *folders[CALLS // 2 :]):
        os.environ[VARIABLE] = str(SLOW_DOWN if folder == slow else 0.0)
        edgevision("bench", *bundles, *arguments, "-o", str(folder))
    rows = list(table(folders, slow))
    about = {"threshold": THRESHOLD, "rounds": options.rounds, "seconds": options.seconds}
    rows = [{**row, **about} for row in rows]
    show(rows)
    if not options.dry:
        print(save("repeatability", rows, TARGETS))
    wrong = [row["pair"] for row in rows if row.get("intervals_apart") or not row.get("expected", True)]
    if wrong:
        print(f"did not hold: {', '.join(wrong)}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
