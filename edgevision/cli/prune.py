"""``edgevision prune``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from edgevision.cli.output import names, print_json, print_table
from edgevision.cli.train import add_images_argument

if TYPE_CHECKING:
    from edgevision.pipeline.prune_expectation import Expectation
    from edgevision.pruning.sensitivity import PruningSensitivity
    from edgevision.training.config import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("source", metavar="CKPT", help="Checkpoint folder of a trained network")
    parser.add_argument("--macs", type=float, metavar="R", help="keep this fraction of the multiply-adds, e.g. 0.5")
    parser.add_argument("--params", type=float, metavar="R", help="keep this fraction of the parameters")
    parser.add_argument("--latency", type=float, metavar="R", help="keep this fraction of the latency that is measured "
                        "on --target, e.g. 0.6; exit code 3 where that is not reached")  # fmt: skip
    parser.add_argument("--latency-table", metavar="FILE", help="for --latency: times of the layers as "
                        "--measure-latency wrote them, of this machine or another")  # fmt: skip
    parser.add_argument("--measure-latency", action="store_true", help="prune nothing: time every layer on --target at "
                        "every width, write the table to -o FILE")  # fmt: skip
    parser.add_argument("--sparsity", metavar="2:4", help="zero two of every four weights, for --target tensorrt")
    parser.add_argument("--sensitivity", action="store_true", help="prune nothing: measure what pruning each group "
                        "of channels alone does, write table and plot to -o")  # fmt: skip
    parser.add_argument("--data", metavar="KIND:PATH", help="labelled pictures, or with boxes, to train and to "
                        "score on")  # fmt: skip
    parser.add_argument("--val-data", metavar="KIND:PATH", help="validate on this instead of the data's test part")
    add_images_argument(parser)
    parser.add_argument("-o", "--out", metavar="RUN", help="run folder; a finished one is a Checkpoint")
    parser.add_argument("--epochs", type=int, default=10, help="of training after pruning, shared by the steps "
                        "(default 10; 0: none)")  # fmt: skip
    parser.add_argument("--importance", help="taylor, l1, l2, bn, fpgm or random (default taylor, without --data l2)")
    parser.add_argument("--scope", help="measured: groups compared by the loss when they are cut (default); global: by "
                        "importance (default without --data); uniform: the same fraction of each")  # fmt: skip
    parser.add_argument("--steps", type=int, default=1, metavar="N", help="prune in N steps, training between them")
    parser.add_argument("--round-to", type=int, default=None, metavar="N", help="channels stay multiples of N "
                        "(default 8; 1 for --sensitivity)")  # fmt: skip
    parser.add_argument("--no-distill", action="store_true", help="train on labels alone, not on the unpruned "
                        "network's answers as well")  # fmt: skip
    parser.add_argument("--slim-epochs", type=int, default=0, metavar="N", help="first train N epochs with a penalty "
                        "on batch norm scales (Network Slimming), best with --importance bn")  # fmt: skip
    parser.add_argument("--slim-strength", type=float, default=1e-4, help="of that penalty (default 1e-4)")
    parser.add_argument("--target", default="onnxruntime", help="engine the expected latency is measured on "
                        "(default onnxruntime; none: not measured)")  # fmt: skip
    parser.add_argument("--config", metavar="TOML", help="settings of the training")
    parser.add_argument("--ratios", type=names, metavar="R,R", help="of --sensitivity (default 0.25,0.5,0.75)")
    parser.add_argument("--pictures", type=int, metavar="N", help="of --sensitivity (default 512)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument("--restart", action="store_true", help="start over, whatever RUN holds")


def run(options: argparse.Namespace) -> int:
    """Prune and print what came of it, or measure the sensitivity."""
    from edgevision.errors import UsageError
    from edgevision.pipeline.prune import PruneOptions, prune_checkpoint

    if options.sensitivity:
        return _sensitivity(options)
    if options.measure_latency:
        return _measure_latency(options)
    if options.out is None:
        raise UsageError("where should the pruned network go? Give -o RUN")
    told: list[Expectation] = []

    def announce(expectation: Expectation) -> None:
        told.append(expectation)
        if not options.quiet:
            print(describe(expectation), file=sys.stderr)

    checkpoint = prune_checkpoint(
        options.source,
        out=options.out,
        data=options.data,
        val_data=options.val_data,
        images=options.images,
        options=PruneOptions(
            macs=options.macs,
            params=options.params,
            sparsity=options.sparsity,
            importance=options.importance,
            scope=options.scope,
            steps=options.steps,
            round_to=8 if options.round_to is None else options.round_to,
            epochs=options.epochs,
            distill=not options.no_distill,
            slim_epochs=options.slim_epochs,
            slim_strength=options.slim_strength,
            seed=options.seed,
            restart=options.restart,
            latency=options.latency,
            latency_table=options.latency_table,
        ),
        config=_config(options),
        target=None if options.target == "none" else options.target,
        announce=announce,
        device=options.device,
    )
    if options.json:
        expected = told[0].to_dict() if told else None
        print_json({"checkpoint": str(options.out), "metrics": dict(checkpoint.metrics), "expected": expected})
    else:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in checkpoint.metrics.items() if value is not None)
        print(f"{options.out}: {metrics}")
    return 0


def describe(expectation: Expectation) -> str:
    """What to expect, in a few lines for people."""
    lines = ["expected of the pruned network:"]
    for name, (before, after) in (("multiply-adds", expectation.macs), ("parameters", expectation.parameters)):
        lines.append(f"  {name:<14}{before:>14,} → {after:>14,}  ({after / before:.1%})")
    if expectation.latency_ms is None:
        lines.append(f"  latency not measured: {expectation.not_measured}")
    else:
        before_ms, after_ms = expectation.latency_ms
        lines.append(
            f"  {'latency':<14}{before_ms:>11.3f} ms → {after_ms:>11.3f} ms  ({after_ms / before_ms:.1%}, "
            f"measured: {expectation.target}, FP32, one thread)"
        )
    changed = {name: counts for name, counts in expectation.groups.items() if counts[0] != counts[1]}
    lines.append(f"  {len(changed)} of {len(expectation.groups)} groups of channels are cut:")
    lines += [f"    {name}: {before} → {after}" for name, (before, after) in changed.items()]
    lines += [f"  kept: {name}: {reason}" for name, reason in expectation.kept.items()]
    return "\n".join(lines)


def _config(options: argparse.Namespace) -> RunConfig | None:
    """The settings of a TOML file; None leaves the choice to `prune_checkpoint`."""
    if options.config is None:
        return None
    from edgevision.checkpoint import Checkpoint
    from edgevision.dependencies import require
    from edgevision.pipeline.preprocessing import read_toml

    require("torch", purpose="train")
    from edgevision.training.recipes import config_type

    settings = read_toml(options.config)
    return config_type(Checkpoint.open(options.source).task).from_dict(settings.get("train", settings))


def _measure_latency(options: argparse.Namespace) -> int:
    from edgevision.errors import UsageError
    from edgevision.pipeline.layer_timing import measure_latency_table

    if options.out is None:
        raise UsageError("where should the table go? Give -o table.json")
    table = measure_latency_table(options.source, options.out, target=options.target)
    if options.json:
        print_json({"table": str(options.out), **table.identity, "layers": len(table.layers)})
    else:
        print(f"{options.out}: {len(table.layers)} layers and widths on {table.target} {table.engine_version}")
    return 0


def _sensitivity(options: argparse.Namespace) -> int:
    from edgevision.errors import UsageError
    from edgevision.pipeline.prune_scoring import SCORING_PICTURES, pruning_sensitivity

    if options.data is None:
        raise UsageError("sensitivity is measured on pictures: give --data KIND:PATH")
    try:
        ratios = None if options.ratios is None else [float(ratio) for ratio in options.ratios]
    except ValueError:
        raise UsageError(f"ratios are numbers such as 0.25,0.5; got {','.join(options.ratios)!r}") from None
    result = pruning_sensitivity(
        options.source,
        data=options.data,
        images=options.images,
        pictures=SCORING_PICTURES if options.pictures is None else options.pictures,
        importance=options.importance or "taylor",
        ratios=ratios,
        round_to=1 if options.round_to is None else options.round_to,
        seed=options.seed,
    )
    if options.out:
        from edgevision.pruning.sensitivity import save_sensitivity

        for path in save_sensitivity(result, options.out):
            print(path, file=sys.stderr)
    if options.json:
        print_json(result.to_dict())
    else:
        _print_sensitivity(result)
    return 0


def _print_sensitivity(result: PruningSensitivity) -> None:
    print_table(
        ("group", "channels", "kept", "MACs saved", "error", "agreement", "top-1"),
        [
            (
                cut.group, str(cut.channels), str(cut.kept), f"{cut.macs:.1%}", f"{cut.error:.3f}",
                "" if cut.agreement is None else f"{cut.agreement:.1%}",
                "" if cut.accuracy is None else f"{cut.accuracy:.1%}",
            )
            for cut in result.cuts
        ],
    )  # fmt: skip
    whole = "" if result.accuracy is None else f", top-1 of the whole network {result.accuracy:.1%}"
    print(f"each group pruned alone by {result.importance}, not trained after, {result.pictures} pictures{whole}")
    for layer, reason in result.kept.items():
        print(f"kept: {layer}: {reason}")
