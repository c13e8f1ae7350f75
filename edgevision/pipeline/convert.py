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
from edgevision.data import open_dataset
from edgevision.data.base import Dataset, evenly_spaced
from edgevision.dependencies import require
from edgevision.detection.postprocess import Postprocess, parse_postprocess
from edgevision.errors import BundleError, CalibrationError, EdgeVisionError, OutputError, UsageError
from edgevision.files import ensure_writable, sha256_bytes
from edgevision.pipeline.compress import (
    GOLDEN_PICTURES,
    compression_provenance,
    name_suffix,
    packed,
    parse_compress,
    shared_bits,
    shared_net,
)
from edgevision.pipeline.detector import as_detector, detector_classes
from edgevision.pipeline.end2end import (
    NMS,
    check_nms_in_graph,
    end2end,
    end2end_thresholds,
    golden_detections,
    name_of_nms,
)
from edgevision.pipeline.golden import (
    COUNT,
    box_thresholds,
    float_thresholds,
    golden_pixels,
    quantized_thresholds,
    run_graph,
)
from edgevision.pipeline.planner import Planner
from edgevision.pipeline.preprocessing import fit_preprocess
from edgevision.pipeline.quantize import open_trained, trained_source
from edgevision.pipeline.search import Budget
from edgevision.pipeline.sensitivity import open_validation, search_precision
from edgevision.pipeline.workspace import Workspace, digest_of
from edgevision.preprocess import Preprocess
from edgevision.progress import Progress, track
from edgevision.registry import unknown_name
from edgevision.runtime.tensors import TensorSpec

if TYPE_CHECKING:
    from torch import nn

    from edgevision.checkpoint import Checkpoint
    from edgevision.graph import Graph
    from edgevision_calibration.plan import QuantPlan
    from edgevision_calibration.qat.model import QuantizedModel
    from edgevision_calibration.table import CalibrationTable
    from edgevision_calibration.weight_sharing import SharedNet
    from edgevision_converters.export import Source
    from edgevision_converters.target import EngineFiles

CALIBRATION_IMAGES = 300
# packages whose version decides what a target's converter writes
_CONVERTER_PACKAGES = {"openvino": ("openvino",), "ncnn": ("pnnx", "ncnn")}
CONVERT_METHODS = ("default", "long")


