"""Detectors that learn from detectors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_run import CLASSES, SIZE, squares
from torch import Tensor, nn

from edgevision.checkpoint import Checkpoint
from edgevision.distillation import DistillConfig, Distiller, open_teacher
from edgevision.distillation.answers import distribution_loss, independent_loss
from edgevision.errors import TrainingError, UsageError
from edgevision.models import create_model
from edgevision.training import DetectionConfig, train
from edgevision.training.detection.loop import DetectorTrainer
from edgevision.training.detection.teaching import DetectorAnswers

IMAGES = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
BRIEF = DetectionConfig(
    epochs=2, batch_size=4, lr=0.01, warmup_epochs=0, ema_decay=0.9, close_mosaic=0, precision="fp32", plots=False,
    threads=1,
)  # fmt: skip
EVERY_HEAD = ("yolov6_n", "yolov6_m", "yolov3_tiny", "ssdlite_mobilenet_v2")


def detector(name: str, seed: int = 0, **arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create_model(name, **{"num_classes": 2, "input_size": SIZE, "width": 0.1, **arguments})
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    # statistics as of a trained network: without them the maps of a fresh deep one are beyond all bounds
    with torch.no_grad():
        network(IMAGES)
    return network


def distiller(student: nn.Module, teacher: nn.Module, config: DistillConfig, **arguments: Any) -> Distiller:
    return Distiller(
        student, open_teacher(teacher), config, example=IMAGES[:1], answers=DetectorAnswers(student), **arguments
    )


def test_independent_answers_are_compared_one_by_one() -> None:
    student, teacher = torch.tensor([[0.3, -1.0], [2.0, 0.0]]), torch.tensor([[1.5, -2.0], [0.5, 4.0]])
    weight = torch.tensor([3.0, 1.0])
    bernoulli = torch.distributions.Bernoulli
    wanted = torch.distributions.kl_divergence(bernoulli(logits=teacher / 2), bernoulli(logits=student / 2)).sum(1) * 4
    found = independent_loss(student, teacher, 2.0, weight)
    torch.testing.assert_close(found, (3 * wanted[0] + wanted[1]) / 4)
    assert float(independent_loss(teacher, teacher, 2.0, weight)) == 0
    # one class: a softmax over it would be blind
    assert float(independent_loss(student[:, :1], teacher[:, :1], 1.0, weight)) > 0.05


def test_distributions_are_compared_as_such() -> None:
    student, teacher = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)).unbind(0)
    categorical = torch.distributions.Categorical
    wanted = torch.distributions.kl_divergence(categorical(logits=teacher), categorical(logits=student))
    torch.testing.assert_close(distribution_loss(student, teacher, 1.0, torch.ones(3)), wanted.mean())
    assert float(distribution_loss(student, teacher, 1.0, torch.zeros(3))) == 0


@pytest.mark.parametrize("name", EVERY_HEAD)
def test_the_same_answers_cost_nothing_and_others_do(name: str) -> None:
    student, teacher = detector(name), detector(name, seed=1)
    answers = DetectorAnswers(student)
    maps = {key: value.detach() for key, value in student.eval()(IMAGES).items()}
    # float32 logarithms of probabilities of either sign add up to a few roundings of each place
    assert abs(float(answers.loss(maps, maps, 2.0))) < 1e-5
    others = {key: value + 3.0 * torch.sin(9 * value) for key, value in maps.items()}
    assert float(answers.loss(maps, others, 2.0)) > 1e-4
    made = distiller(student, teacher, DistillConfig(channelwise=("head",)))
    outputs, features = made.network(IMAGES)
    # the levels of one place have nowhere to look
    assert len(features) == sum(stride < SIZE for stride in student.strides)
    made.loss(outputs, features, made.teach(IMAGES)).backward()
    gradients = [
        value.grad for key, value in student.named_parameters() if key.startswith("head.") and "outputs" in key
    ]
    assert any(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_sides_teach_where_both_have_distributions() -> None:
    large, small = detector("yolov6_m"), detector("yolov6_n")
    maps = {key: value.detach() for key, value in large.eval()(IMAGES).items()}
    turned = {key: value.flip(1) if key.startswith("boxes") else value for key, value in maps.items()}
    assert float(DetectorAnswers(large).loss(turned, maps, 1.0)) >= 0
    spread = {
        key: value + torch.randn(value.shape) if key.startswith("boxes") else value for key, value in maps.items()
    }
    assert float(DetectorAnswers(large).loss(spread, maps, 1.0)) > 1e-3
    # a student of plain sides learns the classes alone
    plain = {key: value.detach() for key, value in small.eval()(IMAGES).items()}
    moved = {key: value + 1.0 if key.startswith("boxes") else value for key, value in plain.items()}
    assert torch.equal(DetectorAnswers(small).loss(plain, maps, 1.0), DetectorAnswers(small).loss(moved, maps, 1.0))


def test_answers_count_less_and_less() -> None:
    student, teacher = detector("yolov3_tiny"), detector("yolov3_tiny", seed=1)
    made = distiller(student, teacher, DistillConfig(alpha=0.8))
    outputs, features = made.network.eval()(IMAGES)
    taught = made.teach(IMAGES)
    begin, middle, end = (float(made.loss(outputs, features, taught, share).detach()) for share in (0.0, 0.5, 1.0))
    assert begin > 0
    assert middle == pytest.approx(begin / 2)
    assert end == pytest.approx(0, abs=1e-6 * begin)
    assert made.label_weight == 1.0


@pytest.mark.parametrize(
    ("student", "teacher", "config", "message"),
    [
        ("yolov6_n", detector("yolov6_n", num_classes=3), {}, "a teacher with other classes: yolov6_n tells 3 apart"),
        ("yolov6_n", detector("yolov6lite_s"), {}, "other strides: yolov6lite_s has 8, 16, 32, 64, the"),
        ("yolov6_n", detector("yolov3_tiny"), {}, "another head: yolov3_tiny has one of the kind yolov3"),
        ("yolov6_n", detector("repvgg_tiny"), {}, "the teacher repvgg_tiny is no detector"),
        ("yolov6_n", detector("yolov6_n", num_classes=3), {"alpha": 0, "channelwise": ("head",)}, "other classes"),
        (
            "yolov3_tiny", detector("yolov3_tiny", anchors=[[2, 3], [3, 4], [5, 6], [7, 8], [20, 20], [40, 40]]), {},
            "a teacher with other anchors than the student's",
        ),
    ],
)  # fmt: skip
def test_teachers_that_do_not_fit_are_refused_before_training(
    tmp_path: Path, student: str, teacher: nn.Module, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(
            detector(student), squares(tmp_path / "data"), val_data=squares(tmp_path / "val", 4, seed=1),
            out=tmp_path / "run", config=BRIEF, teacher=teacher, distill=DistillConfig(**config),
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_classes_in_another_order_and_layers_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    student = detector("yolov3_tiny")
    with pytest.raises(TrainingError, match="class 0 is 'blue' there and 'red' here"):
        Distiller(
            student, open_teacher(detector("yolov3_tiny"), classes=("blue", "red")), DistillConfig(),
            example=IMAGES[:1], classes=CLASSES, answers=DetectorAnswers(student),
        )  # fmt: skip
    with pytest.raises(UsageError, match=r"unknown layer of the student 'head\.output'"):
        distiller(student, detector("yolov3_tiny"), DistillConfig(features=("head.output",)))


def run(folder: Path, out: str, **arguments: Any) -> Checkpoint:
    """A wider teacher's answers, head and a layer of its neck, through an adapter."""
    data = {"data": squares(folder / "data"), "val_data": squares(folder / "val", 4, seed=1)}
    lesson = DistillConfig(channelwise=("head",), features=("head.convs.1",), temperature=2.0)
    teacher = detector("yolov3_tiny", seed=5, width=0.25)
    arguments = {"config": BRIEF, **data, **arguments}
    return train(detector("yolov3_tiny"), out=folder / out, teacher=teacher, distill=lesson, **arguments)


