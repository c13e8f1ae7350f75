from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.bundle import Bundle
from edgevision.devices.boards import BOARDS
from edgevision.devices.calibration import Measured, fit, load_measured
from edgevision.devices.environment import environment
from edgevision.devices.estimate import estimate
from edgevision.devices.layers import LayerCost, layer_costs
from edgevision.devices.roofline import roofline
from edgevision.errors import DataError, UsageError
from tests.devices.bundles import save
from tests.devices.trees import raspberry_pi

DENSE = LayerCost("dense", "convolution", macs=192_000_000, weights=1000, inputs=1000, outputs=1000, precision="fp32")
ADD = LayerCost("add", "other", macs=0, weights=0, inputs=17_100_000, outputs=0, precision="fp32")
PI5 = BOARDS["raspberry-pi-5"]


def test_a_layer_takes_the_greater_of_computing_and_moving() -> None:
    found = roofline([DENSE, ADD], PI5, "ncnn", 1)
    # 384 M operations at 38.4 G a second; 68.4 MB at 17.1 GB a second
    assert found.layers[0].ms == pytest.approx(10.0)
    assert found.layers[1].ms == pytest.approx(4.0)
    assert found.ms == pytest.approx(14.0)
    assert found.memory_share == pytest.approx(4 / 14)
    assert (found.unit, found.threads, found.unverified, found.notes) == ("cpu", 1, (), ())


def test_threads_share_computing_and_not_the_memory() -> None:
    found = roofline([DENSE, ADD], PI5, "ncnn")
    assert found.threads == 4
    assert found.ms == pytest.approx(2.5 + 4.0)
    assert roofline([DENSE, ADD], PI5, "ncnn", 99).ms == pytest.approx(6.5)


def test_tensorrt_runs_on_the_gpu() -> None:
    integer = replace(DENSE, precision="int8")
    found = roofline([integer], BOARDS["jetson-orin-nano"], "tensorrt", 3)
    assert (found.unit, found.threads) == ("gpu", 0)
    assert found.layers[0].compute_ms == pytest.approx(0.384e9 / 20.5e12 * 1e3)
    old = roofline([integer], BOARDS["jetson-nano"], "tensorrt")
    assert old.layers[0].compute_ms == pytest.approx(0.384e9 / 0.472e12 * 1e3)
    assert old.notes == ("no INT8 arithmetic: reckoned at the rate of the next wider type",)
    with pytest.raises(UsageError, match="no NVIDIA GPU"):
        roofline([integer], PI5, "tensorrt")
    with pytest.raises(UsageError, match="no rates of its cores"):
        roofline([DENSE], BOARDS["jetson-xavier-nx"], "ncnn")


def test_an_unknown_bandwidth_is_said() -> None:
    found = roofline([DENSE, ADD], replace(PI5, bandwidth=None), "ncnn", 1)
    assert found.ms == pytest.approx(10.0)
    assert "not known" in found.notes[0]


def measured(ms: float, board: str = "pi", model: str = "net", **changed: Any) -> Measured:
    terms = {"roofline": 10.0, "depthwise": 1.0, "moved": 2.0, "layers": 50.0}
    return replace(Measured("ncnn", "int8", model, board, 1, ms, terms), **changed)


def test_one_result_gives_a_share_of_the_roofline_and_no_error_bar() -> None:
    found = fit([measured(20.0)])["ncnn", "int8"]
    assert found.weights == {"roofline": pytest.approx(2.0)}
    assert (found.factor, found.measured, found.boards) == (None, 1, ("pi",))


def test_results_that_agree_give_a_narrow_bar_and_others_a_wide_one() -> None:
    same = fit([measured(20.0, model=str(number)) for number in range(5)])["ncnn", "int8"]
    assert same.weights == {"roofline": pytest.approx(2.0)}
    assert same.factor == pytest.approx(1.0)
    wide = fit([measured(ms, model=str(ms)) for ms in (10.0, 20.0, 40.0)])["ncnn", "int8"]
    assert wide.weights == {"roofline": pytest.approx(2.0)}
    assert wide.factor is not None
    # by hand: what is left out is off by 3/2 of ln 2, by nothing, and by 3/2 of ln 2; t of 2 degrees is 4.303
    spread = 1.5 * math.log(2) * math.sqrt(2 / 3)
    assert wide.factor == pytest.approx(math.exp(4.303 * spread), rel=1e-3)
    assert wide.held_out == "row"


