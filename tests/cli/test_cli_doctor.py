"""The verb on real bundles and engines of this machine."""

from __future__ import annotations

import pytest

from edgevision.devices import doctor as doctor_module
from tests.cli.conftest import call


def test_a_bundle_is_judged_and_its_prediction_measured(house) -> None:
    outcome = call("doctor", house.bundle("ncnn", "int8"), "--seconds", "0.3", "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.document
    assert (found["target"], found["precision"]) == ("ncnn", "int8")
    assert found["sibling"] == str(house.bundle("ncnn", "fp32"))
    assert len(found["proof"]["int8_ms"]) == len(found["proof"]["fp32_ms"]) == 3
    assert found["proof"]["low"] > 0
    assert found["layers"]["macs"] == 360_640
    assert found["verdict"]


def test_the_sibling_may_be_given_and_the_answer_be_read(house) -> None:
    outcome = call(
        "doctor", house.bundle("onnxruntime", "int8"), house.bundle("onnxruntime", "fp32"), "--seconds", "0.2"
    )
    assert outcome.code == 0, outcome.err
    for word in ("runtime", "layers", "predicted", "measured", "verdict", "of FP32's time"):
        assert word in outcome.out


def test_a_float_bundle_is_timed_alone(house) -> None:
    found = call("doctor", house.bundle("openvino", "fp32"), "--seconds", "0.1", "--json").document
    assert found["prediction"] is None
    assert "ms by itself" in found["proof"]["why"]


def test_an_engine_that_is_missing(house) -> None:
    path = house.bundle("tensorrt", "int8")
    outcome = call("doctor", path, "--seconds", "0.1")
    assert outcome.code == 0
    assert 'pip install "edgevision[tensorrt]"' in outcome.out
    strict = call("doctor", path, "--seconds", "0", "--strict")
    assert strict.code == 3
    assert "edgevision doctor: tensorrt is not installed" in strict.err


def test_bad_arguments(house, tmp_path) -> None:
    assert call("doctor", tmp_path / "none.evb").code == 1
    assert call("doctor", house.bundle("ncnn", "int8"), "--seconds", "-1").code == 2
    assert call("doctor", house.bundle("ncnn", "fp32"), house.bundle("ncnn", "int8"), "--seconds", "0").code == 2


@pytest.mark.parametrize(("doubt", "code"), [([], 0), ([{"what": "it is old", "mend": "renew it"}], 3)])
def test_strict(doubt: list[dict[str, str]], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(name: str, *args: object, **options: object) -> dict[str, object]:
        return {
            "installed": name == "ncnn",
            "version": "1",
            "install": "pip",
            "doubts": doubt if name == "ncnn" else [],
        }

    monkeypatch.setattr(doctor_module, "runtime", one)
    assert call("doctor", "--strict", "--json").code == code
    assert call("doctor").code == 0
    if code:
        assert call("doctor", "--strict").err == "edgevision doctor: ncnn: it is old\n"
