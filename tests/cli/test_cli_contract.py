"""What verbs print with ``--json`` is a contract: keys, types, ranges; nothing else on standard output."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from edgevision.bundle import Bundle
from edgevision.cli import VERBS
from tests.cli.conftest import TARGETS, call
from tests.conformance.nets import CLASSES, NAMES, write_pictures

COMPARISON = {"cosine", "sqnr_db", "top1_agreement", "max_difference", "passed", "thresholds"}


def test_convert_lists_its_bundles(house):
    found = house.converted.document
    assert set(found) - {"warnings"} == {"bundles"}
    rows = found["bundles"]
    assert [(row["target"], row["precision"]) for row in rows] == [
        (target, precision) for precision in ("fp32", "int8") for target in TARGETS
    ]
    for row in rows:
        assert set(row) >= {"path", "target", "precision", "size_bytes", "verified", "cosine", "sqnr_db"}
        bundle = Bundle.open(row["path"])
        assert (bundle.manifest.target, bundle.manifest.precision) == (row["target"], row["precision"])
        assert bundle.engine_bytes == row["size_bytes"]
        if row["target"] == "tensorrt":  # compiled, and so verified, on the device
            assert row["verified"] is row["cosine"] is row["sqnr_db"] is None
        else:
            assert row["verified"] is True
            assert 0.99 < row["cosine"] <= 1.0
            assert row["sqnr_db"] > 15.0


def test_convert_prints_progress_on_standard_error_alone(house):
    assert "calibrate …" in house.converted.err
    assert "convert …" in house.converted.err
    assert "…" not in house.converted.out


def test_verify(house):
    for target in TARGETS[:3]:
        for precision in ("fp32", "int8"):
            outcome = call("verify", house.bundle(target, precision), "--json")
            assert outcome.code == 0, outcome.err
            found = outcome.document
            assert set(found) == {
                "bundle", "passed", "cosine", "sqnr_db", "top1_agreement", "max_difference", "n", "engine", "fp32",
                "reference", "outputs",
            }  # fmt: skip
            assert found["passed"] is True
            assert found["n"] == 8
            assert found["engine"].startswith(f"{target} ")
            assert set(found["fp32"]) == COMPARISON
            assert set(found["outputs"]) == {"logits"}
            assert (found["reference"] is None) == (precision == "fp32")
            if found["reference"]:
                assert set(found["reference"]) == COMPARISON
                assert found["reference"]["passed"] is True


def test_verify_in_words(house):
    outcome = call("verify", house.bundle("ncnn", "int8"))
    assert outcome.code == 0
    assert "parity holds on ncnn" in outcome.out
    assert "fake-quantized reference" in outcome.out


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "ncnn"])
def test_verify_layers_names_every_layer_the_engine_shows(house, target):
    outcome = call("verify", house.bundle(target, "int8"), "--layers", "--json")
    found = outcome.document
    assert outcome.code == 0, outcome.err
    assert found["first_departing"] is None
    assert {"head", "residual", "join"} <= {layer["node"] for layer in found["layers"]}
    for layer in found["layers"]:
        assert set(layer) == {"node", "op", "tensor", "cosine", "sqnr_db"}
        assert layer["sqnr_db"] > 8.0
    assert "no layer departs" in call("verify", house.bundle(target, "int8"), "--layers").out


def altered(bundle: Bundle, initializer: str, path) -> Bundle:
    """The bundle with one weight tensor of its ONNX negated, and its hashes made anew."""
    model = onnx.load_from_string(bundle.engine_file("model"))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == initializer)
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), initializer))
    files = {name: bundle.read(name) for name in bundle.files}
    files[bundle.manifest.engine_files["model"]] = model.SerializeToString()
    made = Bundle(bundle.manifest, files)
    made.save(path)
    return made


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("weight", "nodes"),
    [
        # a convolution and the clipping after it are one layer to an engine
        ("pointwise_w", {"pointwise", "pointwise_hardswish"}),
        ("branch_w", {"branch", "branch_relu"}),
        ("head_w", {"head"}),
    ],
)
def test_verify_layers_names_the_first_layer_that_departs(house, precision, weight, nodes):
    whole = Bundle.open(house.bundle("onnxruntime", precision))
    name = weight if precision == "fp32" else f"{weight}_quantized"
    # beside the whole one: the graph to compare with is found there
    path = house.bundles / f"altered-{weight}-{precision}.evb"
    altered(whole, name, path)
    outcome = call("verify", path, "--layers", "--json")
    assert outcome.code == 3, outcome.err
    found = outcome.document
    assert found["passed"] is False
    assert found["first_departing"] in nodes
    spoken = call("verify", path, "--layers")
    assert spoken.code == 3
    assert f"first layer that departs: {found['first_departing']}" in spoken.out
    path.unlink()


def test_verify_layers_needs_the_graph(house, tmp_path):
    whole = Bundle.open(house.bundle("ncnn", "fp32"))
    path = whole.save(tmp_path / "moved.evb")
    outcome = call("verify", path, "--layers")
    assert outcome.code == 2
    assert "name it with --graph" in outcome.err
    graphs = house.bundles / ".edgevision" / "graphs"
    named = [graph for graph in graphs.iterdir() if whole.manifest.provenance["graph_sha256"].startswith(graph.stem)]
    assert call("verify", path, "--layers", "--graph", named[0]).code == 0
    other = next(graph for graph in graphs.iterdir() if graph != named[0])
    outcome = call("verify", path, "--layers", "--graph", other)
    assert outcome.code == 2
    assert "not the one this bundle was made from" in outcome.err


def test_predict_prints_one_object_a_line(house):
    images = house.images(3)
    for target in TARGETS[:3]:
        outcome = call("predict", house.bundle(target, "fp32"), *images, "--json")
        assert outcome.code == 0, outcome.err
        lines = outcome.out.splitlines()
        assert len(lines) == 3
        for image, line in zip(images, lines, strict=True):
            found = json.loads(line)
            assert set(found) == {"image", "label", "name", "probability", "top"}
            assert found["image"] == str(image)
            assert found["name"] == NAMES[found["label"]] == found["top"][0]["name"]
            assert len(found["top"]) == 5
            assert 0.0 < found["probability"] <= 1.0
            assert all(set(entry) == {"name", "probability"} for entry in found["top"])


def test_predict_top_limits_and_words_name_the_class(house):
    image = house.images(1)[0]
    outcome = call("predict", house.bundle("openvino", "int8"), image, "--json", "--top", 2)
    assert len(json.loads(outcome.out)["top"]) == 2
    spoken = call("predict", house.bundle("openvino", "int8"), image, "--top", 2)
    assert spoken.code == 0
    assert json.loads(outcome.out)["name"] in spoken.out
    assert call("predict", house.bundle("openvino", "int8"), image, "--top", 99).code == 0
    assert call("predict", house.bundle("openvino", "int8"), image, "--top", 0).code == 2


def test_eval(house):
    data, reference = f"csv:{house.labels}", house.bundle("onnxruntime", "fp32")
    outcome = call("eval", reference, "--data", data, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.document
    assert {"top1", "top5", "n", "agreement"} <= set(found)
    # the labels are this very network's answers
    assert (found["top1"], found["top5"], found["n"], found["agreement"]) == (1.0, 1.0, 24, None)
    for target in TARGETS[:3]:
        found = call("eval", house.bundle(target, "int8"), "--data", data, "--reference", reference, "--json").document
        assert found["agreement"] == found["top1"] >= 0.8
        assert 0.0 <= found["top5"] <= 1.0
    limited = call("eval", reference, "--data", data, "--limit", 5, "--batch-size", 2, "--json").document
    assert (limited["n"], limited["top1"]) == (5, 1.0)
    assert "top1" in call("eval", reference, "--data", data).out


def test_bench_and_report(house, tmp_path):
    bundles = [house.bundle("onnxruntime", "fp32"), house.bundle("ncnn", "int8")]
    outcome = call(
        "bench", *bundles, "--data", f"csv:{house.labels}", "--rounds", 1, "--seconds", 0.05, "--threads", 1,
        "--json", "-o", tmp_path / "first",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = outcome.document
    assert {"results", "errors", "environment", "provenance"} <= set(found)
    assert found["errors"] == []
    assert [row["bundle"] for row in found["results"]] == [str(bundle) for bundle in bundles]
    for row in found["results"]:
        assert {"bundle", "target", "precision", "threads", "latency_ms", "accuracy", "size_bytes"} <= set(row)
        assert {"p50", "p90", "p99", "mean"} <= set(row["latency_ms"])
        # a tail is told of runs enough for it: 64 for p90, 662 for p99
        assert 0.0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p90"]
        assert (row["latency_ms"]["p99"] is None) == (row["n_runs"] < 662)
        assert row["threads"] == 1
        assert row["size_bytes"] > 0
        assert 0.8 <= row["accuracy"] <= 1.0
        assert row["agreement"] is None or 0.8 <= row["agreement"] <= 1.0
    assert json.loads((tmp_path / "first" / "results.json").read_text()) == found

    results = tmp_path / "first" / "results.json"
    merged = call("report", results, results, "-o", tmp_path / "both", "--title", "Twice", "--json")
    assert merged.code == 0, merged.err
    assert merged.document == {"report": str(tmp_path / "both" / "index.html"), "results": 4}
    for name in ("index.html", "results.md", "results.csv", "results.json"):
        assert (tmp_path / "both" / name).stat().st_size > 0
    assert "Twice" in (tmp_path / "both" / "index.html").read_text()


def test_bench_goes_on_where_one_bundle_cannot_run(house):
    good, absent = house.bundle("onnxruntime", "fp32"), house.bundle("tensorrt", "fp32")
    outcome = call("bench", good, absent, "--rounds", 1, "--seconds", 0.02, "--json")
    assert outcome.code == 1
    rows = {row["target"]: row for row in outcome.document["results"]}
    assert rows["onnxruntime"]["error"] is None
    assert rows["onnxruntime"]["latency_ms"]["p50"] > 0
    assert rows["tensorrt"]["latency_ms"] is None
    assert 'pip install "edgevision[tensorrt]"' in rows["tensorrt"]["error"]
    assert str(absent) in outcome.err


def test_doctor():
    outcome = call("doctor", "--json")
    assert outcome.code == 0
    found = outcome.document
    assert {"environment", "runtimes", "targets"} <= set(found)
    assert set(found["runtimes"]) == set(found["targets"]) == set(TARGETS)
    for target in TARGETS:
        assert set(found["runtimes"][target]) == {"installed", "version", "install", "doubts"}
        assert set(found["targets"][target]) == {"int8_expected_to_help", "why"}
        assert found["targets"][target]["int8_expected_to_help"] in (True, False, None)
        assert found["targets"][target]["why"]
    assert found["runtimes"]["onnxruntime"]["installed"] is True
    assert found["runtimes"]["onnxruntime"]["version"]
    spoken = call("doctor")
    assert spoken.code == 0
    assert all(target in spoken.out for target in TARGETS)


def test_models():
    outcome = call("models", "--json")
    assert outcome.code == 0
    models = outcome.document["models"]
    names = {model["name"] for model in models}
    assert {"mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "repvgg_a0"} <= names
    for model in models:
        assert {"name", "description", "parameters", "multiply_adds"} <= set(model)
    some = call("models", "squeeze", "--json").document["models"]
    assert some
    assert all("squeeze" in model["name"] for model in some)
    assert "repvgg_a0" in call("models", "repvgg").out


def test_train_convert_predict(tmp_path):
    """The whole way on a tiny network and tiny data: a run folder is a Checkpoint and the next command's source."""
    for part, count in (("train", 4), ("test", 2)):
        for index, name in enumerate(("dark", "light")):
            folder = write_pictures(tmp_path / "data" / part / name, count * 8, size=16)
            for file in folder.iterdir():
                pixels = np.asarray(Image.open(file)) // 4 + index * 190
                Image.fromarray(pixels.astype(np.uint8)).save(file)
    outcome = call(
        "train", "--model", "mobilenet_v1", "--width", 0.25, "--data", f"folder:{tmp_path / 'data'}", "--epochs", 2,
        "--batch-size", 16, "--input-size", 32, "-o", tmp_path / "run", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = outcome.document
    assert set(found) == {"checkpoint", "metrics"}
    assert found["checkpoint"] == str(tmp_path / "run")
    assert 0.0 <= found["metrics"]["top1"] <= 1.0
    converted = call(
        "convert", tmp_path / "run", "--targets", "ncnn", "--precision", "fp32", "-o", tmp_path / "bundles", "--json"
    )
    assert converted.code == 0, converted.err
    path = converted.document["bundles"][0]["path"]
    picture = next((tmp_path / "data" / "test" / "light").iterdir())
    said = call("predict", path, picture, "--json")
    assert said.code == 0, said.err
    assert {entry["name"] for entry in json.loads(said.out)["top"]} == {"dark", "light"}


def test_convert_explains_every_op(house):
    outcome = call(
        "convert", house.model, "--targets", "onnxruntime,ncnn", "--precision", "int8", "--data",
        f"images:{house.pictures / 'images'}", "--preprocess", "unit", "--classes", house.root / "classes.txt",
        "-o", house.bundles, "--explain",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    onnxruntime, ncnn = outcome.out.split("tiny-ncnn-int8.evb\n")[-2:]
    for node in ("stem", "depthwise", "pointwise_hardswish", "residual", "join", "head"):
        assert node in onnxruntime
        assert node in ncnn
    line = next(line for line in ncnn.splitlines() if line.strip().startswith("depthwise "))
    assert "float" in line
    assert any("int8" in line for line in ncnn.splitlines() if line.strip().startswith("branch "))
    # a hard-swish has no integers in any scheme, and the reader is told so
    assert any("float" in line for line in onnxruntime.splitlines() if "pointwise_hardswish" in line)
    assert "read the model" not in outcome.out


def test_convert_explain_leaves_json_alone(house):
    outcome = call(
        "convert", house.model, "--targets", "onnxruntime", "--preprocess", "unit", "--classes",
        house.root / "classes.txt", "-o", house.root / "explained", "--explain", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert len(outcome.document["bundles"]) == 1
    assert "residual" in outcome.err


def test_every_verb_of_the_contract_exists():
    assert set(VERBS) >= {"models", "train", "convert", "verify", "predict", "eval", "bench", "report", "doctor"}
    assert len(NAMES) == CLASSES
