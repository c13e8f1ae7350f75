from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevision.distillation import DistillConfig, Distiller, channelwise_loss, feature_loss, logits_loss, open_teacher
from edgevision.distillation.recorder import recorded
from edgevision.distillation.teacher_speed import quickened
from edgevision.errors import TrainingError, UsageError
from edgevision.models import create_model

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers of a chosen width, one of them in place behind a batch norm, as networks of the zoo have them."""

    def __init__(self, width: int, classes: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.twice = nn.ReLU()
        self.unused = nn.ReLU()
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.body(self.twice(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Detector(nn.Module):
    """Two dense heads in a dictionary, as detectors put them out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.boxes = nn.Conv2d(width, 4, 1)
        self.scores = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        return {"boxes": self.boxes(x), "scores": self.scores(x)}


def seeded(seed: int, build: Any, *args: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(*args)
        for module in network.modules():  # statistics and shifts that are not those of a fresh network
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.normal_(module.bias)
        return network


def distiller(config: DistillConfig, student: nn.Module, teacher: nn.Module, **kwargs: Any) -> Distiller:
    return Distiller(student, open_teacher(teacher), config, example=IMAGES[:1], **kwargs)


def test_the_loss_is_the_sum_of_its_terms() -> None:
    student, teacher = seeded(0, Net, 4), seeded(1, Net, 6)
    config = DistillConfig(
        temperature=2.0, alpha=0.7, features=("stem",), feature_weight=0.3, channelwise=("body=stem",),
        channelwise_weight=5.0, channelwise_temperature=1.5,
    )  # fmt: skip
    made = distiller(config, student, teacher)
    outputs, features = made.network(IMAGES)
    loss = made.loss(outputs, features, made.teach(IMAGES))
    teacher.eval()
    stem = teacher.stem(IMAGES)
    with recorded(student, ["stem", "body"]) as mine:
        expected_outputs = student(IMAGES)
    hint, dense = (made.adapters[i](mine[name]) for i, name in enumerate(("stem", "body")))
    expected = (
        0.7 * logits_loss(expected_outputs, teacher(IMAGES), 2.0)
        + 0.3 * feature_loss(hint, stem)
        + 5.0 * channelwise_loss(dense, stem, 1.5)
    )
    assert torch.equal(outputs, expected_outputs)
    # the teacher's batch norm is folded: float32 in another order
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert made.label_weight == pytest.approx(0.3)


def test_gradients_reach_the_student_and_its_adapters_alone() -> None:
    student, teacher = seeded(0, Net, 4), seeded(1, Net, 6)
    made = distiller(DistillConfig(features=("body",)), student, teacher)
    outputs, features = made.network(IMAGES)
    made.loss(outputs, features, made.teach(IMAGES)).backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in made.network.parameters())
    assert set(map(id, made.network.parameters())) == {
        *map(id, student.parameters()), *map(id, made.adapters.parameters())
    }  # fmt: skip
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(name.startswith("adapters") for name in student.state_dict())


def test_building_one_changes_neither_network_nor_random_numbers() -> None:
    student, teacher = seeded(0, Net, 4), seeded(1, Net, 6)
    student.body.eval()  # a part that its owner keeps in eval mode
    before = [{name: value.clone() for name, value in net.state_dict().items()} for net in (student, teacher)]
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    distiller(DistillConfig(features=("body",)), student, teacher)
    assert torch.equal(torch.rand(2), expected)
    for net, state in zip((student, teacher), before, strict=True):
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())
    assert student.training
    assert not student.body.training
    assert not any(module._forward_hooks for module in student.modules())


