"""A recipe as frozen dataclasses, and how TOML becomes them: every name and value is checked before anything runs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgevision.dependencies import require
from edgevision.errors import UsageError
from edgevision.pipeline.networks import read_anchors, task_of_source
from edgevision.pipeline.preprocessing import load_preprocess, read_toml
from edgevision.recipe.options import check_options, listed, text, valid_keys
from edgevision.registry import check_keys, unknown_name

KINDS = ("train", "prune", "distill", "quantize", "convert", "bench")

# what a stage leaves behind for others
CHECKPOINT, QUANTIZED, BUNDLES, REPORT = "checkpoint", "quantized", "bundles", "report"
LEAVES = {
    "train": CHECKPOINT, "prune": CHECKPOINT, "distill": CHECKPOINT, "quantize": QUANTIZED, "convert": BUNDLES,
    "bench": REPORT, "report": REPORT,
}  # fmt: skip
# a network of the zoo before anything was trained
UNTRAINED = "untrained"
_TAKES = {
    "train": (CHECKPOINT, UNTRAINED), "prune": (CHECKPOINT,), "distill": (CHECKPOINT, UNTRAINED),
    "quantize": (CHECKPOINT,), "convert": (CHECKPOINT, QUANTIZED), "bench": (BUNDLES,),
}  # fmt: skip
_CALLED = {
    CHECKPOINT: "a Checkpoint", QUANTIZED: "a quantized network, which only convert takes", BUNDLES: "bundles",
    REPORT: "a report", UNTRAINED: "an untrained network",
}  # fmt: skip

# the stage at the end that `report` asks for
REPORT_NAME = "report"
_RECIPE_KEYS = ("name", "seed", "report", "model", "data", "stage")
_STAGE_KEYS = ("name", "kind", "from", "data", "val_data")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)
_VARIABLE = re.compile(r"\$\{([^{}]*)\}")


@dataclass(frozen=True)
class ModelSpec:
    """The network that stages begin with: one of the zoo, or a Checkpoint.

    Attributes:
        name: in the zoo.
        checkpoint: folder of a Checkpoint, in the place of a name.
        label: what stages and the report call it.
        width: width multiplier.
        input_size: height and width; by default what fits the pictures.
        in_channels: by default what fits the pictures.
        weights: weight file to begin with.
        preprocess: a preset's name or a TOML file; by default what fits the pictures.
        anchors: of a YOLOv3: a file with the output of ``edgevision priors``, or a list in a text.
    """

    name: str | None = None
    checkpoint: str | None = None
    label: str = "model"
    width: float | None = None
    input_size: int | None = None
    in_channels: int | None = None
    weights: str | None = None
    preprocess: str | None = None
    anchors: str | None = None

    @property
    def task(self) -> str:
        """``classification`` or ``detection``: what the network is for."""
        from edgevision.checkpoint import is_checkpoint

        if self.checkpoint is not None and not is_checkpoint(self.checkpoint):
            return "classification"  # there is none yet; `edgevision.recipe.identity.model_digest` refuses it
        return task_of_source(str(self.checkpoint or self.name))

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `edgevision.pipeline.networks.network_for`, those that were given."""
        given = {"width": self.width, "input_size": self.input_size, "in_channels": self.in_channels,
                 "anchors": self.anchors}  # fmt: skip
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class DataSpec:
    """Names of data sets.

    Attributes:
        train: to train, to score and to calibrate with.
        val: to choose the best epoch by; None for the data's test part, or every tenth picture.
        test: to measure the accuracy of bundles on; None for what validates.
    """

    train: str | None = None
    val: str | None = None
    test: str | None = None


