from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.errors import CalibrationError, UsageError
from edgevision_calibration.histogram import Histogram
from edgevision_calibration.observe import observe, open_session
from edgevision_calibration.planning import make_plan
from edgevision_calibration.ranges.auto import METHODS, choose_ranges
from edgevision_calibration.ranges.moving_average import moving_average_range
from edgevision_calibration.scheme import scheme_for
from edgevision_calibration.table import CalibrationTable, Digest, TensorStatistics
from edgevision_converters.canonical import canonicalize
from tests.conformance.nets import picture, tiny_net


@pytest.fixture(scope="module")
def graph():
    return canonicalize(tiny_net())


@pytest.fixture(scope="module")
def batches():
    return [np.moveaxis(picture(index), -1, 0)[None].astype(np.float32) / 255 for index in range(24)]


@pytest.fixture(scope="module")
def table(graph, batches):
    return observe(graph, batches, threads=1)


def seen(values: np.ndarray, batch: int) -> Histogram:
    statistics = TensorStatistics.empty(values.shape[1])
    for start in range(0, len(values), batch):
        statistics.update(Digest.of(values[start : start + batch]))
    return statistics.histogram


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31), st.floats(-2, 2))
def test_moving_average_is_the_mean_of_the_pictures_extremes(count, batch, seed, shift):
    values = (np.random.default_rng(seed).normal(shift, 1.0, (count, 3, 4, 4))).astype(np.float32)
    low, high = moving_average_range(seen(values, batch), symmetric=False)
    lows, highs = values.min(axis=(1, 2, 3)), values.max(axis=(1, 2, 3))
    # means of float32 values taken in another order
    assert low == pytest.approx(min(float(lows.mean(dtype=np.float64)), 0.0), abs=1e-5)
    assert high == pytest.approx(max(float(highs.mean(dtype=np.float64)), 0.0), abs=1e-5)
    both = moving_average_range(seen(values, batch), symmetric=True)
    assert both == pytest.approx((-max(-low, high), max(-low, high)), abs=1e-5)


def test_moving_average_survives_merging():
    values = np.random.default_rng(0).normal(0.0, 1.0, (8, 2, 5, 5)).astype(np.float32)
    first, second = seen(values[:3], 1), seen(values[3:], 2)
    first.merge(second)
    expected = moving_average_range(seen(values, 1), symmetric=False)
    # the same sums in another order
    assert moving_average_range(first, symmetric=False) == pytest.approx(expected, abs=1e-6)


def test_a_histogram_without_pictures_keeps_everything():
    histogram = Histogram()
    histogram.update(np.asarray([-1.0, 4.0], np.float32), -1.0, 4.0)
    assert moving_average_range(histogram, symmetric=False) == (-1.0, 4.0)


def test_the_table_keeps_what_moving_average_needs(table, tmp_path):
    reopened = CalibrationTable.open(table.save(tmp_path))
    for name, statistics in table.tensors.items():
        kept = reopened[name]
        assert moving_average_range(kept.histogram, symmetric=False) == moving_average_range(
            statistics.histogram, symmetric=False
        )
        assert kept.growth == statistics.growth
        assert kept.pictures == 24


def test_a_table_of_the_older_version_is_refused(table, tmp_path):
    folder = table.save(tmp_path)
    path = folder / "table.json"
    values = json.loads(path.read_text())
    values["schema_version"] = 1
    path.write_text(json.dumps(values))
    with pytest.raises(CalibrationError, match="older edgevision"):
        CalibrationTable.open(folder)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_the_method_with_the_least_error_is_chosen(graph, table, batches, target):
    choices = choose_ranges(graph, table, scheme_for(target), batches[:8], threads=1)
    assert set(choices) == set(make_plan(graph, table, scheme_for(target)).activations)
    for name, choice in choices.items():
        least = min(choice.error.values())
        # the first method is kept unless another is better by 2% of its error
        assert choice.error[choice.method] <= least / 0.98 + 1e-12, name


def test_the_error_is_that_of_the_readers_output(graph, table, batches):
    # the input is rounded for the first layer only where that is no float stem
    scheme = replace(scheme_for("openvino"), stem=None)
    choices = choose_ranges(graph, table, scheme, batches[:4], threads=1)
    plan = make_plan(graph, table, scheme, ranges="percentile")
    quant = plan.activations["images"]
    session = open_session(_first_layer(graph), threads=1)
    errors = []
    for batch in batches[:4]:
        integers = np.clip(np.round(batch / np.float32(quant.scale)) + quant.zero_point, 0, 255)
        rounded = ((integers - quant.zero_point) * np.float32(quant.scale)).astype(np.float32)
        expected, made = (session.run(None, {"images": feed})[0].astype(np.float64) for feed in (batch, rounded))
        errors.append(np.square(made - expected).sum() / np.square(expected).sum())
    # float32 sums of a few thousand squares
    assert choices["images"].error["percentile"] == pytest.approx(np.mean(errors), rel=1e-3)


def _first_layer(graph) -> bytes:
    from onnx import TensorProto, helper

    from edgevision_calibration.observe import expose

    node = graph.nodes[0]
    model = type(graph.model)()
    model.ParseFromString(expose(graph, [node.output[0]]))
    del model.graph.node[1:]
    del model.graph.value_info[:]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
    return model.SerializeToString()


def test_a_plan_takes_each_tensors_own_method(graph, table):
    scheme = scheme_for("ncnn")
    by_method = {method: make_plan(graph, table, scheme, ranges=method) for method in METHODS}
    names = list(by_method["mse"].activations)
    chosen = {name: METHODS[index % len(METHODS)] for index, name in enumerate(names)}
    plan = make_plan(graph, table, scheme, ranges=chosen)
    for name in names:  # ncnn shares no scales between tensors
        assert plan.activations[name] == by_method[chosen[name]].activations[name]
    assert plan.calibration["ranges"] == chosen
    assert type(plan).from_json(plan.to_json()).calibration["ranges"] == chosen


def test_what_cannot_be_chosen_is_refused(graph, table, batches):
    with pytest.raises(CalibrationError, match="no pictures"):
        choose_ranges(graph, table, scheme_for("ncnn"), [])
    with pytest.raises(UsageError, match="median"):
        make_plan(graph, table, scheme_for("ncnn"), ranges="median")
    with pytest.raises(UsageError, match="median"):
        choose_ranges(graph, table, scheme_for("ncnn"), batches[:1], methods=("mse", "median"))
