from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgevision.devices import judge as judge_module
from edgevision.devices.cpu import CpuInfo
from edgevision.devices.judge import compare, describe, judge
from edgevision.errors import BundleError, EngineError, UsageError
from tests.devices.bundles import save
from tests.devices.trees import raspberry_pi, write

A72 = CpuInfo("Cortex-A72", "aarch64", 4, 4, ("neon",))
A76 = CpuInfo("Cortex-A76", "aarch64", 4, 4, ("neon", "dotprod", "fp16"))
MS = 1_000_000


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Set the processor, and whether ncnn is there."""

    def become(cpu: CpuInfo, version: str | None = "1.0.20260101") -> None:
        monkeypatch.setattr(judge_module, "cpu_info", lambda root: cpu)
        state = {"installed": version is not None, "version": version, "install": "pip install it", "doubts": []}
        monkeypatch.setattr(judge_module, "runtime", lambda *args, **options: state)

    return become


def timer(**times: Sequence[float]):
    """Stand-in for the measuring process: precision → milliseconds of its turns, one after another."""
    turns = {precision: list(values) for precision, values in times.items()}

    def measure(path: str, seconds: float) -> list[int]:
        precision = "int8" if "int8" in path else "fp32"
        return [round(turns[precision].pop(0) * MS)] * 5

    return measure


@pytest.mark.parametrize(
    ("int8", "fp32", "faster"),
    [
        ([5, 5, 5], [10, 10, 10], True),
        ([9.6, 9.6, 9.6], [10, 10, 10], True),
        ([9.9, 9.9, 9.9], [10, 10, 10], None),
        ([5, 11, 5], [10, 10, 10], None),
        ([12, 11, 15], [10, 10, 10], False),
    ],
)
def test_a_ratio_is_believed_where_every_turn_agrees(int8: list[float], fp32: list[float], faster: bool | None) -> None:
    found = compare([[round(ms * MS)] for ms in int8], [[round(ms * MS)] for ms in fp32])
    assert found.faster is faster
    assert found.low <= found.ratio <= found.high


@pytest.mark.parametrize(
    ("cpu", "int8", "expected", "words"),
    [
        (A76, 4.0, True, "bears the prediction out"),
        (A76, 12.0, True, "refutes the prediction"),
        (A72, 9.9, False, "bears the prediction out"),
        (A72, 4.0, False, "refutes the prediction"),
    ],
)
def test_a_prediction_is_proved_or_refuted(
    cpu: CpuInfo, int8: float, expected: bool, words: str, machine, tmp_path: Path
) -> None:
    machine(cpu)
    path = save(tmp_path)
    save(tmp_path, "fp32")
    found = judge(path, root=tmp_path / "none", timer=timer(int8=[int8] * 3, fp32=[10.0] * 3))
    assert found["prediction"]["int8_expected_to_help"] is expected
    assert words in found["verdict"]
    assert found["proof"]["ratio"] == pytest.approx(int8 / 10)
    assert found["sibling"] == str(tmp_path / "tiny-ncnn-fp32.evb")
    text = describe(found)
    assert words in text
    assert f"INT8 takes {int8 / 10:.2f} of FP32's time" in text
    json.dumps(found, allow_nan=False)


def test_shares_of_the_network_are_part_of_the_prediction(machine, tmp_path: Path) -> None:
    machine(A76)
    found = judge(save(tmp_path), root=raspberry_pi(tmp_path / "pi", 5))
    # of 360,640 multiplications 36,864 are in the depthwise layer, which is in float
    assert found["layers"]["macs"] == 360_640
    assert found["layers"]["depthwise_share"] == pytest.approx(0.1022, abs=1e-4)
    assert "90% of the multiplications are in INT8" in found["prediction"]["why"]
    assert "10% are in depthwise layers" in found["prediction"]["why"]
    # the board is in the registry, so its rates bound the gain
    assert "of FP32's time at best" in found["prediction"]["why"]
    assert found["proof"] == {"why": "nothing was measured"}
    assert "not proved" in found["verdict"]


def test_a_network_with_little_in_int8_has_little_to_gain(machine, tmp_path: Path) -> None:
    machine(A76)
    path = save(tmp_path, "fp32")
    # an INT8 bundle of which every layer stayed in float
    from edgevision.bundle import Bundle
    from tests.devices.bundles import FLOAT_PARAM, manifest

    bundle = Bundle(manifest(), {"engine/model.param": FLOAT_PARAM.encode(), "engine/model.bin": b"x"})
    found = judge(bundle.save(tmp_path / "odd.evb"))
    assert found["prediction"]["int8_expected_to_help"] is False
    assert "only 0%" in found["prediction"]["why"]
    assert judge(path)["prediction"] is None


def test_without_a_sibling_it_says_so_and_times_it_alone(machine, tmp_path: Path) -> None:
    machine(A76)
    found = judge(save(tmp_path), timer=timer(int8=[7.0]))
    assert found["sibling"] is None
    assert found["proof"]["why"].startswith("7.00 ms by itself; no float sibling")
    assert "tiny-ncnn-fp32.evb" in found["proof"]["why"]


def test_a_missing_engine_is_a_doubt_with_its_command(machine, tmp_path: Path) -> None:
    machine(A76, version=None)
    found = judge(save(tmp_path), timer=timer())
    assert found["doubts"] == [{"what": "ncnn is not installed", "mend": "pip install it"}]
    assert found["proof"]["why"] == "ncnn is not installed: pip install it"


def test_an_older_engine_than_the_bundles_is_a_doubt(machine, tmp_path: Path) -> None:
    machine(A76)
    path = save(tmp_path, provenance={"versions": {"ncnn": "1.0.20270101"}})
    assert "made and checked with ncnn 1.0.20270101" in judge(path)["doubts"][0]["what"]
    assert judge(save(tmp_path, provenance={"versions": {"ncnn": "1.0.20250101"}}))["doubts"] == []
    assert judge(save(tmp_path, provenance={"versions": 7}))["doubts"] == []


def test_memory_that_does_not_suffice_is_a_doubt(machine, tmp_path: Path) -> None:
    machine(A76)
    root = write(tmp_path / "small", {"proc/meminfo": "MemAvailable: 20 kB\n"})
    assert "are free" in judge(save(tmp_path), root=root)["doubts"][0]["what"]


def test_an_engine_that_fails_is_told(machine, tmp_path: Path) -> None:
    machine(A76)

    def fail(path: str, seconds: float) -> list[int]:
        raise EngineError("the process that ran it was killed by SIGILL")

    save(tmp_path, "fp32")
    found = judge(save(tmp_path), timer=fail)
    assert "SIGILL" in found["proof"]["why"]
    assert "SIGILL" in describe(found)


def test_siblings_must_be_of_the_same_model_and_engine(machine, tmp_path: Path) -> None:
    machine(A76)
    path = save(tmp_path)
    with pytest.raises(UsageError, match="in fp32"):
        judge(path, path)
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="is large for ncnn"):
        judge(path, save(tmp_path / "other", "fp32", name="large"))
    with pytest.raises(UsageError, match="INT8 bundle first"):
        judge(save(tmp_path, "fp32"), save(tmp_path, "fp32"))
    with pytest.raises(BundleError, match="no such bundle"):
        judge(tmp_path / "none.evb")


def test_a_sibling_that_is_another_model_is_passed_over(machine, tmp_path: Path) -> None:
    machine(A76)
    path = save(tmp_path)
    save(tmp_path, "fp32", name="large")
    assert judge(path)["sibling"] is None


def test_what_cannot_be_told_of_the_layers_is_said(machine, tmp_path: Path) -> None:
    machine(A76)
    from edgevision.bundle import Bundle
    from tests.devices.bundles import manifest

    bundle = Bundle(manifest(), {"engine/model.param": b"nonsense", "engine/model.bin": b"x"})
    found = judge(bundle.save(tmp_path / "odd.evb"))
    assert "7767517" in found["layers"]["why"]
    assert found["prediction"]["int8_expected_to_help"] is True
    assert "not available" in describe(found)
