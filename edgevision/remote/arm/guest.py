"""What runs in the emulated interpreter: accuracy as everywhere, and one inference of each bundle counted.

``python -m edgevision.remote.arm.guest '{"bundles": […], "data": …, "reference": …}'`` prints a report as JSON. Its
rows have no latency: an emulator's time is no device's.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.bundle import Bundle
from edgevision.devices.environment import environment
from edgevision.errors import EdgeVisionError, EngineError
from edgevision.remote.arm.plugin import MARK_BEGIN, MARK_END
from edgevision.remote.device_side import make_folder
from edgevision.runtime import load

if TYPE_CHECKING:
    from edgevision_benchmarks.result import Result

# where the wrapper of the emulated interpreter is told to count into; see edgevision.remote.emulated
COUNT_VARIABLE = "EDGEVISION_ARM_COUNT"
_WARM_UP = 3
_COUNTED = 3
_TIMEOUT_S = 1800.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main(arguments: Sequence[str]) -> int:
    """Do the job, or with ``--count BUNDLE`` run the marked inferences."""
    if arguments[0] == "--count":
        run_marked(arguments[1])
        return 0
    job = json.loads(arguments[0])
    # engines print on file descriptor 1; the report must be alone there
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    document = report(job)
    with answer:
        json.dump(document, answer)
    return 0


def run_marked(path: str) -> None:
    """Some inferences to warm up, then some that the plugin counts; one thread, so that the count is exact."""
    from edgevision_benchmarks.worker import ready_feed

    with load(path, threads=1) as session:
        feed = ready_feed(session, 1, [])
        for _ in range(_WARM_UP):
            session.infer(feed)
        # a collection of garbage in the middle would be counted
        gc.collect()
        gc.disable()
        for _ in range(_COUNTED):
            _mark(MARK_BEGIN)
            session.infer(feed)
            _mark(MARK_END)


def _mark(process: int) -> None:
    with suppress(OSError):  # there is no such process; the plugin sees the question
        os.getpgid(process)


def report(job: Mapping[str, Any]) -> dict[str, Any]:
    """A report as plain values; what was counted is ``provenance["cost_proxy"]``."""
    from edgevision_benchmarks.report import Report
    from edgevision_benchmarks.rows import identified

    begun = datetime.now(timezone.utc)
    rows: list[Result] = []
    costs = []
    reference = job["reference"] or _reference(job["bundles"])
    for number, path in enumerate(job["bundles"]):
        row = identified(path, Bundle.open(path), 1)
        try:
            _tell(f"counting {row.model} {row.target} {row.precision}, {number + 1} of {len(job['bundles'])}")
            counts = count(path)
            costs.append({"bundle": path, "model": row.model, "target": row.target, "precision": row.precision,
                          "engine_sha256": row.engine_sha256, "counts": counts})  # fmt: skip
            if job["data"] is not None:
                _tell(f"evaluating {row.model} {row.target} {row.precision}, {number + 1} of {len(job['bundles'])}")
                row = _evaluated(row, job["data"], None if reference == path else reference)
        except EdgeVisionError as error:
            row = replace(row, error=str(error))
        rows.append(row)
    provenance = {
        "date": begun.isoformat(timespec="seconds"),
        "command": "edgevision bench --device emulated://…",
        "data": job["data"],
        "emulated": "aarch64 under QEMU: answers and counts, no times",
        "cost_proxy": costs,
    }
    return Report.single(rows, environment(), provenance).to_dict()


def count(path: str) -> dict[str, int]:
    """What one inference executes; 0 of everything is never true, so a count that failed is an error.

    Raises:
        EngineError: the bundle cannot be run, or nothing was counted.
    """
    # the same words, variables and lengths of paths each time: they move what lies behind them in memory, and the
    # interpreter's share of a count with it
    folder = Path(make_folder("/tmp"))
    try:
        _copy(Path(path), folder / "bundle")
        made = subprocess.run(
            [sys.executable, "-m", "edgevision.remote.arm.guest", "--count", "bundle"],
            env={"PATH": _PATH, "PYTHONSAFEPATH": "1", COUNT_VARIABLE: "counts"},
            cwd=folder,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        said = made.stderr.decode(errors="replace").strip().splitlines()
        if made.returncode:
            raise EngineError(f"cannot be run to be counted: {' | '.join(said[-2:]) or made.returncode}")
        out = folder / "counts"
        lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if len(lines) != _COUNTED:
        raise EngineError(f"nothing was counted: {' | '.join(said[-2:]) or 'the plugin is not loaded'}")
    found = [{key: int(value) for key, value in json.loads(line).items()} for line in lines]
    # where addresses cannot be held still, a hash table now and then costs a little more
    return min(found, key=lambda counts: counts["instructions"])


def _copy(bundle: Path, target: Path) -> None:
    if bundle.is_dir():
        shutil.copytree(bundle, target)
    else:
        shutil.copyfile(bundle, target)


def _reference(paths: Sequence[str]) -> str | None:
    """The FP32 bundle among them, ONNX Runtime's first."""
    exact = [(path, Bundle.open(path).manifest) for path in paths]
    found = [(manifest.target != "onnxruntime", path) for path, manifest in exact if manifest.precision == "fp32"]
    models = {manifest.name for _, manifest in exact}
    return min(found)[1] if found and len(models) == 1 else None


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)  # noqa: T201


def _evaluated(row: Result, data: str, reference: str | None) -> Result:
    from edgevision_benchmarks.probes import run_worker
    from edgevision_benchmarks.rows import judged_fields

    job = {"kind": "accuracy", "bundle": row.bundle, "data": data, "split": None, "reference": reference,
           "limit": None, "batch_size": 1, "threads": 1}  # fmt: skip
    found = run_worker(job, timeout_s=_TIMEOUT_S)
    return replace(row, **judged_fields(found), reference=reference)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
