"""The few layers that every plan leaves in float: where integers gain no time, and where they cost most accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from edgevision.graph import Graph, attributes
from edgevision_calibration.float_cost import FloatCost
from edgevision_calibration.scheme import QuantScheme, Stem

if TYPE_CHECKING:
    from onnx import NodeProto

# Each share of the time that layers in float add must take away so many times its share of the noise: SqueezeNet 1.1's
# best layers, whose noise is spread evenly, have 0.5 to 1 and made it 1.7 times slower in OpenVINO; MobileNetV2's have
# 2.5 to 6.
_LEAST_GAIN = 2.0
# layers in a row that are tried together: an inverted residual has three
_WINDOW = 4
# activations that lie between two layers of a stem without leaving the channel
_BETWEEN = frozenset({"Relu", "Clip", "HardSwish", "LeakyRelu", "Sigmoid"})

# graph → layer → tensors around it, which all targets ask for
_neighbours: WeakKeyDictionary[Graph, dict[str, set[str]]] = WeakKeyDictionary()
# compute nodes that stay in float → the tensors that a plan then quantizes
Quantized = Callable[[Collection[str]], Collection[str]]


def stem_layers(graph: Graph, stem: Stem) -> list[str]:
    """Names of the convolutions from the input on that have few channels and short sums, one after the other.

    Three colours, or a depthwise filter over 32 channels, give a dot-product instruction little to add up; with
    the rounding of a large picture before them such layers gain next to nothing on integers, and may even take longer;
    and all that follows hears their rounding. The walk ends where the net forks, widens or sums beyond what ``stem``
    says.
    """
    names: list[str] = []
    tensor = graph.input_name
    while True:
        readers = graph.consumers.get(tensor, [])
        if len(readers) != 1 or tensor in graph.output_names:
            return names
        node = readers[0]
        if node.op_type == "Conv":
            if not _is_slight(graph, node, stem):
                return names
            names.append(node.name)
        elif node.op_type not in _BETWEEN:
            return names
        tensor = str(node.output[0])


def thin_layers(graph: Graph, least_products: float) -> list[str]:
    """Names of the convolutions that make fewer than ``least_products`` products for each value read or written."""
    return [node.name for node in graph.nodes if node.op_type == "Conv" and _density(graph, node) < least_products]


def _density(graph: Graph, node: NodeProto) -> float:
    weight, values = graph.initializers.get(node.input[1]), attributes(node)
    if weight is None:
        return math.inf
    # for each pixel of the output: the products, and the values that the layer's strides let it read and write
    read = weight.shape[1] * values.get("group", 1) * math.prod(values.get("strides", [1]))
    return float(weight.size / (read + weight.shape[0]))


def _is_slight(graph: Graph, node: NodeProto, stem: Stem) -> bool:
    weight = graph.initializers.get(node.input[1])
    if weight is None:
        return False
    channels = max(weight.shape[0], weight.shape[1] * attributes(node).get("group", 1))
    most = stem.first_channels if node.input[0] == graph.input_name else stem.channels
    return bool(channels <= most and math.prod(weight.shape[1:]) <= stem.products)


@dataclass(frozen=True)
class Precise:
    """Why a layer stays in float.

    Attributes:
        noise: share of the outputs' noise that goes with the run of layers it belongs to, 0..1.
        time: what that run adds, as a share of the time of the net on integers, as `FloatCost` reckons.
        layers: how many there are in that run.
    """

    noise: float
    time: float
    layers: int

    @property
    def reason(self) -> str:
        """The same for people."""
        what = "it" if self.layers == 1 else f"this run of {self.layers}"
        return (
            f"on integers {what} would make {self.noise:.0%} of the outputs' noise, "
            f"in float about {self.time:.1%} more time"
        )


def precise_layers(
    graph: Graph,
    layers: list[NodeProto],
    noise: Mapping[str, float],
    quantized: Quantized,
    scheme: QuantScheme,
) -> dict[str, Precise]:
    """Layers whose integers cost most accuracy for the time they save, and what both come to.

    Rounding noise of early tensors averages out on its way; that of the last ones, before a global pooling or a
    detector's outputs, does not, and these have few pixels to compute. Runs of up to four layers compete by the noise
    they take away for the time they add: with their own products, all tensors that leave integers with them, further
    ones where earlier choices did not take them already (`FloatCost`). The best is left in float as long as its share
    of the noise is `_LEAST_GAIN` times what it adds and all of them add at most ``scheme.float_budget``.

    Args:
        graph: the canonical graph.
        layers: compute nodes that run on integers, in topological order.
        noise: tensor name → power of the outputs' disturbance by its rounding, as `noise_gains` predicts it; those of
            tensors that lie far apart are compared only roughly.
        quantized: tells for names of layers in float which tensors carry integers.
        scheme: of the plan.

    Source: mixed precision by a linear model of sensitivity, as HAWQ-V2, Dong et al., arXiv 1911.03852, section 3,
    with the noise model of equalization in place of the Hessian's trace.
    """
    chosen: dict[str, Precise] = {}
    carried = frozenset(quantized(()))
    total, spent = _of(noise, carried), 0.0
    if total <= 0 or len(layers) <= _WINDOW:
        return chosen
    cost = FloatCost(graph, layers, carried, scheme)
    near = _neighbours.setdefault(graph, {})
    near.update({node.name: _around(graph, node) for node in layers if node.name not in near})
    most: dict[tuple[str, ...], float] = {}
    while True:
        now, in_float = _of(noise, carried), cost.in_float(chosen, carried)
        best, best_run, found = _LEAST_GAIN, list[str](), Precise(0.0, 0.0, 0)
        for names in _runs([node.name for node in layers if node.name not in chosen]):
            least = cost.added(names, cost.around(names) - in_float)
            if least + spent > scheme.float_budget:
                continue
            # the most that could go for the least it could add is quick to tell, and spares most runs the exact answer
            key = tuple(names)
            if key not in most:
                most[key] = _of(noise, set().union(*(near[name] for name in names)))
            if most[key] <= best * least * total:
                continue
            left = quantized([*chosen, *names])
            added = cost.added(names, cost.in_float([*chosen, *names], left) - in_float)
            saved = (now - _of(noise, left)) / total
            if added + spent <= scheme.float_budget and saved > best * added:
                best, best_run, found = saved / added, names, Precise(saved, added, len(names))
        if not best_run:
            return chosen
        chosen.update(dict.fromkeys(best_run, found))
        carried, spent = frozenset(quantized(chosen)), spent + found.time


def _of(noise: Mapping[str, float], names: Iterable[str]) -> float:
    # asked thousands of times: a list is a third quicker than a generator
    return sum([noise[name] for name in names if name in noise])


def _runs(names: list[str]) -> Iterator[list[str]]:
    for size in range(1, _WINDOW + 1):
        for at in range(len(names) - size + 1):
            yield names[at : at + size]


def _around(graph: Graph, layer: NodeProto) -> set[str]:
    """Tensors that may lose their integers when a layer does: what it reads and makes, up to three ops away."""
    names = {str(layer.input[0]), str(layer.output[0])}
    for _ in range(3):
        names |= {str(out) for name in list(names) for reader in graph.consumers.get(name, []) for out in reader.output}
        names |= {str(name) for made in list(names) if made in graph.producer for name in graph.producer[made].input}
    return names
