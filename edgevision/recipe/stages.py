"""How each kind of stage is done: the function of the verb, with the folders and settings that the recipe names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgevision.bundle import SUFFIX, Bundle
from edgevision.data import open_dataset
from edgevision.data.base import Dataset
from edgevision.recipe.options import (
    bench_options,
    convert_options,
    distill_config,
    listed,
    prune_options,
    pruning_config,
    quantize_options,
    text,
    training_config,
)
from edgevision.recipe.schema import ModelSpec, Recipe, StageSpec

if TYPE_CHECKING:
    from torch import nn

    from edgevision.pipeline.prune_expectation import Expectation
    from edgevision.preprocess import Preprocess
    from edgevision.training.config import RunConfig
    from edgevision_benchmarks.report import Report


@dataclass(frozen=True)
class Outcome:
    """What a stage leaves besides its folder.

    Attributes:
        metrics: name → value, of its network.
        checks: bundle → whether it keeps to its parity thresholds here; none for those that do not run here.
    """

    metrics: Mapping[str, float | None] = field(default_factory=dict)
    checks: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One stage at work.

    Attributes:
        recipe: the stage's.
        stage: what to do.
        folder: where.
        folders: stage or label → folder, of all that is there before it.
        tell: says a line to the user.
        device: where to train; None for a GPU where there is one.
    """

    recipe: Recipe
    stage: StageSpec
    folder: Path
    folders: Mapping[str, Path]
    tell: Callable[[str], None]
    device: str | None = None

    def run(self) -> Outcome:
        """Do it, or go on with it where an earlier call was stopped."""
        return _RUNS[self.stage.kind](self)

    @property
    def source(self) -> Path | None:
        """Folder of the Checkpoint or quantized network to begin with; None for a network of the zoo."""
        return None if self.zoo is not None else self.folders[self.stage.sources[0]]

    @property
    def zoo(self) -> ModelSpec | None:
        """The network of the zoo to begin with; None where there is a folder."""
        if self.stage.model is not None:
            return self.stage.model
        begun = self.stage.sources[0] == self.recipe.model.label and self.recipe.model.checkpoint is None
        return self.recipe.model if begun else None

    @property
    def train_data(self) -> str:
        """Name of the training pictures; the schema has seen to it that there is one."""
        assert self.stage.data.train is not None
        return self.stage.data.train

    @property
    def teacher(self) -> Path:
        """Folder of the teacher."""
        assert self.stage.teacher is not None  # the schema has seen to it
        return self.folders.get(self.stage.teacher, Path(self.stage.teacher))

    def usual_config(self) -> RunConfig:
        """The recipe for the network and the data."""
        from edgevision.training.recipes import usual_config

        dataset = open_dataset(self.train_data, split="train")
        return usual_config(self.stage.task, dataset, input_size=self.input_size(dataset))

    def input_size(self, dataset: Dataset) -> int:
        """Height and width of the network's input."""
        from edgevision.checkpoint import Checkpoint
        from edgevision.pipeline.networks import usual_input_size

        if self.source is not None:
            return int(Checkpoint.open(self.source).arguments["input_size"])
        assert self.zoo is not None
        return self.zoo.input_size or usual_input_size(str(self.zoo.name), dataset)

    def preprocess(self) -> Preprocess | None:
        """What the recipe says of a network of the zoo; None leaves the choice to the training."""
        from edgevision.pipeline.preprocessing import load_preprocess

        return None if self.zoo is None or self.zoo.preprocess is None else load_preprocess(self.zoo.preprocess)


def _train(job: Job) -> Outcome:
    from edgevision.pipeline.networks import network_for
    from edgevision.training import train

    options = job.stage.options
    config = training_config(options, job.usual_config(), seed=job.recipe.seed, but=("search_epochs",))
    model: nn.Module | Path
    if job.zoo is not None:
        dataset = open_dataset(job.train_data, split="train")
        model = network_for(str(job.zoo.name), dataset, weights=job.zoo.weights, seed=config.seed, **job.zoo.arguments)
        _search(job, model, config)
    else:
        assert job.source is not None
        model = job.source
    checkpoint = train(
        model,
        job.train_data,
        out=job.folder,
        config=config,
        preprocess=job.preprocess(),
        val_data=job.stage.data.val,
        device=job.device,
        changes=("pretrained",) if job.zoo is not None and job.zoo.weights else (),
    )
    return Outcome(checkpoint.metrics)


def _search(job: Job, model: nn.Module, config: RunConfig) -> None:
    """RepOptimizer's search, for the networks that take its scales, as ``edgevision train`` does it."""
    from edgevision.training.config import TrainConfig
    from edgevision.training.repoptimizer import default_search_epochs, search_scales, takes_scales

    epochs = job.stage.options.get("search_epochs")
    assert job.zoo is not None
    if not takes_scales(model) or epochs == 0 or job.zoo.weights:
        return
    assert isinstance(config, TrainConfig)  # the networks that take scales are classifiers
    search_scales(
        model,
        job.train_data,
        out=job.folder / "search",
        epochs=default_search_epochs(config.epochs) if epochs is None else epochs,
        config=config,
        preprocess=job.preprocess(),
        val_data=job.stage.data.val,
        device=job.device,
    )


