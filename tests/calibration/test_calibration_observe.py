from __future__ import annotations

import numpy as np

from edgevision_calibration.observe import open_session
from tests.fakes.models import float_layer_between_integers


def test_an_optimized_session_keeps_the_weights_of_float_layers_between_integers():
    model, expected, tolerance = float_layer_between_integers(8)
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    got = open_session(model.SerializeToString(), threads=1).run(None, {"images": images})[0]
    assert np.abs(got - expected(images)).max() <= tolerance
