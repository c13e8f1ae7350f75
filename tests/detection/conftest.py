from __future__ import annotations

import pytest

import edgevision as ev


@pytest.fixture(scope="session")
def detector():
    """A small one of ours that finds something in anything."""
    torch = pytest.importorskip("torch", reason="torch is not installed: our detectors cannot be built")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = ev.create_model("yolov3_tiny", num_classes=3, input_size=64, width=0.25).eval()
        with torch.no_grad():
            for output in made.head.outputs:
                output.weight.normal_(0.0, 1.0)
                output.bias.zero_()
    return made
