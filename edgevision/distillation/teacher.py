"""A `Teacher`: a trained network that only answers."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from edgevision.checkpoint import Checkpoint, is_checkpoint
from edgevision.errors import TrainingError, UsageError
from edgevision.models import MODELS, create_model
from edgevision.preprocess import Preprocess


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network to learn from. Make one with `open_teacher`.

    Attributes:
        network: float32 ``[B, C, H, W]`` → logits ``[B, num_classes]``, or whatever a network puts out whose layers
            alone teach; a copy of its own, in eval mode, without gradients.
        name: of its architecture, or its class.
        digest: hash of its weights: equal networks share it wherever they lie.
        classes: names by index; empty where unknown.
        preprocess: how pictures become its input; None: as they become the student's.
    """

    network: nn.Module
    name: str
    digest: str
    classes: tuple[str, ...] = ()
    preprocess: Preprocess | None = field(default=None, repr=False)

    @property
    def identity(self) -> dict[str, str]:
        """What tells teachers apart: a resumed run must have the same one."""
        return {"name": self.name, "digest": self.digest}

    def check_classes(self, classes: Sequence[str]) -> None:
        """Refuse a teacher whose class names are not ``classes`` in the same order; unknown names pass.

        Raises:
            TrainingError: the message names both.
        """
        theirs, ours = list(self.classes), list(classes)
        if not theirs or not ours or theirs == ours:
            return
        raise TrainingError(
            f"a teacher with other classes: {self.name} knows {_listed(theirs)}; the student is to learn "
            f"{_listed(ours)}{_first_difference(theirs, ours)}. Take a teacher of the same classes in the same order, "
            "or learn from its layers alone (alpha = 0 with features)"
        )


def open_teacher(
    source: Teacher | Checkpoint | nn.Module | str | Path,
    *,
    weights: str | Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
) -> Teacher:
    """A teacher from whatever a trained network is kept in.

    Args:
        source: a Checkpoint folder, a Checkpoint, a zoo name with ``weights``, a torch module (copied; yours stays as
            it is), or a Teacher.
        weights: weight file of a zoo network: .safetensors, .pt, .pth.
        arguments: of `create_model`, for a zoo name: ``num_classes``, ``input_size``, ``width``.
        classes: names by index, where the source does not know them.
        preprocess: where the source does not know it and it is not the student's.

    Raises:
        UsageError: no such source, or a zoo name without weights.
        CheckpointError: the checkpoint or the weights cannot be read or do not fit.
    """
    if weights is not None and not _is_zoo_name(source):
        raise UsageError("weights complete a zoo name; this teacher has its own")
    if isinstance(source, Teacher):
        return replace(source, classes=tuple(classes or source.classes), preprocess=preprocess or source.preprocess)
    if isinstance(source, nn.Module):
        return _freeze(copy.deepcopy(source), tuple(classes or ()), preprocess)
    if not isinstance(source, Checkpoint):
        if not is_checkpoint(source):
            return _freeze(_from_zoo(str(source), weights, arguments or {}), tuple(classes or ()), preprocess)
        source = Checkpoint.open(source)
    return _freeze(source.build(), tuple(classes or source.classes), preprocess or source.preprocess)


def _is_zoo_name(source: object) -> bool:
    return isinstance(source, str) and source in MODELS and not is_checkpoint(source)


def _from_zoo(name: str, weights: str | Path | None, arguments: Mapping[str, Any]) -> nn.Module:
    if name not in MODELS:
        raise UsageError(
            f"{name}: no teacher: expected a Checkpoint folder (model.json in it), a zoo name with weights, or a "
            "torch module"
        )
    if weights is None:
        raise UsageError(f"a {name} with random weights has nothing to teach: give its weights, or a Checkpoint folder")
    from edgevision.models.weights import load_weights

    model = create_model(name, **arguments)
    load_weights(model, weights)
    return model


def _freeze(network: nn.Module, classes: tuple[str, ...], preprocess: Preprocess | None) -> Teacher:
    architecture = getattr(network, "architecture", None)
    name = str(architecture["name"]) if isinstance(architecture, dict) else type(network).__name__
    network = network.eval().requires_grad_(False)
    return Teacher(network, name, weights_digest(network), classes, preprocess)


def weights_digest(network: nn.Module) -> str:
    """Hash of a network's class and weights: names, types, shapes and values."""
    digest = hashlib.sha256(type(network).__qualname__.encode())
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):  # an extra state of a user's module
            continue
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(_bytes(value))
    return digest.hexdigest()[:16]


def _bytes(value: Tensor) -> bytes:
    value = value.detach().cpu().contiguous()
    # numpy has no bfloat16
    return (value if value.dtype.itemsize != 2 else value.float()).numpy().tobytes()


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"{len(names)} classes ({shown})"


def _first_difference(theirs: list[str], ours: list[str]) -> str:
    for index, (one, other) in enumerate(zip(theirs, ours, strict=False)):
        if one != other:
            return f"; class {index} is {one!r} there and {other!r} here"
    return ""


class InputMap:
    """From the student's input to the teacher's: the same, already augmented pictures as each wants them.

    Args:
        student: how pictures become the student's input.
        teacher: how they become the teacher's. Only numbers, colour order and size follow it; how a picture is cropped
            is the student's business, or the two would see different things.
        resize: bring pictures to the teacher's own size; False for detectors, whose maps must lie on each other.

    Raises:
        UsageError: one takes grey pictures and the other coloured ones.
    """

    def __init__(self, student: Preprocess, teacher: Preprocess, *, resize: bool = True) -> None:
        if student.channels != teacher.channels:
            raise UsageError(
                f"the teacher takes {teacher.color} pictures, the student {student.color}; they must take the same"
            )
        self.size = teacher.size if resize and student.size != teacher.size else None
        self.flip = student.color != teacher.color
        order = slice(None, None, -1) if self.flip else slice(None)
        rows = zip(student.mean[order], student.std[order], teacher.mean, teacher.std, strict=True)
        ratio = teacher.scale / student.scale
        # x_s = (p·s_s − m_s) / d_s and x_t = (p·s_t − m_t) / d_t, without p
        pairs = [(std * ratio / their_std, (mean * ratio - their_mean) / their_std)
                 for mean, std, their_mean, their_std in rows]  # fmt: skip
        same = all(abs(gain - 1) < 1e-9 and abs(shift) < 1e-9 for gain, shift in pairs)
        self.affine = None if same else pairs

    def __call__(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` → the same pictures ``[B, C, H', W']``."""
        if self.flip:
            images = images.flip(1)
        if self.affine is not None:
            gain, shift = (images.new_tensor(values)[None, :, None, None] for values in zip(*self.affine, strict=True))
            images = images * gain + shift
        if self.size is not None:
            images = functional.interpolate(images, self.size, mode="bilinear", antialias=True)
        return images
