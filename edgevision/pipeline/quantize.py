"""`quantize`: a network made ready for INT8 before it is converted, by training where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision import __version__
from edgevision.data import batches, open_dataset
from edgevision.data.base import Dataset, Subset, evenly_spaced
from edgevision.dependencies import require
from edgevision.errors import CalibrationError, UsageError
from edgevision.pipeline.calibration import calibrate, observed
from edgevision.pipeline.keep_float import layers_in_float
from edgevision.pipeline.long_method import learn_long
from edgevision.pipeline.preprocessing import fit_preprocess
from edgevision.pipeline.workspace import digest_of_samples
from edgevision.preprocess import Preprocess
from edgevision.progress import Progress
from edgevision.registry import unknown_name

if TYPE_CHECKING:
    from torch import nn

    from edgevision.checkpoint import Checkpoint
    from edgevision.graph import Graph
    from edgevision_calibration.plan import QuantPlan
    from edgevision_calibration.qat.model import QuantizedModel
    from edgevision_calibration.qat.train import QatConfig, QatData
    from edgevision_converters.export import Source

METHODS = ("default", "long", "qat")


@dataclass(frozen=True)
class QuantizeOptions:
    """How `quantize` works, besides what it quantizes.

    Attributes:
        method: ``default`` (calibration alone), ``long`` (weights and steps learned from the calibration
            pictures, see `edgevision.pipeline.long_method.learn_long`) or ``qat``.
        calibration_images: pictures the ranges are taken from, spread evenly over the data.
        ranges: range method.
        equalize: balance the ranges of channels first.
        epochs: of ``qat``; None for 10.
        batch_size: of ``qat``.
        lr: of ``qat``: weights, in units of their quantization steps.
        step_lr: of ``qat``: quantization steps, relative to them; 0 keeps the observed ranges.
        seed: of ``long`` and ``qat``.
        augment: of ``qat``: crop and flip pictures as the recipe of their kind of data does.
        grad_clip: of ``qat``: largest 2-norm of all gradients together; 0 turns clipping off.
        ema_decay: of ``qat``: keep the moving average of what is learned; 0 turns it off.
        label_weight: of ``qat``: share of the labels in the loss, 0 to 1; the float network's answers have the rest.
        keep_float: layers that stay in float: names with ``*`` and ``?``, or INT8 bundles of a precision search, see
            `edgevision.pipeline.keep_float.layers_in_float`.
        restart: start over, whatever the folder holds.
    """

    method: str = "qat"
    calibration_images: int = 300
    ranges: str = "mse"
    equalize: bool = True
    epochs: int | None = None
    batch_size: int = 32
    lr: float = 0.01
    step_lr: float = 1e-4
    seed: int = 0
    augment: bool = False
    grad_clip: float = 0.0
    ema_decay: float = 0.0
    label_weight: float = 0.0
    keep_float: tuple[str, ...] = ()
    restart: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(unknown_name("method", self.method, METHODS))
        if self.calibration_images < 1:
            raise UsageError(f"calibration images must be 1 or more; got {self.calibration_images}")


def quantize(
    source: str | Path | nn.Module | Checkpoint | Graph,
    *,
    data: str | Path | Dataset,
    out: str | Path,
    target: str = "onnxruntime",
    val_data: str | Path | Dataset | None = None,
    preprocess: str | Path | Preprocess | None = None,
    weights: str | Path | None = None,
    input_size: tuple[int, int] | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    options: QuantizeOptions | None = None,
) -> QuantizedModel:
    """Quantize a network for one target and keep it as a folder that `convert` takes as its source.

    It lowers to that target exactly as it was made, and to the others by the same ranges in their schemes. A call
    on a finished folder returns what is there; training that was interrupted goes on from its last epoch.

    ``qat`` trains the fused graph: whatever the source is, its branches are summed and its batch norms folded, with the
    statistics they were trained to, before the first step. The network in float is the teacher.

    Args:
        source: an ONNX file, a Checkpoint folder, a zoo name, a torch module, a Checkpoint or a canonical graph.
        data: pictures; labels are not needed, but where there are some, accuracy is measured with them.
        out: the folder.
        target: whose scheme is trained for.
        val_data: pictures to measure on; by default the data's test part, or every tenth picture where it is not
            divided, which is then not trained on.
        preprocess: where the source does not say.
        weights: weight file, for a zoo name.
        input_size: height and width, for sources that leave them open.
        model_arguments: further arguments of the zoo's builder.
        options: see `QuantizeOptions`.

    Raises:
        UsageError: a target, method or preprocess that does not exist or is missing.
        ModelError: the model cannot be used.
        CalibrationError: no pictures.
        TrainingError: training diverged, or the folder is another run's.
        OutputError: ``out`` cannot be written.
    """
    from edgevision_calibration.scheme import scheme_for
    from edgevision_converters.export import open_source

    options = options or QuantizeOptions()
    scheme_for(target)
    require("onnxruntime", purpose="calibrate models", extra="convert")
    if options.method != "default":
        require("torch", purpose="learn roundings and ranges")
    training, validation = _parts(data, val_data)
    with Progress("read the model"):
        opened = open_source(source, weights=weights, input_size=input_size, model_arguments=model_arguments)
    fitted = fit_preprocess(preprocess, opened.preprocess, opened.graph)
    job = _Job(opened, fitted, training, validation, Path(out), target, options)
    return job.run()


def _parts(data: str | Path | Dataset, val_data: str | Path | Dataset | None) -> tuple[Dataset, Dataset]:
    """Pictures to train and to validate on."""
    training = open_dataset(data, split="train")
    if not len(training):
        raise CalibrationError(f"{training.name} holds no pictures: give --data a folder that does")
    if val_data is not None:
        return training, open_dataset(val_data, split="test")
    if isinstance(data, (str, Path)) and len(open_dataset(data, split=None)) != len(training):
        return training, open_dataset(data, split="test")
    spared = range(9, len(training), 10) or range(len(training))
    kept = [index for index in range(len(training)) if index % 10 != 9]
    return Subset(training, kept), Subset(training, list(spared))


@dataclass
class _Job:
    """One call of `quantize`, with its parts resolved."""

    source: Source
    preprocess: Preprocess
    training: Dataset
    validation: Dataset
    out: Path
    target: str
    options: QuantizeOptions
    metrics: dict[str, float] = field(default_factory=dict)
    findings: list[dict[str, str]] = field(default_factory=list)

    def run(self) -> QuantizedModel:
        from edgevision.training.folder import RunFolder
        from edgevision_calibration.qat.model import QuantizedModel

        folder = RunFolder(self.out)
        folder.claim(self._identity(), resume=not self.options.restart)
        if folder.finished.exists():
            return QuantizedModel.open(self.out)
        graph, plan = self._calibrated()
        if self.options.method == "long":
            graph, plan = learn_long(
                graph, plan, self.preprocess, self._calibration_set(), folder.state.parent, seed=self.options.seed
            )
        elif self.options.method == "qat":
            graph, plan = self._train(graph, plan, folder.state)
        table = observed(graph, self.preprocess, self._calibration_set())
        # the pictures are the same as before: so is what is doubtful about them
        table.findings = self.findings
        model = QuantizedModel(
            name=self.source.name,
            graph=graph,
            original=self.source.graph,
            plan=plan,
            table=table,
            preprocess=self.preprocess,
            method=self.options.method,
            classes=self.source.classes,
            task=self.source.task,
            description=f"{self.source.description}, quantized by {self.options.method} for {self.target}",
            metrics=self.metrics,
        )
        model.save(self.out)
        folder.finish({"method": self.options.method, "metrics": self.metrics})
        return model

    def _identity(self) -> dict[str, Any]:
        """What makes two calls the same run."""
        options = {name: value for name, value in vars(self.options).items() if name != "restart"}
        options["keep_float"] = list(self.options.keep_float)
        return {
            "quantize": options,
            "target": self.target,
            "graph_sha256": self.source.graph.sha256,
            "preprocess": self.preprocess.to_dict(),
            "data": digest_of_samples(evenly_spaced(self.training, min(64, len(self.training)))),
            "pictures": len(self.training),
            "version": __version__,
        }

    def _calibration_set(self) -> Subset:
        return evenly_spaced(self.training, min(self.options.calibration_images, len(self.training)))

    def _calibrated(self) -> tuple[Graph, QuantPlan]:
        """The treated graph and the plan that learning begins with; what is doubtful about the pictures is kept."""
        from edgevision_calibration.planning import make_plan
        from edgevision_calibration.scheme import scheme_for

        keep_float = layers_in_float(self.source.graph, self.options.keep_float)
        graph, table = calibrate(self.source, self.preprocess, self._calibration_set(), equalize=self.options.equalize)
        self.findings = table.findings
        scheme = scheme_for(self.target)
        plan = make_plan(graph, table, scheme, ranges=self.options.ranges, keep_float=keep_float)
        # other targets than this one must know which of its float layers were asked for
        return graph, replace(plan, calibration={**plan.calibration, "keep_float": keep_float})

    def _train(self, graph: Graph, plan: QuantPlan, state: Path) -> tuple[Graph, QuantPlan]:
        from edgevision.training.config import recipe_for
        from edgevision.training.threads import torch_threads
        from edgevision_calibration.qat.train import QatConfig, train_quantized

        options = self.options
        config = QatConfig(
            epochs=10 if options.epochs is None else options.epochs,
            batch_size=min(options.batch_size, len(self.training)),
            lr=options.lr,
            step_lr=options.step_lr,
            grad_clip=options.grad_clip,
            ema_decay=options.ema_decay,
            label_weight=options.label_weight,
            seed=options.seed,
        )
        recipe = recipe_for(self.training.name, input_size=max(self.preprocess.size))
        with torch_threads(recipe.threads):
            result = train_quantized(
                graph, plan, self._pictures(config), config=config,
                classification=self.source.task == "classification", state=state,
            )  # fmt: skip
        self.metrics = result.metrics
        return result.graph, result.plan

    def _pictures(self, config: QatConfig) -> QatData:
        """Batches in an order, and with crops and flips, that follow from the seed and the epoch."""
        from edgevision.training.augment import Augment
        from edgevision.training.config import recipe_for
        from edgevision.training.source import ImageSource, epoch_plan
        from edgevision_calibration.qat.train import LabelledBatch, QatData

        size = max(self.preprocess.size)
        recipe = replace(recipe_for(self.training.name, input_size=size), seed=config.seed, erasing=0.0)
        augment = Augment(recipe)
        training = ImageSource(_Labelled(self.training), self.preprocess)
        validation = ImageSource(_Labelled(self.validation), self.preprocess)
        known = self._labels_known()
        for source in (training, validation):
            source.fill_cache("reading pictures")

        def normalized(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            flat = pixels[..., 0] if self.preprocess.channels == 1 else pixels
            return np.stack([self.preprocess.normalize(picture) for picture in flat])

        def epoch(number: int) -> Iterator[LabelledBatch]:
            for indices in epoch_plan(config.seed, number, len(training), config.batch_size):
                pixels = training.pixels(indices)
                images = normalized(augment(pixels, indices, number) if self.options.augment else pixels)
                yield images, training.labels[indices] if known else None

        def validate() -> Iterator[LabelledBatch]:
            for start in range(0, len(validation), config.batch_size):
                indices = np.arange(start, min(start + config.batch_size, len(validation)))
                yield validation.inputs(indices), validation.labels[indices] if known else None

        return QatData(epoch, len(training) // config.batch_size, validate)

    def _labels_known(self) -> bool:
        """Whether both parts have class labels that the network has outputs for."""
        if self.source.task != "classification":
            return False
        outputs = self.source.graph.shapes[self.source.graph.output_names[0]][1]
        for dataset in (self.training, self.validation):
            labels = dataset.labels
            if labels is None or not len(labels) or labels.min() < 0:
                return False
            if outputs is not None and labels.max() >= outputs:
                return False
        return True


def reparameterization_report(
    source: str | Path | nn.Module | Checkpoint,
    *,
    data: str | Path | Dataset,
    weights: str | Path | None = None,
    preprocess: str | Path | Preprocess | None = None,
) -> list[dict[str, Any]]:
    """The RepVGG blocks of a network: proof of their fusion, ranges before and after it and after equalization.

    Args:
        source: a Checkpoint folder, a zoo name with ``weights``, a torch module or a Checkpoint.
        data: pictures; 32 of them are used.
        weights: weight file, for a zoo name.
        preprocess: where the source does not say.

    Returns:
        one row per block, see `edgevision_calibration.qat.report.BlockReport`; none for a network without any.

    Raises:
        UsageError: a source whose branches are gone, as those of an ONNX file are.
    """
    require("torch", purpose="look into networks")
    from edgevision_calibration.qat.report import report_blocks
    from edgevision_converters.export import open_source

    model = _module(source, weights)
    opened = open_source(source, weights=weights)
    fitted = fit_preprocess(preprocess, opened.preprocess, opened.graph)
    chosen = evenly_spaced(open_dataset(data, split="train"), 32)
    pictures = [batch for batch, _ in batches(chosen, fitted, 1)]
    return [dict(vars(row)) for row in report_blocks(model, opened.graph, pictures)]


def _module(source: str | Path | nn.Module | Checkpoint, weights: str | Path | None) -> nn.Module:
    """The network with its branches, in eval mode."""
    from torch import nn

    from edgevision.checkpoint import Checkpoint, is_checkpoint
    from edgevision.models import MODELS, create_model

    if isinstance(source, nn.Module):
        return source.eval()
    if isinstance(source, Checkpoint):
        return source.build()
    if is_checkpoint(source):
        return Checkpoint.open(source).build()
    if weights is not None and str(source) in MODELS:
        from edgevision.models.weights import load_weights

        model = create_model(str(source))
        load_weights(model, weights)
        return model.eval()
    raise UsageError(f"{source}: the report needs branches to look at: a Checkpoint folder, or a zoo name with weights")


def open_trained(source: object) -> QuantizedModel | None:
    """The quantized model in a folder that `quantize` made; None for any other source of a conversion."""
    from edgevision_calibration.qat.model import QuantizedModel, is_quantized_model

    if isinstance(source, QuantizedModel):
        return source
    return QuantizedModel.open(str(source)) if is_quantized_model(source) else None


def trained_source(model: QuantizedModel) -> Source:
    """The FP32 network of a quantized model as the source of a conversion: what its bundles are compared with."""
    from edgevision_converters.export import Source

    return Source(model.original, model.name, model.preprocess, model.classes, model.task, model.description)


class _Labelled:
    """A data set whose pictures need no labels: where it has none, all are 0 and nobody looks at them."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.name = dataset.name
        self.classes = dataset.classes
        labels = dataset.labels
        usable = labels is not None and len(labels) > 0 and labels.min() >= 0
        self.labels = labels if usable else np.zeros(len(dataset), np.int64)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]
