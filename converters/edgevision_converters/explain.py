"""What precision each op of a bundle runs in, and why: the choices that cost speed or accuracy, made visible."""

from __future__ import annotations

from edgevision.bundle import PLAN, Bundle
from edgevision.graph import Graph, attributes
from edgevision.pipeline.workspace import Workspace
from edgevision_calibration.plan import QuantPlan
from edgevision_calibration.planning import activated, data_inputs


def explain(bundle: Bundle, graph: Graph | None = None) -> list[str]:
    """One line for each op: name, type, precision, reason.

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
    for node in graph.nodes:
        precision, why = manifest.precision, ""
        if plan is not None:
            precision, why = _precision(graph, plan, node)
        rows.append(
            f"{node.name:<32} {_shape(graph, node):<26} {precision:<6} {reasons.get(node.name) or why}".rstrip()
        )
    return rows


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
