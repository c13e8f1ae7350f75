"""A student with its teacher: what both make of a batch, and the loss between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgevision.distillation.answers import Answers, LogitAnswers
from edgevision.distillation.channelwise import channelwise_loss
from edgevision.distillation.config import DistillConfig
from edgevision.distillation.features import feature_loss, make_adapter, same_size
from edgevision.distillation.logits import logits_loss
from edgevision.distillation.recorder import check_layers, recorded
from edgevision.distillation.teacher import InputMap, Teacher
from edgevision.distillation.teacher_speed import quickened
from edgevision.errors import UsageError
from edgevision.preprocess import Preprocess

# name → (student's tensor, teacher's tensor, temperature) → scalar
LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "logits": logits_loss,
    "features": feature_loss,
    "channelwise": channelwise_loss,
}


@dataclass(frozen=True)
class Lesson:
    """Who teaches a run, and what."""

    teacher: Teacher
    config: DistillConfig

    @property
    def identity(self) -> dict[str, Any]:
        """What two calls of the same run have in common."""
        return {"teacher": self.teacher.identity, "distill": self.config.to_dict()}


@dataclass(frozen=True)
class Taught:
    """What the teacher makes of a batch.

    Attributes:
        outputs: as its network puts them out; ordinary tensors, for logits and maps by name.
        features: what its layers put out, by name.
    """

    outputs: Any
    features: dict[str, Tensor]


@dataclass(frozen=True)
class _Term:
    """One loss between two layers."""

    loss: str
    student: str
    teacher: str
    weight: float
    temperature: float


class AdaptedStudent(nn.Module):
    """The student with the adapters that only training needs.

    Calling it with ``[B, C, H, W]`` gives the student's own outputs and, for each pair of layers, the student's map
    ``[B, C', H', W']`` with the teacher's number of channels.
    """

    def __init__(self, student: nn.Module, layers: Sequence[str], adapters: nn.ModuleList) -> None:
        super().__init__()
        self.student = student
        self.adapters = adapters
        self.layers = tuple(layers)

    def forward(self, images: Tensor) -> tuple[Any, list[Tensor]]:
        """float32 ``[B, C, H, W]`` → outputs, adapted maps."""
        with recorded(self.student, self.layers) as found:
            outputs = self.student(images)
        maps = zip(self.adapters, self.layers, strict=True)
        return outputs, [adapter(_as_map(found[name])) for adapter, name in maps]


class Distiller:
    """A student, its teacher, and the loss between them.

    With mixup or CutMix, and whatever the augmentation, the teacher answers the very pictures that the student sees
    ("consistent teaching", Beyer et al. 2022, section 3, arXiv 2106.05237). It runs in inference mode and under the
    caller's autocast.

    Args:
        student: trained in place, on the device of ``example``; its layers are found by name.
        teacher: who teaches; moved to the device of ``example``.
        config: which losses.
        example: a batch ``[B, C, H, W]`` of any values: both networks run on it once.
        preprocess: how pictures become the student's input; with the teacher's own, tells how its input differs.
        classes: the student's classes, compared with the teacher's where both are known.
        seed: of the adapters' first weights.
        memory_format: order of the teacher's weights in memory: as the student's.
        answers: how answers are compared; by default as logits. A detector's are
            `edgevision.training.detection.teaching.DetectorAnswers`.

    Raises:
        UsageError: a layer that does not exist, runs twice, or whose map cannot be compared.
        TrainingError: a teacher with other classes, or with outputs that are no numbers.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        config: DistillConfig,
        *,
        example: Tensor,
        preprocess: Preprocess | None = None,
        classes: Sequence[str] = (),
        seed: int = 0,
        memory_format: torch.memory_format = torch.contiguous_format,
        answers: Answers | None = None,
    ) -> None:
        self.answers: Answers = LogitAnswers() if answers is None else answers
        self.config = config = self.answers.prepared(config, teacher, (example.shape[2], example.shape[3]))
        self.teacher = teacher
        self._terms = _terms(config)
        check_layers(student, [term.student for term in self._terms], "student")
        check_layers(teacher.network, [term.teacher for term in self._terms], "teacher")
        self._teacher_layers = tuple(dict.fromkeys(term.teacher for term in self._terms))
        own = teacher.preprocess
        self._input = (
            None if preprocess is None or own is None else InputMap(preprocess, own, resize=self.answers.resizes)
        )
        shape = (example if self._input is None else self._input(example)).shape
        network = quickened(teacher.network, self._teacher_layers, shape).to(example.device)
        self._network = network.to(memory_format=memory_format)  # type: ignore[call-overload] # see training.loop
        outputs, maps = _probe(student, example, [term.student for term in self._terms])
        taught = self.teach(example)
        if config.alpha:
            self.answers.check(outputs, taught.outputs, teacher, classes)
        adapters = self._adapters(maps, taught.features, seed).to(example.device)
        self.network = AdaptedStudent(student, [term.student for term in self._terms], adapters)

    @property
    def label_weight(self) -> float:
        """The labels' share of the loss."""
        return self.answers.weights(self.config.alpha, 0.0)[0]

    @property
    def adapters(self) -> nn.ModuleList:
        """What brings the student's maps to the teacher's widths: trained with it, no part of it."""
        return self.network.adapters

    def teach(self, images: Tensor) -> Taught:
        """What the teacher makes of ``[B, C, H, W]`` as the student gets them."""
        with torch.inference_mode(), recorded(self._network, self._teacher_layers) as found:
            outputs = self._network(images if self._input is None else self._input(images))
        # inference tensors cannot take part in a backward pass; copies of them can
        return Taught(_ordinary(outputs), found)

    def loss(self, outputs: Any, features: Sequence[Tensor], taught: Taught, progress: float = 0.0) -> Tensor:
        """The teacher's part of the loss: everything but the labels'.

        Args:
            outputs: the student's answers, logits ``[B, num_classes]`` or a detector's raw maps by name; not looked at
                where ``alpha`` is 0.
            features: what `network` returned beside them.
            taught: what `teach` returned for the same pictures.
            progress: how much of the run is done, 0 to 1.
        """
        config = self.config
        parts: list[Tensor] = []
        if config.alpha:
            share = self.answers.weights(config.alpha, progress)[1]
            parts.append(share * self.answers.loss(outputs, taught.outputs, config.temperature))
        for term, mine in zip(self._terms, features, strict=True):
            student, teacher = same_size(mine.float(), _as_map(taught.features[term.teacher]).float())
            parts.append(term.weight * LOSSES[term.loss](student, teacher, term.temperature))
        return torch.stack(parts).sum()

    def _adapters(self, mine: dict[str, Tensor], theirs: dict[str, Tensor], seed: int) -> nn.ModuleList:
        """One per term; their first weights follow from the seed alone, in every process."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = [(term, mine.get(term.student), theirs.get(term.teacher)) for term in self._terms]
            return nn.ModuleList([_adapter(*parts) for parts in found])


def _terms(config: DistillConfig) -> list[_Term]:
    hints = [_Term("features", *pair, config.feature_weight, 1.0) for pair in config.features]
    weight, temperature = config.channelwise_weight, config.channelwise_temperature
    return hints + [_Term("channelwise", *pair, weight, temperature) for pair in config.channelwise]


def _ordinary(outputs: Any) -> Any:
    """Copies of answers that were made in inference mode."""
    if isinstance(outputs, dict):
        return {name: _ordinary(value) for name, value in outputs.items()}
    return outputs.clone() if isinstance(outputs, Tensor) else outputs


def _probe(student: nn.Module, example: Tensor, layers: Sequence[str]) -> tuple[Any, dict[str, Tensor]]:
    """Outputs and maps of a forward pass that leaves the student's statistics as they are."""
    modes = [(module, module.training) for module in student.modules()]
    student.eval()
    try:
        with torch.inference_mode(), recorded(student, layers) as found:
            outputs = student(example)
    finally:
        for module, training in modes:
            module.training = training
    return outputs, found


def _adapter(term: _Term, student: Tensor | None, teacher: Tensor | None) -> nn.Module:
    for whose, name, found in (("student", term.student, student), ("teacher", term.teacher, teacher)):
        if found is None or found.ndim not in (2, 4):
            what = "does not run" if found is None else f"puts out {list(found.shape)}"
            raise UsageError(f"layer {name} of the {whose} {what}; distillation compares maps [B, C, H, W] or [B, C]")
    assert student is not None
    assert teacher is not None
    mine, theirs = same_size(_as_map(student), _as_map(teacher))
    if term.loss == "channelwise" and mine[0, 0].numel() < 2:
        raise UsageError(
            f"channelwise {term.student}={term.teacher}: maps of one place have nowhere to look; choose layers before "
            "the pooling, or compare these as features"
        )
    return make_adapter(mine.shape[1], theirs.shape[1])


def _as_map(features: Tensor) -> Tensor:
    """``[B, C]`` as a map of one place."""
    return features[:, :, None, None] if features.ndim == 2 else features
