"""A detector learns from a detector: what the raw maps of its head are to say, in the spirit of self-distillation.

Li et al. 2022, *YOLOv6*, arXiv 2209.02976, and 2023, arXiv 2301.05586: the divergence of the classes and of the sides'
distributions, with a weight that falls along a cosine. Places count by how sure the teacher is that something is there:
what there is not to be found the boxes say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from edgevision.distillation.answers import check_finite, distribution_loss, independent_loss
from edgevision.distillation.config import DistillConfig, LayerPair
from edgevision.distillation.teacher import Teacher
from edgevision.errors import TrainingError
from edgevision.training.detection.criteria.decoding import anchor_free_maps, anchor_maps, default_box_maps

# among the pairs of ``channelwise``: the layers of the head whose maps are scores
HEAD = "head"
_SCORE_LAYERS = {"yolov6": "head.class_outputs", "ssd": "head.class_outputs", "yolov3": "head.outputs"}

Maps = Mapping[str, Tensor]


class DetectorAnswers:
    """The raw maps of a detector's head; see `edgevision.distillation.answers.Answers`.

    Args:
        student: the detector that learns.
    """

    # a map of another size has other places
    resizes = False

    def __init__(self, student: nn.Module) -> None:
        self.student: Any = student

    def prepared(self, config: DistillConfig, teacher: Teacher, size: tuple[int, int]) -> DistillConfig:
        """The layers of ``"head"`` by name.

        Raises:
            TrainingError: a teacher whose head puts out other maps, where its maps are to be learned.
        """
        pairs: list[LayerPair] = []
        for pair in config.channelwise:
            pairs += self._score_layers(size) if pair == (HEAD, HEAD) else [pair]
        if config.alpha or pairs != list(config.channelwise):
            self._check_head(teacher)
        return replace(config, channelwise=tuple(pairs))

    def _score_layers(self, size: tuple[int, int]) -> list[LayerPair]:
        """Of the levels with more than one place: a softmax over one says nothing."""
        outputs = _SCORE_LAYERS[self.student.head.kind]
        names = [
            f"{outputs}.{level}"
            for level, stride in enumerate(self.student.strides)
            if math.prod(-(-side // stride) for side in size) > 1
        ]
        return [(name, name) for name in names]

    def _check_head(self, teacher: Teacher) -> None:
        """Refuse a head of another kind, or with other classes, strides or priors."""
        network: Any = teacher.network
        instead = "; learn from its layers alone (alpha = 0 with features), or take another teacher"
        if getattr(network, "task", None) != "detection":
            raise TrainingError(f"the teacher {teacher.name} is no detector, and its answers are no boxes{instead}")
        mine, theirs = self.student.head, network.head
        if mine.kind != theirs.kind:
            raise TrainingError(
                f"a teacher with another head: {teacher.name} has one of the kind {theirs.kind}, the student "
                f"{mine.kind}{instead}"
            )
        if mine.num_classes != theirs.num_classes:
            raise TrainingError(
                f"a teacher with other classes: {teacher.name} tells {theirs.num_classes} apart, the student "
                f"{mine.num_classes}{instead}"
            )
        if self.student.strides != network.strides:
            raise TrainingError(
                f"a teacher with other strides: {teacher.name} has {_listed(network.strides)}, the student "
                f"{_listed(self.student.strides)}{instead}"
            )
        for name in ("anchors", "priors"):
            if mine.decoder_options().get(name) != theirs.decoder_options().get(name):
                raise TrainingError(f"a teacher with other {name} than the student's: {teacher.name}{instead}")

    def check(self, student: Any, answers: Any, teacher: Teacher, classes: Sequence[str]) -> None:
        """Refuse class names in another order, and answers that are no numbers.

        Raises:
            TrainingError: see above.
        """
        del student
        if len(classes) == self.student.head.num_classes:
            teacher.check_classes(classes)
        check_finite(list(answers.values()), teacher)

    def weights(self, alpha: float, progress: float) -> tuple[float, float]:
        """1, and ``alpha`` falling to 0 along a cosine."""
        return 1.0, alpha * (1.0 + math.cos(math.pi * min(1.0, progress))) / 2

    def loss(self, student: Any, teacher: Any, temperature: float) -> Tensor:
        """Divergence of the classes, of YOLOv3's objectness, and of sides that are distributions in both networks."""
        mine, theirs = ({name: value.float() for name, value in maps.items()} for maps in (student, teacher))
        head = self.student.head
        options = head.decoder_options()
        if head.kind == "yolov3":
            values, wanted = (
                anchor_maps(maps, options["strides"], options["anchors"]).values for maps in (mine, theirs)
            )
            return independent_loss(values[..., 4:], wanted[..., 4:], temperature, wanted[..., 4].sigmoid())
        if head.kind == "ssd":
            logits, wanted = (default_box_maps(maps, options["priors"])[0] for maps in (mine, theirs))
            return distribution_loss(logits, wanted, temperature, 1 - wanted.softmax(-1)[..., 0])
        return _anchor_free_loss(mine, theirs, options["strides"], temperature)


def _anchor_free_loss(mine: Maps, theirs: Maps, strides: Sequence[int], temperature: float) -> Tensor:
    bins = [maps[f"boxes_{strides[0]}"].shape[1] // 4 for maps in (mine, theirs)]
    student, teacher = (
        anchor_free_maps(maps, strides, count - 1) for maps, count in zip((mine, theirs), bins, strict=True)
    )
    sure = teacher.logits.sigmoid().amax(-1)  # [B, L]
    loss = independent_loss(student.logits, teacher.logits, temperature, sure)
    if bins[0] == bins[1] > 1:
        sides = sure[..., None].expand(*sure.shape, 4)
        loss = loss + distribution_loss(student.sides, teacher.sides, temperature, sides)
    return loss


def _listed(strides: Sequence[int]) -> str:
    return ", ".join(map(str, strides))
