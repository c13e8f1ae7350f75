"""What exporters leave for debugging is dropped: it names paths of the machine that exported."""

from __future__ import annotations

from onnx import ModelProto


def strip_debug(model: ModelProto) -> ModelProto:
    """Drop documentation, stack traces, per-node properties and training information.

    Requires: nothing.
    Ensures: what is left is what is computed, so that equal networks have equal bytes.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.metadata_props[:]
    del copy.training_info[:]
    copy.doc_string = ""
    graph = copy.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.quantization_annotation[:]
    for item in [*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info]:
        item.doc_string = ""
        del item.metadata_props[:]
    for node in graph.node:
        node.domain = "" if node.domain == "ai.onnx" else node.domain
        node.overload = ""
    return copy
