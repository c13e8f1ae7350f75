from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import PROVENANCE, full_report, one_row, result

from edgevision import dependencies
from edgevision.errors import DataError, MissingDependencyError, OutputError, UsageError
from edgevision_benchmarks.report import Report
from edgevision_benchmarks.report.charts import SIZE, pareto_front, scatter
from edgevision_benchmarks.report.layout import comparisons, labels, number, size
from edgevision_benchmarks.report.page import html
from edgevision_benchmarks.report.text import csv_text, markdown
from edgevision_benchmarks.statistics import wilson


def test_json_round_trip(tmp_path: Path) -> None:
    report = full_report()
    report.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "results.md", "results.csv", "results.json"}
    assert Report.load(tmp_path) == report
    assert Report.load(tmp_path / "results.json") == report
    values = json.loads((tmp_path / "results.json").read_text())
    assert {"results", "errors", "environment", "provenance"} <= set(values)
    assert [row["error"] for row in values["errors"]] == [report.results[-1].error]


def test_csv_holds_every_row_and_value() -> None:
    report = full_report()
    rows = list(csv.DictReader(io.StringIO(csv_text(report))))
    assert len(rows) == len(report.results)
    for row, expected in zip(rows, report.results, strict=True):
        assert row["bundle"] == expected.bundle
        if expected.latency_ms is None:
            assert row["latency_ms_p50"] == row["accuracy"] == ""
            assert row["error"] == expected.error
            continue
        assert float(row["latency_ms_p50"]) == expected.latency_ms["p50"]
        assert float(row["accuracy"]) == expected.accuracy
        assert expected.median_ci95 is not None
        assert float(row["median_ci95_low"]) == expected.median_ci95[0]
        assert [float(value) for value in row["round_p50_ms"].split()] == list(expected.round_p50_ms)
        assert row["date"] == PROVENANCE["date"]


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)


@given(model=names, error=names)
@settings(max_examples=40, deadline=None)
def test_any_name_survives_every_view(model: str, error: str) -> None:
    report = one_row(model=model, error=error)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert next(csv.DictReader(io.StringIO(csv_text(report), newline="")))["model"] == model
    assert "</html>" in html(report)
    report.table()
    # a table line of its own: the name has not broken out of its cell
    heading, rule, row = markdown(report).splitlines()[2:5]
    assert heading.count("|") == rule.count("|") == row.replace("\\|", "").count("|")


def test_damaged_results_are_told(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(DataError, match="cannot read"):
        Report.load(path)
    for text in ("{", "[]", "{}", '{"schema_version": 1, "results": [{}]}'):
        path.write_text(text)
        with pytest.raises(DataError, match="not a results file"):
            Report.load(path)
    values = full_report().to_dict()
    path.write_text(json.dumps({**values, "schema_version": 99}))
    with pytest.raises(DataError, match="newer"):
        Report.load(path)
    del values["results"][0]["bundle"]
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"incomplete.*bundle"):
        Report.load(path)
    path.write_text(
        json.dumps({**full_report().to_dict(), "results": [replace(full_report().results[0], run=4).to_dict()]})
    )
    with pytest.raises(DataError, match="no run"):
        Report.load(path)


def test_keys_of_later_versions_are_passed_over() -> None:
    values = full_report().to_dict()
    values["results"][0]["power_w"] = 4.0
    assert Report.from_dict(values) == full_report()


def test_merged_rows_keep_their_runs(tmp_path: Path) -> None:
    board = Report.single(
        [result("ncnn", "int8", 40.0, 413)],
        {"board": {"value": "Raspberry Pi 5 Model B"}, "cpu": {"name": "4× Cortex-A76"}},
        {**PROVENANCE, "date": "2026-03-02T08:00:00+00:00"},
    )
    merged = Report.merged([full_report(), board, board])
    assert [row.run for row in merged.results] == [0] * 7 + [1, 2]
    assert merged.runs[1].label == "Raspberry Pi 5 Model B, 2026-03-02"
    merged.save(tmp_path)
    assert Report.load(tmp_path) == merged
    page = (tmp_path / "index.html").read_text()
    assert "Run 2: Raspberry Pi 5 Model B, 2026-03-02" in page
    plot = scatter(merged, width=800, height=400, font=14)
    assert plot is not None
    assert len(plot.fronts) == 3
    with pytest.raises(UsageError, match="no reports"):
        Report.merged([])


def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        full_report().save(tmp_path / "file" / "report")


def test_without_jinja_the_other_views_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "edgevision\[report\]"'):
        full_report().save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.md", "results.csv", "results.json"}


