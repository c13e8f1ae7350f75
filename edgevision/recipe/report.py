"""The report of a recipe: every stage's network on every engine, measured in one run and shown on one plot."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.bundle import Bundle
from edgevision.dependencies import installed
from edgevision.errors import UsageError
from edgevision.files import write_text
from edgevision.recipe.options import listed
from edgevision.recipe.schema import BUNDLES, CHECKPOINT
from edgevision.recipe.stages import Job, Outcome, bundles_in, measured, verified

if TYPE_CHECKING:
    from edgevision_benchmarks.report import Report
    from edgevision_benchmarks.result import Result

# measured where the recipe names no engines: those of these that are installed
_ENGINES = ("onnxruntime", "openvino", "ncnn")
SUMMARY = "stages.csv"


def make_report(job: Job) -> Outcome:
    """Make the bundles that are missing, measure all of them side by side, and write the report.

    FP32 bundles of every Checkpoint among the stages, the INT8 ones of the last network, and whatever bundles the
    recipe's own stages made; the model of a bundle is called as the stage that its network comes from, and so is its
    point on the plot.
    """
    bundles, checks = _bundles(job, _targets(job))
    reference = next((str(bundle.path) for bundle in bundles if bundle.manifest.precision == "fp32"), None)
    rows = summary(measured(job, bundles, title=job.recipe.name, reference=reference))
    write_text(job.folder / SUMMARY, _csv(rows))
    return Outcome(_best(rows), checks)


def _targets(job: Job) -> tuple[str, ...]:
    """The recipe's, else those that its bundles are for, else what is here."""
    named = listed(job.stage.options, "targets")
    made = [
        target
        for name in job.stage.sources
        if job.recipe.leaves(name) == BUNDLES
        for target in listed(job.recipe.stage(name).options, "targets")
    ]
    chosen = named or tuple(target for target in dict.fromkeys(made or _ENGINES) if installed(target))
    if not chosen:
        raise UsageError('no engine to measure on is installed here: pip install "edgevision[convert]"')
    return chosen


def _bundles(job: Job, targets: tuple[str, ...]) -> tuple[list[Bundle], dict[str, bool]]:
    """All to be measured, in the order of the stages, and whether those made here keep to their thresholds."""
    from edgevision.pipeline.convert import convert

    networks = [name for name in job.stage.sources if job.recipe.leaves(name) != BUNDLES]
    converted = [name for name in job.stage.sources if job.recipe.leaves(name) == BUNDLES]
    there = [bundle for name in converted for bundle in bundles_in(job.folders[name])]
    there = [bundle for bundle in there if bundle.manifest.target in targets]
    known = {_key(bundle) for bundle in there}
    made: list[Bundle] = []
    for name in networks:
        precisions = ["fp32"] if job.recipe.leaves(name) == CHECKPOINT else []
        if name == networks[-1] and job.stage.data.train is not None and not _has_int8(job, name, converted):
            precisions.append("int8")
        for precision in precisions:
            missing = [target for target in targets if (name, target, precision) not in known]
            if missing:
                made += convert(
                    job.folders[name],
                    targets=missing,
                    precision=precision,
                    data=job.stage.data.train,
                    out=job.folder / "bundles",
                    name=name,
                )
    order = {name: index for index, name in enumerate(networks)}
    everything = sorted([*made, *there], key=lambda bundle: order.get(bundle.manifest.name, len(order)))
    return everything, verified(made)


def _key(bundle: Bundle) -> tuple[str, str, str] | None:
    """What a bundle is on the plot; none for a compressed one, which stands beside the plain one."""
    manifest = bundle.manifest
    return None if bundle.compression else (manifest.name, manifest.target, manifest.precision)


def _has_int8(job: Job, network: str, converted: list[str]) -> bool:
    stages = [job.recipe.stage(name) for name in converted]
    return any(
        stage.sources == (network,) and "int8" in listed(stage.options, "precision", ("fp32",)) for stage in stages
    )


def summary(report: Report) -> list[dict[str, Any]]:
    """A row for every bundle: its accuracy and time, and both against the first FP32 row of its engine.

    Times are medians of the engine alone, milliseconds; ratios are taken within one number of threads.
    """
    first: dict[tuple[str, int], Result] = {}
    for row in report.results:
        if row.precision == "fp32" and row.latency_ms is not None:
            first.setdefault((row.target, row.threads), row)
    quality = "map" if any(row.metric == "mAP" for row in report.results) else "top1"
    return [_summary_row(row, first.get((row.target, row.threads)), quality) for row in report.results]


def _summary_row(row: Result, first: Result | None, quality: str) -> dict[str, Any]:
    time = None if row.latency_ms is None else row.latency_ms["p50"]
    base = None if first is None or first.latency_ms is None else first.latency_ms["p50"]
    accuracy = None if row.accuracy is None else round(100 * row.accuracy, 2)
    lost = None
    if first is not None and first.accuracy is not None and row.accuracy is not None:
        lost = round(100 * (first.accuracy - row.accuracy), 2)
    return {
        "stage": row.model,
        "target": row.target,
        "precision": row.precision,
        "threads": row.threads,
        quality: accuracy,
        "points_lost": lost,
        "pictures": row.n,
        "p50_ms": None if time is None else round(time, 4),
        "speedup": None if time is None or base is None else round(base / time, 2),
        "engine_bytes": row.engine_bytes,
    }


def _best(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Greatest speed-up over the first network on the same engine, and what it costs."""
    timed = [row for row in rows if row["speedup"] is not None]
    if not timed:
        return {}
    best = max(timed, key=lambda row: row["speedup"])
    return {"speedup": best["speedup"], "points_lost": best["points_lost"]}


def _csv(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def read_summary(folder: str | Path) -> list[dict[str, str]]:
    """The rows of `SUMMARY` in a report's folder, as they are written; none where there is no such file."""
    path = Path(folder) / SUMMARY
    if not path.is_file():
        return []
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
