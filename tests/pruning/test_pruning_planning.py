"""Scores, counts and costs: what `prune` decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edgevision as ev
from edgevision.errors import ModelError, UsageError
from edgevision.models import create_model
from edgevision.models.reparameterize import reparameterize
from edgevision.models.statistics import count_multiply_adds, count_parameters
from edgevision.pruning import (
    IMPORTANCES,
    ChannelGroup,
    CostModel,
    Member,
    ScoringData,
    choose_channels,
    find_groups,
    legal_counts,
    plan_counts,
    remove_channels,
    score_groups,
)
from edgevision.pruning.loss_curves import loss_curves
from edgevision.pruning.prune import make_plan
from edgevision.pruning.rounding import round_count

SHAPE = (1, 3, 32, 32)


def network(name="repvgg_tiny", **arguments):
    torch.manual_seed(0)
    return create_model(name, num_classes=3, input_size=32, **arguments).eval()


@pytest.fixture(scope="module")
def mobile():
    model = network("mobilenet_v2", width=0.5)
    groups = find_groups(model, SHAPE)
    return model, groups, CostModel.of(model, groups)


def group_of(channels: int, width: int = 1) -> ChannelGroup:
    positions = np.arange(channels * width).reshape(width, channels).T
    return ChannelGroup("layer", channels, (Member("layer", "out", positions),))


def test_counts_are_multiples_or_what_is_there():
    assert legal_counts(group_of(24)) == [8, 16, 24]
    assert legal_counts(group_of(20)) == [8, 16, 20]
    assert legal_counts(group_of(8)) == [8]
    assert legal_counts(group_of(5)) == [5]
    assert legal_counts(group_of(24), 16) == [16, 24]
    assert legal_counts(group_of(3), 1) == [1, 2, 3]
    # four channels of a grouped layer go together: 2 × 4 is a multiple of 8
    assert legal_counts(group_of(6, width=4)) == [2, 4, 6]
    with pytest.raises(UsageError, match="multiple of 1 or more; got 0"):
        legal_counts(group_of(4), 0)


@settings(max_examples=100, deadline=None)
@given(channels=st.integers(1, 200), width=st.integers(1, 12), multiple=st.integers(1, 40), wanted=st.floats(-5, 300))
def test_rounding_never_empties_a_layer(channels, width, multiple, wanted):
    group = group_of(channels, width)
    legal = legal_counts(group, multiple)
    assert legal == sorted(set(legal))
    assert 1 <= legal[0] <= legal[-1] == channels
    assert all(count * width % multiple == 0 for count in legal[:-1])
    nearest = round_count(group, wanted, multiple)
    assert nearest in legal
    assert abs(nearest - wanted) == min(abs(count - wanted) for count in legal)


@pytest.mark.parametrize("name", ["repvgg_tiny", "qarepvgg_tiny", "mobilenet_v3_small", "squeezenet1_0_bypass"])
def test_predicted_costs_are_those_of_the_pruned_and_fused_network(name):
    model = network(name, width=0.5 if name == "mobilenet_v3_small" else 1.0)
    groups = find_groups(model, SHAPE)
    costs = CostModel.of(model, groups)
    random = np.random.default_rng(0)
    counts = {group.name: int(random.integers(1, group.channels + 1)) for group in groups}
    keep = {name: list(range(count)) for name, count in counts.items()}
    fused, smaller = reparameterize(model), reparameterize(remove_channels(model, groups, keep))
    assert costs.macs() == count_multiply_adds(fused, SHAPE)
    assert costs.macs(counts) == count_multiply_adds(smaller, SHAPE)
    if "repvgg" in name:  # no batch norms are left, so parameters compare as well
        assert costs.parameters() == count_parameters(fused)
        assert costs.parameters(counts) == count_parameters(smaller)


@settings(max_examples=10, deadline=None)
@given(share=st.floats(0.25, 0.99), scope=st.sampled_from(["global", "uniform"]), multiple=st.sampled_from([1, 4, 8]))
def test_targets_are_met_closely_and_always_the_same(mobile, share, scope, multiple):
    model, groups, costs = mobile
    scores = score_groups(model, groups, "l2")
    target = share * costs.macs()
    counts = plan_counts(groups, scores, costs.macs, target=target, scope=scope, multiple=multiple)
    assert costs.macs(counts) <= target
    for group in groups:
        assert counts[group.name] in legal_counts(group, multiple)
    # no group can grow by its next step and still meet the target
    if scope == "global":
        for group in groups:
            above = [count for count in legal_counts(group, multiple) if count > counts[group.name]]
            assert not above or costs.macs({**counts, group.name: above[0]}) > target
    assert counts == plan_counts(groups, scores, costs.macs, target=target, scope=scope, multiple=multiple)


def test_global_pruning_spares_the_group_whose_channels_matter(mobile):
    model, groups, costs = mobile
    scores = score_groups(model, groups, "l2")
    spared = "features.9.conv.0.0"
    scores[spared] = scores[spared] * 1000
    counts = plan_counts(groups, scores, costs.macs, target=0.5 * costs.macs())
    assert counts[spared] == groups[spared].channels
    uniform = plan_counts(groups, scores, costs.macs, target=0.5 * costs.macs(), scope="uniform")
    assert uniform[spared] < groups[spared].channels


def test_any_cost_can_lead_also_one_that_falls_in_stairs(mobile):
    model, groups, _ = mobile
    scores = score_groups(model, groups, "l2")

    def stairs(counts):  # only every second multiple of 8 is faster
        return float(sum(-(-counts.get(group.name, group.channels) // 16) for group in groups))

    counts = plan_counts(groups, scores, stairs, target=0.7 * stairs({}))
    assert stairs(counts) <= 0.7 * stairs({})


def test_groups_are_compared_by_the_loss_when_they_are_cut():
    model = network("repvgg_tiny", width=0.5)
    groups = find_groups(model, SHAPE)
    scores, costs = score_groups(model, groups, "l2"), CostModel.of(model, groups)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    curves = loss_curves(
        model, groups, scores, ScoringData([(images, labels)]), multiple=2, most=0.9, macs=costs.macs()
    )
    for group in groups:
        assert curves[group.name].shape == (group.channels + 1,)
        assert curves[group.name][-1] == 0
        assert (np.diff(curves[group.name]) <= 0).all()
    assert max(float(curve[0]) for curve in curves.values()) > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    # a group whose loss would explode is spared, whatever the scores of its channels
    spared = "stage2.0.rbr_dense.conv"
    curves = {name: np.arange(len(curve))[::-1] * (1e6 if name == spared else 1.0) for name, curve in curves.items()}
    arguments = {"target": 0.6 * costs.macs(), "scope": "measured", "multiple": 2}
    counts = plan_counts(groups, scores, costs.macs, curves=curves, **arguments)
    assert counts[spared] == groups[spared].channels
    assert 0.5 * costs.macs() < costs.macs(counts) <= 0.6 * costs.macs()
    with pytest.raises(UsageError, match="needs the measured curves"):
        plan_counts(groups, scores, costs.macs, **arguments)
    with pytest.raises(UsageError, match="'measured' looks at the loss on pictures"):
        ev.prune(model, macs=0.5, scope="measured")


def test_without_labels_the_loss_is_against_the_networks_own_answers():
    model = network("repvgg_tiny", width=0.5)
    smaller = ev.prune(model, macs=0.6, batches=[(torch.randn(8, 3, 32, 32), None)], round_to=2)
    assert count_multiply_adds(smaller, SHAPE) < 0.62 * count_multiply_adds(model, SHAPE)


def test_a_target_out_of_reach_says_what_can_be_reached(mobile):
    model, groups, costs = mobile
    with pytest.raises(UsageError, match=r"the target is 0\.1% .* is the least that can be reached"):
        plan_counts(groups, score_groups(model, groups), costs.macs, target=0.001 * costs.macs())
    with pytest.raises(UsageError, match="unknown scope 'globl': did you mean global"):
        plan_counts(groups, {}, costs.macs, target=1, scope="globl")


def test_the_most_important_channels_stay_and_of_equals_the_first():
    scores = {"a": np.array([1.0, 3.0, 2.0, 3.0, 1.0])}
    assert choose_channels(scores, {"a": 3}) == {"a": [1, 2, 3]}
    assert choose_channels(scores, {"a": 4}) == {"a": [0, 1, 2, 3]}


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))


def scored(model, importance, data=None):
    groups = find_groups(model, (1, 1, 4, 4))
    (values,) = score_groups(model, groups, importance, data).values()
    return values


def test_magnitudes_see_weights_as_they_are_when_norms_are_folded():
    model = two_layers().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None, None])
        model[1].weight.copy_(torch.tensor([4.0, 2.0, 1.0, 1.0]))
        model[3].weight.fill_(1.0)
    # folded first layer: 4, 4, 3, 4; the second reads all alike: [2, 2] of L1
    np.testing.assert_allclose(scored(model, "l1"), np.array([4, 4, 3, 4]) / 3.75 / 2 + 0.5, rtol=1e-4)
    squares = np.array([16, 16, 9, 16]) / 14.25
    expected = np.sqrt(squares + 1)
    np.testing.assert_allclose(scored(model, "l2"), expected / expected.mean(), rtol=1e-4)
    np.testing.assert_allclose(scored(model, "bn"), [4, 2, 1, 1], rtol=1e-6)


def test_fpgm_drops_the_filter_that_others_can_replace():
    model = two_layers()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.0, 1.0, 1.1, 5.0])[:, None, None, None])
        model[1].weight.fill_(1.0)
    # distances to the others add up to 7.1, 5.1, 5.1 and 12.9, whatever the sizes of the filters themselves
    np.testing.assert_allclose(scored(model, "fpgm"), np.array([7.1, 5.1, 5.1, 12.9]) / 7.55, rtol=1e-4)


def test_taylor_is_the_loss_that_a_channel_holds():
    torch.manual_seed(1)
    head = nn.Sequential(two_layers(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images, labels = torch.randn(16, 1, 4, 4), torch.randint(0, 2, (16,))
    values = scored(head, "taylor", ScoringData([(images, labels)]))
    norm = head[0][1]
    changes = []
    for start in range(0, 16, 4):  # four pictures together
        head.zero_grad()
        nn.functional.cross_entropy(head(images[start : start + 4]), labels[start : start + 4]).backward()
        gate = norm.weight.grad * norm.weight + norm.bias.grad * norm.bias
        changes.append(gate.detach().double().numpy() ** 2)
    np.testing.assert_allclose(values, np.mean(changes, axis=0), rtol=1e-4, atol=1e-12)
    assert scored(head, "taylor", ScoringData([(images, None)])).shape == (4,)


def test_measures_refuse_what_they_cannot_see():
    model = two_layers()
    with pytest.raises(UsageError, match="'taylor' looks at gradients on pictures: give data"):
        scored(model, "taylor")
    with pytest.raises(UsageError, match="'bn' needs batch norms, and 0 has none"):
        scored(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)), "bn")
    with pytest.raises(UsageError, match="unknown importance 'l3': did you mean l2 or l1"):
        scored(model, "l3")
    with torch.no_grad():
        model[0].weight[1] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        scored(model, "l2")


def test_random_follows_its_seed(mobile):
    model, groups, _ = mobile
    a, b, c = (score_groups(model, groups, "random", ScoringData(seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert any(not np.array_equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("importance", IMPORTANCES.names())
def test_every_measure_prunes_a_whole_network(importance):
    model = network("repvgg_tiny", width=0.5)
    batches = [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))]
    smaller = ev.prune(model, macs=0.6, importance=importance, batches=batches, round_to=4)
    assert count_multiply_adds(smaller, SHAPE) < 0.62 * count_multiply_adds(model, SHAPE)
    assert smaller(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_ratios_of_single_groups():
    model = network()
    smaller = ev.prune(model, ratios={"stage3.0.rbr_dense.conv": 0.5})
    assert smaller.stage3[1].rbr_identity.num_features == 32
    assert smaller.stage2[1].rbr_identity.num_features == 32  # as before
    small = ev.prune(model, params=0.5, scope="uniform")
    assert count_parameters(small) < 0.55 * count_parameters(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of macs, params and ratios; got none"),
        ({"macs": 0.5, "params": 0.5}, r"got \['macs', 'params'\]"),
        ({"macs": 1.0}, "the ratio of macs to keep must be above 0 and below 1; got 1.0"),
        ({"params": 0}, "the ratio of params to keep must be above 0 and below 1; got 0"),
        ({"macs": float("nan")}, "must be above 0 and below 1; got nan"),
        ({"macs": True}, "must be above 0 and below 1; got True"),
        ({"ratios": {"stage2.0.rbr_dense.conv": 1.5}}, "the ratio of stage2.0.rbr_dense.conv must be above 0"),
        ({"ratios": {"stage2.0.rbr_dense.conv": 0.99}}, "would leave stage2.0.rbr_dense.conv without channels: it has"),
        ({"ratios": {"linear": 0.5}}, "the channels of linear cannot be pruned: they are outputs of the network"),
        ({"ratios": {"stage9": 0.5}}, "unknown group 'stage9'"),
        ({"macs": 0.001}, "is the least that can be reached"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        ev.prune(network(), **arguments)


def test_a_module_of_a_user_needs_its_input_shape():
    with pytest.raises(UsageError, match="does not say what its input is"):
        ev.prune(two_layers(), macs=0.5)
    smaller = ev.prune(two_layers(), macs=0.5, input_shape=(1, 1, 4, 4), round_to=1)
    assert smaller[0].out_channels == smaller[1].num_features == smaller[3].in_channels == 2
    with pytest.raises(UsageError, match=r"has no channels that could be removed \(0: they are outputs"):
        ev.prune(nn.Sequential(nn.Conv2d(1, 4, 1)), macs=0.5, input_shape=(1, 1, 4, 4))


def test_a_plan_says_what_it_will_do():
    model = network("mobilenet_v2", width=0.5)
    plan = make_plan(model, macs=0.5)
    smaller = plan.apply(model)
    assert plan.macs_ratio == count_multiply_adds(smaller, SHAPE) / count_multiply_adds(model, SHAPE)
    assert 0.4 < plan.macs_ratio <= 0.5
    assert 0 < plan.parameters_ratio < 1
