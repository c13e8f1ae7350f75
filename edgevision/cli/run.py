"""``edgevision run``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.cli.output import print_json, print_table

if TYPE_CHECKING:
    from edgevision.recipe.run import RecipeRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("recipe", metavar="RECIPE", help="TOML file with [model], [data] and [[stage]] tables")
    parser.add_argument("-o", "--out", metavar="DIR", help="folder of the run (default runs/ and the recipe's name)")
    parser.add_argument("--dry-run", action="store_true", help="print which stages would run, and change nothing")
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")


def run(options: argparse.Namespace) -> int:
    """Run the stages, or tell what would be run, and print what came of each."""
    from edgevision.recipe.run import plan_recipe, run_recipe

    out = options.out or Path("runs") / Path(options.recipe).stem
    if options.dry_run:
        found = plan_recipe(options.recipe, out=out, until=options.until)
    else:
        found = run_recipe(
            options.recipe,
            out=out,
            until=options.until,
            device=options.device,
            tell=lambda line: None if options.quiet else print(f"edgevision run: {line}", file=sys.stderr, flush=True),
        )
    summary = [] if options.dry_run else _summary(found)
    if options.json:
        print_json(_document(found, summary, dry_run=options.dry_run))
    else:
        _print(found, summary)
    for bundle in found.failed_checks:
        print(f"edgevision run: {bundle} misses its parity thresholds; see edgevision verify --layers", file=sys.stderr)
    return 3 if found.failed_checks and not options.dry_run else 0


def _summary(found: RecipeRun) -> list[dict[str, str]]:
    from edgevision.recipe.report import read_summary

    return [] if found.report is None else read_summary(found.report)


def _document(found: RecipeRun, summary: list[dict[str, str]], *, dry_run: bool) -> dict[str, Any]:
    return {
        "out": str(found.out),
        "dry_run": dry_run,
        "stages": [
            {
                "name": stage.name,
                "kind": stage.kind,
                "folder": str(stage.folder),
                "action": stage.action,
                "reason": stage.reason or None,
                "metrics": dict(stage.metrics),
                "checks": dict(stage.checks),
            }
            for stage in found.stages
        ],
        "report": None if found.report is None or dry_run else str(found.report),
        "summary": [{key: _number(value) for key, value in row.items()} for row in summary],
    }


def _number(text: str) -> str | float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return text


# of a stage's metrics, those that its row shows
_SHOWN = ("top1", "map", "map50", "agreement", "macs_ratio", "speedup", "points_lost")


def _print(found: RecipeRun, summary: list[dict[str, str]]) -> None:
    rows = [
        (stage.name, stage.kind, stage.action, stage.folder.name, stage.reason or _told(stage.metrics))
        for stage in found.stages
    ]
    print_table(("stage", "kind", "action", "folder", ""), rows)
    if summary:
        print()
        print_table(tuple(summary[0]), [tuple(row.values()) for row in summary])
        print(f"\n{found.report}/index.html")


def _told(metrics: Mapping[str, float | None]) -> str:
    shown = {name: metrics.get(name) for name in _SHOWN}
    return ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if value is not None)