@pytest.mark.parametrize("with_rich", [True, False])
def test_the_terminal_table_names_rows_failures_and_units(with_rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevision_benchmarks.report.text.installed", lambda name: with_rich)
    text = full_report().table()
    lines = text.splitlines()
    order = [line.split()[1] for line in lines if line.split()[:1] == ["mobilenet_v2"]]
    assert order[0] == "OpenVINO"
    assert order[-1] == "TensorRT"
    assert "4.60 ±0.046" in text
    assert "83.0%" in text
    assert "no NVIDIA driver" in text
    assert "1 of 7 rows were not steady" in text


def test_names_in_the_terminal_table_are_no_markup() -> None:
    assert "[red]net" in one_row(model="[red]net").table()


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), max_size=25))
@settings(max_examples=300, deadline=None)
def test_pareto_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    found = set(pareto_front([(float(cost), float(value)) for cost, value in points]))
    expected = {
        index
        for index, (cost, value) in enumerate(points)
        if not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
    }
    assert found == expected


rows = st.lists(
    st.tuples(st.floats(0.01, 5000), st.integers(0, 500), st.sampled_from(["fp32", "fp16", "int8", "int4"])),
    min_size=1,
    max_size=12,
)


@given(rows, st.sampled_from([(960.0, 460.0, 14.0), (380.0, 400.0, 13.0)]))
@settings(max_examples=100, deadline=None)
def test_scatter_keeps_everything_inside_its_frame(
    drawn: list[tuple[float, int, str]], frame: tuple[float, ...]
) -> None:
    made = [result("alpha", precision, p50, right, model=f"m{n}") for n, (p50, right, precision) in enumerate(drawn)]
    report = Report.single(made, {}, PROVENANCE)
    plot = scatter(report, width=frame[0], height=frame[1], font=frame[2])
    assert plot is not None
    assert len(plot.points) == len(drawn)
    assert len(plot.y_ticks) >= 2
    # coordinates are rounded to a tenth
    for point in plot.points:
        assert plot.left - 0.1 <= point.x <= plot.right + 0.1
        assert plot.top - 0.1 <= point.y <= plot.bottom + 0.1
        assert point.y_low is not None
        assert point.y_high is not None
        assert plot.top - 0.1 <= point.y_high <= point.y <= point.y_low <= plot.bottom + 0.1
    for tick in (*plot.x_ticks, *plot.y_ticks):
        assert 0 <= tick.at <= frame[0]
    # faster stands further left, better further up
    places = {point.index: point for point in plot.points}
    for i, a in enumerate(made):
        for j, b in enumerate(made):
            if (a.p50 or 0) < (b.p50 or 0):
                assert places[i].x <= places[j].x
            if (a.accuracy or 0) < (b.accuracy or 0):
                assert places[i].y >= places[j].y


def test_scatter_of_the_sample_has_the_front_one_expects() -> None:
    plot = scatter(full_report(), width=960, height=460, font=14)
    assert plot is not None
    names = labels(full_report())
    front = {names[point.index] for point in plot.points if point.on_front}
    assert front == {"OpenVINO INT8", "OpenVINO FP32"}
    assert all(point.label for point in plot.points if point.on_front)


def test_without_accuracy_there_is_no_scatter_but_a_hint() -> None:
    report = one_row(accuracy=None, accuracy_ci95=None, top5=None, agreement=None, agreement_ci95=None)
    assert scatter(report, width=960, height=460, font=14) is None
    assert "--data KIND:PATH" in html(report)


def test_agreement_stands_in_where_accuracy_is_unknown() -> None:
    plot = scatter(one_row(accuracy=None, accuracy_ci95=None), width=960, height=460, font=14)
    assert plot is not None
    assert plot.measure == "agreement"


def test_a_report_of_failures_alone_is_a_page() -> None:
    report = Report.single([result("alpha", "int8", None, None, error="it crashed")], {}, PROVENANCE)
    page = html(report)
    assert "1 of 1 failed" in page
    assert "it crashed" in page
    assert "it crashed" in markdown(report)


def test_comparisons_pair_equal_engines_and_threads() -> None:
    found = {labels(full_report())[full_report().results.index(item.row)]: item for item in comparisons(full_report())}
    assert set(found) == {"ONNX Runtime INT8", "OpenVINO INT8", "ncnn INT8"}
    openvino = found["OpenVINO INT8"]
    assert openvino.speedup == pytest.approx(2.0)
    assert openvino.accuracy_points == pytest.approx(100 * (415 - 418) / 500)
    assert openvino.size_ratio == pytest.approx(3.9 / 14.0)


