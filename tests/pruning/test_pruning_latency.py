"""Latency as the cost of pruning: tables, what is predicted from them, what is chosen, and what a run leaves."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from edgevision.checkpoint import Checkpoint
from edgevision.errors import CheckFailedError, UsageError
from edgevision.models import create_model
from edgevision.pipeline import prune_latency
from edgevision.pipeline.prune_latency import LatencyPlanner, LatencyRound, best_round, corrected
from edgevision.preprocess import Preprocess
from edgevision.pruning import CostModel, ScoringData, find_groups, plan_counts, score_groups
from edgevision.pruning.latency import LatencyModel, monotone
from edgevision.pruning.latency_table import LatencyTable, axes, grid, measurable, points_of, widths
from tests.pruning.layer_work import multiply_adds

SHAPE = (1, 3, 32, 32)
TIMES = st.floats(0, 100, allow_nan=False)


def network(name="mobilenet_v2", **arguments):
    torch.manual_seed(0)
    return create_model(name, num_classes=3, input_size=32, **arguments).eval()


def table_of(points, time, **identity):
    fields = {"target": "ncnn", "engine_version": "1", "device": "somewhere else", **identity}
    return LatencyTable(**fields, layers={point.key: float(time(point)) for point in points})


def in_proportion(point):
    return multiply_adds(point) / 1e6


class Chain(nn.Module):
    """Two groups of 64 channels."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.second = nn.Conv2d(64, 64, 3, padding=1)
        self.last = nn.Conv2d(64, 5, 1)

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()).relu()).mean((2, 3))


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    model = Chain().eval()
    groups = find_groups(model, (1, 3, 8, 8))
    return model, groups, CostModel.of(model, groups), score_groups(model, groups, "l2", ScoringData())


@given(channels=st.integers(1, 2000), grouped=st.sampled_from([1, 2, 3, 8]))
@settings(max_examples=200, deadline=None)
def test_widths_are_few_ascending_and_end_with_all_channels(channels, grouped):
    channels *= grouped
    found = widths(channels, grouped)
    assert found == sorted(set(found))
    assert found[0] >= 1
    assert found[-1] == channels
    assert len(found) <= 6
    assert all(count % grouped == 0 for count in found)


def test_wide_layers_are_measured_at_multiples_of_16():
    assert widths(320) == [32, 80, 160, 240, 320]
    assert widths(24) == [8, 16, 24]
    assert widths(3) == [1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(times=arrays.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=TIMES))
def test_smoothed_times_never_fall_and_keep_their_sum(times):
    smooth = monotone(times)
    assert (np.diff(smooth, axis=0) >= 0).all()
    assert (np.diff(smooth, axis=1) >= 0).all()
    # least squares over a cone that holds the constants keeps the sum; the projections stop within 1e-3 of it
    assert smooth.sum() == pytest.approx(times.sum(), rel=1e-3, abs=1e-3)
    rising = np.maximum.accumulate(np.maximum.accumulate(times, axis=0), axis=1)
    # what rises already is not touched beyond rounding
    np.testing.assert_allclose(monotone(rising), rising, rtol=1e-9, atol=1e-12)


def test_a_fall_is_shared_by_its_neighbours():
    np.testing.assert_allclose(monotone(np.array([[1.0, 4.0, 2.0, 5.0]])), [[1, 3, 3, 5]], rtol=1e-9)
    np.testing.assert_allclose(monotone(np.array([[1.0], [4.0], [2.0]])), [[1], [3], [3]], rtol=1e-9)


def test_between_widths_is_interpolated_and_below_them_nothing_more_is_promised(chain):
    _, groups, costs, _ = chain
    cost = LatencyModel(table_of(points_of(costs.layers), in_proportion), costs)
    full = groups.counts()
    # multiply-adds are bilinear in the two counts, as the interpolation is
    for first, second in [(64, 64), (48, 40), (24, 56), (17, 63)]:
        counts = {"first": first, "second": second}
        expected = sum(layer.multiply_adds(*layer.at(counts, full)) for layer in costs.layers) / 1e6
        assert cost(counts) == pytest.approx(expected, rel=1e-9)  # rounding of float64 sums
    least = widths(64)[0]
    assert cost({"first": 1, "second": 1}) == cost({"first": least, "second": least})


def test_depthwise_layers_have_one_axis():
    model = network(width=0.25)
    costs = CostModel.of(model, find_groups(model, SHAPE))
    depthwise = [layer for layer in costs.layers if layer.kind == "depthwise"]
    assert depthwise
    for layer in depthwise:
        points = [point for row in grid(layer) for point in row]
        assert all(point.in_channels == point.out_channels == point.groups for point in points)
        assert [point.in_channels for point in points] == axes(layer)[0]
    cost = LatencyModel(table_of(points_of(costs.layers), in_proportion), costs)
    assert cost() == pytest.approx(costs.macs() / 1e6, rel=1e-9)  # rounding of float64 sums
    assert cost.not_measured == []


