from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgevision.checkpoint import Checkpoint
from edgevision.distillation import open_teacher
from edgevision.distillation.teacher import InputMap
from edgevision.errors import CheckpointError, TrainingError, UsageError
from edgevision.models import create_model
from edgevision.preprocess import PRESETS, Preprocess

ARGUMENTS = {"num_classes": 3, "in_channels": 3, "input_size": 16, "width": 0.5}
CLASSES = ("cat", "dog", "owl")


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model("repvgg_tiny", **ARGUMENTS)


def checkpoint(seed: int = 0) -> Checkpoint:
    preprocess = PRESETS["cifar10"].with_size(16, 16)
    return Checkpoint.from_model(network(seed), preprocess=preprocess, classes=CLASSES, changes=("trained",))


def test_every_source_gives_the_same_teacher(tmp_path: Path) -> None:
    folder = checkpoint().save(tmp_path / "teacher")
    weights = tmp_path / "weights.pt"
    torch.save(network().state_dict(), weights)
    found = [
        open_teacher(folder),
        open_teacher(str(folder)),
        open_teacher(checkpoint()),
        open_teacher(network()),
        open_teacher("repvgg_tiny", weights=weights, arguments=ARGUMENTS),
        open_teacher(open_teacher(folder)),
    ]
    images = torch.randn(2, 3, 16, 16)
    expected = network().eval()(images)
    for teacher in found:
        assert teacher.identity == found[0].identity == {"name": "repvgg_tiny", "digest": found[0].digest}
        assert not teacher.network.training
        assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
        assert torch.equal(teacher.network(images), expected)
    assert found[0].classes == CLASSES
    assert found[0].preprocess == checkpoint().preprocess
    assert open_teacher(checkpoint(1)).digest != found[0].digest


def test_a_module_stays_as_it_is() -> None:
    module = network()
    teacher = open_teacher(module, classes=CLASSES)
    with torch.no_grad():
        next(module.parameters()).zero_()
    assert module.training
    assert next(module.parameters()).requires_grad
    assert float(next(teacher.network.parameters()).abs().max()) > 0
    assert teacher.classes == CLASSES


def test_half_precision_weights_have_a_digest() -> None:
    assert open_teacher(nn.Linear(2, 2).bfloat16()).digest != open_teacher(nn.Linear(2, 2).bfloat16()).digest


def test_what_is_no_teacher_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="random weights has nothing to teach: give its weights"):
        open_teacher("mobilenet_v2")
    with pytest.raises(UsageError, match="no teacher: expected a Checkpoint folder"):
        open_teacher(tmp_path)
    with pytest.raises(UsageError, match="this teacher has its own"):
        open_teacher(checkpoint(), weights="weights.pt")
    with pytest.raises(CheckpointError, match="no such weight file"):
        open_teacher("repvgg_tiny", weights=tmp_path / "absent.pt", arguments=ARGUMENTS)


def test_other_classes_are_named_on_both_sides() -> None:
    teacher = open_teacher(checkpoint())
    teacher.check_classes(CLASSES)
    teacher.check_classes(())
    with pytest.raises(
        TrainingError,
        match=r"a teacher with other classes: repvgg_tiny knows 3 classes \(cat, dog, owl\); the student is to learn "
        r"2 classes \(cat, owl\); class 1 is 'dog' there and 'owl' here",
    ):
        teacher.check_classes(("cat", "owl"))
    with pytest.raises(TrainingError, match="class 0 is 'cat' there and 'dog' here"):
        teacher.check_classes(("dog", "cat", "owl"))


PREPROCESSES = st.builds(
    lambda color, scale, mean, std: Preprocess((6, 6), color=color, scale=scale, mean=tuple(mean), std=tuple(std)),
    st.sampled_from(["RGB", "BGR"]),
    st.sampled_from([1.0, 1 / 255, 2 / 255]),
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    st.lists(st.floats(0.1, 2), min_size=3, max_size=3),
)


@given(PREPROCESSES, PREPROCESSES)
@settings(max_examples=50, deadline=None)
def test_the_teacher_gets_the_pictures_as_its_own_preprocess_makes_them(mine: Preprocess, theirs: Preprocess) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    got = InputMap(mine, theirs)(torch.from_numpy(mine.batch([picture])))
    expected = torch.from_numpy(theirs.batch([picture]))
    # float32 of values up to 2550, by two roundings more
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3 * max(1.0, theirs.scale * 255))


def test_equal_inputs_are_passed_on_and_other_sizes_are_resized() -> None:
    images = torch.rand(2, 3, 32, 32)
    preset = PRESETS["cifar10"]
    assert InputMap(preset, preset)(images) is images
    assert InputMap(preset, preset.with_size(48, 40))(images).shape == (2, 3, 48, 40)
    with pytest.raises(UsageError, match="the teacher takes GRAY pictures, the student RGB"):
        InputMap(preset, PRESETS["digits"])
