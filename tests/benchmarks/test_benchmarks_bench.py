from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgevision.bundle import Bundle
from edgevision.data import open_dataset
from edgevision.errors import BundleError, DataError, EngineError, UsageError
from edgevision.runtime import load
from edgevision_benchmarks import bench as bench_module
from edgevision_benchmarks.bench import bench
from edgevision_benchmarks.probes import peak_memory_bytes, run_worker, size_bytes
from edgevision_benchmarks.report import Report
from edgevision_benchmarks.timing import TimingOptions
from edgevision_benchmarks.worker import ready_feed

QUICK = {"rounds": 2, "seconds": 0.02, "min_runs": 5}
TIMING = TimingOptions(min_runs=3, min_seconds=0.0, max_warmup_runs=12).to_dict()


def time_job(path: Path, **changes: object) -> dict[str, object]:
    return {"kind": "time", "bundle": str(path), "threads": 1, "batch": 1, "pictures": [], "options": TIMING, **changes}


def test_rows_hold_the_contract_and_what_was_measured(make_bundle, labelled) -> None:
    slow, fast = make_bundle("slow", seconds=0.004), make_bundle("fast", target="beta", precision="int8", noise=0.7)
    report = bench([slow, fast], f"csv:{labelled}", threads=[1, 2], **QUICK)
    rows = report.to_dict()["results"]
    assert [(Path(row["bundle"]).stem, row["threads"]) for row in rows] == [
        ("slow", 1), ("slow", 2), ("fast", 1), ("fast", 2),
    ]  # fmt: skip
    for row in rows:
        assert {"p50", "p90", "p99", "mean", "min"} <= set(row["latency_ms"])
        assert row["latency_ms"]["min"] <= row["latency_ms"]["p50"]
        # of the least times, which a busy machine does not touch; medians of two series may cross on one
        assert row["latency_ms"]["min"] <= row["end_to_end_ms"]["min"]
        assert row["n_runs"] >= 10
        assert len(row["round_p50_ms"]) == 2
        assert row["median_ci95"][0] <= row["latency_ms"]["p50"] <= row["median_ci95"][1]
        assert row["size_bytes"] == Path(row["bundle"]).stat().st_size
        assert row["load_ms"] > 0
        assert row["first_inference_ms"] > 0
        # an interpreter with numpy and Pillow is above 10 MB
        assert row["peak_memory_bytes"] > 10_000_000
        assert row["engine_version"] == "7.1"
        assert row["n"] == 40
        assert row["error"] is None
        assert len(row["sha256"]) == 64
    by_name = {Path(row["bundle"]).stem: row for row in rows if row["threads"] == 1}
    # the engine sleeps 4 ms, which costs time and no CPU time
    assert by_name["slow"]["latency_ms"]["p50"] >= 4.0
    assert by_name["slow"]["cpu_ms"]["min"] < 4.0
    assert by_name["slow"]["latency_ms"]["p50"] > by_name["fast"]["latency_ms"]["p50"]
    assert by_name["slow"]["accuracy"] == pytest.approx(0.8)
    assert by_name["slow"]["agreement"] == 1.0
    assert by_name["fast"]["reference"] == str(slow)
    with load(slow) as reference, load(fast) as session:
        images = [sample.image for sample in open_dataset(f"csv:{labelled}")]
        same = [a.label == b.label for a, b in zip(session.predict(images), reference.predict(images), strict=True)]
    assert by_name["fast"]["agreement"] == pytest.approx(np.mean(same))
    assert report.runs[0].provenance["data"]
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_rounds_take_turns(make_bundle, monkeypatch) -> None:
    paths = [make_bundle(name) for name in "abc"]
    order: list[tuple[str, int]] = []

    def record(job: dict[str, object], *, timeout_s: float) -> dict[str, object]:
        order.append((Path(str(job["bundle"])).stem, int(str(job["threads"]))))
        samples = {"wall_ns": [10**6] * 8, "cpu_ns": [10**6] * 8, "warmup_runs": 10, "settled": True}
        return {
            "load_ms": 1.0, "first_inference_ms": 1.0, "peak_memory_bytes": None, "engine": samples,
            "end_to_end": None, "engine_version": "1", "batch": 4,
        }  # fmt: skip

    monkeypatch.setattr(bench_module, "run_worker", record)
    report = bench(paths, threads=(1, 2), rounds=2, end_to_end=False)
    once = [(name, count) for count in (1, 2) for name in "abc"]
    assert order == once + once
    assert report.results[0].images_per_second == pytest.approx(4000.0)
    assert report.results[0].end_to_end_ms is None


