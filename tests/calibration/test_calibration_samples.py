from __future__ import annotations

import numpy as np
import pytest
from calibration_nets import NETS, pictures

from edgevision_calibration.samples import collect_samples


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_samples_do_not_depend_on_how_pictures_are_batched(size):
    # small maps are kept whole, so that no pixel is drawn; 4 pictures are asked for and the last batch may bring more
    graph, images = NETS["depthwise"](), pictures(6)
    batches = [images[first : first + size] for first in range(0, len(images), size)]
    found = collect_samples(graph, batches, pictures=4, pixels=1 << 12, threads=1)
    whole = collect_samples(graph, [images], pictures=6, pixels=1 << 12, threads=1)
    assert found.keys() == whole.keys()
    taken = -(-4 // size) * size
    for name, seen in found.items():
        assert len(seen.lows) == taken
        rows = seen.values.shape[0]
        assert rows == taken * seen.pixels
        # convolutions of other batch sizes may add up in another order
        np.testing.assert_allclose(seen.values, whole[name].values[:rows], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(seen.highs, whole[name].highs[:taken], rtol=1e-5, atol=1e-5)


def test_figures_are_found_once_and_follow_what_is_rescaled():
    graph = NETS["depthwise"]()
    seen = collect_samples(graph, [pictures(2)], pictures=2, pixels=64, threads=1)[graph.input_name]
    assert seen.variance is seen.variance
    twice = seen.rescaled(np.full(seen.values.shape[1], 2.0), np.zeros(seen.values.shape[1]))
    np.testing.assert_allclose(twice.variance, 4 * seen.variance, rtol=1e-6)
    np.testing.assert_allclose(twice.high, 2 * seen.high)
