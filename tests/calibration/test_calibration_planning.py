from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from calibration_nets import NETS, Builder, chain, depthwise, fire, pictures, residual, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.errors import CalibrationError, UsageError
from edgevision_calibration.observe import observed_tensors
from edgevision_calibration.plan import QuantPlan
from edgevision_calibration.planning import activation_quant, make_plan
from edgevision_calibration.scheme import SCHEMES, scheme_for


def plan_for(graph, target="onnxruntime", **options):
    return make_plan(graph, table_of(graph), SCHEMES[target], **options)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e4, 0), st.floats(0, 1e4), st.sampled_from(sorted(SCHEMES)))
def test_zero_is_exact_and_the_range_is_spanned(low, high, target):
    scheme = SCHEMES[target]
    quant = activation_quant(low, high, scheme)
    least, greatest = scheme.quant_range
    assert quant.scale > 0
    assert least <= quant.zero_point <= greatest
    if scheme.symmetric:
        assert quant.zero_point == 0
    # the ends are met within half a step: the zero point is rounded
    if high - low > 1e-6:
        assert quant.scale * (least - quant.zero_point) <= low + 0.5001 * quant.scale
        assert quant.scale * (greatest - quant.zero_point) >= high - 0.5001 * quant.scale


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("target", SCHEMES)
def test_a_plan_is_read_back_exactly(name, target):
    plan = plan_for(NETS[name](), target)
    again = QuantPlan.from_json(plan.to_json())
    assert again.scheme is plan.scheme
    assert dict(again.activations) == dict(plan.activations)
    assert dict(again.float_ops) == dict(plan.float_ops)
    for ours, theirs in ((plan.weights, again.weights), (plan.biases, again.biases)):
        assert list(ours) == list(theirs)
        for key, values in ours.items():
            assert theirs[key].dtype == np.float32
            np.testing.assert_array_equal(theirs[key], values)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"target": "onnxruntime"}', '{"target": 3}'])
def test_a_damaged_plan_is_told(text):
    with pytest.raises(CalibrationError, match="damaged"):
        QuantPlan.from_json(text)


def test_a_tensor_that_two_activation_functions_read_has_a_range():
    b = Builder()
    x = b.conv("images", 6)
    graph = b.graph(b.head(b.op("Add", b.relu(x), b.relu6(x))))
    assert x in observed_tensors(graph)


def test_a_tensor_between_two_activation_functions_has_a_range():
    b = Builder()
    x = b.relu(b.conv("images", 6))
    graph = b.graph(b.head(b.relu6(x)))
    assert x in observed_tensors(graph)


def test_concatenated_tensors_share_a_scale():
    graph = fire()
    plan = plan_for(graph)
    for node in graph.nodes:
        if node.op_type in {"Concat", "MaxPool"}:
            quants = {plan.activations[name] for name in [*node.input, *node.output]}
            assert len(quants) == 1


# ONNX Runtime's scheme for nets whose few channels all count as stem
WITHOUT_STEM = dataclasses.replace(SCHEMES["onnxruntime"], stem=None)


def test_ranges_end_at_the_clip():
    images = 20 * pictures()
    graph = depthwise()
    plan = make_plan(graph, table_of(graph, images), WITHOUT_STEM, ranges="minmax")
    clipped = [node.output[0] for node in graph.nodes if node.op_type == "Clip"]
    scales = [plan.activations[name].scale for name in clipped if name in plan.activations]
    assert scales
    assert max(scales) == pytest.approx(6 / 255, rel=1e-6)
    assert all(plan.activations[name].zero_point == 0 for name in clipped if name in plan.activations)


def test_biases_never_overflow():
    b = Builder()
    x = b.conv("images", 4)
    weight, bias = b.initializers[0], b.initializers[1]
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * np.float32(1e-9)).tobytes()
    bias.raw_data = np.full(4, 50.0, np.float32).tobytes()
    graph = b.graph(b.head(b.relu(x)))
    plan = make_plan(graph, table_of(graph), WITHOUT_STEM)
    steps = plan.weights[graph.nodes[0].input[1]] * np.float32(plan.activations["images"].scale)
    assert (50.0 / steps <= 2**31 - 1).all()
    assert (50.0 / steps > 2**29).all()


@pytest.mark.parametrize("target", SCHEMES)
def test_inputs_of_integer_ops_carry_integers_and_outputs_of_the_net_do_not(target):
    graph = residual()
    plan = plan_for(graph, target)
    for node in graph.nodes:
        if node.op_type in {"Conv", "Gemm"} and node.name not in plan.float_ops:
            assert node.input[0] in plan.activations
            assert node.input[1] in plan.weights
            assert node.name in plan.biases
    assert not set(graph.output_names) & set(plan.activations)
    depthwise_floats = [name for name, why in plan.float_ops.items() if "depthwise" in why]
    assert bool(depthwise_floats) == (not scheme_for(target).depthwise)


def test_onnxruntime_keeps_the_chain_in_integers_and_openvino_quantizes_inputs_alone():
    graph = residual()
    sums = [node.output[0] for node in graph.nodes if node.op_type == "Add"]
    parts = [name for node in graph.nodes if node.op_type == "Add" for name in node.input]
    ort, openvino = plan_for(graph), plan_for(graph, "openvino")
    assert set(sums + parts) <= set(ort.activations)
    assert set(sums) <= set(openvino.activations)
    # what only an addition reads stays in float
    assert any(name not in openvino.activations for name in parts)


def test_float_ops_are_left_out_and_told():
    graph = chain()
    kept = graph.nodes[0].name
    plan = plan_for(graph, keep_float={kept: "the user wants it"})
    assert plan.float_ops[kept] == "the user wants it"
    assert graph.nodes[0].input[1] not in plan.weights
    assert kept not in plan.biases


def test_per_tensor_weights_have_one_step():
    graph = chain()
    scheme = dataclasses.replace(SCHEMES["onnxruntime"], weight_per_channel=False)
    plan = make_plan(graph, table_of(graph), scheme)
    assert all(steps.shape == (1,) for steps in plan.weights.values())


def test_bias_correction_can_be_left_out():
    plan = plan_for(chain(), bias_correction=False)
    assert dict(plan.biases) == {}
    assert plan.calibration["bias_correction"] is False


def test_an_unknown_range_method_is_refused():
    with pytest.raises(UsageError, match="percentile"):
        plan_for(chain(), ranges="percentiles")


def test_an_unknown_target_is_refused():
    with pytest.raises(UsageError, match="openvino"):
        scheme_for("openvinno")