@dataclass(frozen=True)
class ConvertOptions:
    """How `convert` works, besides what it converts.

    Attributes:
        calibration_images: pictures the ranges are taken from, spread evenly over the data.
        ranges: range method: ``mse``, ``minmax``, ``percentile``, ``entropy``, ``moving_average``, or ``auto`` for the
            one that serves each tensor best, measured.
        equalize: balance the ranges of channels before calibration.
        timeout_s: how long a native converter may take, seconds.
        force: convert again what is finished already.
        max_drop: for ``int8``: leave as many layers in float as it takes to lose at most so many points (0..100) on
            the validation data; None quantizes all that the target can.
        time_budget_s: seconds that each target may take for calibration, learned rounding and that search together;
            the first two are not cut short, the search has what they leave. None for no limit.
        method: for ``int8``: ``default``, or ``long`` to learn weights and steps, see
            `edgevision.pipeline.long_method.learn_long` (minutes).
        compress: store bundles packed: ``lossless``, or with weights that share values, each told by so many bits
            (1..8); None stores engine files as they are.
        decoder: for other people's detectors, how outputs become boxes: a `Postprocess`, or ``NAME[:key=value,…]``,
            see `edgevision.detection.postprocess.parse_postprocess`. Ours bring their own.
        nms: where a detector's outputs are decoded and suppressed: on the ``device``, where thresholds stay open, or
            in the ``graph``, by the decoder's thresholds, so that the engine gives detections.
    """

    calibration_images: int = CALIBRATION_IMAGES
    ranges: str = "mse"
    equalize: bool = True
    timeout_s: float = 600.0
    force: bool = False
    max_drop: float | None = None
    time_budget_s: float | None = None
    method: str = "default"
    compress: str | int | None = None
    decoder: str | Postprocess | None = None
    nms: str = "device"

    def __post_init__(self) -> None:
        object.__setattr__(self, "compress", parse_compress(self.compress))
        if self.decoder is not None and not isinstance(self.decoder, Postprocess):
            object.__setattr__(self, "decoder", parse_postprocess(self.decoder))
        if self.calibration_images < 1:
            raise UsageError(f"calibration images must be 1 or more; got {self.calibration_images}")
        if self.timeout_s <= 0:
            raise UsageError(f"the time limit must be above 0 seconds; got {self.timeout_s}")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise UsageError(f"the greatest loss must be 0 points or more; got {self.max_drop}")
        if self.time_budget_s is not None and not self.time_budget_s > 0:
            raise UsageError(f"the time budget must be above 0 seconds; got {self.time_budget_s}")
        if self.method not in CONVERT_METHODS:
            raise UsageError(unknown_name("method", self.method, CONVERT_METHODS))
        if self.nms not in NMS:
            raise UsageError(unknown_name("place of the suppression", self.nms, NMS))


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
    val_data: str | Path | Dataset | None = None,
    options: ConvertOptions | None = None,
) -> list[Bundle]:
    """Convert a model to bundles, one for each target and precision.

    What is finished already in ``out`` is reused; interrupted work goes on where it stopped.

    Args:
        source: an ONNX file, a Checkpoint folder, a zoo name, a torch module, a Checkpoint or a canonical graph.
        targets: ``onnxruntime``, ``openvino``, ``ncnn``, ``tensorrt``.
        precision: ``fp32``, ``fp16``, ``int8``, or several of them.
        data: pictures to calibrate with (needed for ``int8``) and to take golden inputs from.
        out: folder of the bundles, each ``NAME-TARGET-PRECISION.evb``; compressed ones have ``-6bit`` or
            ``-lossless`` behind the precision, and those that suppress in the graph ``-nms`` behind the name.
        preprocess: a preset's name, a TOML file or a `Preprocess`; needed where the source does not say.
        weights: weight file, for a zoo name.
        input_size: height and width, for sources that leave them open.
        name: name of the bundles; by default the source's.
        classes: class names by index; by default the source's, else the data set's where their number fits.
        model_arguments: further arguments of the zoo's builder, e.g. ``{"width": 0.5}``.
        val_data: pictures, best with labels, to measure the loss on, where ``options.max_drop`` limits it.
        options: see `ConvertOptions`.

    Raises:
        UsageError: a target, precision or preprocess that does not exist or is missing.
        ModelError: the model cannot be used.
        CalibrationError: ``int8`` without pictures.
        DataError: a picture cannot be read.
        ConversionError: a native converter failed.
        OutputError: ``out`` cannot be written.
    """
    precisions = [precision] if isinstance(precision, str) else list(dict.fromkeys(precision))
    targets = list(dict.fromkeys(targets))
    job = open_job(
        source,
        targets=targets,
        precisions=precisions,
        data=data,
        out=out,
        preprocess=preprocess,
        weights=weights,
        input_size=input_size,
        name=name,
        classes=classes,
        model_arguments=model_arguments,
        val_data=val_data,
        options=options,
    )
    work = [(target, wanted) for wanted in precisions for target in targets]
    return [job.bundle(target, wanted) for target, wanted in track(work, "convert", len(work))]


def open_job(
    source: str | Path | nn.Module | Checkpoint | Graph,
    *,
    targets: Sequence[str],
    precisions: Sequence[str],
    data: str | Path | Dataset | None = None,
    out: str | Path = "bundles",
    preprocess: str | Path | Preprocess | None = None,
    weights: str | Path | None = None,
    input_size: tuple[int, int] | None = None,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    val_data: str | Path | Dataset | None = None,
    options: ConvertOptions | None = None,
) -> Job:
    """Check what was asked for and read the model; see `convert` for the arguments and what is raised."""
    from edgevision_converters.target import check_precision

    options = options or ConvertOptions()
    if not targets or not precisions:
        raise UsageError("name at least one target and one precision, e.g. --targets openvino,ncnn --precision int8")
    for target in targets:
        for wanted in precisions:
            check_precision(target, wanted)
    require("onnx", purpose="convert models")
    require("onnxruntime", purpose="convert models", extra="convert")
    from edgevision_converters.export import open_source

    dataset = None if data is None else open_dataset(data, split="train")
    trained = open_trained(source)
    if "int8" in precisions and dataset is None and trained is None:
        raise CalibrationError("int8 needs pictures to calibrate with: give --data KIND:PATH, e.g. --data photos/")
    if dataset is not None and not len(dataset):
        raise CalibrationError(f"{dataset.name} holds no pictures to calibrate with: give --data a folder that does")
    if trained is not None and options.max_drop is not None:
        raise UsageError(
            "a net trained for integers keeps the layers it was trained with: leave --max-drop out, or convert the "
            "float Checkpoint it was trained from"
        )
    ensure_writable(out)
    with Progress("read the model"):
        opened = (
            trained_source(trained)
            if trained is not None
            else open_source(
                source,
                weights=weights,
                input_size=input_size,
                model_arguments=model_arguments,
                **({} if not classes else {"num_classes": len(classes)} if weights else {}),
            )
        )
    assert not isinstance(options.decoder, str)
    opened, postprocess = as_detector(opened, options.decoder)
    if options.nms == "graph":
        check_nms_in_graph(targets, postprocess)
    job = Job(
        opened,
        (name or opened.name) + name_of_nms(options.nms),
        fit_preprocess(preprocess, opened.preprocess, opened.graph),
        dataset,
        () if postprocess is not None else _classes(opened, classes, dataset),
        Path(out),
        options,
        open_validation(val_data, options.max_drop),
        trained,
    )
    if postprocess is not None:
        job.detect(postprocess, classes)
    return job


