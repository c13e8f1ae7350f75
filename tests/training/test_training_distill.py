"""Training on a teacher's answers, and training that begins with a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small_run import EVERYTHING, LESSON, PREPROCESS, pictures, same_bits, small_net, weights, wide_net
from test_training_run import history, stop_after
from torch import Tensor, nn

from edgevision.checkpoint import Checkpoint
from edgevision.data.datasets import ArrayDataset
from edgevision.distillation import DistillConfig, Distiller, open_teacher
from edgevision.errors import TrainingError, UsageError
from edgevision.models import create_model
from edgevision.models.channels import resize
from edgevision.preprocess import PRESETS
from edgevision.training import TrainConfig, train

BRIEF = TrainConfig(epochs=3, batch_size=16, lr=0.05, warmup_epochs=0)
FULL = TrainConfig.from_dict(EVERYTHING)


def run(out: Path, config: TrainConfig = BRIEF, model: Any = None, **kwargs: Any) -> tuple[Checkpoint, nn.Module]:
    model = small_net(dropout=0.2) if model is None else model
    arguments = {"data": pictures(), "val_data": pictures(40, seed=9), "preprocess": PREPROCESS, **kwargs}
    return train(model, out=out, config=config, **arguments), model


def answers(model: nn.Module) -> Tensor:
    inputs = torch.from_numpy(PREPROCESS.batch(list(pictures(40, seed=9).images)))
    with torch.no_grad():
        return model.eval()(inputs).argmax(1)


def test_a_student_learns_from_its_teacher_what_the_labels_do_not_say(tmp_path: Path) -> None:
    _, teacher = run(tmp_path / "teacher", replace(BRIEF, epochs=12), wide_net())
    data = pictures()
    wrong = ArrayDataset("wrong", data.images, np.roll(data.labels, 1), data.classes, "wrong")
    lesson = {"teacher": teacher, "distill": DistillConfig(alpha=1.0, features=(("conv2", "conv2"),))}
    checkpoint, student = run(tmp_path / "student", replace(BRIEF, epochs=12), data=wrong, **lesson)
    # four bright quarters: chance is 0.25, and the labels that are ignored would bring it below
    assert float((answers(student) == answers(teacher)).float().mean()) >= 0.9
    assert checkpoint.metrics["top1"] >= 0.9
    assert checkpoint.changes == ("distilled",)
    assert set(checkpoint.weights) == set(small_net().state_dict())


def test_teacher_and_student_see_the_same_mixed_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    teach, forward = Distiller.teach, type(small_net()).forward

    def spy_teach(self: Distiller, images: Tensor) -> Any:
        seen["teacher"].append(images.clone())
        return teach(self, images)

    def spy_forward(self: nn.Module, images: Tensor) -> Tensor:
        if self.training:
            seen["student"].append(images.clone())
        return forward(self, images)

    monkeypatch.setattr(Distiller, "teach", spy_teach)
    monkeypatch.setattr(type(small_net()), "forward", spy_forward)
    run(tmp_path / "run", replace(FULL, epochs=1, warmup_epochs=0), teacher=wide_net(), distill=LESSON)
    taught = seen["teacher"][1:]  # the first is the probe
    assert len(taught) == len(seen["student"]) == 6
    assert all(map(torch.equal, taught, seen["student"]))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_distillation_ends_as_if_it_had_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    config = replace(FULL, optimizer=optimizer, lr=0.01)
    lesson = {"teacher": wide_net(), "distill": LESSON}
    undisturbed = run(tmp_path / "whole", config, **lesson)[1]
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", config, **lesson)
    _, resumed = run(tmp_path / "stopped", config, small_net(seed=77, dropout=0.2), **lesson)
    assert same_bits(weights(undisturbed), weights(resumed))
    states = [
        safetensors.torch.load_file(tmp_path / name / "state" / "last.safetensors") for name in ("whole", "stopped")
    ]
    adapters = [name for name in states[0] if name.startswith("adapters/")]
    assert adapters == ["adapters/0.weight", "adapters/1.weight"]
    assert same_bits(*states)


def test_another_teacher_or_lesson_is_another_run(tmp_path: Path) -> None:
    run(tmp_path / "run", teacher=wide_net(), distill=LESSON)
    with pytest.raises(TrainingError, match=r"another run's: teacher\.digest is \w+ there and \w+ here"):
        run(tmp_path / "run", teacher=wide_net(51), distill=LESSON)
    with pytest.raises(TrainingError, match=r"distill\.temperature is 3\.0 there and 2\.0 here"):
        run(tmp_path / "run", teacher=wide_net(), distill=replace(LESSON, temperature=2.0))
    with pytest.raises(TrainingError, match=r"teacher is .* there and nothing here"):
        run(tmp_path / "run")
    # the same one from somewhere else is the same
    run(tmp_path / "run", teacher=open_teacher(wide_net()), distill=LESSON)


def test_a_mistake_in_the_lesson_leaves_the_folder_unclaimed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown layer of the student 'conv3'"):
        run(tmp_path / "run", teacher=wide_net(), distill=DistillConfig(features=(("conv3", "conv2"),)))
    named = open_teacher(wide_net(), classes=("nw", "ne", "se", "sw"))
    with pytest.raises(TrainingError, match="class 2 is 'se' there and 'sw' here"):
        run(tmp_path / "run", teacher=named)
    assert not (tmp_path / "run").exists()
    run(tmp_path / "run", teacher=wide_net())


def test_a_lesson_needs_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give a teacher, too"):
        run(tmp_path / "run", distill=LESSON)


def test_bf16_distils(tmp_path: Path) -> None:
    config = replace(BRIEF, precision="bf16", channels_last=True)
    checkpoint, _ = run(tmp_path / "run", config, teacher=wide_net(), distill=LESSON)
    assert all(np.isfinite(row["train_loss"]) for row in history(tmp_path / "run"))
    assert checkpoint.changes == ("distilled",)


def zoo_checkpoint(**kwargs: Any) -> Checkpoint:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("repvgg_tiny", num_classes=4, input_size=16, width=0.5)
    arguments = {"preprocess": replace(PRESETS["cifar10"], size=(16, 16), mean=(0.3, 0.4, 0.5)), **kwargs}
    return Checkpoint.from_model(model, **arguments)


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    source = zoo_checkpoint(changes=("trained", "pruned"), classes=("a", "b", "c", "d"))
    folder = source.save(tmp_path / "source")
    config = replace(BRIEF, epochs=1)
    data = pictures()
    unnamed = ArrayDataset("unnamed", data.images, data.labels, (), "unnamed")
    found = [
        train(begun, unnamed, out=tmp_path / name, config=config, val_data=pictures(40, seed=9))
        for name, begun in (("folder", folder), ("checkpoint", source))
    ]
    for checkpoint in found:
        assert checkpoint.changes == ("trained", "pruned", "trained")
        assert checkpoint.preprocess == source.preprocess
        assert checkpoint.classes == source.classes
    assert same_bits(dict(found[0].weights), dict(found[1].weights))
    module = train(
        source.build(), pictures(), out=tmp_path / "module", config=config, val_data=pictures(40, seed=9),
        preprocess=source.preprocess, changes=source.changes,
    )  # fmt: skip
    assert same_bits(dict(module.weights), dict(found[0].weights))


def test_a_checkpoints_weights_are_part_of_what_the_run_is(tmp_path: Path) -> None:
    source = zoo_checkpoint()
    arguments = {"data": pictures(), "out": tmp_path / "run", "config": replace(BRIEF, epochs=1)}
    first = train(source, **arguments)
    assert first.changes == ("trained",)
    # once more is no other change
    assert train(first, **{**arguments, "out": tmp_path / "again"}).changes == ("trained",)
    changed = {name: value + 0.01 if value.ndim == 4 else value for name, value in source.weights.items()}
    with pytest.raises(TrainingError, match="initial_weights is"):
        train(replace(source, weights=changed), **arguments)


def test_a_pupil_of_its_former_self(tmp_path: Path) -> None:
    source = zoo_checkpoint(changes=("trained", "pruned"))
    checkpoint = train(source, pictures(), out=tmp_path / "run", config=replace(BRIEF, epochs=1), teacher=source)
    assert checkpoint.changes == ("trained", "pruned", "distilled")


def test_a_run_does_not_write_over_what_it_begins_with(tmp_path: Path) -> None:
    folder = zoo_checkpoint().save(tmp_path / "source")
    with pytest.raises(UsageError, match="holds the network to begin with; write the new one into another folder"):
        train(folder, pictures(), out=folder)
    with pytest.raises(UsageError, match="holds the teacher"):
        run(folder, teacher=str(folder))
    with pytest.raises(UsageError, match="takes a network of create_model or a Checkpoint folder"):
        train(tmp_path / "absent", pictures(), out=tmp_path / "run")


def test_a_pruned_student_learns_from_what_it_was(tmp_path: Path) -> None:
    whole = zoo_checkpoint(changes=("trained",))
    model = whole.build()
    # the last block keeps 24 of its 64 channels
    counts = {".conv": [32, 24, 1], ".bn": [24, 24, 1]}
    branches = [f"stage4.0.{branch}" for branch in ("rbr_dense", "rbr_1x1")]
    resize(model, {name + end: values for name in branches for end, values in counts.items()} | {"linear": [24, 4, 1]})
    kept = {name: value[tuple(slice(size) for size in model.state_dict()[name].shape)]
            for name, value in whole.weights.items()}  # fmt: skip
    model.load_state_dict(kept)
    pruned = Checkpoint.from_model(model, preprocess=whole.preprocess, changes=(*whole.changes, "pruned"))
    lesson = {"teacher": whole, "distill": DistillConfig(features=(("stage4.0", "stage4.0"),))}
    out = tmp_path / "run"
    checkpoint = train(pruned, pictures(), out=out, config=replace(BRIEF, epochs=2), **lesson)
    assert checkpoint.changes == ("trained", "pruned", "distilled")
    assert checkpoint.channels == pruned.channels
    again = Checkpoint.open(out).build()
    assert again.linear.in_features == 24
    assert same_bits(dict(checkpoint.weights), weights(again))
    adapter = safetensors.torch.load_file(out / "state" / "last.safetensors")["adapters/0.weight"]
    assert adapter.shape == (64, 24, 1, 1)
    # the same network with other counts is another run
    with pytest.raises(TrainingError, match=r"channels is \w+ there and nothing here"):
        train(whole, pictures(), out=out, config=replace(BRIEF, epochs=2), **lesson)