@dataclass(frozen=True)
class StageSpec:
    """One stage.

    Attributes:
        name: what other stages, folders and the report call it.
        kind: one of `KINDS`, or ``report``.
        sources: stages, or the model's label, that it takes; several for ``bench`` and ``report``, none for a stage
            with a model of its own.
        data: what it works on.
        model: a network of the zoo that this stage begins with.
        teacher: stage, label or folder of the teacher.
        options: everything else, as it was written.
        task: ``classification`` or ``detection``: what its network is for.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    data: DataSpec
    model: ModelSpec | None = None
    teacher: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    task: str = "classification"

    @property
    def leaves(self) -> str:
        """What lies in its folder when it is done."""
        return LEAVES[self.kind]

    @property
    def label(self) -> str:
        """What its bundles are called: by default what they are made from."""
        return text(self.options, "label") or self.sources[0]


@dataclass(frozen=True)
class Recipe:
    """A chain of stages.

    Attributes:
        name: title of the report.
        model: what the first stage begins with.
        data: for all stages that name none.
        stages: in the order in which they run; the report, where one is asked for, is the last of them.
        seed: of every stage that has none of its own.
    """

    name: str
    model: ModelSpec
    data: DataSpec
    stages: tuple[StageSpec, ...]
    seed: int = 0

    def stage(self, name: str) -> StageSpec:
        """The stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)

    def leaves(self, name: str) -> str:
        """What a stage, or the model, leaves behind."""
        if name == self.model.label:
            return _model_leaves(self.model)
        return self.stage(name).leaves

    def folder(self, stage: StageSpec) -> str:
        """Name of a stage's folder."""
        return f"{self.stages.index(stage) + 1:02d}-{stage.name}"


def read_recipe(path: str | Path) -> Recipe:
    """Read a TOML file; see `parse_recipe`.

    Raises:
        UsageError: the file is missing or no TOML, or see `parse_recipe`.
    """
    path = Path(path)
    values = read_toml(path)
    try:
        return parse_recipe(values, name=path.stem, folder=path.parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def parse_recipe(values: Mapping[str, Any], *, name: str = "recipe", folder: str | Path = ".") -> Recipe:
    """Build a recipe from plain values.

    ``${NAME}`` in a text stands for an environment variable, ``${RECIPE_DIR}`` for the recipe's own folder.

    Args:
        values: as TOML gives them.
        name: where the recipe has none.
        folder: of the recipe.

    Raises:
        UsageError: an unknown key or kind (the near ones are named), a wrong value, a stage that takes what is not
            there or what it cannot take, a variable that is not set.
        MissingDependencyError: torch is not installed.
    """
    require("torch", purpose="run recipes")
    values = _expanded(values, str(Path(folder).resolve()))
    check_keys("key", values, _RECIPE_KEYS, where="the recipe: ")
    model = _model(_table(values, "model"), "[model]")
    data: DataSpec = _of(DataSpec, _table(values, "data"), "[data]")
    written = values.get("stage", [])
    if not isinstance(written, list) or not written or not all(isinstance(stage, dict) for stage in written):
        raise UsageError("a recipe needs stages: [[stage]] tables, each with name and kind")
    seed = values.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UsageError(f"seed must be a whole number of at least 0; got {seed!r}")
    title = text(values, "name", name) or name
    return Recipe(title, model, data, _stages(written, model, data, values.get("report", False)), seed)


def _stages(written: list[dict[str, Any]], model: ModelSpec, data: DataSpec, report: object) -> tuple[StageSpec, ...]:
    names = [_name(stage, number) for number, stage in enumerate(written, 1)]
    taken = [model.label, *([REPORT_NAME] if report else [])]
    for name in names:
        if names.count(name) + taken.count(name) > 1:
            raise UsageError(f"stage {name!r}: the name is given twice; [model] is called {model.label!r}")
    known: dict[str, str] = {model.label: _model_leaves(model)}
    tasks: dict[str, str] = {model.label: model.task}
    stages: list[StageSpec] = []
    for name, values in zip(names, written, strict=True):
        try:
            stages.append(_stage(name, values, known, tasks, names, data))
        except UsageError as error:
            raise UsageError(f"stage {name!r}: {error}") from error
        known[name], tasks[name] = stages[-1].leaves, stages[-1].task
    _check_labels(stages)
    if report is not False:
        stages.append(_report(report, model, data, stages))
    return tuple(stages)


def _name(values: Mapping[str, Any], number: int) -> str:
    name = values.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"stage {number} needs a name of letters, digits, - and _; got {name!r}")
    return name


