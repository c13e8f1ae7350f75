"""``edgevision report``: comparing as a gate, histories, the schema, and results that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgevision_benchmarks.report import Report
from edgevision_benchmarks.result import Result
from edgevision_benchmarks.statistics import sketch
from tests.cli.conftest import call

MACHINE = {"cpu": {"name": "Cortex-A76"}}


def results(path: Path, factor: float, seed: int, **changes: object) -> Path:
    """A results file of one row whose five rounds scatter by a percent."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(5):
        runs = 10.0 * factor * np.exp(rng.normal(0.0, 0.01)) * np.exp(rng.gamma(1.0, 0.02, 60))
        samples.append({"n": 60, "ms": sketch((runs * 1e6).astype(int).tolist()), "peak_memory_bytes": None})
    values: dict[str, object] = {
        "bundle": "a.evb", "model": "net", "target": "ncnn", "precision": "int8", "threads": 1,
        "latency_ms": {"p50": 10.0 * factor, "p90": None, "p95": None, "p99": None, "mean": 1, "min": 1, "std": 0},
        "n_runs": 300, "samples": tuple(samples), "engine_version": "1.0",
    }  # fmt: skip
    row = Result(**{**values, **changes})  # type: ignore[arg-type]
    report = Report.single([row], MACHINE, {"date": f"2026-03-{seed:02}T10:00:00+00:00"})
    path.mkdir(parents=True)
    (path / "results.json").write_text(json.dumps(report.to_dict()))
    return path / "results.json"


def test_compare_is_a_gate(tmp_path):
    before, same, slow = (
        results(tmp_path / name, factor, seed)
        for name, factor, seed in (("before", 1.0, 1), ("same", 1.0, 2), ("slow", 1.1, 3))
    )
    outcome = call("report", "--compare", before, same)
    assert outcome.code == 0, outcome.err
    assert "0 worse beyond noise" in outcome.out
    outcome = call("report", "--compare", before, slow)
    assert outcome.code == 3
    assert "regression: net ncnn int8, 1 thread on Cortex-A76: latency" in outcome.out
    found = call("report", "--compare", before, slow, "--json")
    assert found.code == 3
    document = found.document
    assert document["regression"] is True
    (pair,) = document["pairs"]
    assert (pair["model"], pair["target"], pair["precision"], pair["threads"]) == ("net", "ncnn", "int8", 1)
    (change,) = pair["changes"]
    assert change["verdict"] == "worse"
    # a tenth was planted; rounds scatter by a percent, so their means by half of one
    assert change["change"] == pytest.approx(1.1, abs=0.03)
    assert 1.0 < change["low"] < change["change"] < change["high"]
    # what one calls slow is one's own business
    assert call("report", "--compare", before, slow, "--threshold", 20).code == 0
    assert not (Path("report")).exists()


def test_wrong_use_is_told(tmp_path):
    before = results(tmp_path / "before", 1.0, 1)
    for arguments, message in (
        ([], "name the results.json"),
        ([before, "--schema"], "take no further results"),
        (["--compare", before, before, "--threshold", -1], "thresholds must be 0 or more"),
    ):
        outcome = call("report", *arguments)
        assert outcome.code == 2, outcome.err
        assert message in outcome.err


def test_the_schema_is_printed():
    found = call("report", "--schema").document
    assert found["$schema"].startswith("https://json-schema.org/")
    assert {"results", "environment", "provenance", "schema_version"} <= set(found["properties"])


def test_results_that_cannot_be_compared(tmp_path):
    before = results(tmp_path / "before", 1.0, 1)
    whole = before.read_text()
    for name, text, message in (
        ("cut", whole[: len(whole) // 2], "not a results file"),
        ("newer", whole.replace('"schema_version": 2', '"schema_version": 7'), "pip install --upgrade edgevision"),
        ("wrong", whole.replace('"threads": 1', '"threads": "one"'), "threads: expected integer"),
        ("other", whole.replace("Cortex-A76", "Cortex-A53"), "share no configuration"),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(text)
        outcome = call("report", "--compare", before, path)
        assert outcome.code == 1, outcome.out
        assert message in outcome.err
        assert len(outcome.err.strip().splitlines()) == 1
        assert outcome.out == ""


def test_bench_keeps_a_history_and_report_plots_it(house, tmp_path):
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    kept = tmp_path / "history.sqlite"
    bundle = house.bundle("onnxruntime", "fp32")
    for _ in range(2):
        outcome = call("bench", bundle, "--rounds", 1, "--seconds", 0.01, "--history", kept, "--json")
        assert outcome.code == 0, outcome.err
    drawn = call("report", "--history", kept, "-o", tmp_path / "course", "--json")
    assert drawn.code == 0, drawn.err
    assert drawn.document == {"report": str(tmp_path / "course" / "index.html"), "runs": 2, "results": 2}
    assert "<svg" in (tmp_path / "course" / "index.html").read_text()
    assert call("report", "--history", tmp_path / "none.sqlite").code == 1
    # told before anything is measured
    refused = call("bench", bundle, "--history", "nonsense://host/name", "--rounds", 1000)
    assert refused.code == 2
    assert "no such kind of database" in refused.err


def test_bench_runs_mlperfs_scenarios(house):
    bundle = house.bundle("onnxruntime", "fp32")
    outcome = call(
        "bench", bundle, "--rounds", 2, "--seconds", 0.01, "--scenarios", "offline", "--offline-batch", 4, "--layers",
        "--queries", 130, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    (row,) = outcome.document["results"]
    assert row["offline"]["batch"] == 4
    assert row["offline"]["samples_per_second"] > 0
    assert row["n_runs"] >= 130
    assert row["latency_ms"]["p95"] is not None
    assert any(layer["op"] == "Conv" for layer in row["layers"])
    assert call("bench", bundle, "--scenarios", "server").code == 2
    assert "unknown scenario" in call("bench", bundle, "--scenarios", "turbo").err
