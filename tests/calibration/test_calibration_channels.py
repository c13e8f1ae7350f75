from __future__ import annotations

import numpy as np
import pytest
from calibration_nets import NETS, Builder, chain, depthwise, fire, grouped, pictures, residual, run, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision_calibration.channels import channel_groups
from edgevision_calibration.equalization import rescale


def group_of(graph, tensor):
    return next(group for group in channel_groups(graph) if tensor in group.tensors)


def usable(graph):
    return [group for group in channel_groups(graph) if group.producers and group.consumers]


def test_a_chain_has_a_group_between_every_two_layers():
    groups = usable(chain())
    assert [(group.size, len(group.producers), len(group.consumers)) for group in groups] == [(8, 1, 1), (12, 1, 1)]
    assert not any(group.signed.any() for group in groups)


def test_depthwise_layers_keep_channels_apart():
    graph = depthwise()
    groups = usable(graph)
    assert [group.size for group in groups] == [8, 8, 16]
    first, second, _ = groups
    assert first.consumers == second.producers


def test_additions_tie_all_that_they_add():
    graph = residual()
    tied = next(group for group in usable(graph) if any(graph.producer[n].op_type == "Add" for n in group.tensors))
    # the convolution before, and one at the end of each of the two blocks; read by the blocks and the last layer
    assert (tied.size, len(tied.producers), len(tied.consumers)) == (8, 3, 3)
    # nothing between treats signs differently
    assert tied.signed.all()
    assert sum(group.signed.all() for group in usable(graph)) == 1


def test_forks_and_concatenations_are_followed():
    graph = fire()
    concats = [node.output[0] for node in graph.nodes if node.op_type == "Concat"]
    for name in concats:
        group = group_of(graph, name)
        assert group.size == 16
        assert len(group.producers) == 2
        np.testing.assert_array_equal(np.sort(group.tensors[name]), np.arange(16))
        parts = graph.producer[name].input
        np.testing.assert_array_equal(group.tensors[name], np.concatenate([group.tensors[part] for part in parts]))
    forked = [group for group in usable(graph) if len(group.consumers) == 2]
    assert len(forked) == 2


def test_the_input_and_the_outputs_are_pinned():
    graph = chain()
    for name in (graph.input_name, *graph.output_names):
        assert not any(name in group.tensors and (group.tensors[name] >= 0).any() for group in channel_groups(graph))


@pytest.mark.parametrize("op", ["Sigmoid", "HardSwish", "Softmax"])
def test_other_activations_let_no_factor_through(op):
    b = Builder()
    x = b.op(op, b.conv("images", 8))
    graph = b.graph(b.head(b.relu(b.conv(x, 4))))
    assert [group.size for group in usable(graph)] == [4]


def test_a_weight_of_two_layers_is_left_alone():
    b = Builder()
    x = b.relu(b.conv("images", 6))
    x = b.relu(b.conv(x, 6))
    shared = b.nodes[-2].input[1]
    x = b.relu(b.op("Conv", x, shared, channels=6, kernel_shape=[1, 1]))
    x = b.relu(b.conv(x, 7))
    # nothing up to the second reader of the weight may change; what comes after it may
    assert [group.size for group in usable(b.graph(b.head(x)))] == [7]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(NETS)), st.integers(0, 1000))
def test_factors_leave_the_function_alone(name, seed):
    graph, images = NETS[name](), 0.2 * pictures(4)
    rng = np.random.default_rng(seed)
    table = table_of(graph, images)
    chosen = []
    for group in usable(graph):
        clips = [name for name in group.tensors if graph.producer[name].op_type == "Clip"]
        # no value meets a Clip at 6, and none does so afterwards
        assert all(table[name].high < 6 for name in clips)
        factors = 2.0 ** rng.uniform(-4, 0 if clips else 4, group.size)
        chosen.append((group, factors * np.where(group.signed & (rng.random(group.size) < 0.5), -1, 1)))
    rescaled = rescale(graph, chosen)
    for before, after in zip(run(graph, images), run(rescaled.graph, images), strict=True):
        # float32 rounding of weights and sums: 1e-5 of the greatest value
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


def test_rescaled_tensors_are_what_they_were_times_their_factors():
    graph, images = grouped(), pictures(3)
    rng = np.random.default_rng(4)
    rescaled = rescale(graph, [(group, rng.uniform(0.2, 5, group.size)) for group in usable(graph)])
    tensors = list(rescaled.factors)
    assert tensors
    before, after = run(graph, images, tensors), run(rescaled.graph, images, tensors)
    for name, first, second in zip(tensors, before, after, strict=True):
        factors = rescaled.factors[name].reshape(-1, *[1] * (first.ndim - 2))
        np.testing.assert_allclose(second, first * factors, rtol=1e-4, atol=1e-5)
