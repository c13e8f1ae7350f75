"""The seam between the pipeline and a target: a converter turns a graph and a plan into engine files.

To add a target: write a module with ``convert(request) -> EngineFiles``, add a line to `CONVERTERS`, a scheme to
`edgevision_calibration.scheme.SCHEMES` and a backend to `edgevision.runtime.backend.BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgevision.detection.postprocess import Postprocess
from edgevision.errors import UsageError
from edgevision.graph import Graph
from edgevision.registry import Registry
from edgevision_calibration.plan import QuantPlan

if TYPE_CHECKING:
    from onnx import ModelProto

PRECISIONS = ("fp32", "fp16", "int8")

# what each engine has; fp16 is missing where the engine would only convert back and forth
PRECISIONS_OF: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "fp16", "int8"),
    "ncnn": ("fp32", "fp16", "int8"),
    "tensorrt": ("fp32", "fp16", "int8"),
}

CONVERTERS = Registry(
    "target",
    "edgevision.converters",
    {
        "onnxruntime": "edgevision_converters.onnxruntime:convert",
        "openvino": "edgevision_converters.openvino:convert",
        "ncnn": "edgevision_converters.ncnn.target:convert",
        "tensorrt": "edgevision_converters.tensorrt.target:convert",
    },
)


# whose engines decode and suppress a detector's boxes inside the graph
NMS_IN_GRAPH = ("onnxruntime", "openvino", "tensorrt")


@dataclass(frozen=True)
class ConversionRequest:
    """What a converter is asked for.

    Attributes:
        graph: the graph to convert; for ``int8`` the one the plan belongs to.
        precision: ``fp32``, ``fp16`` or ``int8``.
        plan: for ``int8``.
        workdir: an existing folder for intermediate files, the converter's own.
        timeout_s: how long a native tool may take.
        nms: what a detector's graph is to do with its outputs, so that detections come out of it, for targets of
            `NMS_IN_GRAPH`; None leaves the outputs as they are.
    """

    graph: Graph
    precision: str
    plan: QuantPlan | None
    workdir: Path
    timeout_s: float = 600.0
    nms: Postprocess | None = None

    def with_nms(self, model: ModelProto, *, plugin: bool = False) -> ModelProto:
        """The graph's model, in whatever form it is lowered, with `nms` behind it; as it is where there is none."""
        if self.nms is None:
            return model
        # here: onnx is needed
        from edgevision_converters.end2end import append_detections

        _, _, height, width = self.graph.input_shape
        assert height is not None
        assert width is not None
        shapes = {name: self.graph.shapes[name] for name in self.graph.output_names}
        return append_detections(model, shapes, self.nms, (height, width), plugin=plugin)


@dataclass(frozen=True)
class EngineFiles:
    """What a converter made.

    Attributes:
        files: role → (path inside the bundle, content).
        options: what the runtime backend must be told, plain values.
        tensor_names: tensor of the graph → name inside the engine, where they differ.
        explanation: node → how the engine runs it and why, where the converter knows more than the plan.
        versions: tools that made the files, name → version.
    """

    files: Mapping[str, tuple[str, bytes]]
    options: Mapping[str, Any] = field(default_factory=dict)
    tensor_names: Mapping[str, str] = field(default_factory=dict)
    explanation: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


class Converter(Protocol):
    """Signature of a target's ``convert``."""

    def __call__(self, request: ConversionRequest) -> EngineFiles:
        """Make the engine files.

        Raises:
            UnsupportedOpError: the target has no equivalent of an op; names the op and the node.
            ConversionError: the native tool failed, crashed or ran out of time.
        """
        ...


def check_precision(target: str, precision: str) -> None:
    """Refuse a precision that a target does not have.

    Raises:
        UsageError: no such target or precision, or the target lacks it; says which have it.
    """
    CONVERTERS.resolve(target)
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}")
    if precision not in PRECISIONS_OF.get(target, PRECISIONS):
        having = [name for name, precisions in PRECISIONS_OF.items() if precision in precisions]
        raise UsageError(
            f"{target} runs no {precision} of its own on a processor (it would convert back and forth): "
            f"use {', '.join(PRECISIONS_OF[target])}, or {precision} on {', '.join(having)}"
        )


def check_nms(target: str) -> None:
    """Refuse suppression inside the graph for a target that has none.

    Raises:
        UsageError: says which have it.
    """
    if target not in NMS_IN_GRAPH:
        why = "its detection layers are those of old networks" if target == "ncnn" else "nobody wrote that"
        raise UsageError(
            f"{target} does not suppress boxes inside the graph ({why}): leave it out of --targets, which may be "
            f"{', '.join(NMS_IN_GRAPH)}, or convert for it without --nms graph"
        )
