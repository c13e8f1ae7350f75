from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgevision.errors import ModelError, OutputError
from edgevision.graph import Graph, attributes


def small() -> Graph:
    """x → Relu r → (Add of r and itself) s, Mul of r and w → y"""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Add", ["r", "r"], ["s"], name="twice"),
        helper.make_node("Mul", ["r", "w"], ["y"], name="scale"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 5])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 4, 5]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(np.full((3, 1, 1), 2, np.float32), "w")],
        value_info=[helper.make_tensor_value_info("r", TensorProto.FLOAT, ["batch", 3, 4, 5])],
    )
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_look_ups() -> None:
    graph = small()
    assert (graph.name, graph.input_name, graph.input_shape) == ("small", "x", (None, 3, 4, 5))
    assert graph.output_names == ["y", "s"]
    assert [node.name for node in graph.nodes] == ["relu", "twice", "scale"]
    assert graph.producer["y"].name == "scale"
    assert "x" not in graph.producer
    # "twice" reads r two times and is listed once
    assert [node.name for node in graph.consumers["r"]] == ["twice", "scale"]
    assert "y" not in graph.consumers
    assert graph.shapes == {"x": (None, 3, 4, 5), "r": (None, 3, 4, 5), "y": (None, 3, 4, 5), "w": (3, 1, 1)}
    np.testing.assert_array_equal(graph.initializers["w"], np.full((3, 1, 1), 2, np.float32))


def test_save_and_open_give_the_same_bytes(tmp_path: Path) -> None:
    graph = small()
    path = graph.save(tmp_path / "deep" / "small.onnx")
    again = Graph.open(path)
    assert again.to_bytes() == graph.to_bytes() == path.read_bytes()
    assert again.sha256 == graph.sha256
    assert len(graph.sha256) == 64


def test_initializers_are_replaced_in_a_copy() -> None:
    graph = small()
    before = graph.initializers["w"]
    other = graph.with_initializers({"w": before + 1, "nothing": before})
    np.testing.assert_array_equal(graph.initializers["w"], before)
    np.testing.assert_array_equal(other.initializers["w"], before + 1)
    assert other.initializers["w"].dtype == before.dtype
    assert set(other.initializers) == set(graph.initializers)
    assert other.sha256 != graph.sha256


def test_metadata_is_added_to_a_copy() -> None:
    graph = small()
    first = graph.with_metadata({"a": "1", "b": "2"})
    second = first.with_metadata({"b": "3"})
    assert graph.metadata == {}
    assert first.metadata == {"a": "1", "b": "2"}
    assert second.metadata == {"a": "1", "b": "3"}
    assert len({graph.sha256, first.sha256, second.sha256}) == 3
    assert [node.name for node in second.nodes] == [node.name for node in graph.nodes]


def test_attributes_are_python_values() -> None:
    node = helper.make_node(
        "Any",
        [],
        [],
        ints=[1, 2],
        floats=[0.5, 1.5],
        number=3,
        share=0.25,
        mode="linear",
        names=["a", "b"],
        value=numpy_helper.from_array(np.arange(3)),
    )
    values = attributes(node)
    assert values.pop("value").tolist() == [0, 1, 2]
    assert values == {
        "ints": [1, 2],
        "floats": [0.5, 1.5],
        "number": 3,
        "share": 0.25,
        "mode": "linear",
        "names": ["a", "b"],
    }


def test_open_refuses_what_is_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with pytest.raises(ModelError, match=r"net\.onnx: no such ONNX file"):
        Graph.open(path)
    path.write_bytes(small().to_bytes()[:100])
    with pytest.raises(ModelError, match=r"net\.onnx: not a"):
        Graph.open(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=r"net\.onnx: not a canonical graph"):
        Graph.open(path)


def test_open_refuses_external_data(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small().model)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../elsewhere")
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="no external data"):
        Graph.open(path)


def test_a_graph_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        small().save(tmp_path / "file" / "net.onnx")
