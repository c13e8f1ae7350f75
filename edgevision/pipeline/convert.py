"""`convert`: one model, one calibration, a bundle for every target."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision import __version__
from edgevision.bundle import GOLDEN, PLAN, SUFFIX, Bundle, Manifest, golden_bytes
from edgevision.data import batches, open_dataset
from edgevision.data.base import Dataset, Subset, evenly_spaced
from edgevision.dependencies import require
from edgevision.errors import BundleError, CalibrationError, UsageError
from edgevision.files import sha256_bytes
from edgevision.pipeline.golden import float_thresholds, golden_pixels, quantized_thresholds, run_graph
from edgevision.pipeline.preprocessing import fit_preprocess
from edgevision.pipeline.workspace import Workspace, digest_of, digest_of_samples
from edgevision.preprocess import Preprocess
from edgevision.progress import Progress, track
from edgevision.runtime.tensors import TensorSpec

if TYPE_CHECKING:
    from torch import nn

    from edgevision.checkpoint import Checkpoint
    from edgevision.graph import Graph
    from edgevision_calibration.plan import QuantPlan
    from edgevision_calibration.table import CalibrationTable
    from edgevision_converters.export import Source

CALIBRATION_IMAGES = 300


@dataclass(frozen=True)
class ConvertOptions:
    """How `convert` works, besides what it converts.

    Attributes:
        calibration_images: pictures the ranges are taken from, spread evenly over the data.
        ranges: range method: ``mse``, ``minmax``, ``percentile`` or ``entropy``.
        equalize: balance the ranges of channels before calibration.
        timeout_s: how long a native converter may take, seconds.
        force: convert again what is finished already.
    """

    calibration_images: int = CALIBRATION_IMAGES
    ranges: str = "mse"
    equalize: bool = True
    timeout_s: float = 600.0
    force: bool = False

    def __post_init__(self) -> None:
        if self.calibration_images < 1:
            raise UsageError(f"calibration images must be 1 or more; got {self.calibration_images}")
        if self.timeout_s <= 0:
            raise UsageError(f"the time limit must be above 0 seconds; got {self.timeout_s}")


def convert(
    source: str | Path | nn.Module | Checkpoint | Graph,
    *,
    targets: Sequence[str],
    precision: str | Sequence[str] = "fp32",
    data: str | Path | Dataset | None = None,
    out: str | Path = "bundles",
    preprocess: str | Path | Preprocess | None = None,
    weights: str | Path | None = None,
    input_size: tuple[int, int] | None = None,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    options: ConvertOptions | None = None,
) -> list[Bundle]:
    """Convert a model to bundles, one for each target and precision.

    What is finished already in ``out`` is reused; interrupted work goes on where it stopped.

    Args:
        source: an ONNX file, a Checkpoint folder, a zoo name, a torch module, a Checkpoint or a canonical graph.
        targets: ``onnxruntime``, ``openvino``, ``ncnn``, ``tensorrt``.
        precision: ``fp32``, ``fp16``, ``int8``, or several of them.
        data: pictures to calibrate with (needed for ``int8``) and to take golden inputs from.
        out: folder of the bundles, each ``NAME-TARGET-PRECISION.evb``.
        preprocess: a preset's name, a TOML file or a `Preprocess`; needed where the source does not say.
        weights: weight file, for a zoo name.
        input_size: height and width, for sources that leave them open.
        name: name of the bundles; by default the source's.
        classes: class names by index; by default the source's, else the data set's where their number fits.
        model_arguments: further arguments of the zoo's builder, e.g. ``{"width": 0.5}``.
        options: see `ConvertOptions`.

    Raises:
        UsageError: a target, precision or preprocess that does not exist or is missing.
        ModelError: the model cannot be used.
        CalibrationError: ``int8`` without pictures.
        DataError: a picture cannot be read.
        ConversionError: a native converter failed.
        OutputError: ``out`` cannot be written.
    """
    from edgevision_converters.export import open_source
    from edgevision_converters.target import check_precision

    precisions = [precision] if isinstance(precision, str) else list(dict.fromkeys(precision))
    targets = list(dict.fromkeys(targets))
    if not targets or not precisions:
        raise UsageError("name at least one target and one precision, e.g. --targets openvino,ncnn --precision int8")
    for target in targets:
        for wanted in precisions:
            check_precision(target, wanted)
    require("onnx", purpose="convert models")
    require("onnxruntime", purpose="convert models", extra="convert")
    dataset = None if data is None else open_dataset(data, split="train")
    if "int8" in precisions and dataset is None:
        raise CalibrationError("int8 needs pictures to calibrate with: give --data KIND:PATH, e.g. --data photos/")
    if dataset is not None and not len(dataset):
        raise CalibrationError(f"{dataset.name} holds no pictures to calibrate with: give --data a folder that does")
    with Progress("read the model"):
        opened = open_source(
            source,
            weights=weights,
            input_size=input_size,
            model_arguments=model_arguments,
            **({} if not classes else {"num_classes": len(classes)} if weights else {}),
        )
    job = _Job(
        opened,
        name or opened.name,
        fit_preprocess(preprocess, opened.preprocess, opened.graph),
        dataset,
        _classes(opened, classes, dataset),
        Path(out),
        options or ConvertOptions(),
    )
    work = [(target, wanted) for wanted in precisions for target in targets]
    return [job.bundle(target, wanted) for target, wanted in track(work, "convert", len(work))]


class _Job:
    """One model on its way to several bundles: what they share is made once."""

    def __init__(
        self,
        source: Source,
        name: str,
        preprocess: Preprocess,
        dataset: Dataset | None,
        classes: tuple[str, ...],
        out: Path,
        options: ConvertOptions,
    ) -> None:
        self.source = source
        self.name = name
        self.preprocess = preprocess
        self.classes = classes
        self.out = out
        self.options = options
        self.workspace = Workspace(out)
        self.samples = None if dataset is None else evenly_spaced(dataset, options.calibration_images)
        self.pixels = golden_pixels(self.samples, preprocess)
        self._samples_digest = digest_of(self.pixels.tobytes().hex()[:64]) if self.samples is None else ""
        self._calibrated: tuple[Graph, CalibrationTable] | None = None
        self._golden_outputs: dict[str, Any] | None = None

    def bundle(self, target: str, precision: str) -> Bundle:
        """The bundle of one target and precision, reused where it is finished already."""
        plan, graph = None, self.source.graph
        if precision == "int8":
            graph, table = self._calibration()
            plan = self._plan(graph, table, target)
        recipe = self._recipe(target, precision, graph, plan)
        path = self.out / f"{self.name}-{target}-{precision}{SUFFIX}"
        if not self.options.force and (finished := _finished(path, recipe)) is not None:
            return finished
        self.workspace.keep_graph(graph)
        bundle = self._make(target, precision, graph, plan, recipe)
        bundle.save(path)
        return bundle

    def _make(self, target: str, precision: str, graph: Graph, plan: QuantPlan | None, recipe: str) -> Bundle:
        from edgevision_converters.qdq import quantize_dequantize
        from edgevision_converters.target import CONVERTERS, ConversionRequest

        with tempfile.TemporaryDirectory(prefix="edgevision-") as workdir:
            request = ConversionRequest(graph, precision, plan, Path(workdir), self.options.timeout_s)
            made = CONVERTERS.resolve(target)(request)
        feed = self._feed()
        groups = {"pixels": {graph.input_name: self.pixels}, "outputs": self._outputs()}
        thresholds = {"fp32": float_thresholds(precision)}
        files = dict(made.files.values())
        if plan is not None:
            reference = run_graph(quantize_dequantize(graph, plan).SerializeToString(), feed, exact=True)
            groups["reference"] = reference
            thresholds = quantized_thresholds(self._outputs(), reference)
            files[PLAN] = plan.to_json().encode()
        files[GOLDEN] = golden_bytes(groups)
        manifest = Manifest(
            name=self.name,
            task=self.source.task,
            target=target,
            precision=precision,
            inputs=(TensorSpec(graph.input_name, "float32", graph.input_shape),),
            outputs=self._output_specs(),
            preprocess=self.preprocess,
            classes=self.classes,
            engine_files={role: path for role, (path, _) in made.files.items()},
            engine_options=dict(made.options),
            tensor_names=dict(made.tensor_names),
            thresholds=thresholds,
            provenance={
                "source": self.source.description,
                "graph_sha256": graph.sha256,
                "recipe": recipe,
                "calibration": {} if plan is None else dict(plan.calibration),
                "explanation": {**(plan.float_ops if plan is not None else {}), **made.explanation},
                "versions": {**_versions(), **made.versions},
            },
        )
        return Bundle(manifest, files)

    def _calibration(self) -> tuple[Graph, CalibrationTable]:
        """The treated graph and what was observed on it, from the workspace where it is there already."""
        if self._calibrated is not None:
            return self._calibrated
        assert self.samples is not None
        key = digest_of(
            self.source.graph.sha256,
            self.preprocess.digest,
            digest_of_samples(self.samples),
            self.options.equalize,
            __version__,
        )
        found = self.workspace.find_calibration(key)
        if found is None:
            found = self._calibrate(self.samples)
            self.workspace.keep_calibration(key, *found)
        self._calibrated = found
        return found

    def _calibrate(self, samples: Subset) -> tuple[Graph, CalibrationTable]:
        from edgevision_calibration.equalization import equalize
        from edgevision_calibration.observe import observe

        def pictures(chosen: Subset, label: str) -> Any:
            feed = (batch for batch, _ in batches(chosen, self.preprocess, 1))
            return track(feed, label, len(chosen))

        graph = self.source.graph
        if self.options.equalize:
            few = evenly_spaced(samples, min(32, len(samples)))
            graph = equalize(graph, pictures(few, "equalize")).graph
        table = observe(
            graph, pictures(samples, "calibrate"), preprocess_digest=self.preprocess.digest, source=samples.name
        )
        return graph, table

    def _plan(self, graph: Graph, table: CalibrationTable, target: str) -> QuantPlan:
        from edgevision_calibration.planning import make_plan
        from edgevision_calibration.scheme import scheme_for

        return make_plan(graph, table, scheme_for(target), ranges=self.options.ranges)

    def _feed(self) -> Any:
        import numpy as np

        return np.stack([self.preprocess.normalize(pixels) for pixels in self.pixels])

    def _outputs(self) -> dict[str, Any]:
        if self._golden_outputs is None:
            self._golden_outputs = run_graph(self.source.graph.to_bytes(), self._feed(), exact=False)
        return self._golden_outputs

    def _output_specs(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, str(value.dtype), (self.source.graph.input_shape[0], *value.shape[1:]))
            for name, value in self._outputs().items()
        )

    def _recipe(self, target: str, precision: str, graph: Graph, plan: QuantPlan | None) -> str:
        """Digest of everything that decides the bundle's content."""
        return digest_of(
            graph.sha256,
            target,
            precision,
            "" if plan is None else sha256_bytes(plan.to_json().encode()),
            self.preprocess.to_dict(),
            self.name,
            self.source.task,
            self.classes,
            sha256_bytes(self.pixels.tobytes()),
            _versions(),
        )


def _finished(path: Path, recipe: str) -> Bundle | None:
    """The bundle at ``path`` if it was made by the same recipe and is whole."""
    if not path.exists():
        return None
    try:
        bundle = Bundle.open(path)
    except BundleError:
        return None
    return bundle if bundle.manifest.provenance.get("recipe") == recipe else None


def _classes(source: Source, given: Sequence[str] | None, dataset: Dataset | None) -> tuple[str, ...]:
    """Class names: the caller's, the source's, or the data set's where the classifier has as many outputs."""
    if source.task != "classification":
        return tuple(given or source.classes)
    count = source.graph.shapes[source.graph.output_names[0]][1]
    if given is not None:
        if count is not None and len(given) != count:
            raise UsageError(f"the network has {count} classes; {len(given)} names were given")
        return tuple(given)
    if source.classes:
        return source.classes
    if dataset is not None and len(dataset.classes) == count:
        return dataset.classes
    return ()


def _versions() -> dict[str, str]:
    versions = {"edgevision": __version__}
    for package in ("onnx", "onnxruntime"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
