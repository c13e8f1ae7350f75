from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgevision.checkpoint import MODEL, NEXT_WEIGHTS, WEIGHTS, Checkpoint, is_checkpoint
from edgevision.errors import CheckpointError, OutputError, UsageError
from edgevision.models import MODELS, create_model, task_of
from edgevision.models.reparameterize import reparameterize
from edgevision.pipeline.checkpoint import load_checkpoint
from edgevision.pipeline.quantize import QuantizeOptions, quantize
from edgevision.preprocess import PRESETS
from edgevision_converters.passes.numerics import run
from edgevision_converters.qdq import quantize_dequantize

CLASSES = ("cat", "dog", "fox")


def make(seed: int = 0, name: str = "repvgg_tiny", **changes: Any) -> Checkpoint:
    torch.manual_seed(seed)
    model = create_model(name, num_classes=3, input_size=32, width=0.25)
    return Checkpoint.from_model(model, preprocess=PRESETS["cifar10"], classes=CLASSES, **changes)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return make(changes=("trained",), metrics={"top1": 0.5}).save(tmp_path / "run")


@pytest.mark.parametrize("name", [name for name in sorted(MODELS._entries) if task_of(name) == "classification"])
def test_every_model_comes_back_with_the_same_answers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, in_channels=1, input_size=32, width=0.05)
    Checkpoint.from_model(model, preprocess=PRESETS["digits"]).save(tmp_path)
    again = load_checkpoint(tmp_path).build()
    x = torch.randn(2, 1, 32, 32)
    assert not again.training
    with torch.inference_mode():
        assert torch.equal(again(x), model.eval()(x))


@pytest.mark.parametrize("name", ["repvgg_tiny", "qarepvgg_tiny", "efficientrep_n"])
def test_fused_nets_reload_fused(name: str, tmp_path: Path) -> None:
    fused = reparameterize(create_model(name, num_classes=3, input_size=32, width=0.25))
    Checkpoint.from_model(fused, preprocess=PRESETS["cifar10"], changes=("trained",)).save(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.changes == ("trained", "reparameterized")
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(checkpoint.build()(x), fused(x))


def test_fields_survive(saved: Path) -> None:
    checkpoint = Checkpoint.open(saved)
    assert checkpoint.architecture == "repvgg_tiny"
    assert checkpoint.arguments == {"num_classes": 3, "in_channels": 3, "input_size": 32, "width": 0.25}
    assert checkpoint.num_classes == 3
    assert checkpoint.classes == CLASSES
    assert checkpoint.task == "classification"
    assert checkpoint.preprocess == PRESETS["cifar10"]
    assert checkpoint.changes == ("trained",)
    assert checkpoint.metrics == {"top1": 0.5}
    assert is_checkpoint(saved)
    assert not is_checkpoint(saved.parent)


@settings(max_examples=30, deadline=None)
@given(
    metrics=st.dictionaries(st.text(max_size=5), st.none() | st.floats() | st.integers(-9, 9), max_size=4),
    classes=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=3, max_size=3),
    changes=st.lists(st.sampled_from(["trained", "pruned", "finetuned"]), max_size=3),
)
def test_any_metadata_survives(tmp_path_factory, metrics, classes, changes) -> None:
    folder = tmp_path_factory.mktemp("run")
    model = create_model("repvgg_tiny", num_classes=3, input_size=32, width=0.05)
    checkpoint = Checkpoint.from_model(
        model, preprocess=PRESETS["cifar10"], classes=classes, changes=changes, metrics=metrics
    )
    checkpoint.save(folder)
    again = Checkpoint.open(folder)
    assert (again.classes, again.changes, again.metrics) == (tuple(classes), tuple(changes), checkpoint.metrics)
    json.loads((folder / MODEL).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_two_saves_of_one_network_are_the_same_bytes(tmp_path: Path) -> None:
    a, b = make().save(tmp_path / "a"), make().save(tmp_path / "b")
    for name in (MODEL, WEIGHTS):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_saving_replaces_the_old_and_leaves_other_files(saved: Path) -> None:
    (saved / "metrics.csv").write_text("epoch\n")
    new = make(seed=7)
    new.save(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["metrics.csv", MODEL, WEIGHTS]
    opened = Checkpoint.open(saved)
    assert all(torch.equal(value, opened.weights[name]) for name, value in new.weights.items())


def test_killed_at_any_step_of_saving_leaves_the_old_or_the_new(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = Checkpoint.open(saved), make(seed=7, metrics={"top1": 0.9})
    key = "linear.weight"
    replace, outcomes = Path.replace, []
    for allowed in range(4):
        old.save(saved)
        done = 0

        def killed(self: Path, target: Path, allowed: int = allowed) -> Path:
            nonlocal done
            if done == allowed:
                raise KeyboardInterrupt
            done += 1
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            try:
                new.save(saved)
            except KeyboardInterrupt:
                assert allowed < 3
        opened = Checkpoint.open(saved)
        expected = old if opened.metrics == old.metrics else new
        assert torch.equal(opened.weights[key], expected.weights[key])
        outcomes.append(expected is new)
        assert not [path for path in saved.iterdir() if path.name.endswith(".tmp")]
    # model.json is the second of the three renames: from there on the new one counts
    assert outcomes == [False, False, True, True]


def test_building_draws_no_random_numbers(saved: Path) -> None:
    checkpoint = Checkpoint.open(saved)
    before = torch.get_rng_state()
    checkpoint.build()
    assert torch.equal(before, torch.get_rng_state())


def test_weights_are_a_copy() -> None:
    model = create_model("repvgg_tiny", num_classes=3, input_size=32, width=0.25)
    checkpoint = Checkpoint.from_model(model, preprocess=PRESETS["cifar10"])
    with torch.no_grad():
        model.linear.weight.fill_(5.0)
    assert not (checkpoint.weights["linear.weight"] == 5.0).any()


def test_with_metrics() -> None:
    checkpoint = make(metrics={"top1": 0.5}).with_metrics({"loss": float("nan"), "epoch": 3})
    assert checkpoint.metrics == {"top1": 0.5, "loss": None, "epoch": 3}


def test_what_does_not_go_together_is_refused() -> None:
    model = create_model("repvgg_tiny", num_classes=3, input_size=32, width=0.25)
    with pytest.raises(UsageError, match="2 class names for a network of 3"):
        Checkpoint.from_model(model, preprocess=PRESETS["cifar10"], classes=("a", "b"))
    with pytest.raises(UsageError, match=r"gives 1 channels \(GRAY\).*takes 3"):
        Checkpoint.from_model(model, preprocess=PRESETS["digits"])
    with pytest.raises(UsageError, match="got Linear without"):
        Checkpoint.from_model(nn.Linear(2, 2), preprocess=PRESETS["cifar10"])


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / MODEL).read_text())
    change(values)
    (folder / MODEL).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v.update(schema_version=99), r"newer EdgeVision \(schema 99; this one reads up to 2\)"),
        (lambda v: v.update(schema_version="1"), "schema_version must be a whole number"),
        (lambda v: v.pop("schema_version"), "not a checkpoint's model.json"),
        (lambda v: v.pop("classes"), "damaged checkpoint: KeyError: 'classes'"),
        (lambda v: v.update(weights=None), "damaged checkpoint"),
        (lambda v: v.update(architecture=3), "damaged checkpoint"),
        (lambda v: v.update(metrics=[]), "damaged checkpoint"),
        (lambda v: v.update(classes=["one"]), "1 class names for a network of 3"),
        (lambda v: v["preprocess"].update(color="PINK"), "unknown colour order 'PINK'"),
        (lambda v: v["preprocess"].update(colour="RGB"), "unknown preprocess key 'colour'"),
    ],
)
def test_damaged_model_json(saved: Path, change: Callable[[dict[str, Any]], object], match: str) -> None:
    edit(saved, change)
    with pytest.raises(CheckpointError, match=match):
        Checkpoint.open(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "\x00\xff", "[" * 100_000])
