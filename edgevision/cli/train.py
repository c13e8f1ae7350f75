"""``edgevision train``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edgevision.cli.output import image_size, print_json

if TYPE_CHECKING:
    from edgevision.data import Dataset


# fields of TrainConfig that have an option of their own; the rest are set in a TOML file
_SETTINGS = ("batch_size", "lr", "optimizer", "schedule", "label_smoothing", "ema_decay", "precision", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("--model", required=True, help="name in the zoo: edgevision models")
    parser.add_argument("--data", required=True, metavar="KIND:PATH", help="data set, e.g. digits or npz:data/cifar10")
    parser.add_argument("-o", "--out", required=True, metavar="RUN", help="run folder; a finished one is a Checkpoint")
    parser.add_argument("--epochs", type=int, help="passes over the data")
    parser.add_argument("--width", type=float, default=1.0, help="width multiplier")
    parser.add_argument("--input-size", type=image_size, metavar="SIZE", help="default: 32 for small pictures or 224")
    parser.add_argument("--in-channels", type=int, help="default: 1 for digits, else 3")
    parser.add_argument("--weights", metavar="FILE", help="begin with these weights")
    parser.add_argument("--val-data", metavar="KIND:PATH", help="validate on this instead of the data's test part")
    parser.add_argument("--preprocess", metavar="NAME|TOML", help="instead of the data's usual one")
    parser.add_argument("--config", metavar="TOML", help="settings of the run; options override it")
    parser.add_argument("--restart", action="store_true", help="start over, whatever RUN holds")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    for name in _SETTINGS:
        kind = {"optimizer": str, "schedule": str, "precision": str, "batch_size": int, "seed": int}.get(name, float)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)


def run(options: argparse.Namespace) -> int:
    """Train and print the metrics of the kept network."""
    from edgevision.data import open_dataset
    from edgevision.dependencies import require
    from edgevision.errors import UsageError
    from edgevision.pipeline.preprocessing import load_preprocess

    require("torch", purpose="train")
    import torch

    from edgevision.models import create_model
    from edgevision.training import train

    dataset = open_dataset(options.data, split="train")
    if options.input_size is not None and options.input_size[0] != options.input_size[1]:
        raise UsageError("networks of the zoo take square pictures: --input-size SIZE")
    # the first weights are drawn here: the seed must decide them too
    torch.manual_seed(options.seed or 0)
    model = create_model(
        options.model,
        num_classes=_num_classes(dataset),
        in_channels=options.in_channels or (1 if dataset.name.startswith("digits") else 3),
        input_size=options.input_size[0] if options.input_size else _input_size(dataset),
        width=options.width,
    )
    if options.weights:
        from edgevision.models.weights import load_weights

        load_weights(model, options.weights)
    checkpoint = train(
        model,
        options.data,
        out=options.out,
        epochs=options.epochs,
        config=_config(options, dataset, model),
        preprocess=load_preprocess(options.preprocess) if options.preprocess else None,
        val_data=options.val_data,
        resume=not options.restart,
        device=options.device,
        changes=("pretrained",) if options.weights else (),
    )
    if options.json:
        print_json({"checkpoint": str(options.out), "metrics": dict(checkpoint.metrics)})
    else:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in checkpoint.metrics.items() if value is not None)
        print(f"{options.out}: {metrics}")
    return 0


def _config(options: argparse.Namespace, dataset: Dataset, model: Any) -> Any:
    """The data's recipe, then the TOML file, then options; None leaves the choice to `train`."""
    from dataclasses import asdict

    from edgevision.pipeline.preprocessing import read_toml
    from edgevision.training.config import TrainConfig, recipe_for

    given = {name: getattr(options, name) for name in _SETTINGS if getattr(options, name) is not None}
    if not given and not options.config:
        return None
    recipe = recipe_for(dataset.name, input_size=int(model.architecture["arguments"]["input_size"]))
    settings = read_toml(options.config) if options.config else {}
    return TrainConfig.from_dict({**asdict(recipe), **settings.get("train", settings), **given})


def _num_classes(dataset: Dataset) -> int:
    from edgevision.errors import DataError

    if dataset.classes:
        return len(dataset.classes)
    if dataset.labels is None or not len(dataset.labels):
        raise DataError(f"{dataset.name} has no class labels to train on")
    return int(dataset.labels.max()) + 1


def _input_size(dataset: Dataset) -> int:
    from edgevision.images import to_image

    return 32 if max(to_image(dataset[0].image).size) <= 64 else 224
