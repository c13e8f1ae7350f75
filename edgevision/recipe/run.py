"""`run_recipe`: the stages one after the other, what is done skipped, what was stopped gone on with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgevision.dependencies import require
from edgevision.errors import EdgeVisionError, UsageError
from edgevision.files import ensure_writable
from edgevision.recipe.identity import DataDigests, model_digest, result_digest, stage_identity
from edgevision.recipe.schema import Recipe, StageSpec, parse_recipe, read_recipe
from edgevision.recipe.stages import Job
from edgevision.recipe.state import Entry, State
from edgevision.registry import unknown_name

# what happens, or has happened, to a stage
SKIP, RESUME, RUN = "skip", "resume", "run"


@dataclass(frozen=True)
class StagePlan:
    """What is to happen to a stage, or what did.

    Attributes:
        name: of the stage.
        kind: of the stage.
        folder: where it works.
        action: ``skip`` (it is done), ``resume`` (it was stopped) or ``run``.
        reason: why it runs, where it had run before; empty otherwise.
        metrics: of its network, once it is done.
        checks: bundle → whether it keeps to its parity thresholds on this machine.
    """

    name: str
    kind: str
    folder: Path
    action: str
    reason: str = ""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    checks: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class RecipeRun:
    """What a recipe came to.

    Attributes:
        out: folder of the run.
        stages: in their order.
    """

    out: Path
    stages: tuple[StagePlan, ...]

    @property
    def report(self) -> Path | None:
        """Folder of the report; None where the recipe asks for none, or it was not come to."""
        return next((stage.folder for stage in self.stages if stage.kind == "report"), None)

    @property
    def failed_checks(self) -> list[str]:
        """Bundles that do not answer as their network does."""
        return [
            str(stage.folder / bundle) for stage in self.stages for bundle, passed in stage.checks.items() if not passed
        ]


def run_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    out: str | Path,
    until: str | None = None,
    device: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> RecipeRun:
    """Run the stages of a recipe, each in a folder of ``out``.

    A stage whose recipe, inputs, pictures and versions are as they were is skipped where it is finished, and gone on
    with, at the epoch where it was, where it was stopped or killed. One that is not as it was runs again, and what it
    had left is moved to ``out/replaced``. On a CPU a run that was killed ends with the weights of one that was not.

    Args:
        recipe: a TOML file, its values, or a `Recipe`.
        out: folder of the run: ``01-NAME``, ``02-NAME``, … and ``recipe.json``.
        until: the last stage to run; by default all.
        device: where to train; by default a GPU where there is one.
        tell: is given a line for every stage.

    Raises:
        UsageError: the recipe is not right (before anything runs).
        CheckpointError: a checkpoint or ``recipe.json`` cannot be read, or was written by a newer version.
        EdgeVisionError: a stage failed; the message names it. What was done before is kept.
        KeyboardInterrupt: Ctrl-C, with a message that names the stage.
    """
    runner = _Runner(_opened(recipe), Path(out), device, tell or (lambda line: None))
    stages = runner.chosen(until)
    runner.check(stages)
    ensure_writable(runner.out)
    return RecipeRun(runner.out, tuple(runner.run(stage) for stage in stages))


def plan_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe, *, out: str | Path, until: str | None = None
) -> RecipeRun:
    """What `run_recipe` would do; nothing is changed.

    A stage behind one that runs is told to run as well; it is skipped after all where the same comes out again.

    Raises:
        UsageError, CheckpointError, DataError: as `run_recipe`.
    """
    runner = _Runner(_opened(recipe), Path(out), None, lambda line: None)
    stages = runner.chosen(until)
    runner.check(stages)
    return RecipeRun(runner.out, tuple(runner.plan(stage) for stage in stages))


def _opened(recipe: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    require("torch", purpose="run recipes")
    if isinstance(recipe, Recipe):
        return recipe
    return parse_recipe(recipe) if isinstance(recipe, Mapping) else read_recipe(recipe)


class _Runner:
    """One call, with what it has found out."""

    def __init__(self, recipe: Recipe, out: Path, device: str | None, tell: Callable[[str], None]) -> None:
        self.recipe = recipe
        self.out = out
        self.device = device
        self.tell = tell
        self.state = State(out)
        self.data = DataDigests()
        self.results = {recipe.model.label: model_digest(recipe.model)}

    def chosen(self, until: str | None) -> list[StageSpec]:
        """The stages to be run."""
        names = [stage.name for stage in self.recipe.stages]
        if until is None:
            return list(self.recipe.stages)
        if until not in names:
            raise UsageError(unknown_name("stage", until, names))
        return list(self.recipe.stages[: names.index(until) + 1])

    def check(self, stages: list[StageSpec]) -> None:
        """Open the data of all stages, so that a wrong name in the last one does not cost the first."""
        for stage in stages:
            with _named(stage):
                self.data.of_stage(stage)

    def plan(self, stage: StageSpec) -> StagePlan:
        """What would happen to a stage."""
        folder = self.out / self.recipe.folder(stage)
        needed = [*stage.sources, *([stage.teacher] if stage.teacher in self._names else [])]
        waits = [name for name in needed if name not in self.results]
        if waits:
            return StagePlan(stage.name, stage.kind, folder, RUN, f"after {', '.join(waits)}")
        entry = self.state.entries.get(stage.name)
        action, reason = self._judge(stage, entry, self._identity(stage))
        if action == SKIP:
            assert entry is not None
            assert entry.result is not None
            self.results[stage.name] = entry.result
            return StagePlan(stage.name, stage.kind, folder, SKIP, "", entry.metrics, entry.checks)
        return StagePlan(stage.name, stage.kind, folder, action, reason)

    def run(self, stage: StageSpec) -> StagePlan:
        """Do a stage, or find that it is done."""
        name = self.recipe.folder(stage)
        with _named(stage):
            identity = self._identity(stage)
            entry = self.state.entries.get(stage.name)
            action, reason = self._judge(stage, entry, identity)
            if entry is not None and action != RUN and entry.folder != name:
                self.state.renumber(stage.name, name)
            elif action == RUN:
                self._make_room(stage, entry, reason)
            self.tell(self._announcement(stage, action))
            if action != SKIP:
                self._do(stage, name, identity, action)
        done = self.state.entries[stage.name]
        assert done.result is not None
        self.results[stage.name] = done.result
        return StagePlan(stage.name, stage.kind, self.out / name, action, reason, done.metrics, done.checks)

    def _do(self, stage: StageSpec, name: str, identity: dict[str, Any], action: str) -> None:
        if action == RUN:
            # before the folder is there: one that nobody claims is nobody's
            self.state.begin(stage.name, name, identity)
        job = Job(self.recipe, stage, self.out / name, self._folders(), self.tell, self.device)
        outcome = job.run()
        result = result_digest(stage, self.out / name)
        self.state.finish(stage.name, result, metrics=outcome.metrics, checks=outcome.checks)

    def _identity(self, stage: StageSpec) -> dict[str, Any]:
        return stage_identity(self.recipe, stage, self.results, self.data)

    @property
    def _names(self) -> list[str]:
        return [self.recipe.model.label, *(stage.name for stage in self.recipe.stages)]

    def _folders(self) -> dict[str, Path]:
        """Folders of all that is done, by name."""
        found = {
            stage.name: self.out / self.recipe.folder(stage)
            for stage in self.recipe.stages
            if stage.name in self.results
        }
        if self.recipe.model.checkpoint is not None:
            found[self.recipe.model.label] = Path(self.recipe.model.checkpoint)
        return found

    def _judge(self, stage: StageSpec, entry: Entry | None, identity: dict[str, Any]) -> tuple[str, str]:
        """Action and reason."""
        from edgevision.training.folder import describe_differences

        if entry is None:
            return RUN, ""
        differences = list(describe_differences(entry.identity, identity))
        if differences:
            return RUN, "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if differences[3:] else "")
        folder = self.out / entry.folder
        if entry.result is None:
            return RESUME, ""
        if not folder.exists():
            return RUN, f"{folder} is gone"
        try:
            result = result_digest(stage, folder)
        except EdgeVisionError as error:
            return RUN, str(error)
        return (SKIP, "") if result == entry.result else (RUN, f"{folder} was changed since it was finished")

    def _make_room(self, stage: StageSpec, entry: Entry | None, reason: str) -> None:
        """Nothing of an earlier run may lie where the stage is going to work."""
        if reason:
            self.tell(f"{stage.name}: runs again: {reason}")
        names = [self.recipe.folder(stage), *([] if entry is None else [entry.folder])]
        for folder in dict.fromkeys(names):
            if (self.out / folder).exists():
                self.tell(f"{stage.name}: what it had left is now in {self.state.set_aside(folder)}")

    def _announcement(self, stage: StageSpec, action: str) -> str:
        number = self.recipe.stages.index(stage) + 1
        doing = {SKIP: "done before", RESUME: "goes on", RUN: "begins"}[action]
        return f"{number}/{len(self.recipe.stages)} {stage.name} ({stage.kind}): {doing}"


@contextmanager
def _named(stage: StageSpec) -> Iterator[None]:
    """Say in messages which stage they are about; the errors stay what they are, and with it the exit code."""
    try:
        yield
    except EdgeVisionError as error:
        message = f"stage {stage.name!r}: {error}"
        error.args = (message,)
        if isinstance(error, ImportError):
            error.msg = message  # what an ImportError shows
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stage {stage.name!r} stopped; what is finished is kept: run the same command again to go on"
        ) from None
