from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from calibration_nets import Builder, batches, pictures, residual, run, table_of

from edgevision_calibration.equalization import equalize
from edgevision_calibration.float_cost import FloatCost
from edgevision_calibration.integer_flow import quantized_tensors
from edgevision_calibration.mixed_precision import precise_layers, stem_layers, thin_layers
from edgevision_calibration.observe import activated
from edgevision_calibration.planning import make_plan
from edgevision_calibration.scheme import SCHEMES
from edgevision_calibration.table import CalibrationTable
from edgevision_converters.qdq import quantize_dequantize

# small tensors at the end of a wide net, as those of MobileNetV2 after its last stride
CHANNELS = 48

STEM = SCHEMES["onnxruntime"].stem


def tall_net():
    b = Builder()
    x = b.relu(b.conv("images", CHANNELS, 3))
    for _ in range(4):
        x = b.relu(b.conv(x, CHANNELS, 3))
    x = b.op("GlobalAveragePool", x)
    for _ in range(3):
        x = b.relu(b.conv(x, CHANNELS))
    return b.graph(b.op("Flatten", x))


def layers_of(graph):
    return [node for node in graph.nodes if node.op_type in {"Conv", "Gemm"}]


def quantized_by(graph, scheme):
    def quantized(names):
        left = [node for node in layers_of(graph) if node.name not in names]
        return quantized_tensors(graph, left, scheme, dict.fromkeys(names, ""))

    return quantized


def test_a_stem_ends_where_the_net_widens():
    b = Builder()
    x = b.relu6(b.conv("images", 32, 3, stride=2))
    x = b.relu6(b.conv(x, 32, 3, group=32))
    x = b.relu6(b.conv(x, 16))
    x = b.relu6(b.conv(x, 96))
    graph = b.graph(b.head(x))
    convolutions = [node.name for node in graph.nodes if node.op_type == "Conv"]
    assert stem_layers(graph, STEM) == convolutions[:3]


def test_a_stem_ends_where_the_net_forks():
    b = Builder()
    x = b.conv("images", 8, 3)
    y = b.op("Add", b.conv(x, 8, 3, group=8), x)
    graph = b.graph(b.head(y))
    assert stem_layers(graph, STEM) == [graph.nodes[0].name]


@pytest.mark.parametrize(("channels", "kernel"), [(65, 1), (16, 7)])
def test_wide_layers_and_long_sums_are_no_stem(channels, kernel):
    b = Builder()
    graph = b.graph(b.head(b.conv("images", channels, kernel)))
    assert stem_layers(graph, STEM) == []


def test_only_the_layer_that_reads_the_picture_may_make_more_channels():
    b = Builder()
    x = b.relu(b.conv("images", 64, 3))
    graph = b.graph(b.head(b.relu(b.conv(x, 64, 3, group=64))))
    assert stem_layers(graph, STEM) == [graph.nodes[0].name]


def test_a_net_that_is_all_stem_runs_on_integers():
    b = Builder()
    graph = b.graph(b.op("GlobalAveragePool", b.conv(b.relu(b.conv("images", 8, 3)), 8)))
    assert not make_plan(graph, table_of(graph), SCHEMES["onnxruntime"]).float_ops


def test_the_layer_with_most_noise_for_its_work_stays_in_float():
    graph, scheme = tall_net(), SCHEMES["openvino"]
    late = layers_of(graph)[-2]
    noise = dict.fromkeys(quantized_by(graph, scheme)(()), 0.1) | {late.input[0]: 30.0}
    assert list(precise_layers(graph, layers_of(graph), noise, quantized_by(graph, scheme), scheme)) == [late.name]


def test_noise_in_a_heavy_layer_does_not_pay():
    graph, scheme = tall_net(), SCHEMES["openvino"]
    heavy = layers_of(graph)[2]
    noise = {heavy.input[0]: 1.0}
    assert precise_layers(graph, layers_of(graph), noise, quantized_by(graph, scheme), scheme) == {}


