"""``edgevision train``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edgevision.cli.output import image_size, print_json

if TYPE_CHECKING:
    from edgevision.data import Dataset
    from edgevision.training.config import RunConfig


# fields of TrainConfig that have an option of their own; the rest are set in a TOML file
_SETTINGS = ("batch_size", "lr", "optimizer", "schedule", "label_smoothing", "ema_decay", "precision", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    named = parser.add_mutually_exclusive_group(required=True)
    named.add_argument("model", nargs="?", metavar="NAME|CKPT", help="name in the zoo (edgevision models), or a "
                       "Checkpoint folder to go on from, pruned or not")  # fmt: skip
    named.add_argument("--model", dest="model_option", metavar="NAME|CKPT", help="the same")
    add_network_arguments(parser)
    add_training_arguments(parser)
    parser.add_argument("--search-epochs", type=int, metavar="N", help="repoptvgg: epochs of the search for gradient"
                        " scales, kept in RUN/search (default: a tenth of the epochs, 1 to 10); 0: none")  # fmt: skip


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """What completes a name in the zoo."""
    parser.add_argument("--width", type=float, help="width multiplier (default 1)")
    parser.add_argument("--input-size", type=image_size, metavar="SIZE", help="default: 32 for small pictures or 224; "
                        "for detectors their own, or 320 where there are few pictures")  # fmt: skip
    parser.add_argument("--in-channels", type=int, help="default: 1 for digits, else 3")
    parser.add_argument("--anchors", metavar="FILE|LIST", help="YOLOv3: priors of your own, what edgevision priors "
                        "printed or a list [[w, h], ...] in pixels of the input")  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", help="begin with these weights")


def network_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The same options as arguments of `edgevision.pipeline.networks.network_for`, those that were given."""
    from edgevision.errors import UsageError

    size = options.input_size
    if size is not None and size[0] != size[1]:
        raise UsageError("networks of the zoo take square pictures: --input-size SIZE")
    given = {"width": options.width, "input_size": size and size[0], "in_channels": options.in_channels,
             "anchors": options.anchors}  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Data, run folder and settings of a training."""
    parser.add_argument("--data", required=True, metavar="KIND:PATH", help="data set, e.g. digits or npz:data/cifar10")
    parser.add_argument("-o", "--out", required=True, metavar="RUN", help="run folder; a finished one is a Checkpoint")
    parser.add_argument("--epochs", type=int, help="passes over the data")
    parser.add_argument("--val-data", metavar="KIND:PATH", help="validate on this instead of the data's test part")
    add_images_argument(parser)
    parser.add_argument("--preprocess", metavar="NAME|TOML", help="instead of the data's usual one")
    parser.add_argument("--config", metavar="TOML", help="settings of the run; options override it")
    parser.add_argument("--restart", action="store_true", help="start over, whatever RUN holds")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    for name in _SETTINGS:
        kind = {"optimizer": str, "schedule": str, "precision": str, "batch_size": int, "seed": int}.get(name, float)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)


def add_images_argument(parser: argparse.ArgumentParser) -> None:
    """Where pictures with boxes lie."""
    parser.add_argument("--images", metavar="DIR", help="detectors: where the pictures of a COCO file lie, if not in "
                        "images/ or JPEGImages/ beside it")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Train and print the metrics of the kept network."""
    from edgevision.data import open_dataset
    from edgevision.dependencies import require
    from edgevision.pipeline.preprocessing import load_preprocess

    require("torch", purpose="train")
    from edgevision.checkpoint import Checkpoint
    from edgevision.training import train

    options.model = options.model or options.model_option
    dataset = open_dataset(options.data, split="train", images=options.images)
    model = _network(options, dataset)
    known = model.arguments if isinstance(model, Checkpoint) else model.architecture["arguments"]
    task = str(getattr(model, "task", "classification"))
    config = run_config(options, dataset, task=task, input_size=int(known["input_size"]))
    if not isinstance(model, Checkpoint):
        _search(options, dataset, model, config)
    checkpoint = train(
        model,
        options.data,
        out=options.out,
        epochs=options.epochs,
        config=config,
        preprocess=load_preprocess(options.preprocess) if options.preprocess else None,
        val_data=options.val_data,
        images=options.images,
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


def _search(options: argparse.Namespace, dataset: Dataset, model: Any, config: Any) -> None:
    """RepOptimizer's search, for the networks that take its scales."""
    from pathlib import Path

    from edgevision.errors import UsageError
    from edgevision.pipeline.preprocessing import load_preprocess
    from edgevision.training.config import recipe_for
    from edgevision.training.repoptimizer import default_search_epochs, search_scales, takes_scales

    wanted = options.search_epochs
    if not takes_scales(model):
        if wanted is not None:
            raise UsageError(f"--search-epochs is for repoptvgg networks; {options.model} has no scales to search")
        return
    if options.weights and wanted:
        raise UsageError("a search begins with new weights: give --weights or --search-epochs, not both")
    if options.weights or wanted == 0:
        return
    config = config or recipe_for(dataset.name, input_size=int(model.architecture["arguments"]["input_size"]))
    search_scales(
        model,
        options.data,
        out=Path(options.out) / "search",
        epochs=default_search_epochs(options.epochs or config.epochs) if wanted is None else wanted,
        config=config,
        preprocess=load_preprocess(options.preprocess) if options.preprocess else None,
        val_data=options.val_data,
        resume=not options.restart,
        device=options.device,
    )


def run_config(options: argparse.Namespace, dataset: Dataset, *, task: str, input_size: int) -> RunConfig | None:
    """The recipe for a task and data, then the TOML file, then options; None leaves the choice to `train`."""
    from edgevision.pipeline.preprocessing import read_toml
    from edgevision.training.recipes import usual_config

    given = {name: getattr(options, name) for name in _SETTINGS if getattr(options, name) is not None}
    if not given and not options.config:
        return None
    recipe = usual_config(task, dataset, input_size=input_size)
    settings = read_toml(options.config) if options.config else {}
    return recipe.from_dict({**recipe.to_dict(), **settings.get("train", settings), **given})


def _network(options: argparse.Namespace, dataset: Dataset) -> Any:
    """A fresh network of the zoo, or the Checkpoint to go on from."""
    from edgevision.checkpoint import Checkpoint, is_checkpoint
    from edgevision.errors import UsageError
    from edgevision.pipeline.networks import network_for
    from edgevision.training.run import check_elsewhere

    arguments = network_arguments(options)
    if not is_checkpoint(options.model):
        # the first weights are drawn here: the seed must decide them too
        return network_for(options.model, dataset, weights=options.weights, seed=options.seed or 0, **arguments)
    if arguments or options.weights or options.search_epochs is not None:
        raise UsageError(
            f"{options.model} is a Checkpoint and has its own: --width, --input-size, --in-channels, --anchors, "
            "--weights and --search-epochs are for networks of the zoo"
        )
    check_elsewhere(options.model, options.out, "network to begin with")
    return Checkpoint.open(options.model)
