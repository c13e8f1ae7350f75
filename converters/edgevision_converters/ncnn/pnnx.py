"""Canonical ONNX → FP32 ``.param``/``.bin`` by pnnx, ncnn's own converter, in a child process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgevision.dependencies import require
from edgevision.errors import ConversionError, UnsupportedOpError
from edgevision.graph import Graph
from edgevision_converters.child import run_tool
from edgevision_converters.ncnn.model import NcnnModel
from edgevision_converters.ncnn.prepare import rewrite_for_pnnx, with_batch_of_one

if TYPE_CHECKING:
    from onnx import ModelProto

_ADVICE = "the graph holds something pnnx does not take: try exporting it anew, or another target"

# where the layer name pnnx leaves behind is far from the op's own
_ONNX_NAME = {"gt": "greater", "lt": "less", "ge": "greaterorequal", "le": "lessorequal", "eq": "equal", "to": "cast"}


def lower(graph: Graph, workdir: Path, timeout_s: float = 600.0) -> tuple[NcnnModel, ModelProto]:
    """Convert a canonical graph to an FP32 ncnn model.

    Args:
        graph: the canonical graph.
        workdir: a folder of its own for the files pnnx reads and leaves behind.
        timeout_s: how long pnnx may take; the largest networks of the zoo take 3 s.

    Returns:
        The model as pnnx made it, and the graph with its batch fixed to 1 that pnnx was given.

    Raises:
        UnsupportedOpError: ncnn has no layer for an op; names the op and the node.
        ConversionError: pnnx failed, crashed or ran out of time.
    """
    refuse_foreign_ops(graph)
    model = rewrite_for_pnnx(with_batch_of_one(graph))
    (workdir / "model.onnx").write_bytes(model.SerializeToString())
    # its executable: the Python wrapper ignores fp16=False, and runs without a time limit
    executable = require("pnnx", purpose="convert to ncnn").EXEC_PATH
    done = run_tool(
        [executable, "model.onnx", "fp16=0"],
        timeout_s=timeout_s,
        cwd=workdir,
        what="pnnx, converting the graph to ncnn,",
        advice=_ADVICE,
        env={"OMP_NUM_THREADS": "1"},
    )
    param, weights = workdir / "model.ncnn.param", workdir / "model.ncnn.bin"
    if not param.is_file() or not weights.is_file():
        lines = "\n".join(done.stdout.splitlines()[-8:])
        raise ConversionError(f"pnnx wrote no ncnn model; {_ADVICE}. Its last output:\n{lines}")
    text = param.read_text(encoding="utf-8")
    refuse_leftovers(text, graph)
    return NcnnModel.from_bytes(text, weights.read_bytes()), model


def refuse_foreign_ops(graph: Graph) -> None:
    """Refuse ops outside the ONNX standard. Raises `UnsupportedOpError` naming the op and the node."""
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedOpError(
                f"ncnn has no layer for op {node.op_type} of domain {node.domain!r} (node {node.name!r}); "
                "replace it by standard ops before converting"
            )


def refuse_leftovers(param: str, graph: Graph) -> None:
    """Refuse a ``.param`` in which pnnx left layers ncnn does not have (it only warns about them).

    Raises:
        UnsupportedOpError: names the op and the node of the graph, as far as they can be told.
    """
    for line in param.splitlines()[2:]:
        kind, name, *_ = [*line.split(), "", ""]
        # pnnx's own intermediate ops are called torch.gt, F.grid_sample, Tensor.to, aten::topk, pnnx.Expression
        if "." in kind or "::" in kind:
            raise unsupported(kind, name, graph)


def unsupported(kind: str, layer: str, graph: Graph) -> UnsupportedOpError:
    """The error for a layer type ncnn does not have, traced back to a node of the graph where names allow."""
    word = kind.replace("::", ".").rpartition(".")[2].lower().replace("_", "")
    word = _ONNX_NAME.get(word, word)
    for node in graph.nodes:
        if node.op_type.lower() == word or node.name == layer:
            return UnsupportedOpError(
                f"ncnn has no layer for op {node.op_type} (node {node.name!r}); "
                "cut the graph before it, or convert to another target"
            )
    return UnsupportedOpError(
        f"ncnn has no layer for {kind} ({layer!r} in pnnx's naming); convert to another target, or simplify the graph"
    )