@pytest.mark.parametrize(
    ("load_behaviour", "message"),
    [
        ("refuse", "the stand-in refuses this model"),
        ("abort", "SIGABRT; its last words: about to give up"),
        ("exit", "exit code 9"),
        ("bug", "KeyError: 'weights'"),
    ],
)
def test_a_failing_bundle_is_a_row_and_the_others_go_on(make_bundle, labelled, load_behaviour, message) -> None:
    good, bad = make_bundle("good"), make_bundle("bad", target="beta", load=load_behaviour)
    report = bench([bad, good], f"csv:{labelled}", rounds=1, seconds=0.0, min_runs=2)
    failed, measured = report.results
    assert message in (failed.error or "")
    assert failed.latency_ms is None
    assert failed.accuracy is None
    assert measured.error is None
    assert measured.accuracy == pytest.approx(0.8)
    assert [row["bundle"] for row in report.errors] == [str(bad)]


def test_a_hanging_bundle_is_ended(make_bundle) -> None:
    report = bench(make_bundle("hang", load="hang"), rounds=1, timeout_s=2.0)
    assert "did not end within 2 s" in (report.results[0].error or "")


def test_what_the_engine_prints_does_not_spoil_the_answer(make_bundle) -> None:
    answer = run_worker(time_job(make_bundle("a")))
    assert len(answer["engine"]["wall_ns"]) >= 3


def test_peak_memory_is_the_bundles_own(make_bundle) -> None:
    light = run_worker(time_job(make_bundle("light")))["peak_memory_bytes"]
    heavy = run_worker(time_job(make_bundle("heavy", megabytes=200)))["peak_memory_bytes"]
    # within 20 MB of allocator and loader noise
    assert heavy - light == pytest.approx(200 * 2**20, abs=20 * 2**20)
    # and nothing of this process, which is made larger than either
    ballast = np.ones(400 << 17)
    assert run_worker(time_job(make_bundle("again")))["peak_memory_bytes"] == pytest.approx(light, abs=20 * 2**20)
    assert ballast.nbytes < (peak_memory_bytes() or 0)


def test_a_data_set_in_memory_is_evaluated_too(make_bundle, labelled) -> None:
    dataset = open_dataset(f"csv:{labelled}")
    report = bench(make_bundle("a"), dataset, limit=10, **QUICK)
    assert report.results[0].n == 10
    assert report.results[0].agreement == 1.0


def test_raw_tensors_are_compared_with_fp32(make_bundle, labelled) -> None:
    plain = make_bundle("a", task="tensors")
    noisy = make_bundle("b", task="tensors", target="beta", precision="int8", noise=0.1)
    report = bench([plain, noisy], f"csv:{labelled}", **QUICK)
    assert [row.error for row in report.results] == [None, None]
    assert report.results[0].cosine is None
    assert 0.98 < (report.results[1].cosine or 0) < 1.0
    assert report.results[1].reference == str(plain)


def test_unlabelled_pictures_give_agreement_alone(make_bundle, labelled) -> None:
    plain, noisy = make_bundle("a"), make_bundle("b", precision="int8", noise=0.7)
    report = bench([noisy, plain], f"images:{labelled.parent / 'images'}", **QUICK)
    assert [row.error for row in report.results] == [None, None]
    assert report.results[0].accuracy is None
    assert 0 < (report.results[0].agreement or 0) < 1


def test_a_saved_bundle_can_be_given_and_an_unsaved_one_is_refused(make_bundle) -> None:
    bundle = Bundle.open(make_bundle("a"))
    assert bench(bundle, rounds=1, seconds=0.0).results[0].error is None
    bundle.path = None
    with pytest.raises(UsageError, match="has not been saved"):
        bench(bundle)


def test_mistakes_are_told_before_anything_is_measured(make_bundle, tmp_path) -> None:
    good = make_bundle("good")
    with pytest.raises(BundleError, match="no such bundle"):
        bench([good, tmp_path / "missing.evb"])
    with pytest.raises(DataError):
        bench(good, str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="at least one"):
        bench([])
    with pytest.raises(UsageError, match="threads"):
        bench(good, threads=-1)
    with pytest.raises(UsageError, match="unexpected keyword"):
        bench(good, seconds_per_round=3)


