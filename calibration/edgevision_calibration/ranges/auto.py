"""Which range method serves each tensor best, measured on what the nodes that read it make of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.errors import CalibrationError
from edgevision.graph import Graph
from edgevision_calibration.observe import open_session
from edgevision_calibration.plan import ActivationQuant, QuantPlan
from edgevision_calibration.planning import make_plan
from edgevision_calibration.ranges import DEFAULT_METHOD
from edgevision_calibration.scheme import QuantScheme
from edgevision_calibration.table import CalibrationTable

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# pictures that are enough to compare methods on
PICTURES = 16
# what is compared; the first wins a tie
METHODS = (DEFAULT_METHOD, "percentile", "entropy", "moving_average", "minmax")
# another method must be better by this share of the error: less is the choice of pictures, not the method
_LEAST_GAIN = 0.02


@dataclass(frozen=True)
class RangeChoice:
    """The method chosen for one tensor.

    Attributes:
        method: its name.
        error: power of the readers' output error per power of their output, by method.
    """

    method: str
    error: Mapping[str, float]


def choose_ranges(
    graph: Graph,
    table: CalibrationTable,
    scheme: QuantScheme,
    pictures: Iterable[npt.NDArray[np.float32]],
    *,
    methods: Sequence[str] = METHODS,
    threads: int = 0,
) -> dict[str, RangeChoice]:
    """Measure every method on every tensor that ``scheme`` quantizes and keep the best.

    The squared error of the tensor itself would always choose the method that minimises it; what counts is what
    its readers answer, whose weights forgive some errors and add up others. So each reader is computed twice on
    the same picture, from the tensor and from its fake-quantized copy, for all methods in one model, and the
    squared differences of its outputs are summed.

    Args:
        graph: the canonical graph the table was taken on.
        table: its statistics.
        scheme: the target's scheme.
        pictures: preprocessed pictures, float32 ``[B, C, H, W]`` each; a few (16) are enough.
        methods: what to compare; the first one is kept unless another is clearly better.
        threads: ONNX Runtime's threads; 0 for all cores.

    Returns:
        Tensor name → choice; the methods alone are what `make_plan` takes as ``ranges``.

    Raises:
        UsageError: no such method.
        CalibrationError: there are no pictures.
    """
    plans = {method: make_plan(graph, table, scheme, ranges=method, bias_correction=False) for method in methods}
    trials = _trials(graph, plans)
    if not trials:
        return {}
    model = _trial_model(graph, scheme, trials)
    errors = _measure(model, graph.input_name, pictures, threads)
    choices = {}
    for name in plans[methods[0]].activations:
        readers = _readers(graph, name)
        error = {
            method: sum(errors[_trial_name(name, plan.activations[name], reader)] for reader in readers)
            for method, plan in plans.items()
        }
        best = min(methods, key=lambda method: error[method])
        clear = bool(readers) and error[best] < (1 - _LEAST_GAIN) * error[methods[0]]
        choices[name] = RangeChoice(best if clear else methods[0], error)
    return choices


@dataclass(frozen=True)
class _Trial:
    """One reader of one tensor, fed with the tensor on one grid."""

    tensor: str
    quant: ActivationQuant
    reader: NodeProto


def _trials(graph: Graph, plans: Mapping[str, QuantPlan]) -> dict[str, _Trial]:
    """Name of the trial → trial; methods that give the same grid share one."""
    trials = {}
    for plan in plans.values():
        for name, quant in plan.activations.items():
            for reader in _readers(graph, name):
                trials[_trial_name(name, quant, reader)] = _Trial(name, quant, reader)
    return trials


def _readers(graph: Graph, tensor: str) -> list[NodeProto]:
    return graph.consumers.get(tensor, [])


def _trial_name(tensor: str, quant: ActivationQuant, reader: NodeProto) -> str:
    return f"{tensor}|{reader.name}|{quant.scale!r}|{quant.zero_point}"


def _trial_model(graph: Graph, scheme: QuantScheme, trials: Mapping[str, _Trial]) -> ModelProto:
    """The graph with every trial beside it; the outputs are the trials' squared errors, relative to the power."""
    from onnx import ModelProto, TensorProto, helper, numpy_helper

    model = ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    done: set[str] = set()
    for number, (label, trial) in enumerate(trials.items()):
        grid = f"{trial.tensor}|{trial.quant.scale!r}|{trial.quant.zero_point}"
        if grid not in done:
            done.add(grid)
            constants = {
                f"{grid}|scale": np.float32(trial.quant.scale),
                f"{grid}|zero": np.asarray(trial.quant.zero_point, scheme.activation_dtype),
            }
            model.graph.initializer.extend(
                numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
            )
            model.graph.node.append(
                helper.make_node("QuantizeLinear", [trial.tensor, *constants], [f"{grid}|q"], f"{grid}|Q")
            )
            model.graph.node.append(
                helper.make_node("DequantizeLinear", [f"{grid}|q", *constants], [f"{grid}|x"], f"{grid}|DQ")
            )
        model.graph.node.extend(_measuring_nodes(trial, f"{grid}|x", f"trial{number}", label))
        model.graph.output.append(helper.make_tensor_value_info(label, TensorProto.FLOAT, []))
    return model


def _measuring_nodes(trial: _Trial, source: str, prefix: str, output: str) -> list[NodeProto]:
    """A copy of the reader fed from ``source``, and its relative squared error as a scalar ``output``."""
    from onnx import NodeProto, helper

    twin = NodeProto()
    twin.CopyFrom(trial.reader)
    twin.name = f"{prefix}_twin"
    for position, name in enumerate(twin.input):
        if name == trial.tensor:
            twin.input[position] = source
    for position, name in enumerate(twin.output):
        if name:
            twin.output[position] = f"{prefix}_out{position}"
    made, expected = twin.output[0], trial.reader.output[0]
    reduce_all: dict[str, Any] = {"keepdims": 0}
    return [
        twin,
        helper.make_node("Sub", [made, expected], [f"{prefix}_difference"], f"{prefix}_difference"),
        helper.make_node("ReduceSumSquare", [f"{prefix}_difference"], [f"{prefix}_noise"], f"{prefix}_noise",
                         **reduce_all),
        helper.make_node("ReduceSumSquare", [expected], [f"{prefix}_power"], f"{prefix}_power", **reduce_all),
        helper.make_node("Div", [f"{prefix}_noise", f"{prefix}_power"], [output], f"{prefix}_error"),
    ]  # fmt: skip


def _measure(
    model: ModelProto, input_name: str, pictures: Iterable[npt.NDArray[np.float32]], threads: int
) -> dict[str, float]:
    """Sum of every output over the pictures; outputs without power (0/0) say nothing and count as no error."""
    session = open_session(model.SerializeToString(), threads=threads)
    names = [value.name for value in model.graph.output]
    totals = np.zeros(len(names))
    count = 0
    for picture in pictures:
        values = np.asarray(session.run(names, {input_name: picture}), np.float64)
        totals += np.nan_to_num(values, nan=0.0, posinf=0.0)
        count += len(picture)
    if not count:
        raise CalibrationError("there are no pictures to compare range methods on")
    return dict(zip(names, (totals / count).tolist(), strict=True))
