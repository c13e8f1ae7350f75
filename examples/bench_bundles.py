"""Every bundle of a folder that can run here, measured side by side; a report to publish, and the best of them.

Without arguments it takes what `convert_own_onnx.py` made, and measures briefly. For figures to publish give labelled
pictures, and leave `rounds` and `seconds` at their defaults.

    python examples/bench_bundles.py [FOLDER [KIND:PATH]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import edgevision as ev


def main(folder: str = "bundles", data: str | None = None) -> None:
    runtimes = ev.doctor()["runtimes"]
    bundles = [ev.Bundle.open(path) for path in sorted(Path(folder).glob("*.evb"))]
    here = [bundle for bundle in bundles if runtimes[bundle.manifest.target]["installed"]]
    report = ev.bench(here, data, rounds=2, seconds=0.1, title="Bundles side by side")
    print(report.table())
    for result in report.results:
        if result.latency_ms is None:
            print(f"{result.bundle} failed: {result.error}")
            continue
        median = result.latency_ms["p50"]
        verdict = "" if result.stable else ", not steady: measure longer, on a quiet machine"
        print(f"{result.target} {result.precision}: {median:.3f} ms{verdict}")
    print(report.save(Path(folder) / "report"))


if __name__ == "__main__":
    main(*sys.argv[1:])
