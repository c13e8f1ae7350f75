"""Layers that are to stay in float: by their names, or as a precision search found them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from edgevision.bundle import PLAN, SUFFIX, Bundle
from edgevision.errors import UsageError
from edgevision.registry import unknown_name

if TYPE_CHECKING:
    from onnx import NodeProto

    from edgevision.graph import Graph

_ASKED = "kept in float as asked for"


def layers_in_float(graph: Graph, wanted: Sequence[str]) -> dict[str, str]:
    """Node → why it stays in float.

    Args:
        graph: the canonical graph.
        wanted: names of nodes or of their weights, as ``edgevision sensitivity`` and ``convert --explain`` print them,
            with ``*`` and ``?``; or INT8 bundles (``.evb``), whose layers in float are taken: those that
            ``convert --max-drop`` found, where it made the bundle.

    Raises:
        UsageError: a name that no node has; the near ones are told.
        BundleError: a bundle that is none.
    """
    kept: dict[str, str] = {}
    for name in wanted:
        if name.endswith(SUFFIX):
            kept.update({node: why for node, why in _of_bundle(name).items() if node in _names(graph)})
            continue
        found = [node.name for node in graph.nodes if any(fnmatchcase(own, name) for own in _own_names(graph, node))]
        if not found:
            raise UsageError(unknown_name("layer", name, _names(graph)))
        kept.update(dict.fromkeys(found, _ASKED))
    return kept


def _own_names(graph: Graph, node: NodeProto) -> list[str]:
    """What a node may be called by: its own name and that of its weight."""
    weight = [str(name) for name in node.input[1:2] if name in graph.initializers]
    return [str(node.name), *weight]


def _names(graph: Graph) -> list[str]:
    return [name for node in graph.nodes for name in _own_names(graph, node)]


def _of_bundle(path: str) -> dict[str, str]:
    bundle = Bundle.open(Path(path))
    if bundle.manifest.precision != "int8":
        raise UsageError(f"{path} is {bundle.manifest.precision}: only an int8 bundle tells which layers stay in float")
    reasons: dict[str, str] = json.loads(bundle.read(PLAN))["float_ops"]
    searched = bundle.manifest.provenance.get("calibration", {}).get("search")
    # without a search the plan says what its target cannot do, which another target may well do
    names = reasons if searched is None else searched["float_nodes"]
    return {name: reasons[name] for name in names if name in reasons}
