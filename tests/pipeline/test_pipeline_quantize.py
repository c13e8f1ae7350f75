from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgevision.bundle import Bundle
from edgevision.cli import main
from edgevision.data import batches, evenly_spaced, open_dataset
from edgevision.errors import BundleError, CheckpointError, TrainingError, UsageError
from edgevision.models import create_model
from edgevision.pipeline.convert import ConvertOptions, convert
from edgevision.pipeline.golden import run_graph
from edgevision.pipeline.keep_float import layers_in_float
from edgevision.pipeline.quantize import QuantizeOptions, quantize, reparameterization_report
from edgevision.training import TrainConfig, train
from edgevision_calibration.channels import channel_groups
from edgevision_calibration.equalization import rescale
from edgevision_calibration.observe import observe
from edgevision_calibration.planning import make_plan
from edgevision_calibration.qat.model import QuantizedModel
from edgevision_calibration.scheme import SCHEMES
from edgevision_converters.export import open_source
from edgevision_converters.qdq import quantize_dequantize

QUICK = QuantizeOptions(epochs=2, batch_size=32, calibration_images=64)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small RepVGG trained on digits; its channels then rescaled by up to 16, which is an identity in float."""
    folder = tmp_path_factory.mktemp("repvgg") / "run"
    torch.manual_seed(0)
    model = create_model("repvgg_tiny", num_classes=10, in_channels=1, input_size=16, width=0.5)
    config = TrainConfig(epochs=4, batch_size=32, lr=0.05, ema_decay=0.99, threads=1)
    train(model, "digits", out=folder, config=config)
    source = open_source(folder)
    rng = np.random.default_rng(0)
    groups = [group for group in channel_groups(source.graph) if group.producers and group.consumers]
    factors = [(group, np.exp(rng.uniform(-np.log(16), np.log(16), group.size))) for group in groups]
    return folder, source, rescale(source.graph, factors).graph


@pytest.fixture(scope="module")
def digits(run):
    _, source, _ = run
    test = open_dataset("digits", split="test")
    return np.concatenate([batch for batch, _ in batches(test, source.preprocess, 64)]), test.labels


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    _, source, rescaled = run
    out = tmp_path_factory.mktemp("qat") / "model"
    return out, quantize(rescaled, data="digits", out=out, preprocess=source.preprocess, options=QUICK)


def top1(model, digits):
    images, labels = digits
    answers = next(iter(run_graph(model, images, exact=True).values()))
    return 100.0 * float((answers.argmax(1) == labels).mean())


def integers(graph, plan):
    return quantize_dequantize(graph, plan).SerializeToString()


def test_repvgg_collapses_under_naive_ranges_and_is_held(run, trained, digits):
    _, source, rescaled = run
    float_accuracy = top1(source.graph.to_bytes(), digits)
    chosen = evenly_spaced(open_dataset("digits", split="train"), 64)
    pictures = [batch for batch, _ in batches(chosen, source.preprocess, 1)]
    naive = replace(SCHEMES["onnxruntime"], weight_per_channel=False)
    plan = make_plan(rescaled, observe(rescaled, pictures), naive, ranges="minmax", bias_correction=False)
    assert top1(integers(rescaled, plan), digits) < float_accuracy - 20.0
    _, model = trained
    kept = top1(integers(model.graph, model.plan), digits)
    # 355 test digits: one of them is 0.28 points
    assert kept >= float_accuracy - 0.6
    # the network before training is one of the candidates
    assert model.metrics["loss"] <= model.metrics["before_loss"]


def test_other_targets_take_the_learned_ranges(trained, digits):
    _, model = trained
    own = top1(integers(model.graph, model.plan), digits)
    for target in SCHEMES:
        plan = model.plan_for(target)
        assert plan.scheme.target == target
        assert plan.graph_sha256 == model.graph.sha256
        # int8-symmetric activations have half the levels where values are positive
        assert top1(integers(model.graph, plan), digits) >= own - 2.0
    symmetric = model.plan_for("tensorrt")
    for name, quant in symmetric.activations.items():
        if name in model.plan.activations:
            learned = model.plan.activations[name]
            reach = max(255 - learned.zero_point, learned.zero_point) * learned.scale
            assert quant.scale * 127 >= reach * (1 - 1e-6)


def test_a_finished_folder_is_reopened_and_another_run_refused(run, trained):
    _, source, rescaled = run
    out, model = trained
    again = quantize(rescaled, data="digits", out=out, preprocess=source.preprocess, options=QUICK)
    assert again.plan.to_json() == model.plan.to_json()
    assert again.graph.sha256 == model.graph.sha256
    assert again.metrics == model.metrics
    other = replace(QUICK, epochs=3)
    with pytest.raises(TrainingError, match="epochs"):
        quantize(rescaled, data="digits", out=out, preprocess=source.preprocess, options=other)


def test_interrupted_training_ends_with_the_same_bits(run, trained, tmp_path, monkeypatch):
    from edgevision_calibration.qat import train as module

    _, source, rescaled = run
    _, model = trained
    whole = module._Run.train_epoch

    def stops(self, progress, bar):
        if progress.epoch == 1:
            raise KeyboardInterrupt
        whole(self, progress, bar)

    call = {"data": "digits", "out": tmp_path / "model", "preprocess": source.preprocess, "options": QUICK}
    monkeypatch.setattr(module._Run, "train_epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        quantize(rescaled, **call)
    monkeypatch.setattr(module._Run, "train_epoch", whole)
    resumed = quantize(rescaled, **call)
    assert resumed.graph.sha256 == model.graph.sha256
    assert resumed.plan.to_json() == model.plan.to_json()


def test_convert_takes_the_folder_and_lowers_it_as_trained(trained, tmp_path, digits):
    out, model = trained
    bundle = convert(str(out), targets=["onnxruntime"], precision="int8", data="digits", out=tmp_path)[0]
    assert bundle.manifest.provenance["graph_sha256"] == model.graph.sha256
    assert bundle.manifest.provenance["calibration"]["method"] == "qat"
    assert json.loads(bundle.read("plan.json"))["activations"] == json.loads(model.plan.to_json())["activations"]


def test_convert_by_the_long_method_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    from edgevision_calibration import reconstruction

    folder, _, _ = run
    monkeypatch.setattr(reconstruction.ReconstructionConfig, "__init__", lambda self, **_: quick(self))

    def quick(self):
        for name, value in {
            "pictures": 16, "steps": 4, "batch": 8, "crop": 16, "rounding_rate": 0.02, "bias_rate": 0.02,
            "step_rate": 0.001, "seed": 0,
        }.items():  # fmt: skip
            object.__setattr__(self, name, value)

    options = ConvertOptions(calibration_images=32, method="long")
    call = {"targets": ["openvino"], "precision": "int8", "data": "digits", "out": tmp_path, "options": options}
    first = convert(str(folder), **call)[0]
    assert first.manifest.provenance["calibration"]["method"] == "long"

    def must_not_run(*unused, **also_unused):
        raise AssertionError("the kept result was not used")

    monkeypatch.setattr(reconstruction, "reconstruct", must_not_run)
    second = convert(str(folder), **call)[0]
    assert second.manifest.provenance["recipe"] == first.manifest.provenance["recipe"]


def test_layers_asked_for_stay_in_float_on_every_target(run, tmp_path):
    _, source, rescaled = run
    options = replace(QUICK, epochs=1, keep_float=("stage4.*",), ema_decay=0.9, label_weight=0.2, augment=True)
    call = {"data": "digits", "out": tmp_path / "model", "preprocess": source.preprocess}
    model = quantize(rescaled, **call, options=options)
    kept = [node for node in rescaled.nodes if len(node.input) > 1 and node.input[1].startswith("stage4.")]
    assert len(kept) == 1
    for target in SCHEMES:
        plan = model.plan_for(target)
        assert "as asked for" in plan.float_ops[kept[0].name]
        assert kept[0].input[1] not in plan.weights
    assert {"top1", "before_top1", "float_top1"} <= set(model.metrics)
    again = QuantizedModel.open(tmp_path / "model")
    assert again.plan_for("tensorrt").float_ops == model.plan_for("tensorrt").float_ops
    with pytest.raises(UsageError, match="stage4"):
        quantize(rescaled, **{**call, "out": tmp_path / "x"}, options=replace(options, keep_float=("stage4.0.rbr",)))


def test_what_a_search_left_in_float_is_taken_from_its_bundle(run):
    _, source, _ = run
    layers = [node.name for node in source.graph.nodes if node.op_type in {"Conv", "Gemm"}]
    found = {layers[2]: "kept by the search: 20 dB", layers[0]: "the target cannot"}
    plan = json.dumps({"float_ops": found}).encode()

    def bundle(precision, calibration):
        manifest = SimpleNamespace(precision=precision, provenance={"calibration": calibration})
        return SimpleNamespace(manifest=manifest, read=lambda name: plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "open", lambda path: bundle("int8", {"search": {"float_nodes": [layers[2]]}}))
        assert layers_in_float(source.graph, ["a.evb"]) == {layers[2]: found[layers[2]]}
        patch.setattr(Bundle, "open", lambda path: bundle("int8", {}))
        assert layers_in_float(source.graph, ["a.evb"]) == found
        patch.setattr(Bundle, "open", lambda path: bundle("fp16", {}))
        with pytest.raises(UsageError, match="int8"):
            layers_in_float(source.graph, ["a.evb"])
    with pytest.raises(BundleError):
        layers_in_float(source.graph, ["nowhere.evb"])


def test_what_is_doubtful_about_the_pictures_reaches_the_bundle(run, tmp_path, capsys):
    folder, _, _ = run
    out = tmp_path / "few"
    command = ["quantize", str(folder), "--method", "default", "--data", "digits", "--calibration-images", "8"]
    assert main([*command, "-o", str(out), "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)["warnings"]
    assert "too_few" in {finding["kind"] for finding in told}
    assert "8 calibration pictures" in printed.err
    bundle = convert(str(out), targets=["onnxruntime"], precision="int8", data="digits", out=tmp_path)[0]
    assert bundle.manifest.provenance["calibration"]["findings"] == told


def test_a_changed_folder_is_refused(trained, tmp_path):
    out, model = trained
    model.save(tmp_path)
    (tmp_path / "graph.onnx").write_bytes(other_bytes(out))
    with pytest.raises(CheckpointError, match="changed"):
        QuantizedModel.open(tmp_path)
    with pytest.raises(CheckpointError, match=r"no quantized\.json"):
        QuantizedModel.open(tmp_path / "nowhere")


def other_bytes(out):
    return QuantizedModel.open(out).graph.with_metadata({"note": "other"}).to_bytes()


def test_the_report_proves_every_fusion(run):
    folder, _, _ = run
    rows = reparameterization_report(str(folder), data="digits")
    assert len(rows) == 7
    for row in rows:
        # float32 sums of a few hundred terms, against the range of the output
        assert row["fusion_difference"] < 1e-5
        assert row["weight_spread"] >= 1.0
        assert row["activation_peak"] > 0.0
    with pytest.raises(UsageError, match="branches"):
        reparameterization_report("net.onnx", data="digits")


def test_the_command_prints_the_report_and_says_what_is_missing(run, capsys):
    folder, _, _ = run
    assert main(["quantize", str(folder), "--method", "report", "--data", "digits", "--json", "--quiet"]) == 0
    assert len(json.loads(capsys.readouterr().out)["blocks"]) == 7
    assert main(["quantize", str(folder), "--data", "digits"]) == 2
    assert "-o DIR" in capsys.readouterr().err
    assert main(["quantize", str(folder), "--data", "digits", "-o", "x", "--method", "qatt"]) == 2
    assert "qat" in capsys.readouterr().err