def _stage(
    name: str,
    values: Mapping[str, Any],
    known: Mapping[str, str],
    tasks: Mapping[str, str],
    names: list[str],
    data: DataSpec,
) -> StageSpec:
    kind = values.get("kind")
    if kind not in KINDS:
        raise UsageError(unknown_name("kind", str(kind), KINDS) if kind else f"needs a kind: {', '.join(KINDS)}")
    further = ("model",) if kind in {"train", "distill"} else ()
    model = _model(_table(values, "model"), "model") if "model" in values and further else None
    if model is not None and (model.checkpoint or "from" in values):
        raise UsageError("model names a new network of the zoo; for one that is there say from = NAME")
    sources = () if model is not None else _sources(kind, values, known, names)
    task = tasks[sources[0]] if model is None else model.task
    check_keys("key", values, (*_STAGE_KEYS, *further, *valid_keys(kind, task)), where=f"{kind}: ")
    options = {key: value for key, value in values.items() if key not in (*_STAGE_KEYS, "model")}
    check_options(kind, options, task)
    own = DataSpec(text(values, "data", data.train), text(values, "val_data", data.val), data.test)
    teacher = text(values, "teacher")
    if teacher is not None:
        _check_teacher(teacher, known, names)
    _check_data(kind, options, own)
    return StageSpec(name, kind, sources, own, model, teacher, options, task)


def _sources(kind: str, values: Mapping[str, Any], known: Mapping[str, str], names: list[str]) -> tuple[str, ...]:
    """What the stage takes: by default the network before it, for ``bench`` all bundles before it."""
    chosen = listed(values, "from")
    if not chosen:
        wanted = (BUNDLES,) if kind == "bench" else (UNTRAINED, CHECKPOINT, QUANTIZED)
        before = [name for name, leaves in known.items() if leaves in wanted]
        if not before:
            raise UsageError("there are no bundles before it: put a convert stage in front")
        chosen = tuple(before) if kind == "bench" else (before[-1],)
    if kind != "bench" and len(chosen) > 1:
        raise UsageError(f"takes one network; from names {len(chosen)}")
    for source in chosen:
        _check_known("from", source, known, names)
        if known[source] == UNTRAINED and UNTRAINED not in _TAKES[kind]:
            raise UsageError(f"{source!r} is an untrained network of the zoo: put a train stage in front")
        if known[source] not in _TAKES[kind]:
            raise UsageError(f"takes {_CALLED[_TAKES[kind][0]]}, and {source!r} leaves {_CALLED[known[source]]}; "
                             "name another stage with from")  # fmt: skip
    return chosen


def _check_known(key: str, name: str, known: Mapping[str, str], names: list[str]) -> None:
    if name in known:
        return
    if name in names:
        raise UsageError(f"{key} = {name!r} is this stage itself or a later one; earlier are {', '.join(known)}")
    raise UsageError(unknown_name(f"stage in {key}:", name, known))


def _check_teacher(teacher: str, known: Mapping[str, str], names: list[str]) -> None:
    from edgevision.checkpoint import is_checkpoint

    if teacher not in known and teacher not in names and is_checkpoint(teacher):
        return
    if teacher not in known and teacher not in names:
        raise UsageError(
            f"teacher {teacher!r} is neither an earlier stage ({', '.join(known)}) nor a Checkpoint folder"
        )
    _check_known("teacher", teacher, known, names)
    if known[teacher] != CHECKPOINT:
        raise UsageError(f"teacher {teacher!r} leaves {_CALLED[known[teacher]]}; a teacher is a Checkpoint")


def _check_data(kind: str, options: Mapping[str, Any], data: DataSpec) -> None:
    needed = {
        "train": True,
        "distill": True,
        "quantize": True,
        "prune": bool(options.get("epochs", 1) or options.get("slim_epochs")),
    }.get(kind, False)
    if needed and data.train is None:
        raise UsageError('needs pictures: [data] with train = "KIND:PATH", or data in the stage')