def test_adapters_follow_from_the_seed() -> None:
    config = DistillConfig(features=("body", "stem"))
    one, same, other = (distiller(config, seeded(0, Net, 4), seeded(1, Net, 6), seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.adapters[0].weight, same.adapters[0].weight)
    assert not torch.equal(one.adapters[0].weight, other.adapters[0].weight)


def test_a_layer_before_an_activation_in_place_is_seen_as_it_was() -> None:
    net = seeded(0, Net, 4).eval()
    with recorded(net, ["stem.1"]) as found:
        net(IMAGES)
    expected = net.stem[1](net.stem[0](IMAGES))
    assert float(expected.detach().min()) < 0
    assert torch.equal(found["stem.1"], expected)


def test_vectors_and_maps_of_other_sizes_are_compared() -> None:
    student, teacher = seeded(0, Net, 4), seeded(1, Net, 6, 3, 1)
    made = distiller(DistillConfig(alpha=0, features=("body", "head")), student, teacher)
    assert isinstance(made.adapters[1], nn.Identity)  # three outputs on both sides
    outputs, features = made.network(IMAGES)
    assert torch.isfinite(made.loss(outputs, features, made.teach(IMAGES)))


def test_a_detector_learns_where_its_teacher_looks() -> None:
    """No labels, no logits: heads alone, in a loop of one's own."""
    student, teacher = seeded(0, Detector, 4), seeded(1, Detector, 12)
    config = DistillConfig(alpha=0, channelwise=("scores",), channelwise_temperature=1.0, features=("boxes",))
    made = distiller(config, student, teacher)
    optimizer = torch.optim.Adam(made.network.parameters(), lr=0.02)
    taught = made.teach(IMAGES)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        outputs, features = made.network(IMAGES)
        loss = made.loss(outputs, features, taught)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert set(outputs) == {"boxes", "scores"}
    assert losses[-1] < 0.5 * losses[0]  # measured: about 0.2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"features": ["bady"]}, "unknown layer of the student 'bady': did you mean body"),
        ({"features": ["body=stem.9"]}, "unknown layer of the teacher 'stem.9': did you mean stem"),
        ({"features": ["twice"]}, "layer twice runs more than once"),
        ({"features": ["unused"]}, "layer unused of the student does not run"),
        ({"channelwise": ["head"]}, "maps of one place have nowhere to look"),
    ],
)
def test_layers_that_cannot_teach_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        distiller(DistillConfig.from_dict(config), seeded(0, Net, 4), seeded(1, Net, 6))


def test_outputs_that_are_no_logits_need_layers() -> None:
    with pytest.raises(UsageError, match=r"the student puts out dict; logits to distil are \[B, num_classes\]"):
        distiller(DistillConfig(), seeded(0, Detector, 4), seeded(1, Net, 6))
    with pytest.raises(UsageError, match=r"layer of the student|boxes"):
        distiller(DistillConfig(alpha=0, features=("boxes",)), seeded(0, Net, 4), seeded(1, Detector, 6))


def test_a_teacher_with_other_classes_is_refused_unless_its_layers_alone_teach() -> None:
    student, teacher = seeded(0, Net, 4), seeded(1, Net, 6, 5)
    with pytest.raises(TrainingError, match="a teacher with other classes: Net tells 5 apart, the student 3"):
        distiller(DistillConfig(), student, teacher)
    distiller(DistillConfig(alpha=0, features=("body",)), student, teacher)
    named = open_teacher(seeded(1, Net, 6), classes=("a", "b", "c"))
    with pytest.raises(TrainingError, match=r"knows 3 classes \(a, b, c\); the student is to learn 3 classes \(a"):
        Distiller(student, named, DistillConfig(), example=IMAGES[:1], classes=("a", "b", "x"))


def test_a_teacher_of_nan_is_refused() -> None:
    teacher = seeded(1, Net, 6)
    with torch.no_grad():
        teacher.head.bias[0] = float("nan")
    with pytest.raises(TrainingError, match="answers with NaN"):
        distiller(DistillConfig(), seeded(0, Net, 4), teacher)


@pytest.mark.parametrize("name", ["repvgg_tiny", "qarepvgg_tiny", "mobilenet_v2", "mobilenet_v3_small"])
def test_a_quickened_teacher_answers_the_same(name: str) -> None:
    net = seeded(0, lambda: create_model(name, num_classes=5, input_size=16, width=0.25)).eval()
    quick = quickened(net, (), IMAGES.shape)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in quick.modules()) == 0
    expected, got = net(IMAGES), quick(IMAGES)
    # float32 sums in another order, over some 50 layers
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.detach().abs().max()))


def test_branches_stay_where_a_layer_inside_them_teaches() -> None:
    net = seeded(0, lambda: create_model("repvgg_tiny", num_classes=5, input_size=16)).eval()
    quick = quickened(net, ("stage1.0.rbr_dense",), IMAGES.shape)
    assert "stage1.0.rbr_dense" in dict(quick.named_modules())


def test_a_convolution_that_teaches_keeps_its_batch_norm() -> None:
    net = seeded(0, Net, 4).eval()
    quick = quickened(net, ("stem.0",), IMAGES.shape)
    assert torch.equal(quick.stem[0](IMAGES), net.stem[0](IMAGES))
    assert isinstance(quick.stem[1], nn.BatchNorm2d)


def test_a_network_that_looks_between_its_layers_is_not_touched() -> None:
    class Peeking(Net):
        def forward(self, x: Tensor) -> Tensor:
            raw = self.stem[0](x)
            return functional.relu(self.stem[1](raw)).mean((2, 3))[:, :3] + raw.mean((2, 3))[:, :3]

    net = seeded(0, Peeking, 4).eval()
    quick = quickened(net, (), IMAGES.shape)
    assert torch.equal(quick(IMAGES), net(IMAGES))
    assert isinstance(quick.stem[1], nn.BatchNorm2d)
