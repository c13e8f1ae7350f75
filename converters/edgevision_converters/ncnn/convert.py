"""`convert`: a canonical graph (and a plan) → `NcnnFiles`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.errors import ConversionError, EdgeVisionError, OutputError, UnsupportedOpError, UsageError
from edgevision.graph import Graph
from edgevision_calibration.plan import QuantPlan
from edgevision_calibration.scheme import COMPUTE_OPS
from edgevision_converters.child import run_python
from edgevision_converters.ncnn.cleanup import fuse_hardswish
from edgevision_converters.ncnn.match import match_layers
from edgevision_converters.ncnn.model import NcnnModel
from edgevision_converters.ncnn.pnnx import lower, unsupported
from edgevision_converters.ncnn.quantize import Quantized, quantize

if TYPE_CHECKING:
    from onnx import NodeProto

PRECISIONS = ("fp32", "fp16", "int8")

# FP32 differs from ONNX Runtime by the order of additions alone; below this something was lowered wrongly
_LEAST_COSINE = 0.999


@dataclass(frozen=True)
class NcnnFiles:
    """An ncnn model and how it relates to the graph it was made from.

    Attributes:
        param: the ``.param`` file.
        bin: the ``.bin`` file.
        precision: ``fp32``, ``fp16`` or ``int8``.
        inputs: graph input → blob.
        outputs: graph output → blob.
        output_shapes: graph output → shape without its batch.
        tensor_names: graph tensor → blob with the same values, for every pair that was found.
        integer_blobs: blob that holds integers → its step (real = step · integer).
        explanation: Conv, Gemm, ConvTranspose or MatMul node → how it runs and why.
        cosine: graph output → cosine similarity of the FP32 model with ONNX Runtime on random input.
    """

    param: bytes
    bin: bytes
    precision: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    output_shapes: Mapping[str, tuple[int, ...]]
    tensor_names: Mapping[str, str]
    integer_blobs: Mapping[str, float] = field(default_factory=dict)
    explanation: Mapping[str, str] = field(default_factory=dict)
    cosine: Mapping[str, float] = field(default_factory=dict)

    @property
    def engine_files(self) -> dict[str, tuple[str, bytes]]:
        """Role → path inside a bundle and content."""
        return {"param": ("engine/model.param", self.param), "bin": ("engine/model.bin", self.bin)}

    @property
    def engine_options(self) -> dict[str, Any]:
        """What the runtime backend must be told: `edgevision.bundle.Manifest.engine_options`."""
        return {
            "input_blobs": dict(self.inputs),
            "output_blobs": dict(self.outputs),
            "output_shapes": {name: list(shape) for name, shape in self.output_shapes.items()},
            "integer_blobs": dict(self.integer_blobs),
            "fp16": self.precision == "fp16",
            "int8": self.precision == "int8",
        }


def convert(
    graph: Graph,
    *,
    precision: str,
    plan: QuantPlan | None = None,
    workdir: Path | None = None,
    timeout_s: float = 600.0,
) -> NcnnFiles:
    """Convert a canonical graph to ncnn.

    Args:
        graph: the canonical graph: one input ``[batch, …]`` float32.
        precision: ``fp32``; ``fp16`` (weights stored in half the bytes, arithmetic in float16 where the processor
            has it); ``int8``, which needs a plan.
        plan: what is quantized and how; its scheme must have symmetric int8 activations.
        workdir: where the intermediate files go; by default a temporary folder.
        timeout_s: how long pnnx, and each run of the result, may take.

    Raises:
        UnsupportedOpError: ncnn has no layer for an op; names the op and the node.
        ConversionError: pnnx failed, or the FP32 model departs from ONNX Runtime.
        UsageError: an unknown precision, or a plan that does not fit.
        OutputError: the intermediate files cannot be written.
    """
    _check_request(graph, precision, plan)
    try:
        if workdir is not None:
            workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="edgevision-ncnn-", dir=workdir) as folder:
            return _convert(graph, precision, plan, Path(folder), timeout_s)
    except OSError as error:
        if isinstance(error, EdgeVisionError):
            raise
        where = workdir or tempfile.gettempdir()
        raise OutputError(f"cannot write working files in {where}: {error.strerror or error}") from error


def _check_request(graph: Graph, precision: str, plan: QuantPlan | None) -> None:
    if precision not in PRECISIONS:
        raise UsageError(f"ncnn has the precisions {', '.join(PRECISIONS)}; got {precision!r}")
    if precision != "int8":
        return
    if plan is None:
        raise UsageError("int8 for ncnn needs a quantization plan: calibrate the graph first")
    if not plan.scheme.symmetric:
        raise UsageError(f"ncnn takes symmetric int8 activations; the plan is for {plan.scheme.target}")
    if plan.graph_sha256 != graph.sha256:
        raise UsageError("the plan was made for another graph: calibrate this one and plan again")


def _convert(graph: Graph, precision: str, plan: QuantPlan | None, folder: Path, timeout_s: float) -> NcnnFiles:
    model, single = lower(graph, folder, timeout_s)
    model = fuse_hardswish(model)
    onnx_file = folder / "model.onnx"
    onnx_file.write_bytes(single.SerializeToString())
    found = _probe("compare", "comparing the FP32 model with ONNX Runtime", graph, model, onnx_file, timeout_s)
    outputs = {name: blob for name, (blob, _) in found["outputs"].items()}
    cosine = {name: value for name, (_, value) in found["outputs"].items()}
    tensor_of = {blob: tensor for blob, (tensor, _) in found["blobs"].items()}
    nodes = match_layers(model, graph, tensor_of)
    _check_parity(cosine, model, graph, tensor_of, nodes)
    shapes = {name: _without_batch(name, shape) for name, shape in found["shapes"].items()}
    quantized = Quantized(model)
    if precision == "int8" and plan is not None:
        quantized = quantize(model, nodes, graph, plan)
    elif precision == "fp16":
        quantized = Quantized(model.to_float16())
    if precision != "fp32":
        what = f"running the {precision} model"
        _probe("run", what, graph, quantized.model, onnx_file, timeout_s, fp16=precision == "fp16", outputs=outputs)
    param, data = quantized.model.to_bytes()
    return NcnnFiles(
        param=param,
        bin=data,
        precision=precision,
        inputs={graph.input_name: model.inputs[0]},
        outputs=outputs,
        output_shapes=shapes,
        tensor_names=_tensor_names(tensor_of, outputs),
        integer_blobs=quantized.steps,
        explanation=_explain(graph, nodes, precision, quantized.explanation),
        cosine=cosine,
    )


def _probe(
    function: str, doing: str, graph: Graph, model: NcnnModel, onnx_file: Path, timeout_s: float, **more: Any
) -> Any:
    """Call a function of `probe` in a child process on ``model``."""
    param, data = model.to_bytes()
    files = onnx_file.with_suffix(".param"), onnx_file.with_suffix(".bin")
    files[0].write_bytes(param)
    files[1].write_bytes(data)
    kwargs = {"onnx_file": str(onnx_file), "param_file": str(files[0]), "bin_file": str(files[1]), **more}
    try:
        return run_python(
            f"edgevision_converters.ncnn.probe:{function}",
            kwargs,
            timeout_s=timeout_s,
            what=f"ncnn, {doing},",
            advice="the model does not survive ncnn: convert to another target",
        )
    except UnsupportedOpError as error:
        kind, _, layer = str(error).partition(" ")
        raise unsupported(kind, layer, graph) from None


def _check_parity(
    cosine: Mapping[str, float],
    model: NcnnModel,
    graph: Graph,
    tensor_of: Mapping[str, str],
    nodes: Mapping[str, NodeProto],
) -> None:
    worst = min(cosine, key=lambda name: cosine[name])
    if cosine[worst] >= _LEAST_COSINE:
        return
    lost = next((layer for layer in model.layers if layer.tops[0] not in tensor_of and layer.type != "Input"), None)
    where = f"; the first layer that equals no tensor of the graph is {lost.name} ({lost.type})" if lost else ""
    raise ConversionError(
        f"the ncnn model departs from ONNX Runtime: output {worst!r} has cosine {cosine[worst]:.4f}, expected at "
        f"least {_LEAST_COSINE}{where}; pnnx lowered an op wrongly, so convert to another target"
    )


def _without_batch(name: str, shape: list[int]) -> tuple[int, ...]:
    if not shape or shape[0] != 1:
        raise ConversionError(
            f"output {name!r} has shape {shape} at batch 1; ncnn needs outputs whose first dimension is the batch"
        )
    return tuple(shape[1:])


def _tensor_names(tensor_of: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for blob, tensor in tensor_of.items():
        names.setdefault(tensor, blob)  # the branches of a Split repeat a tensor
    return {**names, **outputs}


def _explain(
    graph: Graph, nodes: Mapping[str, NodeProto], precision: str, decided: Mapping[str, str]
) -> dict[str, str]:
    explanation: dict[str, str] = {}
    matched = {node.name for node in nodes.values()}
    for node in graph.nodes:
        if node.op_type not in COMPUTE_OPS:
            continue
        if precision != "int8":
            explanation[node.name] = "float16 weights" if precision == "fp16" else "float32"
        elif node.name in decided:
            explanation[node.name] = decided[node.name]
        elif node.name in matched or node.op_type not in ("Conv", "Gemm"):
            explanation[node.name] = f"float: ncnn has no INT8 form of {node.op_type} here"
        else:
            explanation[node.name] = "float: its weights have no counterpart in the layers pnnx made"
    return explanation
