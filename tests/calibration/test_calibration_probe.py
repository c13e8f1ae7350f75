from __future__ import annotations

import numpy as np
import pytest
from calibration_nets import NETS, pictures

from edgevision_calibration import probe as probe_module
from edgevision_calibration.observe import expose, observe, observed_tensors, open_session, run_probe
from edgevision_calibration.probe import Probe


@pytest.fixture
def small_maps_count_as_large(monkeypatch):
    monkeypatch.setattr(probe_module, "_MAP", 1)
    monkeypatch.setattr(probe_module, "_LARGE_MAP", 1)
    monkeypatch.setattr(probe_module, "_LEAST_SIDE", 3)


def tensors_of(graph, images):
    """Every observed tensor as it is, handed over whole."""
    names = observed_tensors(graph)
    whole = Probe(graph, names)
    session = open_session(whole.model, threads=1)
    outputs = session.run(whole.outputs, {graph.input_name: images})
    return {reading.name: reading for reading in whole.read(images, outputs)}


@pytest.mark.parametrize("net", NETS)
def test_extremes_found_in_the_graph_are_those_of_all_values(net, monkeypatch):
    graph, images = NETS[net](), pictures(3)
    whole = tensors_of(graph, images)
    assert all(reading.values.shape[2:] == graph.shapes[name][2:] for name, reading in whole.items())
    for name in ("_MAP", "_LARGE_MAP"):
        monkeypatch.setattr(probe_module, name, 1)
    probe = Probe(graph, list(whole), pixels=4)
    assert any(name.endswith("|high") for name in probe.outputs)
    ((batch, readings),) = run_probe(probe, graph.input_name, [images], threads=1)
    assert batch is images
    for reading in readings:
        expected = whole[reading.name]
        # other layouts round otherwise in the last digits
        np.testing.assert_allclose(reading.highs, expected.highs, rtol=1e-5, atol=1e-5)
        made_by = graph.producer.get(reading.name)
        if reading.lows.any() or made_by is None or made_by.op_type not in {"Relu", "Clip"}:
            np.testing.assert_allclose(reading.lows, expected.lows, rtol=1e-5, atol=1e-5)
        else:
            assert (expected.lows >= 0).all()


@pytest.mark.parametrize("net", NETS)
def test_a_grid_holds_pixels_of_the_map(net, small_maps_count_as_large):
    graph, images = NETS[net](), pictures(2)
    probe = Probe(graph, observed_tensors(graph), pixels=9)
    grids = [name for name in probe.outputs if name.endswith("|grid")]
    assert grids
    ((_, readings),) = run_probe(probe, graph.input_name, [images], threads=1)
    found = {reading.name: reading.values for reading in readings}
    for name in (grid.partition("|")[0] for grid in grids):
        whole = whole_tensor(graph, name, images)
        grid = found[name]
        stride = -(-whole.shape[2] // grid.shape[2])
        starts = [whole[:, :, at::stride, at::stride] for at in range(3)]
        matches = [
            start.shape[2] >= grid.shape[2]
            and np.allclose(start[:, :, : grid.shape[2], : grid.shape[3]], grid, rtol=1e-5, atol=1e-5)
            for start in starts
        ]
        assert any(matches), name


def whole_tensor(graph, name, images):
    return open_session(expose(graph, [name]), threads=1).run([name], {graph.input_name: images})[0]


def test_pictures_run_side_by_side_are_read_in_their_order():
    graph, images = NETS["residual"](), pictures(9)
    feed = [images[at : at + 1] for at in range(9)]
    alone, together = (observe(graph, iter(feed), threads=threads) for threads in (1, 3))
    for name, seen in alone.tensors.items():
        other = together[name]
        np.testing.assert_array_equal(seen.channel_sum, other.channel_sum)
        np.testing.assert_array_equal(seen.part_high, other.part_high)
        np.testing.assert_array_equal(seen.histogram.counts, other.histogram.counts)


def test_summed_up_maps_give_the_statistics_of_whole_ones(monkeypatch):
    graph, images = NETS["depthwise"](), pictures(16)
    whole = observe(graph, [images], threads=1)
    monkeypatch.setattr(probe_module, "_MAP", 1)
    monkeypatch.setattr(probe_module, "_LARGE_MAP", 1)
    monkeypatch.setattr(probe_module, "_LEAST_SIDE", 6)
    summed = observe(graph, [images], threads=1, samples=1)
    for name, seen in whole.tensors.items():
        other = summed[name]
        np.testing.assert_allclose(other.channel_high, seen.channel_high, rtol=1e-5, atol=1e-5)
        assert (min(other.low, 0.0), other.high) == pytest.approx((min(seen.low, 0.0), seen.high), rel=1e-5, abs=1e-5)
        # every other pixel of either side: a quarter of them, on 16 pictures
        spread = np.maximum(seen.channel_high - seen.channel_low, 1e-6)
        assert (np.abs(other.channel_mean - seen.channel_mean) / spread).max() < 0.1


def test_a_probe_leaves_the_graph_as_it_is_and_adds_to_it():
    graph, images = NETS["depthwise"](), pictures(2)
    before = graph.to_bytes()
    probe = Probe(graph, observed_tensors(graph))
    session = open_session(probe.model, threads=1)
    assert graph.to_bytes() == before
    # an output of the network that is observed is there once
    names = [output.name for output in session.get_outputs()]
    assert len(set(names)) == len(names)
    assert set(probe.outputs) <= set(names)
    found = dict(zip(probe.outputs, session.run(probe.outputs, {graph.input_name: images}), strict=True))
    expected = open_session(before, threads=1).run(graph.output_names, {graph.input_name: images})
    for name, values in zip(graph.output_names, expected, strict=True):
        # other layouts round otherwise in the last digits
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)
