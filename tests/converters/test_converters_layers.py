from __future__ import annotations

import re
from dataclasses import replace

import onnx
import pytest
from onnx import numpy_helper

from edgevision.bundle import Bundle
from edgevision.errors import BundleError, UsageError
from edgevision.graph import Graph
from edgevision.pipeline.convert import convert
from edgevision_converters.explain import explain
from edgevision_converters.layers import DEPARTS_DB, compare_layers
from tests.conformance.nets import save_net, write_pictures

TARGETS = ("onnxruntime", "openvino", "ncnn")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[tuple[str, str], Bundle]:
    root = tmp_path_factory.mktemp("layers")
    made = convert(
        save_net(root / "tiny.onnx"),
        targets=(*TARGETS, "tensorrt"),
        precision=["fp32", "int8"],
        data=str(write_pictures(root / "photos", 16)),
        out=root / "bundles",
        preprocess="unit",
    )
    return {(bundle.manifest.target, bundle.manifest.precision): bundle for bundle in made}


def graph_of(bundle: Bundle) -> Graph:
    stem = bundle.manifest.provenance["graph_sha256"][:16]
    assert bundle.path is not None
    return Graph.open(bundle.path.parent / ".edgevision" / "graphs" / f"{stem}.onnx")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("target", TARGETS)
def test_no_layer_of_a_good_bundle_departs(bundles, target, precision):
    found = compare_layers(bundles[target, precision])
    assert found.first_departing is None
    graph = graph_of(bundles[target, precision])
    order = [name for node in graph.nodes for name in node.output]
    tensors = [layer.tensor for layer in found.layers]
    assert tensors == sorted(tensors, key=order.index)
    assert tensors[-1] == "logits"
    # what survives fusing on every engine
    assert {"sum", "branch_positive", "joined"} <= set(tensors)
    for layer in found.layers:
        assert layer.node == graph.producer[layer.tensor].name
        assert layer.op == graph.producer[layer.tensor].op_type
        assert layer.sqnr_db >= DEPARTS_DB[precision]
        assert set(layer.to_dict()) == {"node", "op", "tensor", "cosine", "sqnr_db"}


@pytest.mark.parametrize(
    ("weight", "first"),
    [
        ("stem_w", {"stem", "stem_relu6"}),
        ("depthwise_w", {"depthwise", "depthwise_relu"}),
        ("pointwise_w", {"pointwise", "pointwise_hardswish"}),
        ("branch_w", {"branch", "branch_relu"}),
        ("head_w", {"head"}),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_first_layer_with_a_wrong_weight_is_named(bundles, precision, weight, first):
    whole = bundles["onnxruntime", precision]
    model = onnx.load_from_string(whole.engine_file("model"))
    # an INT8 bundle has some layers in float
    tensor = next(t for t in model.graph.initializer if t.name in {weight, f"{weight}_quantized"})
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    files = {file: whole.read(file) for file in whole.files}
    files["engine/model.onnx"] = model.SerializeToString()
    found = compare_layers(Bundle(whole.manifest, files), graph=graph_of(whole))
    assert found.first_departing in first
    position = [layer.node for layer in found.layers].index(found.first_departing)
    assert all(layer.sqnr_db >= DEPARTS_DB[precision] for layer in found.layers[:position])


def test_the_graph_must_be_there_and_be_the_right_one(bundles, tmp_path):
    whole = bundles["ncnn", "fp32"]
    files = {name: whole.read(name) for name in whole.files}
    with pytest.raises(UsageError, match="is not beside it: name it with --graph"):
        compare_layers(Bundle(whole.manifest, files))
    moved = Bundle(whole.manifest, files).save(tmp_path / "moved.evb")
    with pytest.raises(UsageError, match="is not beside it"):
        compare_layers(moved)
    graph = graph_of(whole)
    assert compare_layers(moved, graph=graph).first_departing is None
    assert compare_layers(moved, graph=graph.save(tmp_path / "graph.onnx")).first_departing is None
    with pytest.raises(UsageError, match="not the one this bundle was made from"):
        compare_layers(moved, graph=graph.with_metadata({"changed": "yes"}))


def test_tensorrt_says_where_to_look_instead(bundles):
    with pytest.raises(UsageError, match="compare the onnxruntime bundle of the same plan"):
        compare_layers(bundles["tensorrt", "int8"])


def test_a_bundle_without_golden_tensors_says_so(bundles):
    whole = bundles["onnxruntime", "fp32"]
    files = {name: whole.read(name) for name in whole.files if name != "golden.npz"}
    with pytest.raises(BundleError, match=r"no file 'golden\.npz'"):
        compare_layers(Bundle(whole.manifest, files), graph=graph_of(whole))


@pytest.mark.parametrize("target", [*TARGETS, "tensorrt"])
def test_every_op_is_explained(bundles, target):
    bundle = bundles[target, "int8"]
    graph = graph_of(bundle)
    lines = explain(bundle)
    rows = [line for line in lines if line.split(" ", 1)[0] in {node.name for node in graph.nodes}]
    assert [row.split()[0] for row in rows] == [node.name for node in graph.nodes]
    by_name = {row.split()[0]: row for row in rows}
    assert "int8" in by_name["branch"]
    for name, reasons in (("stem", "channels|rounding"), ("head", "of the outputs' noise")):
        assert re.search(f"int8|float.*({reasons})", by_name[name]), by_name[name]
    assert "Conv 3×3 3→16" in by_name["stem"]
    assert "Conv 3×3 16→16 /16" in by_name["depthwise"]
    assert "float" in by_name["pointwise_hardswish"]
    if target == "ncnn":
        assert "depthwise" in by_name["depthwise"].split("float", 1)[1]


@pytest.mark.parametrize("target", TARGETS)
def test_float_bundles_are_explained_as_float(bundles, target):
    lines = explain(bundles[target, "fp32"])
    assert not any("int8" in line for line in lines)
    assert any(line.startswith("stem ") for line in lines)


def test_without_its_graph_a_bundle_explains_what_it_knows(bundles):
    whole = bundles["ncnn", "int8"]
    alone = Bundle(whole.manifest, {name: whole.read(name) for name in whole.files})
    assert any("depthwise" in line for line in explain(alone))
    bare = Bundle(replace(whole.manifest, provenance={}), {name: whole.read(name) for name in whole.files})
    assert explain(bare) == ["no graph beside the bundle; convert it again"]