def _prune(job: Job) -> Outcome:
    from edgevision.pipeline.prune import prune_checkpoint

    assert job.source is not None
    options = job.stage.options
    target = text(options, "target", "onnxruntime")
    checkpoint = prune_checkpoint(
        job.source,
        out=job.folder,
        data=job.stage.data.train,
        val_data=job.stage.data.val,
        options=prune_options(options, job.recipe.seed),
        config=None
        if job.stage.data.train is None
        else pruning_config(options, job.usual_config(), seed=job.recipe.seed),
        target=None if target == "none" else target,
        announce=lambda expectation: job.tell(_expected(expectation)),
        device=job.device,
    )
    return Outcome(checkpoint.metrics)


def _expected(expectation: Expectation) -> str:
    parts = [
        f"{name} {before:,} → {after:,} ({after / before:.0%})"
        for name, (before, after) in (
            ("multiply-adds", expectation.macs), ("parameters", expectation.parameters)
        )
    ]  # fmt: skip
    if expectation.latency_ms is not None:
        before_ms, after_ms = expectation.latency_ms
        parts.append(f"{expectation.target} {before_ms:.3f} → {after_ms:.3f} ms ({after_ms / before_ms:.0%})")
    return "expected: " + ", ".join(parts)


def _distill(job: Job) -> Outcome:
    from edgevision.pipeline.distill import distill

    options, zoo = job.stage.options, job.zoo
    checkpoint = distill(
        str(zoo.name) if zoo is not None else str(job.source),
        teacher=job.teacher,
        data=job.train_data,
        out=job.folder,
        config=training_config(options, job.usual_config(), seed=job.recipe.seed),
        options=distill_config(options),
        val_data=job.stage.data.val,
        preprocess=job.preprocess(),
        weights=None if zoo is None else zoo.weights,
        model_arguments={} if zoo is None else zoo.arguments,
        device=job.device,
    )
    return Outcome(checkpoint.metrics)


def _quantize(job: Job) -> Outcome:
    from edgevision.pipeline.quantize import quantize

    assert job.source is not None
    model = quantize(
        job.source,
        data=job.train_data,
        out=job.folder,
        target=text(job.stage.options, "target") or "onnxruntime",
        val_data=job.stage.data.val,
        options=quantize_options(job.stage.options, job.recipe.seed),
    )
    for finding in model.table.findings:
        job.tell(f"{finding['severity']}: {finding['message']}")
    return Outcome(dict(model.metrics))


def _convert(job: Job) -> Outcome:
    from edgevision.pipeline.convert import convert

    assert job.source is not None
    options = convert_options(job.stage.options)
    bundles = convert(
        job.source,
        targets=listed(job.stage.options, "targets"),
        precision=listed(job.stage.options, "precision", ("fp32",)),
        data=job.stage.data.train,
        out=job.folder,
        name=job.stage.label,
        val_data=job.stage.data.val if options.max_drop is not None else None,
        options=options,
    )
    return Outcome(checks=verified(bundles))


def verified(bundles: list[Bundle]) -> dict[str, bool]:
    """File name → whether the bundle keeps to its thresholds, of those whose engine is on this machine."""
    from edgevision.dependencies import installed
    from edgevision.parity import verify

    # TensorRT compiles, and so is verified, on the device
    here = [bundle for bundle in bundles if bundle.manifest.target != "tensorrt" and installed(bundle.manifest.target)]
    return {Path(str(bundle.path)).name: verify(bundle).passed for bundle in here}


def bundles_in(folder: Path) -> list[Bundle]:
    """The bundles of a folder, in the order of their names."""
    return [Bundle.open(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]


def accuracy_data(job: Job) -> tuple[str | Dataset | None, str | None]:
    """Pictures to measure the accuracy on, and which part of them: never those that were trained on."""
    from edgevision.training.detection.run import open_detection_parts
    from edgevision.training.run import open_parts

    data = job.stage.data
    if data.test is not None or data.val is not None or data.train is None:
        return data.test or data.val, "test"
    if job.stage.task == "detection":
        return open_detection_parts(data.train, None, None)[1], None
    whole, training = (open_dataset(data.train, split=part) for part in (None, "train"))
    if len(whole) == len(training):
        return open_parts(data.train, None)[1], None
    return data.train, "test"


def measured(job: Job, bundles: list[Bundle], *, title: str, reference: str | None = None) -> Report:
    """Measure bundles side by side as the stage says, leave the report in its folder, and tell what failed."""
    from edgevision_benchmarks.bench import bench

    data, split = accuracy_data(job)
    settings = vars(bench_options(job.stage.options))
    report = bench(bundles, data, split=split, reference=reference, title=title, **settings)
    report.save(job.folder)
    for failure in report.errors:
        job.tell(f"{failure['bundle']}: {failure['error']}")
    return report


def _bench(job: Job) -> Outcome:
    bundles = [bundle for name in job.stage.sources for bundle in bundles_in(job.folders[name])]
    measured(job, bundles, title=f"{job.recipe.name}: {job.stage.name}")
    return Outcome()


def _report(job: Job) -> Outcome:
    from edgevision.recipe.report import make_report

    return make_report(job)


_RUNS: dict[str, Callable[[Job], Outcome]] = {
    "train": _train,
    "prune": _prune,
    "distill": _distill,
    "quantize": _quantize,
    "convert": _convert,
    "bench": _bench,
    "report": _report,
}