class Job(Planner):
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
        validation: Dataset | None = None,
        trained: QuantizedModel | None = None,
    ) -> None:
        samples = None if dataset is None else evenly_spaced(dataset, options.calibration_images)
        super().__init__(source, preprocess, samples, Workspace(out), options, trained)
        self.validation = validation
        self.name = name
        self.classes = classes
        self.out = out
        self.pixels = golden_pixels(samples, preprocess, GOLDEN_PICTURES if options.compress else COUNT)
        self.dataset = dataset
        self.postprocess: Postprocess | None = None
        self._golden_outputs: dict[str, Any] | None = None

    def detect(self, postprocess: Postprocess, classes: Sequence[str] | None) -> None:
        """Make bundles of a detector.

        Raises:
            UsageError: its outputs cannot be decoded so, or ``classes`` are not as many as it has.
        """
        self.classes = detector_classes(
            postprocess,
            self._outputs(),
            self.preprocess.size,
            given=classes,
            known=self.source.classes,
            dataset=self.dataset,
        )
        self.postprocess = postprocess

    def bundle(self, target: str, precision: str) -> Bundle:
        """The bundle of one target and precision, reused where it is finished already."""
        graph, plan = self.quantized(target) if precision == "int8" else (self._float_graph(), None)
        recipe = self._recipe(target, precision, graph, plan)
        path = self.out / f"{self.name}-{target}-{precision}{name_suffix(self.options.compress)}{SUFFIX}"
        if not self.options.force and (finished := _finished(path, recipe)) is not None:
            return finished
        net = shared_net(graph, plan, self._table(precision), self.options.compress)
        self.workspace.keep_graph(net.graph)
        nms = self.postprocess if self.options.nms == "graph" else None
        bundle = self._make(target, precision, net, recipe, nms)
        if self.options.compress is not None:
            bundle = packed(bundle, net)
        bundle.save(path)
        return bundle

    def _float_graph(self) -> Graph:
        """The graph of float bundles: the calibrated one where weights are shared, as like channels share best."""
        shares = shared_bits(self.options.compress) is not None and self.samples is not None
        return self.calibration()[0] if shares and self.trained is None else self.source.graph

    def _table(self, precision: str) -> CalibrationTable | None:
        """What was observed on the graph that is converted; None where no pictures were run."""
        if self.trained is not None:
            return self.trained.table if precision == "int8" else None
        return None if self.samples is None or shared_bits(self.options.compress) is None else self.calibration()[1]

    def _make(self, target: str, precision: str, net: SharedNet, recipe: str, nms: Postprocess | None = None) -> Bundle:
        from edgevision_converters.qdq import quantize_dequantize

        graph, plan = net.graph, net.plan
        made = self._engine_files(target, precision, graph, plan, nms)
        feed = self._feed()
        groups = {"pixels": {graph.input_name: self.pixels}, "outputs": self._outputs()}
        thresholds = {"fp32": float_thresholds(precision)}
        files = dict(made.files.values())
        if plan is not None:
            reference = run_graph(quantize_dequantize(graph, plan).SerializeToString(), feed, exact=True)
            groups["reference"] = reference
            thresholds = quantized_thresholds(self._outputs(), reference)
            files[PLAN] = plan.to_json().encode()
        elif net.layers:
            groups["reference"] = run_graph(graph.to_bytes(), feed, exact=False)
            kept = quantized_thresholds(self._outputs(), groups["reference"])
            thresholds = {"fp32": kept["fp32"], "reference": float_thresholds(precision)}
        postprocess = self.postprocess
        if nms is not None:
            postprocess, thresholds = end2end(nms), end2end_thresholds(list(thresholds))
            groups = golden_detections(groups, nms, self.preprocess.size)
        if postprocess is not None:
            thresholds = box_thresholds(thresholds, postprocess, self.preprocess, groups, precision)
        files[GOLDEN] = golden_bytes(groups, compress=self.options.compress is None)
        manifest = Manifest(
            name=self.name,
            task=self.source.task,
            target=target,
            precision=precision,
            inputs=(TensorSpec(graph.input_name, "float32", graph.input_shape),),
            outputs=self._specs(groups["outputs"]),
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
                "calibration": {} if plan is None else {**plan.calibration, "findings": self.findings()},
                "explanation": {**(plan.float_ops if plan is not None else {}), **made.explanation},
                "versions": {**_versions(target), **made.versions},
                **compression_provenance(net, self.options.compress),
            },
            postprocess=postprocess,
        )
        return Bundle(manifest, files)

    def _engine_files(
        self, target: str, precision: str, graph: Graph, plan: QuantPlan | None, nms: Postprocess | None
    ) -> EngineFiles:
        from edgevision_converters.target import CONVERTERS, ConversionRequest

        try:
            with tempfile.TemporaryDirectory(prefix="edgevision-") as workdir:
                request = ConversionRequest(graph, precision, plan, Path(workdir), self.options.timeout_s, nms)
                made: EngineFiles = CONVERTERS.resolve(target)(request)
                return made
        except OSError as error:
            if isinstance(error, EdgeVisionError):
                raise
            raise OutputError(
                f"cannot write working files for {target}: {error}; make room, or set TMPDIR to a folder that has it"
            ) from error

    def quantized(self, target: str) -> tuple[Graph, QuantPlan]:
        """The graph that is converted to int8 and its plan: as it was trained, or planned, learned and searched."""
        if self.trained is not None:
            return self.trained.graph, self.trained.plan_for(target)
        # from before the calibration: the budget is for all that a target waits for
        budget = Budget(self.options.time_budget_s)
        if self.options.max_drop is None or self.validation is None:
            return self.learned(target)
        return search_precision(self, target, self.validation, max_drop=self.options.max_drop, budget=budget)

    @property
    def variant(self) -> str:
        """Bits of the weights that the bundles share, as they are tried with them."""
        return str(shared_bits(self.options.compress) or "")

    def trial(self, engine: str, plan: QuantPlan | None, graph: Graph | None = None) -> Bundle:
        """An unsaved bundle of a plan and its graph, by default the calibrated one, or of the model in FP32."""
        if plan is None:
            return self._make(engine, "fp32", shared_net(self.source.graph, None, None, None), "trial")
        calibrated, table = self.calibration()
        shared = self.options.compress if shared_bits(self.options.compress) else None
        return self._make(engine, "int8", shared_net(graph or calibrated, plan, table, shared), "trial")

    def _feed(self) -> Any:
        import numpy as np

        return np.stack([self.preprocess.normalize(pixels) for pixels in self.pixels])

    def _outputs(self) -> dict[str, Any]:
        if self._golden_outputs is None:
            self._golden_outputs = run_graph(self.source.graph.to_bytes(), self._feed(), exact=False)
        return self._golden_outputs

    def _specs(self, outputs: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, str(value.dtype), (self.source.graph.input_shape[0], *value.shape[1:]))
            for name, value in outputs.items()
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
            _versions(target),
            *([] if self.options.compress is None else [self.options.compress]),
            *([] if self.postprocess is None else [self.postprocess.to_dict()]),
            *([] if self.options.nms == "device" else [self.options.nms]),
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


def _versions(target: str) -> dict[str, str]:
    """Versions of what decides a bundle's content: another converter makes another bundle."""
    versions = {"edgevision": __version__}
    for package in ("onnx", "onnxruntime", *_CONVERTER_PACKAGES.get(target, ())):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
