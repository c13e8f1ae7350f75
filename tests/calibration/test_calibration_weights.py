from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from calibration_nets import NETS, Builder, chain, pictures, run, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision_calibration.bias_correction import corrected_biases
from edgevision_calibration.planning import make_plan
from edgevision_calibration.scheme import SCHEMES
from edgevision_calibration.weights import along, best_steps, per_input, quantize_weight, weight_axis
from edgevision_converters.qdq import quantize_dequantize

# small nets have few channels throughout, and all layers are to run on integers here
WITHOUT_STEM = replace(SCHEMES["openvino"], stem=None)


def errors(weight, steps):
    rounded = np.clip(np.rint(weight / steps[:, None, None]), -127, 127) * steps[:, None, None]
    error = (rounded - weight).astype(np.float64)
    return 0.5 * np.square(error).sum((1, 2)) + 0.5 * np.square(error.sum(2)).sum(1)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.sampled_from([1, 9, 25]), st.integers(0, 10_000))
def test_steps_are_no_worse_than_those_of_the_greatest_weight(outputs, inputs, taps, seed):
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(3, (outputs, inputs, taps)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    steps = best_steps(weight)
    greatest = np.abs(weight).max((1, 2)) / 127
    # float32 rounding of the errors
    assert (errors(weight, steps) <= errors(weight, greatest) * 1.001 + 1e-30).all()
    assert (steps > 0).all()
    assert (steps <= 1.2001 * greatest).all()
    assert (steps >= 0.8499 * greatest).all()


@pytest.mark.parametrize("target", SCHEMES)
def test_one_step_per_group_where_that_is_all_an_engine_stores(target):
    b = Builder()
    x = b.relu(b.conv("images", 8))
    y = b.conv(x, 12, 3, group=2)
    graph = b.graph(b.head(b.relu(y)))
    # so few channels would stay in float
    plan = make_plan(graph, table_of(graph), replace(SCHEMES[target], stem=None, least_products=0.0))
    node = next(node for node in graph.nodes if node.output[0] == y)
    steps = plan.weights[node.input[1]]
    assert len(steps) == 12
    assert len(np.unique(steps)) == (2 if target == "ncnn" else 12)
    if target == "ncnn":
        assert len(np.unique(steps[:6])) == len(np.unique(steps[6:])) == 1
        # the correction of the bias is that of the weights as the engine has them
        weight = graph.initializers[node.input[1]]
        rounded = quantize_weight(weight, steps, 0) * along(steps, 0, 4).astype(np.float64)
        error = per_input(rounded - weight, node).sum(axis=3)
        mean = table_of(graph)[node.input[0]].channel_mean.reshape(2, 4)
        shift = np.einsum("goi,gi->go", error, mean).reshape(-1)
        np.testing.assert_allclose(graph.initializers[node.input[2]] - plan.biases[node.name], shift, atol=1e-6)


def test_steps_of_a_zero_channel_are_positive():
    assert (best_steps(np.zeros((2, 3, 9), np.float32)) > 0).all()


def test_the_view_by_inputs_is_the_nodes_own_arithmetic():
    b = Builder()
    graph = b.graph(b.head(b.conv(b.conv("images", 6), 8, 1, group=2), 5, trans_b=0))
    x = np.random.default_rng(0).normal(0, 1, 6)
    grouped = graph.nodes[1]
    weight = per_input(graph.initializers[grouped.input[1]], grouped)
    assert weight.shape == (2, 4, 3, 1)
    matrix = graph.initializers[grouped.input[1]][:, :, 0, 0]
    expected = np.concatenate([matrix[:4] @ x[:3], matrix[4:] @ x[3:]])
    np.testing.assert_allclose(np.einsum("goit,gi->go", weight, x.reshape(2, 3)).reshape(-1), expected, rtol=1e-6)
    linear = graph.nodes[-1]
    assert weight_axis(linear) == 1
    assert per_input(graph.initializers[linear.input[1]], linear).shape == (1, 5, 8, 1)


@pytest.mark.parametrize("name", NETS)
def test_corrected_biases_leave_the_means_where_they_were(name):
    graph, images = NETS[name](), pictures(16)
    table = table_of(graph, images)
    plan = make_plan(graph, table, WITHOUT_STEM, bias_correction=False)
    biases = corrected_biases(graph, plan, table)
    compute = [node for node in graph.nodes if node.op_type in {"Conv", "Gemm"}]
    assert set(biases) == {node.name for node in compute}
    checked = 0
    for node in compute:
        weight = graph.initializers[node.input[1]]
        if node.op_type == "Conv" and weight.shape[2] > 1:
            # at the border the correction is not exact
            continue
        axis, steps = weight_axis(node), plan.weights[node.input[1]]
        rounded = quantize_weight(weight, steps, axis) * along(steps, axis, weight.ndim)
        (x,) = run(graph, images, [node.input[0]])
        mean = x.mean((0, 2, 3)) if x.ndim == 4 else x.mean(0)
        outputs = []
        for bias, matrix in ((graph.initializers[node.input[2]], weight), (biases[node.name], rounded)):
            view = per_input(matrix, node)
            outputs.append(np.einsum("goit,gi->go", view, mean.reshape(view.shape[0], -1)).reshape(-1) + bias)
        np.testing.assert_allclose(outputs[1], outputs[0], atol=2e-5)  # float32 sums
        checked += 1
    assert checked


def test_correction_takes_the_mean_error_off_the_outputs():
    graph, images = chain(), pictures(32)
    table = table_of(graph, images)
    coarse = {}
    for corrected in (False, True):
        plan = make_plan(graph, table, WITHOUT_STEM, bias_correction=False)
        # 4-bit steps, so that rounding shows
        for name in plan.weights:
            plan.weights[name] *= 16
        if corrected:
            plan.biases.update(corrected_biases(graph, plan, table))
        outputs = run(quantize_dequantize(graph, plan), images)[0]
        coarse[corrected] = np.abs((outputs - run(graph, images)[0]).mean(0)).max()
    # later layers see inputs that earlier ones have changed, and borders are left out: not exact, but much better
    assert coarse[True] < 0.5 * coarse[False]
