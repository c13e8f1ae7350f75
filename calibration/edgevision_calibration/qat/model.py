"""`QuantizedModel`: a graph with the plan it was made for, as a folder that every target can be lowered from.

::

    quantized.json    schema version, name, task, classes, preprocess, method, metrics, hash of the graph
    graph.onnx        the canonical graph; quantized weights lie on their grid
    original.onnx     the FP32 network it was made from, which its bundles are compared with
    plan.json         the plan of the target it was made for
    table/            what was observed on the graph, for the tensors that other targets quantize besides
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.dependencies import require
from edgevision.errors import CheckpointError
from edgevision.files import write_json, write_text
from edgevision.graph import Graph
from edgevision.preprocess import Preprocess
from edgevision_calibration.plan import ActivationQuant, QuantPlan
from edgevision_calibration.planning import activation_quant, make_plan
from edgevision_calibration.scheme import scheme_for
from edgevision_calibration.table import CalibrationTable

if TYPE_CHECKING:
    from torch import nn

SCHEMA_VERSION = 1
DESCRIPTION, GRAPH, ORIGINAL, PLAN, TABLE = "quantized.json", "graph.onnx", "original.onnx", "plan.json", "table"


@dataclass(frozen=True)
class QuantizedModel:
    """A network quantized for one target, ready to be lowered to it exactly, and to the others by its ranges.

    Attributes:
        name: a short name, for files.
        graph: canonical graph; quantized weights lie on their grid.
        original: canonical graph of the FP32 network it was made from.
        plan: of the target it was made for.
        table: statistics of the graph's activations.
        preprocess: how pictures become its input.
        method: ``default``, ``long`` or ``qat``.
        classes: names by index; empty where unknown.
        task: ``classification`` or ``tensors``.
        description: where it came from, in words.
        metrics: name → value, measured against the FP32 network.
    """

    name: str
    graph: Graph
    original: Graph
    plan: QuantPlan
    table: CalibrationTable
    preprocess: Preprocess
    method: str
    classes: tuple[str, ...] = ()
    task: str = "classification"
    description: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    def plan_for(self, target: str) -> QuantPlan:
        """The plan as it is for its own target; for another its ranges and weight steps in that target's scheme.

        Layers that were asked to stay in float do so on every target, with the weights that they had. Tensors that
        the own target leaves in float get their range from what was observed.
        """
        if target == self.plan.scheme.target:
            return self.plan
        scheme = scheme_for(target)
        kept_in_float = dict(self.plan.calibration.get("keep_float", {}))
        plan = make_plan(self.graph, self.table, scheme, keep_float=kept_in_float, bias_correction=False)
        low, high = self.plan.scheme.quant_range
        learned = {
            name: ((low - quant.zero_point) * quant.scale, (high - quant.zero_point) * quant.scale)
            for name, quant in self.plan.activations.items()
        }
        # tensors that share a scale there share the widest of their learned ranges
        ranges: dict[ActivationQuant, list[tuple[float, float]]] = {}
        for name, quant in plan.activations.items():
            if name in learned:
                ranges.setdefault(quant, []).append(learned[name])
        activations = {
            name: quant
            if quant not in ranges
            else activation_quant(min(r[0] for r in ranges[quant]), max(r[1] for r in ranges[quant]), scheme)
            for name, quant in plan.activations.items()
        }
        weights = {name: self.plan.weights.get(name, steps) for name, steps in plan.weights.items()}
        kept = set(weights) & set(self.plan.weights)
        biases = {
            node.name: self.plan.biases[node.name]
            for node in self.graph.nodes
            if node.name in self.plan.biases and node.input[1] in kept
        }
        calibration = {**plan.calibration, "method": self.method, "learned_for": self.plan.scheme.target}
        return replace(plan, activations=activations, weights=weights, biases=biases, calibration=calibration)

    def build(self) -> nn.Module:
        """The quantized network in torch: float32 [B, C, H, W] → outputs as the plan's integers give them.

        One output comes as a tensor, several as name → tensor. It is the reference that engines are compared with,
        in eval mode; to train it, see `edgevision_calibration.qat.train`.

        Raises:
            UnsupportedOpError: an op of the graph has no torch form.
            MissingDependencyError: torch is not installed.
        """
        require("torch", purpose="build models")
        from edgevision_calibration.torch_graph.fake_quant import FakeQuantGraph
        from edgevision_calibration.torch_graph.module import answers_of

        return answers_of(FakeQuantGraph(self.graph, self.plan))

    def save(self, path: str | Path) -> Path:
        """Write the folder; the description comes last, so that a folder that has one is whole.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = Path(path)
        self.graph.save(folder / GRAPH)
        self.original.save(folder / ORIGINAL)
        write_text(folder / PLAN, self.plan.to_json())
        self.table.save(folder / TABLE)
        values = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "task": self.task,
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_dict(),
            "method": self.method,
            "target": self.plan.scheme.target,
            "description": self.description,
            "metrics": dict(self.metrics),
            "graph_sha256": self.graph.sha256,
            "original_sha256": self.original.sha256,
        }
        write_json(folder / DESCRIPTION, values)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> QuantizedModel:
        """Read what `save` wrote.

        Raises:
            CheckpointError: the folder is incomplete, damaged or of a newer version.
            ModelError: graph.onnx or original.onnx is missing or damaged.
            CalibrationError: plan or table are damaged.
        """
        folder = Path(path)
        values = _read_description(folder)
        graph, original = Graph.open(folder / GRAPH), Graph.open(folder / ORIGINAL)
        try:
            for name, opened, key in ((GRAPH, graph, "graph_sha256"), (ORIGINAL, original, "original_sha256")):
                if opened.sha256 != values[key]:
                    raise CheckpointError(f"{folder / name}: changed since it was saved; copy the whole folder again")
            plan = QuantPlan.from_json((folder / PLAN).read_bytes())
            return cls(
                name=str(values["name"]),
                graph=graph,
                original=original,
                plan=plan,
                table=CalibrationTable.open(folder / TABLE),
                preprocess=Preprocess.from_dict(values["preprocess"]),
                method=str(values["method"]),
                classes=tuple(str(name) for name in values["classes"]),
                task=str(values["task"]),
                description=str(values["description"]),
                metrics={str(name): float(value) for name, value in values["metrics"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, FileNotFoundError) as error:
            raise CheckpointError(f"{folder}: damaged quantized model: {type(error).__name__}: {error}") from error


def is_quantized_model(path: object) -> bool:
    """Whether ``path`` is a folder that `QuantizedModel.save` wrote; it may still be damaged."""
    return isinstance(path, (str, Path)) and (Path(path) / DESCRIPTION).is_file()


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["schema_version"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {DESCRIPTION} in it; it is made by edgevision quantize") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged: {type(error).__name__}: {error}") from error
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise CheckpointError(f"{path}: schema {version!r}; this EdgeVision reads 1 to {SCHEMA_VERSION}: update it")
    return dict(values)
