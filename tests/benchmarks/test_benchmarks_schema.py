"""The published JSON Schema holds for what is written, old and new, and says what is wrong with what is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from report_samples import full_report

from edgevision.errors import DataError
from edgevision_benchmarks.bench import bench
from edgevision_benchmarks.report import Report
from edgevision_benchmarks.result import Result
from edgevision_benchmarks.schema import KEYWORDS, complaint, schema


def rules(rule: Any) -> Iterator[dict[str, Any]]:
    """Every schema within a schema; names of properties are no keywords."""
    if isinstance(rule, dict):
        yield rule
        for key, value in rule.items():
            inner = value.values() if key in {"properties", "$defs"} else value if isinstance(value, list) else [value]
            for each in inner:
                yield from rules(each)


def test_the_schema_keeps_to_what_the_check_understands() -> None:
    found = {key for rule in rules(schema()) for key in rule}
    assert found <= KEYWORDS


def test_every_field_of_a_row_is_in_the_schema() -> None:
    assert set(schema()["$defs"]["row"]["properties"]) == {field.name for field in fields(Result)}


def test_a_real_report_keeps_the_schema(make_bundle, labelled, tmp_path) -> None:
    good, bad = make_bundle("good"), make_bundle("bad", target="beta", precision="int8", load="refuse")
    report = bench(
        [good, bad], f"csv:{labelled}", rounds=2, seconds=0.01, min_runs=5, scenarios=["offline"], layers=True
    )
    report.save(tmp_path)
    values = json.loads((tmp_path / "results.json").read_text())
    assert complaint(values) is None
    row = values["results"][0]
    assert len(row["samples"]) == 2
    assert sum(each["n"] for each in row["samples"]) == row["n_runs"] >= 64
    assert row["latency_ms"]["p90"] is not None
    assert row["p90_bound_ms"] >= row["latency_ms"]["p90"]
    assert row["steady_memory_bytes"] <= row["peak_memory_bytes"]
    assert row["preprocess_ms"]["p50"] > 0
    assert row["postprocess_ms"]["p50"] > 0
    assert {"before", "during", "after"} <= set(row["conditions"])
    assert row["correct"] is not None
    assert row["quality_met"] is True
    assert row["reference_accuracy"] == row["accuracy"]
    assert Report.load(tmp_path) == report
    # a round's samples take a line each, not a hundred
    assert all(len(line) < 2000 for line in (tmp_path / "results.json").read_text().splitlines())


def test_jsonschema_agrees() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(schema()).validate(full_report().to_dict())


def test_a_file_of_version_1_is_read() -> None:
    values = full_report().to_dict()
    old = {
        "bundle", "model", "target", "precision", "threads", "batch", "latency_ms", "median_ci95", "n_runs", "stable",
        "round_p50_ms", "images_per_second", "cpu_ms", "end_to_end_ms", "load_ms", "first_load_ms",
        "first_inference_ms", "peak_memory_bytes", "size_bytes", "engine_bytes", "accuracy", "accuracy_ci95", "top5",
        "n", "agreement", "agreement_ci95", "cosine", "sqnr_db", "reference", "engine_version", "sha256",
        "engine_sha256", "error", "run",
    }  # fmt: skip
    values["schema_version"] = 1
    values["results"] = [{key: value for key, value in row.items() if key in old} for row in values["results"]]
    report = Report.from_dict(json.loads(json.dumps(values)))
    row = report.results[0]
    assert (row.samples, row.flags, row.server, row.conditions) == ((), (), None, None)
    # its p99 was written down from 90 runs, and is not told
    assert row.latency_ms is not None
    assert row.latency_ms["p99"] > 0
    assert row.tail("p99") is None
    assert row.tail("p90") == row.latency_ms["p90"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("results", 0, "latency_ms"), "fast", r"results\[0\]\.latency_ms: expected object; got \"fast\""),
        (("results", 0, "latency_ms"), {"p90": 1.0}, r"results\[0\]\.latency_ms: 'p50' is missing"),
        (("results", 1, "accuracy"), 1.4, r"results\[1\]\.accuracy: expected 0 to 1; got 1\.4"),
        (("results", 1, "accuracy"), float("nan"), r"results\[1\]\.accuracy: expected 0 to 1; got nan"),
        (("results", 0, "median_ci95"), [1.0], r"median_ci95: expected 2 to 2 items; got 1"),
        (("results", 0, "threads"), True, r"threads: expected integer; got true"),
        (("results", 0, "samples"), [{"n": 3, "ms": []}], r"samples\[0\]\.ms: expected 1 to 0 items|at least"),
        (("results", 0, "server"), {"percentile": "p42"}, r"server\.percentile: expected one of"),
        (("provenance",), [], "provenance: expected object"),
    ],
)
def test_what_is_wrong_is_told_by_its_place(path: tuple[Any, ...], value: Any, message: str) -> None:
    values = copy.deepcopy(full_report().to_dict())
    target = values
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    found = complaint(values)
    assert found is not None
    with pytest.raises(DataError, match=message):
        Report.from_dict(values)


def test_a_file_cut_anywhere_is_told(tmp_path) -> None:
    full_report().save(tmp_path)
    whole = (tmp_path / "results.json").read_bytes()
    for end in range(0, len(whole) - 2, len(whole) // 40):
        (tmp_path / "cut.json").write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"cut\.json: not a results file"):
            Report.load(tmp_path / "cut.json")
    (tmp_path / "cut.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a results file"):
        Report.load(tmp_path / "cut.json")