def test_a_stopped_lesson_goes_on_with_its_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path, "whole")
    assert whole.changes == ("distilled",)
    assert "train_teacher" in (tmp_path / "whole" / "metrics.csv").read_text().splitlines()[0]
    steps = [0]
    original = DetectorTrainer.descend

    def descend(self: DetectorTrainer, *arguments: Any) -> None:
        steps[0] += 1
        if steps[0] == 5:  # in the second epoch
            raise KeyboardInterrupt
        original(self, *arguments)

    monkeypatch.setattr(DetectorTrainer, "descend", descend)
    with pytest.raises(KeyboardInterrupt, match="to go on"):
        run(tmp_path, "stopped")
    weights: dict[str, Tensor] = dict(run(tmp_path, "stopped").weights)
    assert steps[0] == 8
    assert all(torch.equal(weights[name], value) for name, value in whole.weights.items())
    with pytest.raises(TrainingError, match="is another run's"):
        run(tmp_path, "stopped", config=replace(BRIEF, lr=0.02))


def test_pictures_of_another_size_keep_their_places() -> None:
    """A teacher of a larger input sees the student's pictures as they are: its maps have the same cells."""
    student, teacher = detector("yolov3_tiny"), detector("yolov3_tiny", seed=1)
    preset = Checkpoint.from_model(student, preprocess=_letterbox(SIZE)).preprocess
    learned = open_teacher(teacher, preprocess=_letterbox(96))
    made = Distiller(
        student, learned, DistillConfig(), example=IMAGES[:1], preprocess=preset, answers=DetectorAnswers(student)
    )
    assert made.teach(IMAGES).outputs["anchors_32"].shape[2:] == (2, 2)


def _letterbox(size: int) -> Any:
    from edgevision.training.detection.run import detection_preprocess

    return detection_preprocess({"in_channels": 3, "input_size": size})
