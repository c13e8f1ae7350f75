from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgevision.errors import TrainingError, UsageError
from edgevision.pipeline.golden import run_graph
from edgevision_calibration.observe import observe
from edgevision_calibration.planning import make_plan
from edgevision_calibration.qat.train import QatConfig, QatData, train_quantized
from edgevision_calibration.scheme import SCHEMES
from edgevision_calibration.torch_graph import FakeQuantGraph, TorchGraph
from edgevision_converters.canonical import canonicalize
from edgevision_converters.qdq import quantize_dequantize
from tests.conformance.nets import picture, tiny_net

CONFIG = QatConfig(epochs=3, batch_size=8, lr=0.02, step_lr=0.03)


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
        return ((images[order[start : start + 8]], None) for start in range(0, 48, 8))

    return graph, replace(plan, activations=narrow), QatData(epoch, 6, lambda: [(test, None)])


def labelled(data, classes):
    """The same pictures with random labels, which only who looks at labels can learn."""

    def with_labels(batches):
        return [
            (images, np.random.default_rng(int(1e4 * images.sum()) % 2**31).integers(0, classes, len(images)))
            for images, _ in batches
        ]

    return QatData(lambda number: with_labels(data.epoch(number)), data.steps, lambda: with_labels(data.validation()))


@pytest.mark.parametrize("classification", [True, False])
def test_training_recovers_what_bad_ranges_lose(case, classification):
    graph, plan, data = case
    result = train_quantized(graph, plan, data, config=CONFIG, classification=classification)
    assert result.metrics["loss"] < 0.8 * result.metrics["before_loss"]
    assert [row["epoch"] for row in result.history] == [0.0, 1.0, 2.0, 3.0]
    assert ("agreement" in result.metrics) == classification
    assert result.plan.calibration["method"] == "qat"
    again = FakeQuantGraph(result.graph, result.plan)
    images, _ = next(iter(data.validation()))
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
    for values, told in (({"ema_decay": 1.0}, "ema_decay"), ({"label_weight": 1.5}, "label_weight")):
        with pytest.raises(UsageError, match=told):
            QatConfig(**values)
    with pytest.raises(UsageError, match="needs labels"):
        train_quantized(graph, plan, data, config=replace(CONFIG, label_weight=0.5), classification=True)
    with pytest.raises(UsageError, match="is for classification"):
        train_quantized(graph, plan, data, config=replace(CONFIG, label_weight=0.5), classification=False)
    with pytest.raises(TrainingError, match="no validation pictures"):
        train_quantized(graph, plan, replace(data, validation=list), config=CONFIG, classification=True)
    state = tmp_path / "last.safetensors"
    state.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(TrainingError, match="damaged"):
        train_quantized(graph, plan, data, config=CONFIG, classification=True, state=state)


def test_labels_have_their_share_and_are_not_looked_at_without_one(case):
    graph, plan, data = case
    known = labelled(data, 5)
    alone = train_quantized(graph, plan, data, config=CONFIG, classification=True)
    measured = train_quantized(graph, plan, known, config=CONFIG, classification=True)
    assert measured.graph.sha256 == alone.graph.sha256
    assert "top1" not in alone.metrics
    assert 0.0 <= measured.metrics["top1"] <= 1.0
    assert {"before_top1", "float_top1"} <= set(measured.metrics)
    mixed = train_quantized(graph, plan, known, config=replace(CONFIG, label_weight=0.5), classification=True)
    assert mixed.graph.sha256 != alone.graph.sha256
    (images, labels) = known.validation()[0]
    with torch.no_grad():
        logits = FakeQuantGraph(graph, plan)(torch.from_numpy(images))["logits"].flatten(1)
    of_labels = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
    # the same float32 sums in another order
    assert mixed.metrics["before_loss"] == pytest.approx((measured.metrics["before_loss"] + of_labels) / 2, rel=1e-5)


class Killed(BaseException):
    """What no handler catches, as SIGKILL."""


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_training_killed_in_the_middle_of_an_epoch_ends_with_the_same_bits(case, tmp_path, monkeypatch, ema_decay):
    from edgevision_calibration.qat import train as module

    graph, plan, data = case
    config = replace(CONFIG, ema_decay=ema_decay)
    whole = train_quantized(graph, plan, data, config=config, classification=True)
    step, steps = module._Run._step, []

    def killed(self, images, labels):
        steps.append(1)
        if len(steps) == 9:
            raise Killed
        return step(self, images, labels)

    state = tmp_path / "last.safetensors"
    monkeypatch.setattr(module._Run, "_step", killed)
    with pytest.raises(Killed):
        train_quantized(graph, plan, data, config=config, classification=True, state=state)
    resumed = train_quantized(graph, plan, data, config=config, classification=True, state=state)
    # nine steps before, of which three were lost, and the twelve of two epochs
    assert len(steps) == 9 + 12
    assert resumed.graph.sha256 == whole.graph.sha256
    assert resumed.plan.to_json() == whole.plan.to_json()
    assert resumed.history == whole.history


def test_the_average_is_what_is_validated_and_kept(case):
    graph, plan, data = case
    config = replace(CONFIG, epochs=1, ema_decay=0.9)
    averaged = train_quantized(graph, plan, data, config=config, classification=True)
    plain = train_quantized(graph, plan, data, config=replace(config, ema_decay=0.0), classification=True)
    assert averaged.graph.sha256 != plain.graph.sha256
    again = FakeQuantGraph(averaged.graph, averaged.plan)
    images, _ = next(iter(data.validation()))
    with torch.no_grad():
        got = torch.log_softmax(again(torch.from_numpy(images))["logits"].flatten(1), 1)
        wanted = torch.log_softmax(TorchGraph(graph)(torch.from_numpy(images))["logits"].flatten(1), 1)
    loss = torch.nn.functional.kl_div(got, wanted, reduction="batchmean", log_target=True).item()
    # weights are written down on their grid, in float32: the loss differs by their rounding alone
    assert averaged.history[1]["loss"] == pytest.approx(loss, rel=1e-3)


def test_layers_in_float_stay_as_they_are_and_are_lowered_in_float(case):
    graph, _, data = case
    images = [images[:1] for images, _ in data.epoch(0)]
    kept = next(node for node in graph.nodes if node.op_type == "Conv")
    table = observe(graph, images)
    plan = make_plan(graph, table, SCHEMES["onnxruntime"], keep_float={kept.name: "asked"})
    result = train_quantized(graph, plan, data, config=replace(CONFIG, epochs=1), classification=True)
    assert result.plan.float_ops == plan.float_ops
    assert kept.input[1] not in result.plan.weights
    np.testing.assert_array_equal(result.graph.initializers[kept.input[1]], graph.initializers[kept.input[1]])
    lowered = quantize_dequantize(result.graph, result.plan)
    dequantized = {name for node in lowered.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    conv = next(node for node in lowered.graph.node if node.name == kept.name)
    assert conv.input[1] not in dequantized
    answers = run_graph(lowered.SerializeToString(), images[0], exact=True)["logits"]
    with torch.no_grad():
        trained = FakeQuantGraph(result.graph, result.plan)(torch.from_numpy(images[0]))["logits"]
    # the same integers; what differs is the order of float32 sums
    np.testing.assert_allclose(answers, trained.numpy(), rtol=1e-4, atol=1e-4)