def test_with_two_boards_a_whole_board_is_left_out() -> None:
    rows = [measured(20.0, "pi", str(number)) for number in range(2)] + [measured(40.0, "orin")]
    found = fit(rows)["ncnn", "int8"]
    # each board counts once, however many rows it has
    assert found.weights == {"roofline": pytest.approx(math.sqrt(2 * 4))}
    assert (found.held_out, found.boards) == ("board", ("pi", "orin"))
    assert found.factor == pytest.approx(2.0**12.706, rel=1e-6)


def test_what_layers_and_bytes_cost_is_found_where_rows_tell() -> None:
    truth = {"roofline": 1.25, "moved": 0.5}
    rows = []
    for number in range(8):
        terms = {"roofline": 1.0 + number, "depthwise": 0.1, "moved": 3.0 + (number * 5) % 7, "layers": 20.0}
        ms = sum(weight * terms[name] for name, weight in truth.items())
        rows.append(measured(ms, model=str(number), terms=terms))
    found = fit(rows)["ncnn", "int8"]
    # the rows are exact, so the weights are found to rounding
    assert {name: round(weight, 6) for name, weight in found.weights.items() if weight > 1e-6} == truth
    assert found.factor == pytest.approx(1.0, abs=1e-6)
    assert found.ms({"roofline": 4.0, "depthwise": 9.0, "moved": 2.0, "layers": 9.0}) == pytest.approx(6.0)


def test_nothing_is_expected_to_beat_the_roofline_by_more_terms() -> None:
    rows = []
    for number in range(8):
        terms = {"roofline": 1.0 + number, "depthwise": 0.0, "moved": 3.0 + (number * 5) % 7, "layers": 20.0}
        rows.append(measured(0.3 * terms["roofline"] + terms["moved"], model=str(number), terms=terms))
    weights = fit(rows)["ncnn", "int8"].weights
    assert weights["roofline"] >= 1 or set(weights) == {"roofline"}
    assert all(weight >= 0 for weight in weights.values())


def test_engines_and_precisions_are_kept_apart() -> None:
    found = fit([measured(20.0), measured(40.0, engine="openvino"), measured(80.0, precision="fp32")])
    assert {key: round(value.weights["roofline"], 3) for key, value in found.items()} == {
        ("ncnn", "int8"): 2.0,
        ("openvino", "int8"): 4.0,
        ("ncnn", "fp32"): 8.0,
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 500.0), st.floats(0.1, 50.0), st.floats(0.0, 50.0)), min_size=2, max_size=10))
def test_the_bar_is_finite_and_weights_are_not_negative(times: list[tuple[float, float, float]]) -> None:
    rows = []
    for number, (ms, least, moved) in enumerate(times):
        terms = {"roofline": least, "depthwise": least / 9, "moved": moved, "layers": 30.0}
        rows.append(measured(ms, model=str(number), terms=terms))
    found = fit(rows)["ncnn", "int8"]
    assert found.factor is not None
    assert 1.0 <= found.factor < math.inf
    assert all(weight >= 0 for weight in found.weights.values())
    assert found.ms(rows[0].terms) > 0


def results(folder: Path, rows: list[dict[str, Any]], machine: dict[str, Any]) -> Path:
    path = folder / "results.json"
    document = {"schema_version": 1, "results": rows, "environment": machine, "further_runs": [], "provenance": {}}
    path.write_text(json.dumps(document))
    return path


def row(path: Path, ms: float, **changed: Any) -> dict[str, Any]:
    """A row of a results file for the bundle at ``path``."""
    digest = Bundle.open(path).digest
    values: dict[str, Any] = {"bundle": str(path), "model": "tiny", "target": "ncnn", "precision": "int8", "threads": 1}
    values |= {"batch": 1, "latency_ms": {"p50": ms}, "engine_sha256": digest, "error": None, "run": 0}
    return {**values, **changed}


@pytest.fixture
def pi(tmp_path: Path) -> dict[str, Any]:
    """Record of a Raspberry Pi 4."""
    return environment(raspberry_pi(tmp_path / "pi"))


