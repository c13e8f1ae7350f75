"""What a model's INT8 is planned from: one calibration, the ranges of each target, its plan and learned weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgevision import __version__
from edgevision.data import batches
from edgevision.data.base import Subset, evenly_spaced
from edgevision.errors import CalibrationError
from edgevision.pipeline.calibration import calibrate
from edgevision.pipeline.long_method import learn_long
from edgevision.pipeline.workspace import Workspace, digest_of, digest_of_samples
from edgevision.preprocess import Preprocess
from edgevision.progress import Progress

if TYPE_CHECKING:
    from edgevision.graph import Graph
    from edgevision.pipeline.convert import ConvertOptions
    from edgevision_calibration.plan import QuantPlan
    from edgevision_calibration.qat.model import QuantizedModel
    from edgevision_calibration.table import CalibrationTable
    from edgevision_converters.export import Source


class Planner:
    """Calibrates a model once and plans it for each target; `edgevision.pipeline.convert.Job` makes bundles of it."""

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        samples: Subset | None,
        workspace: Workspace,
        options: ConvertOptions,
        trained: QuantizedModel | None = None,
    ) -> None:
        self.source = source
        self.preprocess = preprocess
        self.samples = samples
        self.workspace = workspace
        self.options = options
        self.trained = trained
        self._calibrated: tuple[Graph, CalibrationTable] | None = None
        self._ranges: dict[str, dict[str, str]] = {}
        self._plans: dict[str, QuantPlan] = {}
        self._learned: dict[str, tuple[Graph, QuantPlan]] = {}

    def calibration(self) -> tuple[Graph, CalibrationTable]:
        """The treated graph and what was observed on it, from the workspace where it is there already."""
        if self._calibrated is not None:
            return self._calibrated
        if self.samples is None:
            raise CalibrationError("there are no pictures to calibrate with: give --data KIND:PATH")
        key = digest_of(
            self.source.graph.sha256,
            self.preprocess.digest,
            digest_of_samples(self.samples),
            self.options.equalize,
            __version__,
        )
        found = self.workspace.find_calibration(key)
        if found is None:
            found = calibrate(self.source, self.preprocess, self.samples, equalize=self.options.equalize)
            self.workspace.keep_calibration(key, *found)
        self._calibrated = found
        return found

    def few_pictures(self, count: int) -> list[Any]:
        """``count`` preprocessed calibration pictures, or all there are, float32 ``[1, C, H, W]`` each."""
        assert self.samples is not None
        return [batch for batch, _ in batches(evenly_spaced(self.samples, count), self.preprocess, 1)]

    def learned(self, target: str, keep_float: Mapping[str, str] | None = None) -> tuple[Graph, QuantPlan]:
        """The graph and plan for a target with its final weights; ``keep_float``: node → why it stays in float.

        The long method learns the weights of the net with everything quantized, once. Layers that stay in float take
        back their own weights, and the others keep what they learned, so that a search judges what is converted.
        """
        graph, _ = self.calibration()
        if self.options.method != "long":
            return graph, self.plan(target, keep_float)
        if target not in self._learned:
            assert self.samples is not None
            root = self.workspace.root / "long"
            self._learned[target] = learn_long(graph, self.plan(target), self.preprocess, self.samples, root)
        if not keep_float:
            return self._learned[target]
        return partly_learned(*self._learned[target], graph, self.plan(target, keep_float))

    def plan(self, target: str, keep_float: Mapping[str, str] | None = None) -> QuantPlan:
        """The plan for a target; ``keep_float``: node → why it stays in float."""
        from edgevision_calibration.planning import make_plan
        from edgevision_calibration.scheme import scheme_for

        if not keep_float and target in self._plans:
            return self._plans[target]
        graph, table = self.calibration()
        made = make_plan(graph, table, scheme_for(target), ranges=self._ranges_for(target), keep_float=keep_float)
        if not keep_float:
            self._plans[target] = made
        return made

    def _ranges_for(self, target: str) -> str | dict[str, str]:
        """The range method, or each tensor's own where it is to be chosen."""
        if self.options.ranges != "auto":
            return self.options.ranges
        if target not in self._ranges:
            from edgevision_calibration.ranges.auto import PICTURES, choose_ranges
            from edgevision_calibration.scheme import scheme_for

            graph, table = self.calibration()
            with Progress(f"choose ranges for {target}"):
                choices = choose_ranges(graph, table, scheme_for(target), self.few_pictures(PICTURES))
            self._ranges[target] = {name: choice.method for name, choice in choices.items()}
        return self._ranges[target]

    def findings(self) -> list[dict[str, str]]:
        """What the calibration found doubtful."""
        if self.trained is not None:
            return self.trained.table.findings
        return [] if self._calibrated is None else self._calibrated[1].findings


def partly_learned(learned_graph: Graph, learned: QuantPlan, graph: Graph, plan: QuantPlan) -> tuple[Graph, QuantPlan]:
    """Learned weights, biases and ranges where ``plan`` still quantizes; all else as in ``graph``.

    Args:
        learned_graph: the graph whose weights were learned with everything quantized.
        learned: its plan.
        graph: the graph from before.
        plan: of ``graph``, for the same target, with some layers in float.
    """
    own = {name for node in graph.nodes if node.name in plan.float_ops for name in node.input[1:]}
    own -= {name for node in graph.nodes if node.name not in plan.float_ops for name in node.input[1:]}
    mixed = learned_graph.with_initializers(
        {name: graph.initializers[name] for name in own & graph.initializers.keys()}
    )
    return mixed, replace(
        plan,
        graph_sha256=mixed.sha256,
        activations={name: learned.activations.get(name, quant) for name, quant in plan.activations.items()},
        weights={name: learned.weights.get(name, steps) for name, steps in plan.weights.items()},
        biases={name: learned.biases.get(name, bias) for name, bias in plan.biases.items()},
        calibration={
            **plan.calibration,
            **{key: value for key, value in learned.calibration.items() if key != "search"},
        },
    )
