"""Groups: what is tied, what is kept and why, and that removing them is what it says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgevision.errors import ModelError, UsageError
from edgevision.models import create_model
from edgevision.models.reparameterize import is_reparameterizable, reparameterization_error, reparameterize
from edgevision.pruning import find_groups, remove_channels


def members_of(groups, name):
    return {(member.name, member.axis) for member in groups[name].members}


def random_keep(groups, seed=0):
    random = np.random.default_rng(seed)
    return {
        group.name: sorted(
            random.choice(group.channels, random.integers(1, group.channels + 1), replace=False).tolist()
        )
        for group in groups
    }


def test_a_residual_ties_its_branches_and_a_depthwise_layer_its_sides():
    groups = find_groups(create_model("mobilenet_v2", num_classes=3, input_size=32, width=0.5), (1, 3, 32, 32))
    inside = members_of(groups, "features.3.conv.0.0")
    assert inside == {
        ("features.3.conv.0.0", "out"),
        ("features.3.conv.0.1", "both"),
        ("features.3.conv.1.0", "both"),
        ("features.3.conv.1.1", "both"),
        ("features.3.conv.2", "in"),
    }
    stage = {name for name, axis in members_of(groups, "features.2.conv.2") if axis == "out"}
    assert stage == {"features.2.conv.2", "features.3.conv.2"}
    assert [(kept.name, kept.reason) for kept in groups.kept] == [("classifier.1", "they are outputs of the network")]


def test_repvgg_branches_are_pruned_together_and_still_fuse():
    torch.manual_seed(0)
    model = create_model("repvgg_tiny", num_classes=3, input_size=32).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh statistics would hide a wrong fusion
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    groups = find_groups(model, (1, 3, 32, 32))
    assert members_of(groups, "stage2.0.rbr_dense.conv") >= {
        ("stage2.0.rbr_1x1.conv", "out"),
        ("stage2.1.rbr_1x1.conv", "out"),
        ("stage2.1.rbr_identity", "both"),
        ("stage3.0.rbr_dense.conv", "in"),
    }
    smaller = remove_channels(model, groups, random_keep(groups))
    fused = reparameterize(smaller)
    assert not is_reparameterizable(fused)
    # float32 sums in another order: the same bound as for the whole network
    assert reparameterization_error(smaller, fused, torch.randn(2, 3, 32, 32)) < 1e-4


def test_fire_modules_are_cut_through_their_concatenation():
    model = create_model("squeezenet1_1", num_classes=3, input_size=32, width=0.25)
    groups = find_groups(model, (1, 3, 32, 32))
    left, right = groups["features.3.expand1x1"], groups["features.3.expand3x3"]
    assert left.channels == right.channels == 16
    reads = {member.name: member for member in right.consumers}["features.4.squeeze"]
    assert reads.positions.ravel().tolist() == list(range(16, 32))
    assert "classifier.1" in {kept.name for kept in groups.kept}


def test_the_gate_of_squeeze_and_excitation_follows_the_channels():
    model = create_model("mobilenet_v3_small", num_classes=3, input_size=32, width=0.5)
    groups = find_groups(model, (1, 3, 32, 32))
    tied = members_of(groups, "features.4.block.0.0")
    assert {("features.4.block.2.fc1", "in"), ("features.4.block.2.fc2", "out")} <= tied


def test_three_maxpools_and_their_input_share_one_group():
    model = create_model("efficientrep_n", num_classes=3, input_size=32, width=0.5)
    groups = find_groups(model, (1, 3, 32, 32))
    group = groups["sppf.reduce.0"]
    (reader,) = group.consumers
    assert reader.name == "sppf.merge.0"
    assert reader.per_channel == 4
    smaller = remove_channels(model, groups, {"sppf.merge.0": [0, 3]})
    assert smaller.feature_channels[2] == 2


def check_exact(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Removing channels that nobody hears changes nothing: they are silenced in a copy first."""
    model = copy.deepcopy(model).double().eval()
    groups = find_groups(model, shape)
    keep = random_keep(groups, seed=3)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for group in groups:
            gone = np.setdiff1d(np.arange(group.channels), keep[group.name])
            for member in group.consumers:
                weight = modules[member.name].weight
                weight[:, np.unique(member.positions[gone] % weight.shape[1])] = 0
    x = torch.randn(2, *shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, got = model(x), remove_channels(model, groups, keep)(x)
    # the same float64 products, some of them zero, summed in another order
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    return len(groups)


class Grouped(nn.Module):
    """Grouped and depthwise layers, one of them with two outputs per channel, a transposed one, a flattened end."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.wide = nn.Conv2d(24, 48, 3, padding=1, groups=24)
        self.act = nn.PReLU(48)
        self.up = nn.ConvTranspose2d(48, 6, 2, stride=2)
        self.norm = nn.InstanceNorm2d(6, affine=True)
        self.end = nn.Linear(6 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.wide(self.grouped(self.a(x)).relu()))
        return self.end(self.norm(self.up(x)).flatten(1))


class Split(nn.Module):
    """A split, a concatenation and a sum of one convolution with two that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, 5, 1), nn.Conv2d(6, 7, 1)
        self.whole = nn.Conv2d(3, 12, 1)
        self.end = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).relu().chunk(2, dim=1)
        return self.end(torch.cat([self.left(a), self.right(b)], 1) + self.whole(x))