def test_markup_in_names_is_escaped() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    page = html(one_row(model=evil, bundle=evil, target=evil, error=evil, engine_version=evil))
    # the page's own script is the only one
    assert page.count("<script") == 1
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    text = markdown(one_row(model=evil, bundle=evil))
    assert "<script" not in text
    assert "<img" not in text


def test_the_page_fetches_nothing() -> None:
    page = html(full_report())
    for marker in ("http://", "https://", "//cdn", "@import", "url(", " src=", "<link"):
        assert marker not in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (0.01234, "0.012"), (4.567, "4.57"), (11.25, "11.2"), (1034.4, "1034")],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (999, "999 B"), (13_100_000, "13.1 MB"), (2.5e9, "2.50 GB")])
def test_sizes_are_decimal(value: float | None, text: str) -> None:
    assert size(value) == text


def test_one_title_names_the_models() -> None:
    assert one_row().title == "Benchmark of mobilenet_v2"
    many = [result("alpha", "fp32", 1.0, 400, model=f"m{n}") for n in range(5)]
    assert Report.single(many, {}, {}).title == "Benchmark of 5 models"
    assert Report.single(many, {}, {}, title="Mine").title == "Mine"
    assert wilson(400, 500) == one_row().results[0].accuracy_ci95


def compressed_report() -> Report:
    rows = [
        result("onnxruntime", "fp32", 11.2, 418, stored_bytes=13_000_000),
        result("onnxruntime", "fp32", 11.2, 418, stored_bytes=9_900_000, compression="lossless"),
        result("onnxruntime", "fp32", 11.3, 412, stored_bytes=2_500_000, compression="6 bits"),
        result("onnxruntime", "int8", 5.9, 411, stored_bytes=3_600_000),
    ]
    return Report.single(rows, {}, PROVENANCE)


def test_a_compressed_bundle_is_another_configuration() -> None:
    report = compressed_report()
    names = ["ONNX Runtime FP32", "ONNX Runtime FP32, lossless", "ONNX Runtime FP32, 6 bits", "ONNX Runtime INT8"]
    assert labels(report) == names
    found = comparisons(report)
    # lossless answers as FP32 does and is no comparison; all others stand against the one that is not compressed
    assert [item.row.compression for item in found] == ["6 bits", None]
    assert all(item.base.compression is None for item in found)
    assert found[0].size_ratio == pytest.approx(2.5 / 13.0)
    assert found[1].size_ratio == pytest.approx(3.9 / 14.0)
    assert "FP32, 6 bits" in markdown(report)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_size_against_accuracy_is_drawn_where_something_is_compressed() -> None:
    report = compressed_report()
    plot = scatter(report, width=960, height=460, font=14, cost=SIZE)
    assert plot is not None
    assert len(plot.points) == 4
    front = [report.results[point.index] for point in plot.points if point.on_front]
    # nothing is smaller than 6 bits, nothing more accurate than what is lossless; INT8 is larger and worse
    assert {row.compression for row in front} == {"6 bits", "lossless"}
    assert any("2.50 MB" in point.text for point in plot.points)
    page = html(report)
    assert page.startswith("<!doctype html>")
    assert "Accuracy against size" in page
    assert "Stored" in page
    assert "Accuracy against size" not in html(full_report())
    assert "Stored" not in html(full_report())


def test_counts_of_an_emulated_core_have_a_table_and_no_place_among_times() -> None:
    counts = {
        "instructions": 101_600_000,
        "bytes_loaded": 300_000_000,
        "bytes_stored": 400_000,
        "multiply": 7,
        "dot": 0,
    }
    entry = {"bundle": "a.evb", "model": "mobilenet_v2", "target": "ncnn", "precision": "int8", "counts": counts}
    provenance = {**PROVENANCE, "device": "emulated cortex-a72", "cost_proxy": [entry]}
    report = Report.single([result("ncnn", "int8", None, 411)], {}, provenance)
    row = "<td>unknown machine (emulated cortex-a72)</td>" + "".join(
        f'<td class="num">{figure}</td>' for figure in ("101.600", "300.400", "0.000", "0.000")
    )
    assert row in html(report)
    assert "| unknown machine (emulated cortex-a72) | 101.600 | 300.400 | 0.000 | 0.000 |" in markdown(report)
    assert "Counted under emulation" not in html(full_report()) + markdown(full_report())
    del counts["dot"]
    with pytest.raises(DataError, match="cost_proxy"):
        Report.from_dict(json.loads(json.dumps(report.to_dict())))
