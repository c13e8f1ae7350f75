"""The few layers that every plan leaves in float: where integers gain no time, and where they cost most accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from edgevision.graph import Graph, attributes

if TYPE_CHECKING:
    from onnx import NodeProto

# integer kernels take their time from long sums over many channels; up to these, float is as quick
_STEM_CHANNELS = 32
_STEM_PRODUCTS = 32
# float layers may have this share of the work: a few hundredths of FP32's time
_BUDGET = 0.06
# moving a value takes the time of so many products, and in a file a weight's share counts half as much
_PRODUCTS_PER_VALUE = 16
_WEIGHT_SHARE = 0.5
# and each share of them must save this many times its share of the noise
_LEAST_GAIN = 3.0
# layers in a row that are tried together: an inverted residual has three
_WINDOW = 4
# activations that lie between two layers of a stem without leaving the channel
_BETWEEN = frozenset({"Relu", "Clip", "HardSwish", "LeakyRelu", "Sigmoid"})

# compute nodes that stay in float → the tensors that a plan then quantizes
Quantized = Callable[[Collection[str]], Collection[str]]


def macs(graph: Graph, node: NodeProto) -> int:
    """Multiply-accumulates of a Conv, Gemm or MatMul for one picture; 0 where shapes are not known."""
    weight = graph.initializers.get(node.input[1]) if len(node.input) > 1 else None
    shape = graph.shapes.get(node.output[0], ())
    if weight is None:
        return 0
    pixels = 1
    for size in shape[2:] if node.op_type == "Conv" else shape[1:-1]:
        pixels *= size or 1
    return int(weight.size) * pixels


def stem_layers(graph: Graph) -> list[str]:
    """Names of the convolutions from the input on that have few channels and short sums, one after the other.

    Three colours, or a depthwise filter over 32 channels, give a dot-product instruction little to add up; with
    the rounding of a large picture before them such layers take longer on integers than in float. The walk ends
    where the net forks, widens beyond 32 channels, or sums over more than 32 products.
    """
    names: list[str] = []
    tensor = graph.input_name
    while True:
        readers = graph.consumers.get(tensor, [])
        if len(readers) != 1 or tensor in graph.output_names:
            return names
        node = readers[0]
        if node.op_type == "Conv":
            if not _is_slight(graph, node):
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


def _is_slight(graph: Graph, node: NodeProto) -> bool:
    weight = graph.initializers.get(node.input[1])
    if weight is None:
        return False
    channels = max(weight.shape[0], weight.shape[1] * attributes(node).get("group", 1))
    return bool(channels <= _STEM_CHANNELS and math.prod(weight.shape[1:]) <= _STEM_PRODUCTS)


def precise_layers(
    graph: Graph, layers: list[NodeProto], noise: Mapping[str, float], quantized: Quantized
) -> dict[str, float]:
    """Layers whose integers cost most accuracy for the time they save: names → share of the noise that goes.

    Rounding noise of early tensors averages out on its way; that of the last ones, before a global pooling or a
    detector's outputs, does not, and these have few pixels to compute. Runs of up to four layers compete by the noise
    they take away for their share of the work (products, values moved, or weights stored). The best is left in float
    as long as its share of the noise is three times that of the work and all such layers together do at most 6% of it.

    Args:
        graph: the canonical graph.
        layers: compute nodes that run on integers, in topological order.
        noise: tensor name → power of the outputs' disturbance by its rounding, as `noise_gains` predicts it; those of
            tensors that lie far apart are compared only roughly.
        quantized: tells for names of layers in float which tensors carry integers.

    Source: mixed precision by a linear model of sensitivity, as HAWQ-V2, Dong et al., arXiv 1911.03852, section 3,
    with the noise model of equalization in place of the Hessian's trace.
    """
    chosen: dict[str, float] = {}
    work = _shares_of_work(graph, layers)
    total = _of(noise, quantized(()))
    if total <= 0 or len(layers) <= _WINDOW:
        return chosen
    around = {node.name: _around(graph, node) for node in layers}
    while True:
        left = [node for node in layers if node.name not in chosen]
        now, spent = _of(noise, quantized(chosen)), sum(work[name] for name in chosen)
        best, best_run, best_saved = _LEAST_GAIN, list[str](), 0.0
        for run in _runs(left):
            names = [node.name for node in run]
            cost = sum(work[name] for name in names)
            if cost + spent > _BUDGET:
                continue
            # the most that could go is quick to tell, and spares most runs the exact answer
            if _of(noise, set().union(*(around[name] for name in names))) <= best * cost * total:
                continue
            saved = (now - _of(noise, quantized([*chosen, *names]))) / total
            if saved / cost > best:
                best, best_run, best_saved = saved / cost, names, saved
        if not best_run:
            return chosen
        chosen.update(dict.fromkeys(best_run, best_saved))


def _shares_of_work(graph: Graph, layers: list[NodeProto]) -> dict[str, float]:
    """Share of each layer in what all of them take: of time or of the file, whichever counts more."""
    moved = {node.name: sum(_elements(graph, name) for name in (node.input[0], node.output[0])) for node in layers}
    time = {node.name: macs(graph, node) + _PRODUCTS_PER_VALUE * moved[node.name] for node in layers}
    stored = {node.name: int(graph.initializers[node.input[1]].size) for node in layers}
    all_time, all_stored = max(sum(time.values()), 1), max(sum(stored.values()), 1)
    return {name: max(time[name] / all_time, _WEIGHT_SHARE * stored[name] / all_stored) for name in time}


def _elements(graph: Graph, name: str) -> int:
    return math.prod(size or 1 for size in graph.shapes.get(name, ()))


def _of(noise: Mapping[str, float], names: Iterable[str]) -> float:
    return sum(noise.get(name, 0.0) for name in names)


def _runs(layers: list[NodeProto]) -> Iterator[list[NodeProto]]:
    for size in range(1, _WINDOW + 1):
        for at in range(len(layers) - size + 1):
            yield layers[at : at + size]


def _around(graph: Graph, layer: NodeProto) -> set[str]:
    """Tensors that may lose their integers when a layer does: what it reads and makes, up to three ops away."""
    names = {str(layer.input[0]), str(layer.output[0])}
    for _ in range(3):
        names |= {str(out) for name in list(names) for reader in graph.consumers.get(name, []) for out in reader.output}
        names |= {str(name) for made in list(names) if made in graph.producer for name in graph.producer[made].input}
    return names
