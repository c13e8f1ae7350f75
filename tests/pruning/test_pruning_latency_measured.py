"""Layers timed on real engines, and ``edgevision prune --latency`` as a person calls it. No time is asserted on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import edgevision as ev
from edgevision.checkpoint import Checkpoint
from edgevision.errors import MissingDependencyError, UsageError
from edgevision.models import create_model
from edgevision.pipeline import layer_timing, prune_latency
from edgevision.pipeline.layer_timing import COPIES, measure_table, probe_graph
from edgevision.preprocess import Preprocess
from edgevision.pruning.latency_table import LatencyTable, LayerPoint
from tests.cli.conftest import call
from tests.pruning.layer_work import multiply_adds

onnxruntime = pytest.importorskip("onnxruntime")


def conv(channels_in, channels_out, *, size=8, kernel=1, groups=1, kind="conv"):
    edge = kernel // 2
    return LayerPoint(
        kind, channels_in, channels_out, groups, (kernel, kernel), (1, 1), (edge, edge), (1, 1), (size, size), True
    )  # fmt: skip


LINEAR = LayerPoint("linear", 8, 5, 1, (1, 1), (1, 1), (0, 0), (1, 1), (1, 1), True)
POINTS = [conv(4, 8), conv(4, 4), conv(8, 4, kernel=3), conv(8, 8, kernel=3, groups=8, kind="depthwise"), LINEAR]


@pytest.fixture(autouse=True)
def own_cache_and_no_long_timing(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(layer_timing, "_PASSES", 1)
    monkeypatch.setenv("EDGEVISION_CACHE", str(tmp_path_factory.getbasetemp() / "latency-cache"))


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model("repvgg_tiny", width=0.25, num_classes=3, input_size=32).eval()
    folder = tmp_path_factory.mktemp("latency") / "net"
    Checkpoint.from_model(model, preprocess=Preprocess(size=(32, 32))).save(folder)
    return folder


def test_probe_graphs_hold_the_layers_and_nothing_large_leaves_them():
    graph = probe_graph([4, 8, conv(4, 16), conv(8, 8, kernel=3, groups=8, kind="depthwise")], (8, 8))
    kinds = [node.op_type for node in graph.nodes]
    assert kinds.count("Conv") == 2 * COPIES
    assert kinds.count("Slice") == 1  # the input has 8 channels already
    session = onnxruntime.InferenceSession(graph.to_bytes(), providers=["CPUExecutionProvider"])
    picture = np.random.default_rng(0).random((1, 8, 8, 8), np.float32)
    outputs = session.run(None, {"input": picture})
    assert [output.shape for output in outputs] == [(1, 4), (1, 8), (1, 16 * COPIES), (1, 8 * COPIES)]
    # float32 means of 64 values
    np.testing.assert_allclose(outputs[0][0], picture[0, :4].mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("target", ["onnxruntime", "ncnn", "openvino"])
def test_layers_are_timed_on_the_engine_and_only_once(target, tmp_path, monkeypatch):
    pytest.importorskip(target)
    path = tmp_path / "table.json"
    table = measure_table(POINTS, path, target=target)
    assert table.missing(POINTS) == []
    assert all(np.isfinite(value) and value >= 0 for value in table.layers.values())
    assert table.target == target
    assert LatencyTable.open(path) == table
    monkeypatch.setattr(layer_timing, "_time", lambda *a: pytest.fail("measured again"))
    assert measure_table(POINTS, path, target=target) == table


def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path, monkeypatch):
    path, timed = tmp_path / "table.json", []

    def time(chunk, target, threads):
        if len(timed) == 2:
            raise KeyboardInterrupt
        timed.append([point.key for point in chunk])
        return dict.fromkeys(chunk, 0.5)

    monkeypatch.setattr(layer_timing, "_time", time)
    with pytest.raises(KeyboardInterrupt):
        measure_table(POINTS, path, target="onnxruntime")
    done = [key for chunk in timed for key in chunk]
    assert set(LatencyTable.open(path).layers) == set(done)
    timed.clear()
    monkeypatch.setattr(layer_timing, "_time", lambda chunk, *a: timed.append(chunk) or dict.fromkeys(chunk, 0.25))
    table = measure_table(POINTS, path, target="onnxruntime")
    assert {point.key for chunk in timed for point in chunk} == {point.key for point in POINTS} - set(done)
    assert all(table.layers[key] == 0.5 for key in done)


def test_a_table_of_another_machine_is_not_added_to(tmp_path):
    path = tmp_path / "table.json"
    LatencyTable("onnxruntime", str(onnxruntime.__version__), "a board").save(path)
    with pytest.raises(UsageError, match=r"of another machine or engine \(device differ"):
        measure_table(POINTS, path, target="onnxruntime")


def test_an_engine_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="unknown target 'tflite'"):
        measure_table(POINTS, tmp_path / "table.json", target="tflite")
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependencyError, match="pip install"):
            measure_table(POINTS, tmp_path / "table.json", target="tensorrt")


@pytest.mark.parametrize("target", ["onnxruntime", "ncnn"])
def test_pruning_by_latency_on_a_real_engine(net, tmp_path, target, monkeypatch):
    pytest.importorskip(target)
    # the network is measured, but this machine's noise does not decide the test
    real = prune_latency.measure_latency
    took = []

    def measured(checkpoints, engine, *, rounds):
        took.append(real(checkpoints, engine, rounds=1))
        return [1.0, 0.7]

    monkeypatch.setattr(prune_latency, "measure_latency", measured)
    table = tmp_path / "table.json"
    written = call("prune", net, "--measure-latency", "--target", target, "-o", table, "--quiet", "--json")
    assert written.code == 0, written.err
    assert written.document["target"] == target
    assert written.document["layers"] == len(LatencyTable.open(table).layers) > 0
    arguments = ("--latency", 0.7, "--target", target, "--epochs", 0, "--round-to", 1, "--quiet", "--json")
    outcome = call("prune", net, *arguments, "--latency-table", table, "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert all(value > 0 for pair in took for value in pair)
    assert outcome.document["expected"]["target"] == target
    smaller = ev.load_checkpoint(tmp_path / "run")
    assert smaller.changes == ("pruned",)
    assert smaller.metrics["macs_ratio"] < 1
    report = json.loads((tmp_path / "run" / "latency.json").read_text())
    assert (report["met"], report["asked"], report["table"]["target"]) == (True, 0.7, target)
    assert report["rounds"][0]["measured"] == 0.7
    # a finished run is returned as it is
    count = len(took)
    assert call("prune", net, *arguments, "--latency-table", table, "-o", tmp_path / "run").code == 0
    assert len(took) == count


def test_a_network_that_does_not_become_fast_enough_exits_3(net, tmp_path, monkeypatch):
    monkeypatch.setattr(layer_timing, "_time", lambda chunk, *a: {p: multiply_adds(p) / 1e6 for p in chunk})
    monkeypatch.setattr(prune_latency, "measure_latency", lambda *a, rounds: [1.0, 0.99])
    outcome = call(
        "prune", net, "--latency", 0.05, "--target", "onnxruntime", "--epochs", 0, "-o", tmp_path / "run", "--quiet"
    )
    assert outcome.code == 3
    assert "asked for 5.0% of the latency on onnxruntime" in outcome.err
    assert "0.990 ms of 1.000 ms by measurement" in outcome.err
    assert not json.loads((tmp_path / "run" / "latency.json").read_text())["met"]
    # the folder is nobody's yet: a ratio that can be had may use it
    monkeypatch.setattr(prune_latency, "measure_latency", lambda *a, rounds: [1.0, 0.9])
    outcome = call(
        "prune", net, "--latency", 0.9, "--target", "onnxruntime", "--epochs", 0, "--round-to", 1, "-o",
        tmp_path / "run", "--quiet",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--latency", 1.5), "the ratio of latency to keep must be above 0 and below 1"),
        (("--latency", 0.5, "--macs", 0.5), "say how much to keep with one of --macs, --params, --latency"),
        (("--latency", 0.5, "--target", "none"), "name it with --target"),
        (("--latency", 0.5, "--steps", 2, "--epochs", 2, "--data", "digits"), "--latency prunes in one step"),
        (("--latency", 0.5, "--latency-table", "nowhere.json"), "nowhere.json cannot be read"),
        (("--latency-table", "nowhere.json", "--macs", 0.5), "--latency-table goes with --latency"),
    ],
)
def test_wrong_usage_exits_2(net, tmp_path, arguments, message):
    outcome = call("prune", net, "--epochs", 0, *arguments, "-o", tmp_path / "run")
    assert outcome.code == 2
    assert message in outcome.err
