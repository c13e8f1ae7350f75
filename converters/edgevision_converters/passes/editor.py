"""`Editor`: an owned copy of a model with the look-ups and small surgeries that graph passes share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgevision.graph import replace_nodes

Array = npt.NDArray[Any]


class Editor:
    """Edits a copy of ``model``; `finish` returns it. The model that was given is never touched.

    Attributes:
        nodes: the nodes, in topological order; passes insert and remove through the methods below.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model = ModelProto()
        self._model.CopyFrom(model)
        self.nodes: list[NodeProto] = list(self._model.graph.node)
        self._tensors: dict[str, TensorProto] = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._arrays: dict[str, Array] = {}
        self._names = {name for node in self.nodes for name in [*node.input, *node.output]}
        self._names |= set(self._tensors) | {value.name for value in self._model.graph.input}
        self._output_names = {value.name for value in self._model.graph.output}
        self._tensors_changed = False
        self._consumers: dict[str, list[NodeProto]] | None = None
        self._producers: dict[str, NodeProto] | None = None

    @property
    def model(self) -> ModelProto:
        """The copy under work, for what is not a node or an initializer (inputs, outputs, opsets)."""
        return self._model

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return opset_of(self._model)

    def is_output(self, name: str) -> bool:
        """Whether ``name`` is an output of the graph."""
        return name in self._output_names

    def consumers(self, name: str) -> list[NodeProto]:
        """Nodes that read ``name``; one that reads it twice is listed once."""
        if self._consumers is None:
            self._consumers = {}
            for node in self.nodes:
                for used in dict.fromkeys(node.input):
                    self._consumers.setdefault(used, []).append(node)
        return self._consumers.get(name, [])

    def producer(self, name: str) -> NodeProto | None:
        """The node that makes ``name``; None for inputs and initializers."""
        if self._producers is None:
            self._producers = {output: node for node in self.nodes for output in node.output if output}
        return self._producers.get(name)

    def only_consumer(self, name: str) -> NodeProto | None:
        """The one node that reads ``name``, when there is exactly one and ``name`` is no output of the graph."""
        readers = self.consumers(name)
        return readers[0] if len(readers) == 1 and not self.is_output(name) else None

    def changed(self) -> None:
        """Forget the look-ups; called by passes that edit ``node.input`` or ``node.output`` in place."""
        self._consumers = None
        self._producers = None

    def constant(self, name: str) -> Array | None:
        """Value of an initializer; None when ``name`` is none."""
        if name not in self._tensors:
            return None
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self._tensors[name])
        return self._arrays[name]

    def input_constant(self, node: NodeProto, index: int) -> Array | None:
        """Value of the ``index``-th input of ``node`` when it is there and an initializer."""
        return self.constant(node.input[index]) if len(node.input) > index and node.input[index] else None

    def unique(self, hint: str) -> str:
        """A tensor name that is not taken, ``hint`` itself where possible."""
        name, number = hint, 1
        while name in self._names:
            name, number = f"{hint}_{number}", number + 1
        self._names.add(name)
        return name

    def add_constant(self, hint: str, value: Array) -> str:
        """Add an initializer and return its name."""
        name = self.unique(hint)
        self._tensors_changed = True
        self._tensors[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def set_constant(self, name: str, value: Array) -> None:
        """Make ``name``, which a node that is about to be removed makes, an initializer."""
        self._names.add(name)
        self._tensors[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        self._arrays.pop(name, None)
        self._tensors_changed = True

    def replace_constant(self, node: NodeProto, index: int, value: Array) -> None:
        """Give ``node`` a new constant input; the name stays when nobody else reads it."""
        name = node.input[index]
        used = sum(list(reader.input).count(name) for reader in self.consumers(name))
        if used == 1 and not self.is_output(name):
            self._tensors[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
            self._arrays.pop(name, None)
            self._tensors_changed = True
        else:
            node.input[index] = self.add_constant(name, value)
            self.changed()

    def drop_constants(self, names: Iterable[str]) -> None:
        """Remove initializers that nobody reads."""
        for name in names:
            del self._tensors[name]
            self._tensors_changed = True

    def tensors(self) -> list[tuple[str, TensorProto]]:
        """Initializers by name, in order."""
        return list(self._tensors.items())

    @property
    def constant_names(self) -> list[str]:
        """Names of the initializers, in order."""
        return list(self._tensors)

    def insert_before(self, node: NodeProto, new: NodeProto) -> None:
        """Put ``new`` right before ``node``."""
        self.nodes.insert(_index(self.nodes, node), new)
        self.changed()

    def insert_after(self, node: NodeProto, new: NodeProto) -> None:
        """Put ``new`` right after ``node``."""
        self.nodes.insert(_index(self.nodes, node) + 1, new)
        self.changed()

    def remove(self, nodes: Iterable[NodeProto]) -> None:
        """Take nodes out; what they made must have no reader left, or another producer."""
        gone = {id(node) for node in nodes}
        self.nodes = [node for node in self.nodes if id(node) not in gone]
        self.changed()

    def replace_uses(self, old: str, new: str) -> None:
        """Let every reader of ``old`` read ``new`` instead."""
        for node in self.consumers(old):
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new
        self.changed()

    def bypass(self, node: NodeProto) -> bool:
        """Remove a node that returns its first input unchanged; False where a graph output needs it."""
        source, result = node.input[0], node.output[0]
        if not self.is_output(result):
            self.replace_uses(result, source)
            self.remove([node])
            return True
        maker = self.producer(source)
        if maker is None or self.is_output(source):
            return False  # an output of the graph that is also an input or another output needs a node of its own
        maker.output[list(maker.output).index(source)] = result
        self.changed()
        self.replace_uses(source, result)
        self.remove([node])
        return True

    def make_node(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any
    ) -> NodeProto:
        """A node of the standard domain."""
        return helper.make_node(op_type, list(inputs), list(outputs), name=name, **attributes)

    def finish(self) -> ModelProto:
        """The edited model, its nodes and initializers written back."""
        graph = self._model.graph
        replace_nodes(self._model, self.nodes)
        if self._tensors_changed:
            tensors = [_copy_tensor(tensor) for tensor in self._tensors.values()]
            del graph.initializer[:]
            graph.initializer.extend(tensors)
        return self._model


def opset_of(model: ModelProto) -> int:
    """Version of the standard operator set a model imports; 0 where it imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Value of one attribute: int, float, str, list or `TensorProto`; ``default`` where it is not given."""
    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            if isinstance(value, bytes):
                return value.decode()
            return list(value) if entry.type in (entry.INTS, entry.FLOATS) else value
    return default


def set_attributes(node: NodeProto, **values: Any) -> None:
    """Set attributes of a node, replacing those of the same name; None removes one."""
    kept = [entry for entry in node.attribute if entry.name not in values]
    made = [helper.make_attribute(name, value) for name, value in values.items() if value is not None]
    copies = []
    for entry in [*kept, *made]:
        copy = type(entry)()
        copy.CopyFrom(entry)
        copies.append(copy)
    del node.attribute[:]
    node.attribute.extend(copies)


def _index(nodes: list[NodeProto], wanted: NodeProto) -> int:
    return next(index for index, node in enumerate(nodes) if node is wanted)


def _copy_tensor(tensor: TensorProto) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy
