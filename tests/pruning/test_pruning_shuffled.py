"""Channel shuffles: which channels can go, told by removing them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgevision.errors import ModelError
from edgevision.models.shuffle import Halves, Interleave, interleave
from edgevision.pruning import find_groups, remove_channels
from edgevision.pruning.shuffled import with_selections

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Unit(nn.Module):
    """ShuffleNet's: one half passes, the other is convolved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.halves, self.interleave = Halves(), Interleave()
        self.right = nn.Conv2d(channels // 2, channels // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.halves(x)
        return self.interleave(torch.cat([left, self.right(right)], dim=1))


class Net(nn.Module):
    def __init__(self, channels: int = 16, units: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.units = nn.Sequential(*(Unit(channels) for _ in range(units)))
        self.end = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.units(self.stem(x)))


def test_selections_compute_what_shuffles_do() -> None:
    torch.manual_seed(0)
    net = Net(units=2)
    traced = with_selections(net, IMAGES)
    assert not any(isinstance(module, (Halves, Interleave)) for module in traced.modules())
    assert any(isinstance(module, Interleave) for module in net.modules())
    # products with 1 and sums with 0 are exact
    assert torch.equal(traced(IMAGES), net(IMAGES))
    plain = nn.Conv2d(3, 4, 1)
    assert with_selections(plain, IMAGES) is plain


@pytest.mark.parametrize(("units", "channels"), [(1, 8), (2, 4), (3, 2)])
def test_each_shuffle_ties_twice_as_many_channels(units: int, channels: int) -> None:
    torch.manual_seed(0)
    net = Net(units=units).eval()
    # a group that does not do what it says would be kept: removing its channels is tried
    groups = find_groups(net, (1, 3, 6, 6))
    (group,) = groups
    assert (group.channels, group.width) == (channels, 16 // channels)
    assert {member.name for member in group.members} == {
        "stem", "end", *(f"units.{number}.right" for number in range(units))
    }  # fmt: skip
    smaller = remove_channels(net, groups, {group.name: [1]})
    assert smaller(IMAGES).shape == net(IMAGES).shape
    assert smaller.get_submodule("stem").out_channels == 16 // channels


class Inline(Unit):
    """The same without modules that say so."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return interleave(torch.cat([left, self.right(right)], dim=1))


def test_shuffles_written_out_are_kept_or_refused_with_the_way_out() -> None:
    net = Net()
    net.units = nn.Sequential(Inline(16))
    groups = find_groups(net, (1, 3, 6, 6))
    assert len(groups) == 0
    assert {layer for group in groups.kept for layer in group.layers} == {"stem", "units.0.right", "end"}
    assert "the dependency graph loses count of them before units.0.right" in {kept.reason for kept in groups.kept}
    net.units = nn.Sequential(*(Inline(16) for _ in range(3)))
    with pytest.raises(ModelError, match=r"cannot be followed .*edgevision\.models\.shuffle"):
        find_groups(net, (1, 3, 6, 6))
