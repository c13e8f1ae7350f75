from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgevision.errors import TrainingError, UsageError
from edgevision_calibration.observe import observe
from edgevision_calibration.planning import make_plan
from edgevision_calibration.qat.train import QatConfig, QatData, train_quantized
from edgevision_calibration.scheme import SCHEMES
from edgevision_calibration.torch_graph import FakeQuantGraph
from edgevision_converters.canonical import canonicalize
from tests.conformance.nets import picture, tiny_net

CONFIG = QatConfig(epochs=3, batch_size=8, lr=0.02, step_lr=0.03)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Layers this small gain nothing from a second thread, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images_of(indices):
    return np.stack([picture(index) for index in indices]).astype(np.float32).transpose(0, 3, 1, 2) / 255.0


@pytest.fixture(scope="module")
def case():
    graph = canonicalize(tiny_net())
    images = images_of(range(48))
    test = images_of(range(100, 124))
    table = observe(graph, [image[None] for image in images])
    # ranges half of what they must be: something to learn
    plan = make_plan(graph, table, SCHEMES["onnxruntime"])
    narrow = {name: replace(quant, scale=quant.scale / 2) for name, quant in plan.activations.items()}

    def epoch(number):
        order = np.random.default_rng(number).permutation(48)
        return (images[order[start : start + 8]] for start in range(0, 48, 8))

    return graph, replace(plan, activations=narrow), QatData(epoch, 6, lambda: [test])


@pytest.mark.parametrize("classification", [True, False])
def test_training_recovers_what_bad_ranges_lose(case, classification):
    graph, plan, data = case
    result = train_quantized(graph, plan, data, config=CONFIG, classification=classification)
    assert result.metrics["loss"] < 0.8 * result.metrics["before_loss"]
    assert [row["epoch"] for row in result.history] == [0.0, 1.0, 2.0, 3.0]
    assert ("agreement" in result.metrics) == classification
    assert result.plan.calibration["method"] == "qat"
    again = FakeQuantGraph(result.graph, result.plan)
    images = next(iter(data.validation()))
    with torch.no_grad():
        noise = again(torch.from_numpy(images))["logits"]
    assert torch.isfinite(noise).all()


def test_observed_ranges_stay_where_steps_do_not_learn(case):
    graph, plan, data = case
    config = replace(CONFIG, epochs=1, step_lr=0.0)
    result = train_quantized(graph, plan, data, config=config, classification=True)
    for name, quant in plan.activations.items():
        assert result.plan.activations[name] == quant
    for name, steps in plan.weights.items():
        np.testing.assert_array_equal(result.plan.weights[name], steps)


def test_no_range_grows_beyond_the_clip_before_it(case):
    graph, plan, data = case
    config = replace(CONFIG, epochs=2, step_lr=0.5)
    result = train_quantized(graph, plan, data, config=config, classification=True)
    assert result.plan.activations["stem6"].scale * 255 <= 6.0 * (1 + 1e-6)


def test_what_cannot_be_done_is_said(case, tmp_path):
    graph, plan, data = case
    with pytest.raises(UsageError, match="nothing would be learned"):
        QatConfig(lr=0.0, step_lr=0.0)
    with pytest.raises(UsageError, match="epochs"):
        QatConfig(epochs=0)
    with pytest.raises(TrainingError, match="no validation pictures"):
        train_quantized(graph, plan, replace(data, validation=list), config=CONFIG, classification=True)
    state = tmp_path / "last.safetensors"
    state.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(TrainingError, match="damaged"):
        train_quantized(graph, plan, data, config=CONFIG, classification=True, state=state)
