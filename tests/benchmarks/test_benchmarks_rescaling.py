from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgevision.data import batches, evenly_spaced, open_dataset
from edgevision.preprocess import PRESETS
from edgevision_calibration.observe import expose, open_session
from edgevision_converters.export import open_source
from rescaling import GREATEST, rescaled, seen_on

PREPROCESS = PRESETS["digits"].with_size(16, 16)


class Net(nn.Module):
    """A fork and its concatenation, then a depthwise chain cut at 6."""

    def __init__(self):
        super().__init__()
        self.squeeze = nn.Conv2d(1, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 3, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 6, 1)
        self.clip = nn.ReLU6()

    def forward(self, x):
        x = torch.relu(self.squeeze(x))
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        x = self.clip(self.depthwise(self.clip(self.wide(x))))
        return self.last(x).mean((2, 3))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        # above 6 in the first channel, always: no factor leaves that alone
        net.wide.bias[0] = 20.0
    return open_source(net.eval(), input_size=(16, 16)).graph


@pytest.fixture(scope="module")
def digits():
    return evenly_spaced(open_dataset("digits"), 64)


def run(graph, digits, names=None):
    names = names or graph.output_names
    session = open_session(expose(graph, names), threads=1, optimize=False)
    images = np.concatenate([batch for batch, _ in batches(digits, PREPROCESS, 64)])
    return session.run(list(names), {graph.input_name: images})


def test_the_function_stays_and_every_channel_between_layers_moves(graph, digits):
    peaks = seen_on(graph, [digits], PREPROCESS)
    other = rescaled(graph, peaks, seed=1)
    before, after = run(graph, digits)[0], run(other.graph, digits)[0]
    # float32 rounding of weights and sums
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    # 4 + 5 + 3 + 8 + 8 channels; the 6 of the last layer are the answers, and the one that is cut keeps its scale
    assert (other.channels, other.rescaled) == (28, 27)


def test_factors_spread_over_the_range_and_stay_below_the_clip(graph, digits):
    peaks = seen_on(graph, [digits], PREPROCESS)
    other = rescaled(graph, peaks, seed=2)
    weights = [node.input[1] for node in graph.nodes if node.op_type == "Conv"]
    first = other.graph.initializers[weights[0]] / graph.initializers[weights[0]]
    factors = first.reshape(4, -1).mean(1)
    assert factors.max() / factors.min() > 4
    assert 1 / GREATEST <= factors.min() <= factors.max() <= GREATEST
    for name, value in zip(peaks, run(other.graph, digits, list(peaks)), strict=True):
        kept = peaks[name] < 6
        assert value.max(axis=(0, 2, 3))[kept].max() < 6


def test_the_seed_decides(graph, digits):
    peaks = seen_on(graph, [digits], PREPROCESS)
    hashes = [rescaled(graph, peaks, seed=seed).graph.sha256 for seed in (3, 3, 4)]
    assert hashes[0] == hashes[1] != hashes[2]