def test_layers_in_a_row_are_freed_together_where_outputs_are_rounded_too():
    # one layer alone would free nothing: its input is its neighbour's output, which stays rounded
    graph, scheme = tall_net(), SCHEMES["onnxruntime"]
    late = layers_of(graph)[-3:]
    noise = {late[1].input[0]: 5.0, late[2].input[0]: 5.0, layers_of(graph)[1].input[0]: 1.0}
    chosen = precise_layers(graph, layers_of(graph), noise, quantized_by(graph, scheme), scheme)
    assert set(chosen) == {node.name for node in late}


def fire_net():
    """Two fire modules of SqueezeNet: a narrow layer, two that read it, and a concat that the next module reads."""
    b = Builder()
    x = b.relu(b.conv("images", CHANNELS, 3))
    for _ in range(2):
        x = b.relu(b.conv(x, 16))
        x = b.op("Concat", b.relu(b.conv(x, 64)), b.relu(b.conv(x, 64, 3)), axis=1, channels=128)
    return b.graph(b.op("Flatten", b.op("GlobalAveragePool", b.relu(b.conv(x, 200)))))


def cost_of(graph, scheme):
    """Its cost model, and what a layer alone takes to float."""
    quantized = quantized_by(graph, scheme)
    cost = FloatCost(graph, layers_of(graph), quantized(()), scheme)
    return cost, lambda node: cost.in_float([node.name], quantized([node.name]))


def test_a_float_layer_behind_a_concat_takes_the_whole_concat_along():
    graph, scheme = fire_net(), SCHEMES["openvino"]
    squeeze = layers_of(graph)[4]
    concat = graph.producer[squeeze.input[0]]
    cost, tensors = cost_of(graph, scheme)
    assert tensors(squeeze) == {activated(graph, squeeze), concat.output[0], *concat.input}
    alone = cost.added([squeeze.name], cost.around([squeeze.name]))
    # two thirds of the values are the expand layers' own outputs, which a count of the layer's own would miss
    assert cost.added([squeeze.name], tensors(squeeze)) > 1.5 * alone
    # and with them in float already, the layer adds no more than its products
    assert cost.added([squeeze.name], ()) < 0.5 * alone


def test_a_neighbour_that_shares_tensors_adds_less_than_alone():
    graph, scheme = tall_net(), SCHEMES["onnxruntime"]
    quantized, (first, second) = quantized_by(graph, scheme), layers_of(graph)[2:4]
    cost, tensors = cost_of(graph, scheme)
    both = cost.in_float([first.name, second.name], quantized([first.name, second.name]))
    further = cost.added([second.name], both - tensors(first))
    assert further < cost.added([second.name], tensors(second))
    assert cost.added([first.name, second.name], both) == pytest.approx(
        cost.added([first.name], tensors(first)) + further
    )


def test_where_layers_round_for_themselves_no_tensor_goes_with_one():
    graph, scheme = fire_net(), SCHEMES["ncnn"]
    _, tensors = cost_of(graph, scheme)
    assert not any(tensors(node) for node in layers_of(graph))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_noise_spread_evenly_leaves_no_islands(target):
    graph, scheme = fire_net(), SCHEMES[target]
    quantized = quantized_by(graph, scheme)
    assert precise_layers(graph, layers_of(graph), dict.fromkeys(quantized(()), 1.0), quantized, scheme) == {}


@pytest.mark.parametrize("target", sorted(SCHEMES))
def test_float_layers_keep_within_their_time(target):
    graph, scheme = tall_net(), SCHEMES[target]
    quantized = quantized_by(graph, scheme)
    # ever more noise towards the end, so that one run after another pays
    noise = {name: 4.0**at for at, name in enumerate(quantized(()))}
    chosen = precise_layers(graph, layers_of(graph), noise, quantized, scheme)
    assert chosen
    # layers of one run carry the same figures; as many runs at most as there are layers
    assert sum({found.time for found in chosen.values()}) <= 0.10
    assert list(chosen) == list(precise_layers(graph, layers_of(graph), noise, quantized, scheme))


