"""The registry on the command line, and estimates from real bundles and a real bench."""

from __future__ import annotations

import json

import pytest

from edgevision.bundle import Bundle
from edgevision.devices.boards import BOARDS
from edgevision.devices.cores import CORES
from edgevision.devices.layers import layer_costs
from tests.cli.conftest import call


def test_the_registry_is_listed() -> None:
    outcome = call("devices", "--json")
    assert outcome.code == 0, outcome.err
    assert set(outcome.document) == {"this_machine", "boards", "cores"}
    assert set(outcome.document["boards"]) == set(BOARDS)
    spoken = call("devices").out
    assert all(name in spoken for name in (*BOARDS, *CORES))
    # what was not looked up is marked
    assert "12.8?" in spoken
    assert "153.6" in spoken
    assert "153.6?" not in spoken


@pytest.mark.parametrize("name", ["jetson-agx-orin", "cortex-a53", "this"])
def test_an_entry_shows_its_sources(name: str) -> None:
    spoken = call("devices", name)
    assert spoken.code == 0, spoken.err
    assert name in spoken.out or name == "this"
    found = call("devices", name, "--json").document
    for figure in [
        *found.get("rates", {}).values(),
        *(f for unit in found.get("peaks", {}).values() for f in unit.values()),
    ]:
        assert figure["source"] in spoken.out


def test_names_that_do_not_exist() -> None:
    outcome = call("devices", "jetson-orin-nan")
    assert outcome.code == 2
    assert "did you mean jetson-orin-nano" in outcome.err


def test_engines_files_of_one_network_cost_the_same(house) -> None:
    costs = {}
    for target in ("onnxruntime", "openvino", "ncnn", "tensorrt"):
        layers = layer_costs(Bundle.open(house.bundle(target, "fp32" if target != "tensorrt" else "int8")))
        costs[target] = [(layer.kind, layer.macs, layer.weights) for layer in layers if layer.macs]
    assert costs["ncnn"] == costs["openvino"] == costs["onnxruntime"] == costs["tensorrt"]
    assert sum(macs for _, macs, _ in costs["ncnn"]) == 360_640


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "ncnn"])
def test_the_plans_integers_are_seen_in_each_engines_file(house, target: str) -> None:
    layers = layer_costs(Bundle.open(house.bundle(target, "int8")))
    kinds = {layer.precision for layer in layers if layer.macs}
    assert "int8" in kinds
    if target == "ncnn":
        assert {layer.precision for layer in layers if layer.kind == "depthwise"} == {"fp32"}


def test_estimates_calibrated_by_a_bench(house, tmp_path) -> None:
    bundle = house.bundle("ncnn", "int8")
    bench = call("bench", bundle, "--rounds", "1", "--seconds", "0.1", "-o", tmp_path / "report", "--quiet")
    assert bench.code == 0, bench.err
    # whether this machine was quiet meanwhile is another matter
    path = tmp_path / "report" / "results.json"
    document = json.loads(path.read_text())
    for row in document["results"]:
        row["flags"] = []
    path.write_text(json.dumps(document))
    arguments = ("devices", "--estimate", bundle, "--on", "raspberry-pi-5,this", "--calibrate", tmp_path / "report")
    outcome = call(*arguments, "--threads", "1", "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.document
    assert found["kind"] == "ESTIMATE"
    assert found["skipped"] == []
    assert len(found["calibration"]) == 1
    board, this = found["estimates"]
    assert board["estimate_ms"] > board["roofline_ms"] * 0.01
    # calibrated by this machine's one result, its own estimate is that result
    assert this["estimate_ms"] == pytest.approx(found["calibration"][0]["measured_ms"])
    spoken = call(*arguments).out
    assert spoken.startswith("ESTIMATE, not measured")
    assert "Measured, and used to calibrate" in spoken


def test_wrong_usage(house) -> None:
    bundle = house.bundle("ncnn", "int8")
    assert call("devices", "--on", "raspberry-pi-4").code == 2
    assert call("devices", "raspberry-pi-4", "--estimate", bundle).code == 2
    assert call("devices", "--estimate", bundle).code == 2
    assert call("devices", "--estimate", bundle, "--on", "cortex-a76").code == 2
    assert call("devices", "--estimate", house.root / "none.evb", "--on", "raspberry-pi-4").code == 1
