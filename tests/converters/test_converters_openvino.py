from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from edgevision.errors import ConversionError
from edgevision.graph import Graph, attributes
from edgevision.parity import sqnr_db
from edgevision.pipeline.golden import run_graph
from edgevision_calibration.observe import observe
from edgevision_calibration.planning import make_plan
from edgevision_calibration.scheme import scheme_for
from edgevision_converters.canonical import canonicalize
from edgevision_converters.openvino import convert, save_ir
from edgevision_converters.qdq import quantize_dequantize
from edgevision_converters.target import ConversionRequest
from tests.conformance.nets import SIZE, tiny_net
from tests.graphs import Layer, Recipe

IMAGES = np.random.default_rng(0).uniform(0, 1, (2, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def graph():
    return canonicalize(tiny_net())


def run(xml: bytes, weights: bytes, output: str = "logits") -> np.ndarray:
    model = openvino.Core().read_model(xml, weights)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"images": IMAGES})[output]


def test_average_pools_that_count_their_padding_are_right_on_integers(tmp_path):
    """OpenVINO alone pads integers with a zero point by integer zeros: answers far from the plan's."""
    layers = (
        Layer("conv", kernel=3),
        Layer("avg_pool", kernel=3, stride=2, variant=1),
        Layer("conv"),
        Layer("conv", back=2),
    )
    graph = canonicalize(Recipe(layers, None, (SIZE, SIZE)).model())
    pool, output = graph.nodes[1], graph.output_names[0]
    assert attributes(pool)["count_include_pad"]
    plan = make_plan(graph, observe(graph, [IMAGES]), scheme_for("openvino"))
    assert plan.activations[pool.input[0]].zero_point != 0
    made = convert(ConversionRequest(graph, "int8", plan, tmp_path))
    found = run(made.files["model"][1], made.files["weights"][1], output)
    expected = run_graph(quantize_dequantize(graph, plan).SerializeToString(), IMAGES, exact=True)[output]
    # roundings that fall to either side are rare; padding by anything but zeros left 2 dB
    assert sqnr_db(expected, found) > 40


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_ir_computes_what_the_graph_does_under_the_graphs_names(graph, tmp_path, precision):
    made = convert(ConversionRequest(graph, precision, None, tmp_path))
    assert {role: path for role, (path, _) in made.files.items()} == {
        "model": "engine/model.xml",
        "weights": "engine/model.bin",
    }
    session = onnxruntime.InferenceSession(graph.to_bytes(), providers=["CPUExecutionProvider"])
    expected = session.run(["logits"], {"images": IMAGES})[0]
    found = run(made.files["model"][1], made.files["weights"][1])
    # fp32: other orders of addition. fp16: weights of 11 bits, and logits of about ±2 behind sums of some hundred
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 if precision == "fp32" else 5e-2)
    assert made.versions["openvino"]
    assert made.tensor_names == {}


def test_fp16_halves_the_weights(graph, tmp_path):
    sizes = {}
    for precision in ("fp32", "fp16"):
        (tmp_path / precision).mkdir()
        made = convert(ConversionRequest(graph, precision, None, tmp_path / precision))
        sizes[precision] = len(made.files["weights"][1])
    # but for a few constants that stay as they are
    assert 0.5 <= sizes["fp16"] / sizes["fp32"] < 0.55


def test_equal_graphs_give_equal_files(graph, tmp_path):
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(convert(ConversionRequest(graph, "fp32", None, tmp_path / name)).files)
    assert made[0] == made[1]


def test_what_openvino_cannot_read_is_a_conversion_error(graph, tmp_path):
    strange = onnx.ModelProto.FromString(graph.to_bytes())
    strange.graph.node[0].op_type = "NobodysOp"
    with pytest.raises(ConversionError, match="OpenVINO's model reader failed"):
        convert(ConversionRequest(Graph(strange), "fp32", None, tmp_path))


def test_a_reader_that_takes_too_long_is_ended(graph, tmp_path):
    with pytest.raises(ConversionError, match=r"OpenVINO's model reader took longer than 0\.05 s"):
        convert(ConversionRequest(graph, "fp32", None, tmp_path, timeout_s=0.05))


def test_save_ir_writes_both_files(tmp_path):
    onnx.save(tiny_net(), tmp_path / "tiny.onnx")
    save_ir(str(tmp_path / "tiny.onnx"), str(tmp_path / "out.xml"), half=False)
    found = run((tmp_path / "out.xml").read_bytes(), (tmp_path / "out.bin").read_bytes())
    assert found.shape == (2, 6)
