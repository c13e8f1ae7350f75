"""Time of each layer, from the engines themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevision.bundle import Bundle, Manifest
from edgevision.preprocess import Preprocess
from edgevision.runtime import TensorSpec
from edgevision_benchmarks.bench import bench
from edgevision_benchmarks.layers import layer_times

FEED = {"images": np.random.default_rng(0).random((1, 3, 16, 16), np.float32)}


def network() -> bytes:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(1)
    weights = {"w": (8, 3, 3, 3), "v": (8, 5)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "w"], ["a"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", ["a"], ["b"], "sigmoid"),
            helper.make_node("GlobalAveragePool", ["b"], ["c"], "pool"),
            helper.make_node("Flatten", ["c"], ["d"], "flatten"),
            helper.make_node("MatMul", ["d", "v"], ["logits"], "head"),
        ],
        "g",
        [helper.make_tensor_value_info("images", float32, [None, 3, 16, 16])],
        [helper.make_tensor_value_info("logits", float32, [None, 5])],
        [onnx.numpy_helper.from_array(rng.random(shape).astype(np.float32), name) for name, shape in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def bundle(target: str, files: dict[str, bytes]) -> Bundle:
    manifest = Manifest(
        name="net",
        task="classification",
        target=target,
        precision="fp32",
        inputs=(TensorSpec("images", "float32", (None, 3, 16, 16)),),
        outputs=(TensorSpec("logits", "float32", (None, 5)),),
        preprocess=Preprocess((16, 16)),
        engine_files={Path(name).stem: name for name in files},
        classes=("a", "b", "c", "d", "e"),
    )
    return Bundle(manifest, files)


def check(found: list[dict[str, Any]] | None) -> None:
    assert found
    assert all(layer["ms"] >= 0 for layer in found)
    times = [layer["ms"] for layer in found]
    assert times == sorted(times, reverse=True)


def test_onnx_runtime_tells_its_layers(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    made = bundle("onnxruntime", {"engine/model.onnx": network()})
    found = layer_times(made, FEED, 1, runs=4)
    check(found)
    assert found is not None
    ops = {layer["op"] for layer in found}
    # the sigmoid may have been fused into the convolution
    assert "Conv" in ops
    assert len(found) >= 3
    path = made.save(tmp_path / "net.evb")
    report = bench(path, rounds=1, seconds=0.0, min_queries=8,
                   min_runs=5, end_to_end=False, layers=True)  # fmt: skip
    assert report.errors == []
    assert {layer["op"] for layer in report.results[0].layers} == ops


def test_openvino_tells_its_layers(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino", reason="openvino is not installed")
    (tmp_path / "net.onnx").write_bytes(network())
    ov.save_model(ov.convert_model(str(tmp_path / "net.onnx")), str(tmp_path / "net.xml"), compress_to_fp16=False)
    files = {
        "engine/model.xml": (tmp_path / "net.xml").read_bytes(),
        "engine/weights.bin": (tmp_path / "net.bin").read_bytes(),
    }
    found = layer_times(bundle("openvino", files), FEED, 1, runs=200)
    check(found)
    assert found is not None
    assert any("Conv" in layer["op"] for layer in found)


def test_engines_that_tell_nothing_are_no_error(make_bundle) -> None:
    assert layer_times(Bundle.open(make_bundle("a")), FEED, 1) is None
    report = bench(make_bundle("b"), rounds=1, seconds=0.0, min_queries=8, min_runs=5, end_to_end=False, layers=True)
    assert report.errors == []
    assert report.results[0].layers == ()