class LayerScale(nn.Module):
    """A parameter of its own for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 2, 1)
        self.scale = nn.Parameter(torch.rand(10, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * self.scale)


@pytest.mark.parametrize(
    ("model", "least"), [(Grouped(), 3), (Split(), 2), (LayerScale(), 1)], ids=lambda value: type(value).__name__
)
def test_networks_of_users_are_cut_exactly(model, least):
    assert check_exact(model, (1, 3, 4, 4) if isinstance(model, Grouped) else (1, 3, 8, 8)) >= least


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "squeezenet1_0_bypass", "efficientrep_n"])
def test_networks_of_the_zoo_are_cut_exactly(name):
    torch.manual_seed(0)
    assert check_exact(create_model(name, num_classes=3, input_size=32, width=0.25), (1, 3, 32, 32)) > 4


class Shuffle(nn.Module):
    """Channels are shuffled between two convolutions, by an op that is no element-wise one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.c = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.c(self.b(x).relu())


def test_what_the_graph_cannot_follow_is_kept_and_named():
    groups = find_groups(Shuffle(), (1, 3, 8, 8))
    assert groups.names() == ["b"]
    (reason,) = [kept.reason for kept in groups.kept if kept.name == "a"]
    assert "cannot follow" in reason
    assert "Transpose" in reason
    with pytest.raises(UsageError, match="a cannot be pruned: the dependency graph cannot follow"):
        groups["a"]


class ChannelMean(nn.Module):
    """An attention map from the mean over the channels: each channel matters to all others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.b(x * x.mean(1, keepdim=True).sigmoid()))


def test_ops_over_all_channels_are_not_mistaken_for_elementwise_ones():
    groups = find_groups(ChannelMean(), (1, 3, 8, 8))
    assert groups.names() == ["b"]
    (kept,) = [kept for kept in groups.kept if kept.name == "a"]
    assert "MeanBackward1" in kept.reason


class Heads(nn.Module):
    """Two outputs of a detector, one of them also read by the other's branch; a skip from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.same = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        body = self.body(x).relu()
        boxes = self.boxes(body)
        return {"boxes": boxes, "scores": self.scores(boxes).sigmoid(), "image": x + self.same(body)}


def test_heads_outputs_and_the_inputs_channels_are_kept():
    groups = find_groups(Heads(), (1, 3, 8, 8))
    assert groups.names() == ["body"]
    assert {kept.name for kept in groups.kept} == {"boxes", "scores", "same"}


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.a(x)
        return self.c(self.b(x))


def test_layers_without_a_trace_are_named():
    groups = find_groups(Hidden(), (1, 3, 8, 8))
    assert groups.names() == ["b"]
    (kept,) = [kept for kept in groups.kept if kept.name == "a"]
    assert kept.reason == "no gradient comes through these layers"


def test_a_network_that_does_not_run_is_refused():
    with pytest.raises(ModelError, match=r"Conv2d cannot be followed on an input of shape \[1, 5, 8, 8\]"):
        find_groups(nn.Conv2d(3, 8, 1), (1, 5, 8, 8))


def test_the_model_and_the_random_numbers_are_left_alone():
    model = create_model("repvgg_tiny", num_classes=3, input_size=32).train().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(4)
    groups = find_groups(model, (1, 3, 32, 32))
    smaller = remove_channels(model, groups, random_keep(groups))
    drawn = torch.rand(3)
    torch.manual_seed(4)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert smaller.training
    assert not any(parameter.requires_grad for parameter in smaller.parameters())


def test_unknown_groups_are_answered_with_near_ones():
    groups = find_groups(create_model("repvgg_tiny", num_classes=3, input_size=32), (1, 3, 32, 32))
    with pytest.raises(UsageError, match=r"unknown group 'stage2.0.rbr_dense.con': did you mean"):
        groups["stage2.0.rbr_dense.con"]
    with pytest.raises(UsageError, match=r"is pruned together with stage2.0.rbr_dense.conv: name that group"):
        groups["stage2.0.rbr_1x1.conv"]


def test_repopt_scales_are_cut_and_it_still_trains():
    torch.manual_seed(0)
    model = create_model("repoptvgg_tiny", num_classes=3, input_size=32)
    groups = find_groups(model, (1, 3, 32, 32))
    smaller = remove_channels(model, groups, random_keep(groups)).train()
    smaller(torch.randn(2, 3, 32, 32)).sum().backward()
    for block in smaller.modules():
        if hasattr(block, "scale_3x3"):
            assert len(block.scale_3x3) == block.rbr_dense.conv.out_channels
