"""``edgevision distill``."""

from __future__ import annotations

import argparse
from typing import Any

from edgevision.cli.output import names, print_json
from edgevision.cli.train import add_network_arguments, add_training_arguments, network_arguments, run_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("student", metavar="STUDENT", help="a Checkpoint folder, pruned or not, or a name of the zoo")
    parser.add_argument("--teacher", required=True, metavar="CKPT", help="a Checkpoint folder, or a name of the zoo "
                        "with --teacher-weights")  # fmt: skip
    parser.add_argument("--teacher-weights", metavar="FILE", help="weights of a teacher by its name in the zoo")
    parser.add_argument("--teacher-width", type=float, metavar="WIDTH", help="its width multiplier (default 1)")
    parser.add_argument("--temperature", type=float, help="T that softens the answers (default 4)")
    parser.add_argument("--alpha", type=float, help="the teacher's share against the labels', 0 to 1 (default 0.5); of "
                        "detectors the weight of its answers beside the boxes, falling to 0")  # fmt: skip
    pairs = "LAYER[=TEACHER_LAYER],..."
    parser.add_argument("--features", type=names, metavar=pairs, help="layers whose maps become the teacher's")
    parser.add_argument("--feature-weight", type=float, help="weight of each of them (default 1)")
    parser.add_argument("--channelwise", type=names, metavar=pairs,
                        help="layers whose channels learn to look where the teacher's look; head: a detector's "
                        "maps of scores")  # fmt: skip
    parser.add_argument("--channelwise-weight", type=float, help="weight of each of them (default 1)")
    parser.add_argument("--channelwise-temperature", type=float, help="T of their softmax over places (default 4)")
    add_network_arguments(parser)
    add_training_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Distil and print the metrics of the kept network, beside the teacher's where they are known."""
    from edgevision.data import open_dataset
    from edgevision.dependencies import require
    from edgevision.pipeline.distill import distill
    from edgevision.pipeline.networks import task_of_source

    require("torch", purpose="distill networks")
    from edgevision.distillation import DistillConfig

    lesson = {name: getattr(options, name) for name in _LESSON if getattr(options, name) is not None}
    dataset = open_dataset(options.data, split="train", images=options.images)
    checkpoint = distill(
        options.student,
        teacher=options.teacher,
        data=options.data,
        out=options.out,
        epochs=options.epochs,
        config=run_config(
            options, dataset, task=task_of_source(options.student, "student"), input_size=_input_size(options, dataset)
        ),
        options=DistillConfig.from_dict(lesson),
        val_data=options.val_data,
        images=options.images,
        preprocess=options.preprocess,
        weights=options.weights,
        model_arguments=network_arguments(options),
        teacher_weights=options.teacher_weights,
        teacher_arguments={} if options.teacher_width is None else {"width": options.teacher_width},
        resume=not options.restart,
        device=options.device,
    )
    theirs = _teacher_metrics(options.teacher)
    if options.json:
        result = {"checkpoint": str(options.out), "changes": list(checkpoint.changes), "metrics": checkpoint.metrics}
        print_json({**result, "teacher": {"source": options.teacher, "metrics": theirs}})
    else:
        print(f"{options.out}: {_told(checkpoint.metrics)}" + (f"; teacher: {_told(theirs)}" if theirs else ""))
        print(f"next: edgevision convert {options.out} --precision int8 --data {options.data}")
    return 0


# fields of DistillConfig that are options
_LESSON = (
    "temperature", "alpha", "features", "feature_weight", "channelwise", "channelwise_weight",
    "channelwise_temperature",
)  # fmt: skip


def _input_size(options: argparse.Namespace, dataset: Any) -> int:
    """Of the student's pictures: what its recipe goes by."""
    from edgevision.checkpoint import Checkpoint, is_checkpoint
    from edgevision.pipeline.networks import usual_input_size

    if options.input_size is not None:
        return int(options.input_size[0])
    # a student by name takes its size from its teacher
    for source in (options.student, options.teacher):
        if is_checkpoint(source):
            return int(Checkpoint.open(source).arguments["input_size"])
    return usual_input_size(options.student, dataset)


def _teacher_metrics(teacher: str) -> dict[str, float | None]:
    """As its own checkpoint tells them, on the data it was validated on."""
    from edgevision.checkpoint import Checkpoint, is_checkpoint

    return dict(Checkpoint.open(teacher).metrics) if is_checkpoint(teacher) else {}


def _told(metrics: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if value is not None)