def test_tensors_that_only_float_layers_read_are_not_rounded():
    graph = residual()
    last = layers_of(graph)[-2]
    scheme = dataclasses.replace(SCHEMES["onnxruntime"], stem=None)
    table = table_of(graph)
    assert last.input[0] in make_plan(graph, table, scheme).activations
    plan = make_plan(graph, table, scheme, keep_float={last.name: "asked for"})
    assert graph.producer[last.input[0]].op_type == "Add"
    assert last.input[0] not in plan.activations


def test_what_stays_in_float_lowers_the_noise_and_says_so():
    graph = tall_net()
    equalized = equalize(graph, batches(pictures()), threads=1)
    table = table_of(equalized.graph)
    table.noise_gains = dict(equalized.noise_gains)
    scheme = SCHEMES["tensorrt"]
    everything = make_plan(equalized.graph, table, scheme, precise=False)
    plan = make_plan(equalized.graph, table, scheme)
    reasons = [reason for name, reason in plan.float_ops.items() if name not in everything.float_ops]
    assert reasons
    assert all("of the outputs' noise, in float about" in reason for reason in reasons)
    images = pictures(16, seed=5)
    (expected,) = run(graph, images)
    errors = [
        float(np.square(run(quantize_dequantize(equalized.graph, made), images)[0] - expected).mean())
        for made in (everything, plan)
    ]
    assert errors[1] < errors[0]


def test_the_gain_of_the_last_tensor_tells_the_noise_at_the_outputs():
    graph = tall_net()
    equalized = equalize(graph, batches(pictures()), threads=1)
    table, scheme = table_of(equalized.graph), SCHEMES["openvino"]
    last = layers_of(graph)[-1]
    others = {node.name: "measured alone" for node in layers_of(graph) if node is not last}
    plan = make_plan(equalized.graph, table, scheme, keep_float=others, bias_correction=False, precise=False)
    model = quantize_dequantize(equalized.graph, plan)
    for node in model.graph.node:  # the weights as they were: the tensor's own noise alone
        if node.name == last.name:
            node.input[1] = last.input[1]
    model.graph.initializer.append(next(t for t in equalized.graph.model.graph.initializer if t.name == last.input[1]))
    images = pictures(64, seed=5)
    (expected,), (got,) = run(graph, images), run(model, images)
    measured = np.square(got - expected).sum() / np.square(expected).sum()
    step = plan.activations[last.input[0]].scale
    # a ReLU's zeros, and few pictures, leave it within a factor of two
    assert 0.5 < equalized.noise_gains[last.input[0]] * step**2 / 12 / measured < 2


def test_gains_are_kept_with_the_table(tmp_path):
    table = table_of(residual())
    table.noise_gains = {"images": 0.25}
    assert CalibrationTable.open(table.save(tmp_path)).noise_gains == {"images": 0.25}


def test_layers_with_few_products_for_each_value_are_thin():
    b = Builder()
    x = b.relu(b.conv("images", 8, 3))  # 8·3·9 products for 3 + 8 values: 19.6
    x = b.relu(b.conv(x, 64))  # 64·8 for 72: 7.1
    x = b.relu(b.conv(x, 64, 3))  # 64·64·9 for 128: 288
    x = b.relu(b.conv(x, 64, 3, group=64))  # 64·9 for 128: 4.5
    graph = b.graph(b.head(x))
    convolutions = [node.name for node in graph.nodes if node.op_type == "Conv"]
    assert thin_layers(graph, 25.0) == [convolutions[at] for at in (0, 1, 3)]
    assert thin_layers(graph, 10.0) == [convolutions[at] for at in (1, 3)]
    assert thin_layers(graph, 0.0) == []
    reasons = make_plan(graph, table_of(graph), SCHEMES["ncnn"], precise=False).float_ops
    assert set(reasons) == {convolutions[at] for at in (0, 1, 3)}
