"""`distill`: a smaller network learns from a trained one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.data import open_dataset
from edgevision.data.base import Dataset
from edgevision.dependencies import require
from edgevision.errors import UsageError
from edgevision.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import nn

    from edgevision.checkpoint import Checkpoint
    from edgevision.distillation import DistillConfig, Teacher
    from edgevision.training.config import RunConfig


def distill(
    student: str | Path | nn.Module | Checkpoint,
    *,
    teacher: str | Path | nn.Module | Checkpoint | Teacher,
    data: str | Path | Dataset,
    out: str | Path,
    epochs: int | None = None,
    config: RunConfig | None = None,
    options: DistillConfig | None = None,
    val_data: str | Path | Dataset | None = None,
    images: str | Path | None = None,
    preprocess: str | Path | Preprocess | None = None,
    weights: str | Path | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    teacher_weights: str | Path | None = None,
    teacher_arguments: Mapping[str, Any] | None = None,
    resume: bool = True,
    device: str | None = None,
) -> Checkpoint:
    """Train a student on a teacher's answers and the labels or boxes, and keep the best by accuracy or mAP.

    The teacher answers the very pictures that the student sees, cropped, flipped and mixed. Interrupted, the same call
    goes on from the last finished epoch and ends, on a CPU, with the same bits; see `edgevision.training.train`.

    Args:
        student: a Checkpoint (pruned or not) or the folder of one, a network of `create_model`, or a zoo name.
        teacher: the same, except that a zoo name needs ``teacher_weights``; or a torch module of your own.
        data: labelled pictures, for detectors pictures with boxes.
        out: folder of the run and its Checkpoint.
        epochs: replaces the config's.
        config: settings of the training, `TrainConfig` or `DetectionConfig`; by default the data's recipe.
        options: what is learned from the teacher; by default its answers.
        val_data: by default the data's test part, or every tenth picture.
        images: folder of the pictures of a COCO file, where they are not beside it.
        preprocess: by default the student's own, else the teacher's where it fits, else the data's usual one.
        weights: weight file to begin with, for a student by zoo name.
        model_arguments: ``width``, ``input_size``, ``in_channels``, ``anchors`` of a student by zoo name. Size and
            channels are by default the teacher's, where it knows them, and so are a YOLOv3's anchors.
        teacher_weights: weight file of a teacher by zoo name.
        teacher_arguments: its arguments; by default the student's outputs, channels and size.
        resume: False starts over.
        device: ``"cpu"``, ``"cuda"``; by default a GPU where there is one.

    Raises:
        UsageError: settings or inputs that do not go together; a layer that does not exist.
        CheckpointError: a checkpoint or weight file that cannot be read.
        DataError: data that cannot be read.
        TrainingError: a teacher with other classes, for detectors also with other strides or priors, or see
            `edgevision.training.train`.
        OutputError: ``out`` cannot be written.
    """
    require("torch", purpose="distill networks")
    from torch import nn

    from edgevision.distillation import DistillConfig, open_teacher
    from edgevision.models import MODELS
    from edgevision.pipeline.preprocessing import load_preprocess
    from edgevision.training import train

    _refuse_overwriting(out, student=student, teacher=teacher)
    by_name = isinstance(teacher, str) and teacher in MODELS and not Path(teacher).is_dir()
    # a teacher that knows its input decides a fresh student's; one by name gets the student's
    opened = None if by_name else open_teacher(teacher, weights=teacher_weights)
    seed = 0 if config is None else config.seed
    dataset = open_dataset(data, split="train", images=images)
    begun = _student(student, dataset, opened, weights=weights, arguments=model_arguments or {}, seed=seed)
    if opened is None:
        opened = open_teacher(
            teacher, weights=teacher_weights, arguments={**_input_of(begun), **(teacher_arguments or {})}
        )
    elif teacher_arguments:
        raise UsageError("teacher_arguments complete a zoo name; this teacher has its own")
    chosen = load_preprocess(preprocess) if isinstance(preprocess, (str, Path)) else preprocess
    if chosen is None and isinstance(student, (str, Path)) and isinstance(begun, nn.Module):
        chosen = _fitting_preprocess(opened, begun)
    return train(
        begun,
        data,
        out=out,
        epochs=epochs,
        config=config,
        preprocess=chosen,
        val_data=val_data,
        images=images,
        resume=resume,
        device=device,
        changes=("pretrained",) if weights is not None else (),
        teacher=opened,
        distill=options or DistillConfig(),
    )


def _refuse_overwriting(out: str | Path, **networks: object) -> None:
    for what, path in networks.items():
        if isinstance(path, (str, Path)) and Path(path).resolve() == Path(out).resolve():
            raise UsageError(f"{out} holds the {what}; write the distilled network into another folder with -o")


def _fitting_preprocess(teacher: Teacher, student: nn.Module) -> Preprocess | None:
    """The teacher's preprocess, where a fresh student takes pictures of that size."""
    size = _arguments(student).get("input_size")
    return teacher.preprocess if teacher.preprocess is not None and teacher.preprocess.size == (size, size) else None


def _input_of(student: nn.Module | Checkpoint) -> dict[str, Any]:
    """What a teacher by zoo name takes from its student."""
    known = _arguments(student)
    return {name: known[name] for name in ("num_classes", "in_channels", "input_size") if name in known}


def _student(
    student: str | Path | nn.Module | Checkpoint,
    dataset: Dataset,
    teacher: Teacher | None,
    *,
    weights: str | Path | None,
    arguments: Mapping[str, Any],
    seed: int,
) -> nn.Module | Checkpoint:
    """What training begins with."""
    from edgevision.checkpoint import Checkpoint, is_checkpoint
    from edgevision.pipeline.networks import network_for, task_of_source

    if isinstance(student, (str, Path)) and not is_checkpoint(student):
        task_of_source(student, "student")
        known = {} if teacher is None else _arguments(teacher.network)
        inherited = ["in_channels", "input_size"]
        # priors are pixels of the input, and as many as the network has levels for
        if teacher is not None and teacher.name == str(student) and "input_size" not in arguments:
            inherited.append("anchors")
        taken = {name: known[name] for name in inherited if name in known}
        return network_for(str(student), dataset, weights=weights, seed=seed, **{**taken, **arguments})
    if weights is not None or arguments:
        raise UsageError("weights, width, input size and channels complete a zoo name; this student has its own")
    return Checkpoint.open(student) if isinstance(student, (str, Path)) else student


def _arguments(network: object) -> Mapping[str, Any]:
    """Arguments of the architecture of a network or Checkpoint; none for a module that does not tell."""
    from edgevision.checkpoint import Checkpoint

    if isinstance(network, Checkpoint):
        return network.arguments
    architecture = getattr(network, "architecture", None)
    return dict(architecture["arguments"]) if isinstance(architecture, dict) else {}