def test_the_reference_is_onnxruntimes_fp32_where_there_is_one(make_bundle) -> None:
    def candidate(name: str, target: str, precision: str, model: str = "net") -> bench_module._Candidate:
        bundle = Bundle.open(make_bundle(name, target=target, precision=precision, model=model))
        return bench_module._Candidate(name, bundle, times={1: [{}]})

    quantized = candidate("q", "beta", "int8")
    others = [candidate("alpha32", "alpha", "fp32"), candidate("beta32", "beta", "fp32")]
    strange = candidate("strange", "onnxruntime", "fp32", model="another")
    preferred = candidate("ort32", "onnxruntime", "fp32")
    choose = bench_module._reference_of
    assert choose(quantized, [quantized, *others, strange, preferred]) == "ort32"
    assert choose(quantized, [quantized, *others, strange]) == "beta32"
    assert choose(quantized, [quantized, others[0], strange]) == "alpha32"
    assert choose(quantized, [quantized, strange]) is None
    preferred.times.clear()
    assert choose(quantized, [quantized, *others, preferred]) == "beta32"


@pytest.mark.parametrize(("fixed", "batch", "expected"), [(None, 1, 1), (None, 5, 5), (4, 1, 4)])
def test_the_engine_is_fed_golden_inputs_of_its_batch(make_bundle, fixed, batch, expected) -> None:
    with load(make_bundle("a", golden=True, batch=fixed)) as session:
        feed = ready_feed(session, batch, [])["images"]
        golden = session.bundle.golden()["inputs"]["images"]
    assert feed.shape == (expected, 3, 8, 8)
    assert np.array_equal(feed[0], golden[0])
    assert np.array_equal(feed[-1], golden[(expected - 1) % len(golden)])


def test_the_engine_is_fed_pictures_without_golden_inputs(make_bundle, labelled) -> None:
    picture = str(labelled.parent / "images" / "00.png")
    with load(make_bundle("a")) as session:
        feed = ready_feed(session, 2, [picture])["images"]
        assert np.array_equal(feed, session.bundle.manifest.preprocess.batch([picture, picture]))
        assert ready_feed(session, 2, [])["images"].std() > 0.5


def test_an_unknown_job_is_an_answer(make_bundle) -> None:
    with pytest.raises(EngineError, match="unknown kind of job 'dance'"):
        run_worker({"kind": "dance"})


def test_size_of_a_folder_is_that_of_its_files(make_bundle, tmp_path) -> None:
    folder = Bundle.open(make_bundle("a")).save(tmp_path / "folder")
    assert size_bytes(folder) == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_measuring_imports_neither_torch_nor_onnx_nor_jinja() -> None:
    code = (
        "import sys, edgevision_benchmarks.bench, edgevision_benchmarks.worker, edgevision.devices.doctor\n"
        "print(sorted({'torch', 'onnx', 'jinja2', 'rich', 'psutil', 'sklearn'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_a_report_of_a_bench_is_saved_and_read_again(make_bundle, tmp_path) -> None:
    report = bench(make_bundle("a"), rounds=1, seconds=0.0, command=["edgevision", "bench", "my file.evb"])
    report.save(tmp_path / "report")
    again = Report.load(tmp_path / "report")
    assert again == report
    assert again.runs[0].provenance["command"] == "edgevision bench 'my file.evb'"


@pytest.mark.parametrize(
    ("given", "published"),
    [
        ("postgresql+psycopg://me:s3cr:et@host:5432/name", "postgresql+psycopg://me:***@host:5432/name"),
        (
            "postgresql://host/name?user=me&password=secret&sslmode=on",
            "postgresql://host/name?user=me&password=***&sslmode=on",
        ),
        ("ssh://pi@raspberry:22", "ssh://pi@raspberry:22"),
        ("csv:photos/a:b@c.csv", "csv:photos/a:b@c.csv"),
    ],
)
def test_a_published_command_holds_no_password(given: str, published: str) -> None:
    assert bench_module.without_password(given) == published


def test_a_report_made_with_a_databases_address_holds_no_password(make_bundle) -> None:
    command = ["edgevision", "bench", "a.evb", "--history", "postgresql://me:secret@host/name"]
    report = bench(
        make_bundle("a"), rounds=1, seconds=0.0, min_queries=5, min_runs=5, end_to_end=False, command=command
    )
    assert "secret" not in json.dumps(report.to_dict())


def test_a_bundle_that_changes_meanwhile_is_told(make_bundle, labelled, monkeypatch) -> None:
    path, other = make_bundle("a"), make_bundle("b", noise=1.0)
    original = bench_module._evaluate

    def replaced(*arguments: object) -> None:
        path.write_bytes(other.read_bytes())
        original(*arguments)

    monkeypatch.setattr(bench_module, "_evaluate", replaced)
    row = bench(path, f"csv:{labelled}", **QUICK).results[0]
    # latency of one file and accuracy of another are no row
    assert row.accuracy is None
    assert "changed while it was being measured" in (row.error or "")