def test_estimates_are_calibrated_by_measured_results(tmp_path: Path, pi: dict[str, Any]) -> None:
    bundle = save(tmp_path)
    layers = layer_costs(Bundle.open(bundle))
    least = roofline(layers, BOARDS["raspberry-pi-4"], "ncnn", 1).ms
    path = results(tmp_path, [row(bundle, 4 * least), row(bundle, 4 * least, model="again")], pi)
    found = estimate(bundle, ["raspberry-pi-5", "raspberry-pi-4"], calibrate=[path], threads=1)
    assert found["kind"] == "ESTIMATE"
    assert found["skipped"] == []
    another, same = found["estimates"]
    for item in (another, same):
        assert item["kind"] == "ESTIMATE"
        assert item["efficiency"] == pytest.approx(0.25)
        assert item["estimate_ms"] == pytest.approx(4 * item["roofline_ms"])
        assert not any(key.startswith("measured") for key in item)
    assert same["low_ms"] <= same["estimate_ms"] <= same["high_ms"]
    assert "other networks on this board" in same["basis"]
    # one board says nothing of how far another is off
    assert another["low_ms"] is another["high_ms"] is None
    assert "no error bar" in another["basis"]
    assert [entry["kind"] for entry in found["calibration"]] == ["measured", "measured"]
    assert found["calibration"][0]["board"] == "Raspberry Pi 4 Model B"
    json.dumps(found, allow_nan=False)


def test_without_results_there_is_a_roofline_and_no_estimate(tmp_path: Path) -> None:
    item = estimate(save(tmp_path), ["raspberry-pi-4"])["estimates"][0]
    assert item["roofline_ms"] > 0
    assert item["estimate_ms"] is item["low_ms"] is None
    assert "not calibrated" in item["basis"]
    assert item["unverified"]


def test_rows_that_cannot_be_used_say_why(tmp_path: Path, pi: dict[str, Any]) -> None:
    bundle = save(tmp_path)
    other = {**pi, "board": {"value": None}, "cpu": {**pi["cpu"], "name": "Odd core"}}
    rows = [
        row(bundle, 5.0, error="it crashed"),
        row(bundle, 5.0, batch=8),
        row(bundle, 5.0, bundle="elsewhere/gone.evb"),
        row(bundle, 5.0, engine_sha256="0" * 64),
        row(bundle, 0.0),
        row(bundle, 5.0, latency_ms={}),
        row(bundle, 5.0, flags=["governor: ondemand", "busy neighbour: other processes used 88%"]),
    ]
    found, skipped = load_measured([results(tmp_path, rows, pi)])
    assert found == []
    for words, reason in zip(
        (
            "not measured",
            "in batches",
            "neither at",
            "another bundle",
            "latency is 0",
            "not measured",
            "busy neighbour",
        ),
        skipped,
        strict=True,
    ):
        assert words in reason
    _, skipped = load_measured([results(tmp_path, [row(bundle, 5.0)], other)])
    assert "not in the registry" in skipped[0]


def test_bundles_beside_the_results_are_found(tmp_path: Path, pi: dict[str, Any]) -> None:
    bundle = save(tmp_path)
    entry = row(bundle, 5.0, bundle=f"/home/pi/job/{bundle.name}")
    # a governor that follows the load is how a board is used
    entry["flags"] = ["governor: ondemand, not performance"]
    found, skipped = load_measured([results(tmp_path, [entry], pi).parent])
    assert len(found) == 1
    assert skipped == []


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"results": 3, "environment": {}, "further_runs": []}', '{"results": [{"ru', "\x00"]
)
def test_damaged_results_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"results\.json"):
        load_measured([path])
    with pytest.raises(DataError):
        load_measured([tmp_path / "none.json"])


def test_wrong_usage(tmp_path: Path) -> None:
    bundle = save(tmp_path)
    with pytest.raises(UsageError, match="--on"):
        estimate(bundle, [])
    with pytest.raises(UsageError, match="threads"):
        estimate(bundle, ["raspberry-pi-4"], threads=0)
    with pytest.raises(UsageError, match="did you mean"):
        estimate(bundle, ["raspberry-pi-6"])