def test_layers_that_cannot_be_timed_alone_are_named_and_left_out():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(16, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ).eval()
    costs = CostModel.of(model, find_groups(model, (1, 3, 8, 8)))
    assert [layer.name for layer in costs.layers if not measurable(layer)] == ["2"]
    cost = LatencyModel(table_of(points_of(costs.layers), in_proportion), costs)
    assert cost.not_measured == ["2"]
    assert "2" not in cost.by_layer()


def test_a_layer_whose_latency_does_not_depend_on_its_channels_is_not_pruned(chain):
    _, groups, costs, scores = chain

    # only what the second layer makes costs anything; channels of the first save nothing anywhere
    def time(point):
        return point.out_channels if point.kernel == (3, 3) and point.in_channels != 3 else 7.0

    flat = table_of(points_of(costs.layers), time)
    cost = LatencyModel(flat, costs)
    counts = plan_counts(groups, scores, cost, target=0.6 * cost(), scope="global", multiple=8)
    assert counts["first"] == 64
    assert counts["second"] < 64
    assert cost(counts) <= 0.6 * cost()


def test_on_stairs_channels_go_by_whole_steps(chain):
    _, groups, costs, scores = chain
    # kernels of 16 channels: 33 take as long as 48. The widths measured are the steps themselves
    stairs = table_of(points_of(costs.layers), lambda p: -(-p.in_channels // 16) * -(-p.out_channels // 16))
    measured = LatencyModel(stairs, costs)

    def cost(counts):
        return measured({name: -(-count // 16) * 16 for name, count in counts.items()})

    counts = plan_counts(groups, scores, cost, target=0.5 * cost(groups.counts()), scope="global", multiple=8)
    assert cost(counts) <= 0.5 * cost(groups.counts())
    # a step of 8 alone saves nothing, so none is left standing halfway
    assert all(count % 16 == 0 for count in counts.values()), counts
    assert plan_counts(groups, scores, cost, target=0.5 * cost(groups.counts()), scope="global", multiple=8) == counts


def test_tables_travel_as_files(chain, tmp_path):
    _, _, costs, _ = chain
    points = points_of(costs.layers)
    table = table_of(points, in_proportion)
    table.save(tmp_path / "table.json")
    assert LatencyTable.open(tmp_path / "table.json") == table
    assert table.missing(points) == []
    del table.layers[points[0].key]
    assert table.missing([points[0], points[0], points[1]]) == [points[0]]
    with pytest.raises(UsageError, match=r"lacks 1 of the \d+ layers and widths of this network.*--measure-latency"):
        LatencyModel(table, costs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: {**values, "format": 99}, "has format 99; this version reads 1"),
        (lambda values: {**values, "layers": {"conv": -1.0}}, "has no time for 'conv': -1.0 ms"),
        (lambda values: {**values, "layers": {"conv": float("nan")}}, "has no time for 'conv'"),
        (lambda values: {**values, "layers": {"conv": "fast"}}, "is damaged: ValueError"),
        (lambda values: {**values, "layers": []}, "is damaged: AttributeError"),
        (lambda values: {key: value for key, value in values.items() if key != "device"}, "is damaged: KeyError"),
        (lambda values: [], "is damaged: TypeError"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, change, message):
    path = tmp_path / "table.json"
    LatencyTable("ncnn", "1", "here", layers={"conv": 1.0}).save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UsageError, match=message):
        LatencyTable.open(path)


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(UsageError, match="is no latency table"):
        LatencyTable.open(tmp_path / "table.json")
    with pytest.raises(UsageError, match="cannot be read"):
        LatencyTable.open(tmp_path / "none.json")


def test_a_saving_that_was_not_had_is_asked_for_in_proportion():
    # half of the predicted saving was measured: twice as much is asked for
    assert corrected(0.8, 0.8, 0.9) == pytest.approx(0.6)
    # and less where more was saved than promised
    assert corrected(0.6, 0.6, 0.5) == pytest.approx(1 - 0.4 * 0.4 / 0.5)
    # a network that became slower is no reason to remove all of it
    assert corrected(0.9, 0.9, 1.2) == pytest.approx(1 - 0.1 / 0.3)
    assert corrected(0.7, 1.0, 1.0) == 0.7


def test_of_rounds_that_are_fast_enough_the_one_that_removes_least_counts():
    deep = LatencyRound(0.5, 0.5, (2.0, 1.0), {"a": 8})
    light = LatencyRound(0.6, 0.6, (2.0, 1.16), {"a": 16})
    slow = LatencyRound(0.7, 0.7, (2.0, 1.5), {"a": 24})
    assert best_round([deep, light, slow], 0.6) is light
    assert best_round([slow], 0.6) is None
    assert best_round([replace(slow, measured_ms=None)], 0.7) is not None


@pytest.fixture(scope="module")
def tiny():
    return Checkpoint.from_model(network("repvgg_tiny", width=0.5), preprocess=Preprocess(size=(32, 32)))


def points_of_model(checkpoint):
    model = checkpoint.build()
    return points_of(CostModel.of(model, find_groups(model, SHAPE)).layers)


def planner_of(tiny, folder, factor, monkeypatch, *, ratio=0.6, **options):
    """A planner whose device gives ``factor`` of the saving that its table promises."""
    table = table_of(points_of_model(tiny), in_proportion, device=prune_latency.device_name("ncnn"))
    table.save(folder / "table.json")
    seen = []

    def measured(checkpoints, target, rounds):
        assert target == "ncnn"
        whole, smaller = (
            CostModel.of(one.build(), find_groups(one.build(), SHAPE)).macs() / 1e6 for one in checkpoints
        )
        seen.append(1 - factor * (1 - smaller / whole))
        return [10.0, 10.0 * seen[-1]]

    monkeypatch.setattr(prune_latency, "measure_latency", measured)
    planner = LatencyPlanner(
        tiny, folder / "run", ratio=ratio, target="ncnn", table=folder / "table.json", round_to=1, **options
    )
    return planner, seen


def test_a_missed_target_is_corrected_and_the_decision_is_remembered(tiny, tmp_path, monkeypatch):
    planner, seen = planner_of(tiny, tmp_path, 0.7, monkeypatch)
    plan = planner(tiny.build(), 1.0, ScoringData())
    assert len(seen) == 2
    assert seen[0] > 0.6 >= seen[1]
    report = json.loads((tmp_path / "run" / "latency.json").read_text())
    assert report["met"]
    assert report["by"] == "measurement"
    assert [found["measured"] for found in report["rounds"]] == pytest.approx(seen)
    assert report["counts"] == plan.counts == report["rounds"][1]["counts"]
    # asked again in this process, and in another: the same plan, and nothing is measured
    assert planner(tiny.build(), 1.0, ScoringData()).counts == plan.counts
    again, none = planner_of(tiny, tmp_path, 0.7, monkeypatch)
    found = again(tiny.build(), 1.0, ScoringData())
    assert (found.counts, found.keep, none) == (plan.counts, plan.keep, [])
    # another ratio is another decision, and so is a fresh start
    other, measured = planner_of(tiny, tmp_path, 0.7, monkeypatch, ratio=0.7)
    assert other(tiny.build(), 1.0, ScoringData()).macs_ratio > plan.macs_ratio
    assert measured
    restarted, measured = planner_of(tiny, tmp_path, 0.7, monkeypatch, restart=True)
    assert restarted(tiny.build(), 1.0, ScoringData()).counts == plan.counts
    assert len(measured) == 2


def test_a_network_that_became_faster_than_asked_gets_channels_back(tiny, tmp_path, monkeypatch):
    planner, seen = planner_of(tiny, tmp_path, 1.3, monkeypatch)
    plan = planner(tiny.build(), 1.0, ScoringData())
    assert seen[0] < 0.56
    assert seen[0] < seen[-1] <= 0.6
    assert plan.macs_ratio > 0.6


def test_a_target_out_of_reach_fails_the_check_and_leaves_what_was_found(tiny, tmp_path, monkeypatch):
    planner, seen = planner_of(tiny, tmp_path, 0.05, monkeypatch)
    with pytest.raises(CheckFailedError, match=r"asked for 60.0% of the latency on ncnn; the fastest of \d selections"):
        planner(tiny.build(), 1.0, ScoringData())
    report = json.loads((tmp_path / "run" / "latency.json").read_text())
    assert (report["met"], report["counts"], len(report["rounds"])) == (False, None, len(seen))
    # it is not remembered: the next call measures again
    with pytest.raises(CheckFailedError):
        planner(tiny.build(), 1.0, ScoringData())
    assert len(seen) == 2 * len(report["rounds"])


def test_a_table_of_another_device_predicts_and_says_so(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(prune_latency, "measure_latency", lambda *a, **k: pytest.fail("measured on the wrong device"))
    table_of(points_of_model(tiny), in_proportion).save(tmp_path / "table.json")
    planner = LatencyPlanner(tiny, tmp_path / "run", ratio=0.5, target="ncnn", table=tmp_path / "table.json")
    assert planner.elsewhere
    plan = planner(tiny.build(), 1.0, ScoringData())
    assert plan.macs_ratio <= 0.5
    report = json.loads((tmp_path / "run" / "latency.json").read_text())
    assert report["by"] == "prediction"
    assert report["rounds"][0]["measured_ms"] is None


def test_a_table_of_another_engine_and_a_uniform_scope_are_refused(tiny, tmp_path):
    LatencyTable("onnxruntime", "1", "here").save(tmp_path / "table.json")
    with pytest.raises(UsageError, match="was measured on onnxruntime, not on ncnn"):
        LatencyPlanner(tiny, tmp_path / "run", ratio=0.5, target="ncnn", table=tmp_path / "table.json")
    with pytest.raises(UsageError, match="latency decides group by group"):
        LatencyPlanner(tiny, tmp_path / "run", ratio=0.5, target="ncnn", scope="uniform")
