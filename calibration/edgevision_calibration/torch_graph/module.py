"""`TorchGraph`: a canonical graph as a torch module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgevision.errors import ModelError, UnsupportedOpError
from edgevision.graph import Graph, attributes
from edgevision_calibration.torch_graph.ops import OPS

if TYPE_CHECKING:
    from onnx import NodeProto


class TorchGraph(nn.Module):
    """Executes a canonical graph node by node: float32 ``[B, C, H, W]`` → output name → tensor.

    Constants are buffers. `operand` is what a subclass overrides to give a node something else than the tensor it
    names. Everything runs on the CPU.

    Raises:
        UnsupportedOpError: an op without a torch form; names the op and the node.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        # nodes are read from the protobuf on every access, attributes decoded: once is enough
        self.nodes = graph.nodes
        self._attributes = [attributes(node) for node in self.nodes]
        self._place = {node.output[0]: position for position, node in enumerate(self.nodes)}
        for node in self.nodes:
            if node.op_type not in OPS or node.domain not in {"", "ai.onnx"}:
                raise UnsupportedOpError(
                    f"{node.op_type} (node {node.name}) has no form with gradients: the long method and QAT need one; "
                    "the default method does not"
                )
        self._constants: dict[str, str] = {}
        for number, (name, value) in enumerate(graph.initializers.items()):
            self._constants[name] = f"constant_{number}"
            self.register_buffer(self._constants[name], torch.from_numpy(value.copy()), persistent=False)

    def constant(self, name: str) -> Tensor:
        """The initializer ``name``."""
        value: Tensor = getattr(self, self._constants[name])
        return value

    def is_constant(self, name: str) -> bool:
        """Whether ``name`` is an initializer."""
        return name in self._constants

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Output name → tensor."""
        return self.execute({self.graph.input_name: images}, self.nodes, self.graph.output_names)

    def execute(
        self, values: Mapping[str, Tensor], nodes: Sequence[NodeProto], wanted: Iterable[str]
    ) -> dict[str, Tensor]:
        """Run ``nodes`` (in topological order) from the tensors ``values`` and return the ``wanted`` ones.

        Tensors that nothing reads any more are let go of on the way.

        Raises:
            ModelError: a node fails; names it.
        """
        wanted = list(wanted)
        held: dict[Any, Tensor] = dict(values)
        last = {name: position for position, node in enumerate(nodes) for name in node.input}
        for position, node in enumerate(nodes):
            operands = [self.operand(node, place, held) for place in range(len(node.input))]
            try:
                out = OPS[node.op_type](operands, self._attributes[self._place[node.output[0]]])
            except (RuntimeError, ValueError, KeyError, IndexError) as error:
                raise ModelError(f"{node.op_type} (node {node.name}) cannot run in torch: {error}") from error
            outputs = out if isinstance(out, tuple) else (out,)
            held.update(zip(node.output, outputs, strict=False))
            for name in set(node.input):
                if last[name] == position and name not in wanted:
                    self.forget(name, held)
        return {name: held[name] for name in wanted}

    def operand(self, node: NodeProto, position: int, held: dict[Any, Tensor]) -> Tensor | None:
        """What ``node`` reads at ``position``; None for an input that is left out."""
        name = str(node.input[position])
        if not name:
            return None
        return self.constant(name) if name in self._constants else held[name]

    def forget(self, name: str, held: dict[Any, Tensor]) -> None:
        """Let go of a tensor that nothing reads any more."""
        held.pop(name, None)


class _Answers(nn.Module):
    """A graph that answers as networks do."""

    def __init__(self, graph: TorchGraph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """The one output, or name → tensor."""
        outputs: dict[str, Tensor] = self.graph(images)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def answers_of(graph: TorchGraph) -> nn.Module:
    """``graph`` as a module in eval mode whose answer is a tensor where it has one output."""
    return _Answers(graph).eval()
