"""What precision each op of a bundle runs in, and why: the choices that cost speed or accuracy, made visible."""

from __future__ import annotations

from edgevision.bundle import PLAN, Bundle
from edgevision.graph import Graph, attributes
from edgevision.pipeline.workspace import Workspace
from edgevision_calibration.integer_flow import data_inputs
from edgevision_calibration.observe import activated
from edgevision_calibration.plan import QuantPlan


def explain(bundle: Bundle, graph: Graph | None = None) -> list[str]:
    """One line for each op: name, type, precision, reason, and where integers must be left or entered around it.

    For INT8 a last line counts the ops in float and these conversions: each is a pass over a tensor.

    Args:
        bundle: a saved bundle.
        graph: the graph it was made from; by default the one kept beside the bundle when it was made.
    """
    manifest = bundle.manifest
    if graph is None and bundle.path is not None:
        graph = Workspace(bundle.path.parent).find_graph(str(manifest.provenance.get("graph_sha256", "")))
    reasons = dict(manifest.provenance.get("explanation", {}))
    if graph is None:
        return [f"{name}: {why}" for name, why in reasons.items()] or ["no graph beside the bundle; convert it again"]
    plan = QuantPlan.from_json(bundle.read(PLAN)) if PLAN in bundle.files else None
    rows = []
    in_float = conversions = 0
    for node in graph.nodes:
        precision, why, around = manifest.precision, "", ""
        if plan is not None:
            precision, why = _precision(graph, plan, node)
            count, around = _conversions(graph, plan, node, precision)
            conversions += count
            in_float += precision == "float"
        told = "; ".join(part for part in (reasons.get(node.name) or why, around) if part)
        rows.append(f"{node.name:<32} {_shape(graph, node):<26} {precision:<6} {told}".rstrip())
    if plan is not None:
        rows.append(
            f"{len(rows) - in_float} ops on integers, {in_float} in float, {conversions} conversions between them"
        )
    if manifest.postprocess is not None and (fixed := manifest.postprocess.fixed) is not None:
        rows.append(
            f"{'detections':<32} {'decoding, suppression':<26} float  decoder {fixed.decoder}, behind the network"
        )
    return rows


def _conversions(graph: Graph, plan: QuantPlan, node: object, precision: str) -> tuple[int, str]:
    """How many tensors are converted around a node, and which."""
    from onnx import NodeProto

    assert isinstance(node, NodeProto)
    read = [name for name in data_inputs(graph, node) if name in plan.activations]
    written = [name for name in node.output if name in plan.activations]
    if precision == "float":
        parts = [f"dequantizes {', '.join(read)}"] if read else []
        parts += [f"quantizes {', '.join(written)}"] if written else []
        return len(read) + len(written), ", ".join(parts)
    output = activated(graph, node)
    if node.op_type in plan.scheme.integer_ops and output is not None and output in plan.activations:
        other = [name for name in read if plan.activations[name] != plan.activations[output]]
        return len(other), f"requantizes {', '.join(other)}" if other else ""
    return 0, ""


def _precision(graph: Graph, plan: QuantPlan, node: object) -> tuple[str, str]:
    from onnx import NodeProto

    assert isinstance(node, NodeProto)
    if node.name in plan.float_ops:
        return "float", plan.float_ops[node.name]
    inputs = [name for name in data_inputs(graph, node) if name in plan.activations]
    if len(node.input) > 1 and node.input[1] in plan.weights and inputs:
        quant = plan.activations[inputs[0]]
        return "int8", f"input step {quant.scale:.4g}, zero point {quant.zero_point}"
    output = activated(graph, node)
    if node.op_type in plan.scheme.integer_ops and inputs and output in plan.activations:
        return "int8", "passes integers on"
    producer = graph.producer.get(node.input[0]) if node.input else None
    if node.op_type in {"Relu", "Clip"} and producer is not None and node.output[0] in plan.activations:
        return "int8", f"folded into the range of {producer.name}"
    return "float", f"{plan.scheme.target} runs {node.op_type} in float"


def _shape(graph: Graph, node: object) -> str:
    from onnx import NodeProto

    assert isinstance(node, NodeProto)
    kind = str(node.op_type)
    if kind == "Conv":
        weight = graph.initializers.get(node.input[1])
        group = attributes(node).get("group", 1)
        if weight is not None:
            kernel = "×".join(str(n) for n in weight.shape[2:])
            kind = f"Conv {kernel} {weight.shape[1] * group}→{weight.shape[0]}" + (f" /{group}" if group > 1 else "")
    return kind