def _check_labels(stages: list[StageSpec]) -> None:
    """Points of the report are told apart by label, engine and precision."""
    seen: dict[tuple[str, str, str, str], str] = {}
    for stage in stages:
        if stage.kind != "convert":
            continue
        for target in listed(stage.options, "targets"):
            for precision in listed(stage.options, "precision", ("fp32",)):
                key = (stage.label, target, precision, str(stage.options.get("compress")))
                if key in seen:
                    raise UsageError(
                        f"stages {seen[key]!r} and {stage.name!r} both make {precision} bundles of {stage.label!r} for "
                        f'{target}: give one of them a name for its bundles, e.g. label = "{stage.name}"'
                    )
                seen[key] = stage.name


def _report(report: object, model: ModelSpec, data: DataSpec, stages: list[StageSpec]) -> StageSpec:
    options: dict[str, Any] = {}
    if isinstance(report, dict):
        options = dict(report)
    elif report is not True:
        raise UsageError(f"report is true, false or a [report] table; got {report!r}")
    try:
        check_options("report", options)
    except UsageError as error:
        raise UsageError(f"[report]: {error}") from error
    begun = [model.label] if _model_leaves(model) == CHECKPOINT else []
    return StageSpec(
        REPORT_NAME, "report", (*begun, *(stage.name for stage in stages if stage.leaves != REPORT)), data,
        options=options, task=model.task,
    )  # fmt: skip


def _model(values: Mapping[str, Any], where: str) -> ModelSpec:
    from edgevision.models import MODELS

    model: ModelSpec = _of(ModelSpec, values, where)
    if (model.name is None) == (model.checkpoint is None):
        raise UsageError(f"{where} names a network of the zoo (name) or a Checkpoint folder (checkpoint), one of them")
    if not _NAME.fullmatch(model.label):
        raise UsageError(f"{where}: label must be of letters, digits, - and _; got {model.label!r}")
    if model.checkpoint is not None:
        further = [name for name in (*model.arguments, "weights", "preprocess") if getattr(model, name) is not None]
        if further:
            raise UsageError(f"{where}: a Checkpoint has its own {', '.join(further)}: leave that out")
        return model
    if model.name not in MODELS:
        raise UsageError(f"{where}: {unknown_name('model', str(model.name), MODELS)}")
    if model.preprocess is not None:
        load_preprocess(model.preprocess)
    if model.anchors is not None:
        read_anchors(model.anchors, model.input_size)
    if model.weights is not None and not Path(model.weights).is_file():
        raise UsageError(f"{where}: no such weight file: {model.weights}")
    return model


def _model_leaves(model: ModelSpec) -> str:
    return UNTRAINED if model.checkpoint is None else CHECKPOINT


def _of(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass of texts and numbers from a table."""
    known = {field.name: str(field.type).partition(" ")[0] for field in fields(cls)}
    check_keys("key", values, known, where=f"{where}: ")
    for key, value in values.items():
        types = {"str": (str,), "int": (int,), "float": (int, float)}[known[key]]
        if not isinstance(value, types) or isinstance(value, bool):
            raise UsageError(f"{where}: {key} must be {'a text' if str in types else 'a number'}; got {value!r}")
    return cls(**values)


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = values.get(key, {})
    if not isinstance(table, dict):
        raise UsageError(f"[{key}] must be a table; got {table!r}")
    return table


def _expanded(value: Any, folder: str) -> Any:
    """The same values with the variables in their texts replaced."""
    if isinstance(value, Mapping):
        return {key: _expanded(item, folder) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_expanded(item, folder) for item in value]
    if not isinstance(value, str):
        return value

    def content(match: re.Match[str]) -> str:
        found = folder if match[1] == "RECIPE_DIR" else os.environ.get(match[1])
        if found is None:
            raise UsageError(f"{value!r}: the environment variable {match[1]} is not set: export {match[1]}=…")
        return found

    return _VARIABLE.sub(content, value)


def plain(spec: Any) -> dict[str, Any]:
    """A spec as plain values without what is not said."""
    return {name: value for name, value in asdict(spec).items() if value is not None}
