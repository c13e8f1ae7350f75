"""Half of the multiply-adds: what it costs in accuracy and brings in speed, beside two controls and through to INT8.

MobileNetV2 and RepVGG-A0, narrow, as `benchmarks/cifar10.py` trains them on CIFAR-10. ``chain`` is the recipe in
`benchmarks/recipes/`: pruned by measured loss, distilled from the unpruned network, trained for integers, converted.
The controls are pruned to the same multiply-adds and distilled the same way: ``random`` chooses channels by chance,
``uniform magnitude`` takes the same share of every layer by the L1 norm of its filters.

How much the choice of channels is worth shows in the first epochs of fine-tuning, and hides behind the last: a network
this small learns anew. So ``--epochs 2`` gives all of them little time (and stops behind it), and each epoch's
validation accuracy has a table of its own.

Each run is a folder that a second call goes on with; its report measures all of its stages in one run. ``--until
NAME`` stops before the measurement, which wants a quiet machine. Needs EDGEVISION_DATA and EDGEVISION_RUNS, the folder
of the runs of `benchmarks/cifar10.py`.

    python benchmarks/pruning.py --runs FOLDER [--only mobilenet_v2|repvgg_a0] [--variant NAME] [--until STAGE]
                                 [--epochs N]
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

from edgevision.pipeline.preprocessing import read_toml
from edgevision.recipe.report import read_summary
from edgevision.recipe.run import run_recipe
from provenance import save, show

RECIPES = Path(__file__).parent / "recipes"
NETS = ("mobilenet_v2", "repvgg_a0")
# what the pruning stage of a variant does otherwise than the recipe's
VARIANTS: dict[str, dict[str, Any]] = {
    "chain": {},
    "random": {"importance": "random", "scope": "uniform"},
    "uniform magnitude": {"importance": "l1", "scope": "uniform"},
}
# a control ends where fine-tuning ends
CONTROL_STAGES = ("pruned", "distilled")


def variant_of(recipe: dict[str, Any], name: str, epochs: int | None = None) -> dict[str, Any]:
    """The recipe of a variant; ``epochs`` of fine-tuning in place of its own."""
    made = copy.deepcopy(recipe)
    if name == "chain" and epochs is None:
        return made
    made["stage"] = [stage for stage in made["stage"] if stage["name"] in CONTROL_STAGES]
    made["stage"][0].update(VARIANTS[name])
    made["report"]["targets"] = ["onnxruntime", "openvino"] if epochs is None else ["onnxruntime"]
    if epochs is not None:
        made["stage"][1]["epochs"] = epochs
    return made


def course(run: Path) -> list[dict[str, object]]:
    """Top-1 on the validation pictures after each epoch of fine-tuning, in percent."""
    lines = (run / "02-distilled" / "metrics.jsonl").read_text("utf-8").splitlines()
    epochs = [json.loads(line) for line in lines]
    return [{"epoch": row["epoch"], "validation_top1": round(100 * row["val_accuracy"], 2)} for row in epochs]


def main() -> None:
    """Run what is not done, and write every report's rows into one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--only", choices=NETS)
    parser.add_argument("--variant", choices=list(VARIANTS))
    parser.add_argument("--until", help="stop behind this stage")
    parser.add_argument("--epochs", type=int, help="of fine-tuning, in place of the recipes'")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    courses: list[dict[str, object]] = []
    for net in [options.only] if options.only else NETS:
        written = read_toml(RECIPES / f"cifar10_{net}.toml")
        for variant in [options.variant] if options.variant else VARIANTS:
            recipe = variant_of(written, variant, options.epochs)
            brief = "" if options.epochs is None else f"-{options.epochs}"
            out = options.runs / f"{net}-{variant.replace(' ', '-')}{brief}"
            until = options.until if options.until in {stage["name"] for stage in recipe["stage"]} else None
            done = run_recipe(
                recipe, out=out, until=until or ("distilled" if options.until else None),
                tell=lambda line: print(line, file=sys.stderr),
            )  # fmt: skip
            courses += [{"network": net, "variant": variant, **row} for row in course(out)]
            if done.report is not None and not options.until:
                rows += [{"network": net, "variant": variant, **row} for row in read_summary(done.report)]
    name = "cifar10" if options.epochs is None else f"cifar10_{options.epochs}_epochs"
    print(save(f"pruning_course-{name}", courses, ("torch", "torch-pruning")))
    if rows:
        show(rows)
        print(save(f"pruning-{name}", rows, ("torch", "torch-pruning", "onnxruntime", "openvino", "ncnn")))


if __name__ == "__main__":
    main()
