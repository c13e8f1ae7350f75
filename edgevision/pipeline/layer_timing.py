"""Layers timed alone on an engine: small graphs, the usual converters and runtime, the one timing loop."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevision.dependencies import require
from edgevision.errors import UsageError
from edgevision.files import ensure_writable
from edgevision.progress import Progress
from edgevision.runtime.cache import cache_folder

if TYPE_CHECKING:
    from edgevision.bundle import Bundle
    from edgevision.checkpoint import Checkpoint
    from edgevision.graph import Graph
    from edgevision.pruning.latency_table import LatencyTable, LayerPoint

# a layer is run so many times side by side, so that what every call costs and reading the input weigh less
COPIES = 3

# every layer is timed in so many passes and the least counts: on a shared machine the figure disturbed least
_PASSES = 3

# ncnn's converter starts processes, so many layers share one graph, of which ncnn runs only what is asked for; but
# every session loads them all
_SHARED_POINTS, _SHARED_WEIGHTS = 24, 3_000_000

_OPSET = 17


def device_name(target: str) -> str:
    """What a latency holds for: the processor with its instructions, or the GPU."""
    from edgevision.devices.cpu import cpu_info
    from edgevision.devices.gpu import nvidia_gpus

    if target == "tensorrt":
        gpus, _ = nvidia_gpus()
        return gpus[0].name if gpus else "no GPU"
    cpu = cpu_info()
    return f"{cpu.name} ({cpu.architecture}: {' '.join(cpu.features or ()) or 'features unknown'})"


def empty_table(target: str, threads: int = 1) -> LatencyTable:
    """A table of this machine's, without times.

    Raises:
        MissingDependencyError: the engine is not installed.
        UsageError: no such engine.
    """
    from edgevision.pruning.latency_table import LatencyTable
    from edgevision_converters.target import CONVERTERS

    CONVERTERS.resolve(target)
    engine = require(target, purpose=f"measure latency on {target}")
    return LatencyTable(target, str(engine.__version__), device_name(target), threads)


def cached_table_path(table: LatencyTable) -> Path:
    """Where the times of this engine on this machine are kept between runs; see `cache_folder`."""
    from edgevision.pipeline.workspace import digest_of

    return cache_folder() / "latency" / f"{table.target}-{digest_of(table.identity)}.json"


def measure_table(points: Sequence[LayerPoint], path: Path, *, target: str, threads: int = 1) -> LatencyTable:
    """Time what ``path`` does not hold yet; saved as it goes, so that an interrupted measurement goes on.

    Raises:
        UsageError: ``path`` is another engine's or machine's table, or damaged.
        MissingDependencyError: the engine is not installed.
        EdgeVisionError: a layer cannot be converted or run.
    """
    from edgevision.pruning.latency_table import LatencyTable

    table = empty_table(target, threads)
    if path.exists():
        earlier = LatencyTable.open(path)
        if earlier.identity != table.identity:
            differing = [name for name, value in table.identity.items() if earlier.identity[name] != value]
            raise UsageError(
                f"{path} is a latency table of another machine or engine ({', '.join(differing)} differ): write to "
                "another file, or remove it"
            )
        table = earlier
    missing = table.missing(points)
    if not missing:
        return table
    ensure_writable(path.parent)
    with Progress(f"time {len(missing)} layers and widths on {target}", len(missing)) as progress:
        for chunk in _chunks(missing, target):
            for point, milliseconds in _time(chunk, target, threads).items():
                table.layers[point.key] = milliseconds
            table.save(path)
            progress.advance(len(chunk), f"{len(table.layers)} in the table")
    return table


def measure_latency_table(source: str | Path | Checkpoint, out: str | Path, *, target: str) -> LatencyTable:
    """Time every layer of a network, at every width that pruning may give it, and write the table to a file.

    Run on the device that matters; ``edgevision prune --latency R --latency-table FILE`` takes the file anywhere.

    Args:
        source: a Checkpoint or its folder.
        out: the JSON file; one that is there is completed.
        target: the engine.

    Raises:
        as `measure_table`; CheckpointError: ``source`` cannot be read.
    """
    require("torch", purpose="prune")
    require("torch_pruning", purpose="prune")
    from edgevision.checkpoint import Checkpoint
    from edgevision.pruning import CostModel, find_groups
    from edgevision.pruning.latency_table import points_of
    from edgevision.pruning.prune import input_shape_of

    model = (source if isinstance(source, Checkpoint) else Checkpoint.open(source)).build()
    costs = CostModel.of(model, find_groups(model, input_shape_of(model)))
    path = Path(out)
    table = measure_table(points_of(costs.layers), path, target=target)
    table.save(path)
    return table


def _chunks(points: Sequence[LayerPoint], target: str) -> Iterator[list[LayerPoint]]:
    """Points that are measured together: of one input size, and of one input except where they share a graph."""
    shares = target == "ncnn"
    chunk: list[LayerPoint] = []
    weights = 0
    for point in sorted(points, key=lambda point: (point.input_size, point.in_channels, point.key)):
        size = COPIES * point.out_channels * (point.in_channels // point.groups) * int(np.prod(point.kernel))
        first = chunk[0] if chunk else point
        together = point.input_size == first.input_size
        together = together and (shares or point.in_channels == first.in_channels)
        if not together or len(chunk) == _SHARED_POINTS or (chunk and weights + size > _SHARED_WEIGHTS):
            yield chunk
            chunk, weights = [], 0
        chunk.append(point)
        weights += size
    if chunk:
        yield chunk


def _time(chunk: Sequence[LayerPoint], target: str, threads: int) -> dict[LayerPoint, float]:
    """Milliseconds of each layer: of `COPIES` of them on one input, less what reading the input alone takes."""
    least: dict[LayerPoint | int, float] = {}
    bundles = _bundles(chunk, target)
    for _ in range(_PASSES):
        for what, bundle in bundles.items():
            found = _milliseconds(bundle, threads)
            least[what] = min(found, least.get(what, found))
    return {point: max(0.0, least[point] - least[point.in_channels]) / COPIES for point in chunk}


def _milliseconds(bundle: Bundle, threads: int) -> float:
    from edgevision.runtime.session import load
    from edgevision_benchmarks.timing import TimingOptions, combine, measure

    timing = TimingOptions(
        min_runs=7, min_seconds=0.006, max_seconds=1.0, window=5, max_warmup_runs=15, max_warmup_seconds=0.3
    )
    with load(bundle, threads=threads) as session:
        spec = session.inputs[0]
        batch = np.random.default_rng(0).random([size or 1 for size in spec.shape], np.float32)
        return combine([measure(partial(session.infer, {spec.name: batch}), timing)]).round_p50_ms[0]


def _bundles(chunk: Sequence[LayerPoint], target: str) -> dict[LayerPoint | int, Bundle]:
    """What is to be timed → its bundle: the layers, and for every number of input channels the reading of them."""
    what: list[LayerPoint | int] = [*dict.fromkeys(point.in_channels for point in chunk), *chunk]
    size = chunk[0].input_size
    if target != "ncnn":
        return {one: _bundle(probe_graph([one], size), target, 0) for one in what}
    graph = probe_graph(what, size)
    shared = _bundle(graph, target, 0)
    return {one: _only(shared, number) for number, one in enumerate(what)}


def _bundle(graph: Graph, target: str, number: int) -> Bundle:
    from edgevision.bundle import Bundle, Manifest
    from edgevision.preprocess import Preprocess
    from edgevision.runtime.tensors import TensorSpec
    from edgevision_converters.target import CONVERTERS, ConversionRequest

    with tempfile.TemporaryDirectory(prefix="edgevision-") as workdir:
        made = CONVERTERS.resolve(target)(ConversionRequest(graph, "fp32", None, Path(workdir)))
    height, width = (int(size or 1) for size in graph.input_shape[2:])
    manifest = Manifest(
        name="layers",
        task="tensors",
        target=target,
        precision="fp32",
        inputs=(TensorSpec(graph.input_name, "float32", graph.input_shape),),
        outputs=tuple(TensorSpec(name, "float32", graph.shapes[name]) for name in graph.output_names),
        preprocess=Preprocess(size=(height, width)),
        engine_files={role: path for role, (path, _) in made.files.items()},
        engine_options=dict(made.options),
        tensor_names=dict(made.tensor_names),
    )
    return Bundle(manifest, dict(made.files.values()))


def _only(bundle: Bundle, number: int) -> Bundle:
    """The same engine files asked for one output alone."""
    from dataclasses import replace

    from edgevision.bundle import Bundle

    output = bundle.manifest.outputs[number]
    options = dict(bundle.manifest.engine_options)
    for name in ("output_blobs", "output_shapes"):
        options[name] = {output.name: options[name][output.name]}
    manifest = replace(bundle.manifest, outputs=(output,), engine_options=options)
    return Bundle(manifest, {name: bundle.read(name) for name in bundle.manifest.engine_files.values()})


def probe_graph(what: Sequence[LayerPoint | int], size: Sequence[int]) -> Graph:
    """A canonical graph with one output for each layer, or for each number of channels that is only read.

    Every output ends in a mean over its places, so that no engine's time is spent on handing large tensors out.

    Args:
        what: layers, and numbers of channels.
        size: height and width of the input; the input has the most channels that any of them takes.
    """
    onnx = require("onnx", purpose="measure latency")
    from edgevision.graph import Graph

    channels = max(one if isinstance(one, int) else one.in_channels for one in what)
    builder = _Builder(onnx, channels)
    outputs = [builder.output(one) for one in what]
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        builder.nodes,
        "layers",
        [helper.make_tensor_value_info("input", kind, ["batch", channels, *size])],
        [helper.make_tensor_value_info(name, kind, ["batch", width]) for name, width in outputs],
        builder.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    return Graph(onnx.shape_inference.infer_shapes(model, strict_mode=True))


class _Builder:
    """Nodes and constants of a probe graph."""

    def __init__(self, onnx: Any, channels: int) -> None:
        self._onnx = onnx
        self._random = np.random.default_rng(0)
        self._inputs = {channels: "input"}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def output(self, what: LayerPoint | int) -> tuple[str, int]:
        """Name and width of the output that needs one layer, or only the input's channels."""
        if isinstance(what, int):
            return self._node("Flatten", [self._mean(self._input(what))]), what
        source = self._input(what.in_channels)
        parts = [self._layer(what, source) for _ in range(COPIES)]
        return self._node("Concat", parts, axis=1), COPIES * what.out_channels

    def _layer(self, point: LayerPoint, source: str) -> str:
        if point.kind == "linear":
            flat = self._node("Flatten", [source])
            weights = self._parameters(point, (point.out_channels, point.in_channels))
            return self._node("Gemm", [flat, *weights], transB=1)
        weights = self._parameters(
            point, (point.out_channels, point.in_channels // point.groups, *point.kernel)
        )  # fmt: skip
        layer = self._node(
            "Conv", [source, *weights], kernel_shape=point.kernel, strides=point.stride, dilations=point.dilation,
            pads=[*point.padding, *point.padding], group=point.groups,
        )  # fmt: skip
        return self._node("Flatten", [self._mean(self._node("Relu", [layer]))])

    def _input(self, channels: int) -> str:
        if channels not in self._inputs:
            bounds = [self._constant(np.array([value], np.int64)) for value in (0, channels, 1)]
            self._inputs[channels] = self._node("Slice", ["input", *bounds])
        return self._inputs[channels]

    def _mean(self, name: str) -> str:
        return self._node("GlobalAveragePool", [name])

    def _parameters(self, point: LayerPoint, shape: tuple[int, ...]) -> list[str]:
        scale = np.float32(np.prod(shape[1:]) ** -0.5)
        names = [self._constant(self._random.standard_normal(shape, np.float32) * scale)]
        if point.bias:
            names.append(self._constant(self._random.random(shape[0], np.float32)))
        return names

    def _constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(value, name))
        return name

    def _node(self, op: str, inputs: Iterable[str], **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name


__all__ = [
    "cached_table_path",
    "device_name",
    "empty_table",
    "measure_latency_table",
    "measure_table",
    "probe_graph",
]