def test_model_json_is_no_json_object(saved: Path, text: str) -> None:
    (saved / MODEL).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"model\.json"):
        Checkpoint.open(saved)


def test_architecture_unknown_here(saved: Path) -> None:
    edit(saved, lambda v: v["architecture"].update(name="resnet50"))
    with pytest.raises(CheckpointError, match="cannot be built here: unknown model 'resnet50'"):
        Checkpoint.open(saved).build()


def test_arguments_of_another_size(saved: Path) -> None:
    edit(saved, lambda v: v["architecture"]["arguments"].update(width=0.5))
    with pytest.raises(CheckpointError, match="of another shape"):
        Checkpoint.open(saved).build()


@pytest.mark.parametrize("at", [0, 8, 200, -1])
def test_one_byte_changed_in_the_weights(saved: Path, at: int) -> None:
    data = bytearray((saved / WEIGHTS).read_bytes())
    data[at] ^= 1
    (saved / WEIGHTS).write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged or changed since it was saved"):
        Checkpoint.open(saved)


def test_weights_missing(saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        Checkpoint.open(saved)


def test_leftover_of_another_save_is_not_taken_for_the_weights(saved: Path) -> None:
    (saved / NEXT_WEIGHTS).write_bytes(b"half-written")
    assert Checkpoint.open(saved).num_classes == 3


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"no model\.json in it"):
        load_checkpoint(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="not a folder"):
        load_checkpoint(tmp_path / "file")


def test_nan_in_the_weights_is_refused_by_name(tmp_path: Path) -> None:
    model = create_model("repvgg_tiny", num_classes=3, input_size=32, width=0.25)
    with torch.no_grad():
        model.linear.bias[1] = float("nan")
    Checkpoint.from_model(model, preprocess=PRESETS["cifar10"]).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"linear\.bias has 1 NaN"):
        Checkpoint.open(tmp_path).build()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        make().save(tmp_path / "file")


def test_importing_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; sys.modules['safetensors'] = None; import edgevision.checkpoint"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_quantized_network_reloads_by_its_folder_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("repvgg_tiny", num_classes=10, in_channels=1, input_size=32, width=0.5).eval()
    checkpoint = Checkpoint.from_model(model, preprocess=PRESETS["digits"])
    options = QuantizeOptions(method="default", calibration_images=8, equalize=False)
    made = quantize(checkpoint, data="digits", out=tmp_path / "int8", options=options)
    opened = load_checkpoint(tmp_path / "int8")
    assert opened.preprocess == PRESETS["digits"]
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        answers = opened.build()(images).numpy()
    (expected,) = run(quantize_dequantize(made.graph, made.plan), {made.graph.input_name: images.numpy()})
    # a tie between two integers may fall either way in float32: a few steps of the last layer, of 10 of the range
    assert float(abs(answers - expected).max()) < 0.05 * float(abs(expected).max())
    assert float(abs(answers - model(images).detach().numpy()).max()) > 0
    with pytest.raises(CheckpointError, match=r"a quantized network, .* open it with edgevision.load_checkpoint"):
        Checkpoint.open(tmp_path / "int8")
