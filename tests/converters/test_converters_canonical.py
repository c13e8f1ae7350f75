from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgevision.errors import ModelError, UnsupportedOpError
from edgevision.graph import Graph
from edgevision_converters import passes
from edgevision_converters.canonical import SIMPLIFICATIONS, canonicalize
from edgevision_converters.passes.numerics import relative_difference, run

FLOAT = TensorProto.FLOAT
# Float32 sums in another order: about 1e-7 per operation, over a few hundred terms in these nets.
CLOSE = 2e-5


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return rng(seed).standard_normal(shape).astype(np.float32)


def build(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any] | None = None,
    *,
    input_shape: Any = ("batch", 3, 8, 8),
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
    input_type: int = FLOAT,
    output_type: int = FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", input_type, input_shape)],
        [helper.make_tensor_value_info(name, output_type, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    # the checker wants every output to have a shape, known or not
    for value in model.graph.output:
        value.type.tensor_type.shape.SetInParent()
    with contextlib.suppress(onnx.shape_inference.InferenceError):  # some models here are meant to be wrong
        inferred = onnx.shape_inference.infer_shapes(model)
        for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
            value.CopyFrom(found)
    return model


def conv(source: str = "x", result: str = "y", weight: str = "w", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [result], name=f"conv_{result}", **attributes)


def ops(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


def same(model: onnx.ModelProto, graph: Graph, batch: int = 1, tolerance: float = CLOSE) -> None:
    """The graph gives for every picture what the model gives for it alone."""
    shape = [batch, *[int(size) for size in graph.input_shape[1:]]]
    pictures = rng(7).standard_normal(shape).astype(np.float32)
    name = model.graph.input[0].name
    single = [run(model, {name: picture[None]}) for picture in pictures]
    expected = [np.concatenate(values) for values in zip(*single, strict=True)]
    got = run(graph.model, {graph.input_name: pictures})
    assert relative_difference(expected, got) <= tolerance
    onnx.checker.check_model(graph.model, full_check=True)


def refused(model: onnx.ModelProto | Path, *words: str, error: type[ModelError] = ModelError, **kwargs: Any) -> str:
    with pytest.raises(error) as caught:
        canonicalize(model, **kwargs)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


SMALL = {"w": weights(4, 3, 3, 3)}


class TestDamagedFiles:
    def test_missing_file(self, tmp_path: Path) -> None:
        refused(tmp_path / "none.onnx", "none.onnx", "no such ONNX file")

    def test_empty_file(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.onnx"
        path.touch()
        refused(path, str(path), "the file is empty")

    @pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9, 0.99])
    def test_truncated_file(self, tmp_path: Path, share: float) -> None:
        data = build([conv()], SMALL).SerializeToString()
        path = tmp_path / "cut.onnx"
        path.write_bytes(data[: int(len(data) * share)])
        refused(path, str(path))

    @settings(max_examples=40, deadline=None)
    @given(st.binary(min_size=1, max_size=200))
    def test_garbage_never_gets_through(self, tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
        path = tmp_path_factory.mktemp("garbage") / "garbage.onnx"
        path.write_bytes(data)
        refused(path, str(path))

    def test_malformed_graph_is_told_by_the_checker(self) -> None:
        refused(build([conv(weight="nowhere")], SMALL), "not a well-formed ONNX graph")

    def test_weights_that_do_not_fit(self) -> None:
        model = build([conv(result="h"), conv("h", "y", "v")], {**SMALL, "v": weights(2, 7, 1, 1)})
        refused(model, "the ONNX model: ")

    def test_a_file_is_named_where_a_pass_fails(self, tmp_path: Path) -> None:
        path = tmp_path / "misfit.onnx"
        model = build([conv(result="h"), conv("h", "y", "v")], {**SMALL, "v": weights(2, 7, 1, 1)})
        path.write_bytes(model.SerializeToString())
        assert refused(path, "misfit.onnx").count("misfit.onnx") == 1


class TestExternalData:
    def external(self, folder: Path, location: str, *, offset: int = 0, write: bool = True) -> Path:
        model = build([conv()], SMALL)
        tensor = model.graph.initializer[0]
        data = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": offset, "length": len(data)}.items():
            tensor.external_data.add(key=key, value=str(value))
        folder.mkdir(exist_ok=True)
        if write:
            target = folder / location
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        path = folder / "net.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    def test_beside_the_file_is_read(self, tmp_path: Path) -> None:
        graph = canonicalize(self.external(tmp_path / "a", "net.data"))
        np.testing.assert_array_equal(graph.initializers["w"], SMALL["w"])

    def test_missing(self, tmp_path: Path) -> None:
        refused(self.external(tmp_path / "a", "net.data", write=False), "'w'", "net.data", "is missing")

    @pytest.mark.parametrize("location", ["../secret.data", "sub/../../secret.data"])
    def test_outside_the_folder(self, tmp_path: Path, location: str) -> None:
        path = self.external(tmp_path / "a", location)
        refused(path, "'w'", location, "refused")

    def test_absolute(self, tmp_path: Path) -> None:
        path = self.external(tmp_path / "a", str(tmp_path / "a" / "net.data"))
        refused(path, "outside the model's folder")

    def test_link_out_of_the_folder(self, tmp_path: Path) -> None:
        path = self.external(tmp_path / "a", "net.data", write=False)
        (tmp_path / "secret").write_bytes(SMALL["w"].tobytes())
        (tmp_path / "a" / "net.data").symlink_to(tmp_path / "secret")
        refused(path, "outside the model's folder")

    def test_truncated(self, tmp_path: Path) -> None:
        refused(self.external(tmp_path / "a", "net.data", offset=8), "net.data", "truncated", "bytes 8 to")

    def test_in_memory_needs_the_path(self, tmp_path: Path) -> None:
        path = self.external(tmp_path / "a", "net.data")
        refused(onnx.load(path, load_external_data=False), "'w'", "give the path")


class TestRefusals:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite_weights(self, value: float) -> None:
        bad = SMALL["w"].copy()
        bad[1, 2, 0, 0] = value
        refused(build([conv()], {"w": bad}), "initializer 'w'", "of 108 values")

    def test_nan_in_a_constant_node(self) -> None:
        constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32(np.nan)))
        add = helper.make_node("Add", ["h", "c"], ["y"])
        refused(build([conv(result="h"), constant, add], SMALL), "'c'", "1 NaN")

    def test_an_infinite_bound_is_fine(self) -> None:
        clip = helper.make_node("Clip", ["h", "low", "high"], ["y"])
        constants = {**SMALL, "low": np.float32(0), "high": np.float32(np.inf)}
        model = build([conv(result="h"), clip], constants)
        same(model, canonicalize(model))

    def test_dynamic_height_and_width(self) -> None:
        model = build([conv()], SMALL, input_shape=("batch", 3, "height", "width"))
        refused(model, "[batch, 3, height, width]", "height and width are dynamic", "--input-size 224")
        graph = canonicalize(model, input_size=(10, 12))
        assert graph.input_shape == (None, 3, 10, 12)
        assert graph.shapes["y"] == (None, 4, 8, 10)

    def test_another_size_than_the_fixed_one(self) -> None:
        refused(build([conv()], SMALL), "fixed at 8×8", "16×8", "leave input_size out", input_size=(16, 8))
        assert canonicalize(build([conv()], SMALL), input_size=(8, 8)).input_shape == (None, 3, 8, 8)

    def test_senseless_size(self) -> None:
        model = build([conv()], SMALL, input_shape=("batch", 3, None, None))
        refused(model, "got (0, 8)", input_size=(0, 8))

    def test_dynamic_channels(self) -> None:
        model = build([conv(pads=[1] * 4)], SMALL, input_shape=("batch", "c", 8, 8))
        assert canonicalize(model).input_shape == (None, 3, 8, 8)
        relu = build([helper.make_node("Relu", ["x"], ["y"])], input_shape=("batch", "c", 8, 8))
        refused(relu, "number of channels is dynamic")

    def test_two_inputs(self) -> None:
        model = build([conv(result="h"), helper.make_node("Add", ["h", "z"], ["y"])], SMALL)
        model.graph.input.append(helper.make_tensor_value_info("z", FLOAT, [1, 4, 6, 6]))
        refused(model, "expected one input", "2: x[batch, 3, 8, 8], z[1, 4, 6, 6]")

    def test_no_input(self) -> None:
        model = build([helper.make_node("Relu", ["w"], ["y"])], SMALL)
        del model.graph.input[:]
        refused(model, "0: none")

    def test_three_dimensions(self) -> None:
        refused(build([helper.make_node("Relu", ["x"], ["y"])], input_shape=(1, 3, 8)), "[1, 3, 8]", "4 dimensions")

    @pytest.mark.parametrize(("kind", "name"), [(TensorProto.UINT8, "uint8"), (TensorProto.DOUBLE, "double")])
    def test_other_input_types(self, kind: int, name: str) -> None:
        cast = helper.make_node("Cast", ["x"], ["h"], to=FLOAT)
        model = build([cast, conv("h")], SMALL, input_type=kind)
        refused(model, f"input 'x' is {name}", "expected float32")

    def test_channels_last(self) -> None:
        transpose = helper.make_node("Transpose", ["x"], ["h"], perm=[0, 3, 1, 2])
        model = build([transpose, conv("h")], SMALL, input_shape=(1, 8, 8, 3))
        refused(model, "[1, 8, 8, 3]", "NHWC", "--inputs-as-nchw x")

    def test_a_narrow_picture_is_not_taken_for_channels_last(self) -> None:
        model = build([conv()], {"w": weights(4, 8, 1, 1)}, input_shape=(1, 8, 8, 3))
        assert canonicalize(model).input_shape == (None, 8, 8, 3)

    def test_foreign_domain(self) -> None:
        node = helper.make_node("FusedConv", ["x", "w"], ["y"], name="fused", domain="com.microsoft")
        model = build([node], SMALL)
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        refused(model, "FusedConv", "'com.microsoft'", "'fused'", error=UnsupportedOpError)

    def test_an_op_that_does_not_exist(self) -> None:
        model = build([helper.make_node("Convolve", ["x"], ["y"], name="odd")])
        refused(model, "Convolve", "'odd'", "opset 17", error=UnsupportedOpError)

    def test_control_flow(self) -> None:
        branch = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["b"])], "branch", [], [helper.make_tensor_value_info("b", FLOAT, None)]
        )
        node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
        refused(build([node], {"c": np.array(True)}), "op If", "'choice'", error=UnsupportedOpError)

    @pytest.mark.parametrize("op", ["QuantizeLinear", "QLinearConv", "DynamicQuantizeLinear", "ConvInteger"])
    def test_quantized_models(self, op: str) -> None:
        model = build([helper.make_node(op, ["x", "w"], ["y"], name="quantized")], SMALL)
        refused(model, "quantized already", op, "'quantized'", "give the float model")

    def test_outputs_that_do_not_depend_on_the_picture(self) -> None:
        model = build([helper.make_node("Relu", ["w"], ["y"])], SMALL)
        refused(model, "do not depend on the input")

    def test_an_opset_that_cannot_be_upgraded(self) -> None:
        model = build([helper.make_node("Relu", ["x"], ["y"])], opset=17)
        model.opset_import[0].version = 0
        with pytest.raises(ModelError):
            canonicalize(model)

    def test_a_fixed_batch_that_is_neither_one_nor_free(self) -> None:
        reshape = helper.make_node("Reshape", ["x", "s"], ["y"])
        model = build([reshape], {"s": np.array([3, 2 * 64])}, input_shape=(2, 3, 8, 8))
        refused(model, "batch is fixed at 2")


class TestHalfPrecision:
    def test_float16_becomes_float32(self) -> None:
        half = SMALL["w"].astype(np.float16)
        scale = helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.float16(1.5)))
        nodes = [conv(result="h"), scale, helper.make_node("Mul", ["h", "s"], ["y"])]
        model = build(nodes, {"w": half}, input_type=TensorProto.FLOAT16, output_type=TensorProto.FLOAT16)
        graph = canonicalize(model)
        assert ops(graph) == ["Conv"]
        assert graph.initializers["w"].dtype == np.float32
        np.testing.assert_array_equal(graph.initializers["w"], half.astype(np.float32) * np.float32(1.5))

    def test_casts_to_half_vanish(self) -> None:
        nodes = [
            helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
            conv("h", "g"),
            helper.make_node("Cast", ["g"], ["y"], to=FLOAT),
        ]
        graph = canonicalize(build(nodes, {"w": SMALL["w"].astype(np.float16)}))
        assert ops(graph) == ["Conv"]
        assert graph.output_names == ["y"]


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, dict[str, Any], tuple[int, ...], int, int]:
    """Op, attributes, weight shape, input channels, output channels."""
    op = draw(st.sampled_from(["Conv", "ConvTranspose"]))
    group = draw(st.integers(1, 3))
    inside, outside = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = draw(st.sampled_from([1, 2, 3]))
    attributes = {"group": group, "strides": [draw(st.integers(1, 2))] * 2, "kernel_shape": [kernel] * 2}
    channels_in, channels_out = group * inside, group * outside
    shape = (channels_out, inside) if op == "Conv" else (channels_in, outside)
    return op, attributes, (*shape, kernel, kernel), channels_in, channels_out


class TestFolding:
    @settings(max_examples=40, deadline=None)
    @given(layers(), st.booleans(), st.integers(0, 2**31), st.sampled_from([1e-5, 1e-3]))
    def test_batch_norm_after_any_convolution(
        self, layer: tuple[str, dict[str, Any], tuple[int, ...], int, int], bias: bool, seed: int, epsilon: float
    ) -> None:
        op, attributes, shape, channels_in, channels_out = layer
        generator = rng(seed)
        constants = {
            "w": weights(*shape, seed=seed),
            "gamma": generator.standard_normal(channels_out).astype(np.float32),
            "beta": generator.standard_normal(channels_out).astype(np.float32),
            "mean": generator.standard_normal(channels_out).astype(np.float32),
            "var": generator.uniform(0.1, 4, channels_out).astype(np.float32),
        }
        inputs = ["x", "w"]
        if bias:
            constants["b"] = generator.standard_normal(channels_out).astype(np.float32)
            inputs.append("b")
        nodes = [
            helper.make_node(op, inputs, ["h"], name="layer", **attributes),
            helper.make_node("BatchNormalization", ["h", "gamma", "beta", "mean", "var"], ["y"], epsilon=epsilon),
        ]
        model = build(nodes, constants, input_shape=(1, channels_in, 7, 6))
        graph = canonicalize(model)
        assert ops(graph) == [op]
        assert graph.nodes[0].name == "layer"
        assert graph.output_names == ["y"]
        same(model, graph, batch=2)

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.tuples(st.sampled_from(["Mul", "Div", "Add", "Sub"]), st.booleans(), st.booleans()), max_size=4),
        st.integers(0, 2**31),
    )
    def test_chains_of_channel_constants(self, chain: list[tuple[str, bool, bool]], seed: int) -> None:
        generator = rng(seed)
        nodes, constants, last = [conv(result="h0")], dict(SMALL), "h0"
        for index, (op, scalar, swapped) in enumerate(chain):
            shape = () if scalar else (4, 1, 1) if index % 2 else (1, 4, 1, 1)
            constants[f"c{index}"] = generator.uniform(0.5, 2, shape).astype(np.float32)
            # 1 / x cannot be folded; the rest can stand on either side
            pair = [last, f"c{index}"] if op == "Div" or not swapped else [f"c{index}", last]
            last = f"h{index + 1}"
            nodes.append(helper.make_node(op, pair, [last]))
        model = build(nodes, constants, outputs=(last,))
        graph = canonicalize(model)
        assert ops(graph) == ["Conv"]
        same(model, graph)

    @settings(max_examples=30, deadline=None)
    @given(st.booleans(), st.booleans(), st.sampled_from([1.0, 0.5]), st.sampled_from([1.0, 2.0]), st.booleans())
    def test_gemm_has_weights_out_in(
        self, trans: bool, bias: bool, alpha: float, beta: float, batch_norm: bool
    ) -> None:
        constants = {"w": weights(*((5, 192) if trans else (192, 5))), "c": weights(1, 5), "v": np.ones(5, np.float32)}
        nodes = [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node(
                "Gemm", ["f", "w", "c"] if bias else ["f", "w"], ["g"], transB=int(trans), alpha=alpha, beta=beta
            ),
            helper.make_node("BatchNormalization", ["g", "v", "v", "v", "v"], ["y"])
            if batch_norm
            else helper.make_node("Relu", ["g"], ["y"]),
        ]
        model = build(nodes, constants)
        graph = canonicalize(model)
        gemm = next(node for node in graph.nodes if node.op_type == "Gemm")
        assert graph.initializers[gemm.input[1]].shape == (5, 192)
        assert [(entry.name, entry.i) for entry in gemm.attribute] == [("transB", 1)]
        assert "BatchNormalization" not in ops(graph)
        same(model, graph, batch=2)

    def test_matmul_and_add_become_gemm(self) -> None:
        nodes = [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["m"], name="dense"),
            helper.make_node("Add", ["b", "m"], ["y"]),
        ]
        model = build(nodes, {"w": weights(192, 5), "b": weights(5)})
        graph = canonicalize(model)
        assert ops(graph) == ["Flatten", "Gemm"]
        assert graph.nodes[1].name == "dense"
        same(model, graph, batch=2)

    def test_a_shared_convolution_output_is_left_alone(self) -> None:
        nodes = [
            conv(result="h"),
            helper.make_node("Mul", ["h", "c"], ["m"]),
            helper.make_node("Add", ["m", "h"], ["y"]),
        ]
        model = build(nodes, {**SMALL, "c": weights(4, 1, 1)})
        graph = canonicalize(model)
        assert ops(graph) == ["Conv", "Mul", "Add"]
        same(model, graph)

    def test_a_convolution_that_is_an_output_is_left_alone(self) -> None:
        model = build(
            [conv(result="h"), helper.make_node("Mul", ["h", "c"], ["y"])],
            {**SMALL, "c": weights(4, 1, 1)},
            outputs=("h", "y"),
        )
        graph = canonicalize(model)
        assert ops(graph) == ["Conv", "Mul"]
        assert graph.output_names == ["h", "y"]
        same(model, graph)

    def test_shared_weights_are_folded_apart(self) -> None:
        nodes = [
            conv(result="a"),
            conv(result="b"),
            helper.make_node("Mul", ["a", "two"], ["c"]),
            helper.make_node("Add", ["b", "c"], ["y"]),
        ]
        model = build(nodes, {**SMALL, "two": np.float32(2)})
        graph = canonicalize(model)
        assert ops(graph) == ["Conv", "Conv", "Add"]
        same(model, graph)

    def test_constants_per_position_are_left_alone(self) -> None:
        model = build([conv(result="h"), helper.make_node("Mul", ["h", "c"], ["y"])], {**SMALL, "c": weights(1, 6)})
        graph = canonicalize(model)
        assert ops(graph) == ["Conv", "Mul"]
        same(model, graph)

    def test_shape_arithmetic_is_folded(self) -> None:
        nodes = [
            conv(result="h", pads=[1] * 4),
            helper.make_node("Shape", ["h"], ["s"]),
            helper.make_node("Gather", ["s", "zero"], ["b"]),
            helper.make_node("Unsqueeze", ["b", "axis"], ["b1"]),
            helper.make_node("Concat", ["b1", "rest"], ["target"], axis=0),
            helper.make_node("Reshape", ["h", "target"], ["y"]),
        ]
        constants = {**SMALL, "zero": np.int64(0), "axis": np.array([0]), "rest": np.array([2, -1])}
        model = build(nodes, constants)
        graph = canonicalize(model)
        assert ops(graph) == ["Conv", "Reshape"]
        assert graph.shapes["y"] == (None, 2, 128)
        same(model, graph, batch=3)

    def test_constant_nodes_become_initializers(self) -> None:
        nodes = [
            conv(result="h"),
            helper.make_node("Constant", [], ["low"], value_float=0.0),
            helper.make_node("Constant", [], ["high"], value=numpy_helper.from_array(np.float32(6))),
            helper.make_node("Clip", ["h", "low", "high"], ["y"]),
        ]
        graph = canonicalize(build(nodes, SMALL))
        assert ops(graph) == ["Conv", "Clip"]
        assert graph.initializers["high"].shape == ()

    def test_a_large_constant_is_not_blown_up(self) -> None:
        nodes = [
            helper.make_node("Expand", ["c", "s"], ["e"]),
            helper.make_node("ReduceMean", ["e"], ["m"], keepdims=0),
            helper.make_node("Add", ["x", "m"], ["y"]),
        ]
        model = build(nodes, {"c": np.ones(1, np.float32), "s": np.array([9 << 20])})
        assert "Expand" in ops(canonicalize(model))


class TestCleaning:
    def test_noops_go_and_output_names_stay(self) -> None:
        nodes = [
            helper.make_node("Identity", ["x"], ["a"]),
            conv("a", "b"),
            helper.make_node("Dropout", ["b"], ["c"]),
            helper.make_node("Cast", ["c"], ["d"], to=FLOAT),
            helper.make_node("Transpose", ["d"], ["e"], perm=[0, 2, 3, 1]),
            helper.make_node("Transpose", ["e"], ["f"], perm=[0, 3, 1, 2]),
            helper.make_node("Pad", ["f", "none"], ["g"]),
            helper.make_node("Add", ["g", "zero"], ["h"]),
            helper.make_node("Identity", ["h"], ["y"]),
        ]
        constants = {**SMALL, "none": np.zeros(8, np.int64), "zero": np.float32(0)}
        model = build(nodes, constants)
        graph = canonicalize(model)
        assert ops(graph) == ["Conv"]
        assert (graph.input_name, graph.output_names) == ("x", ["y"])
        same(model, graph)

    def test_transposes_multiply(self) -> None:
        nodes = [
            helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]),
            helper.make_node("Transpose", ["a"], ["y"], perm=[0, 2, 1, 3]),
        ]
        model = build(nodes, input_shape=("batch", 3, 8, 6))
        graph = canonicalize(model)
        assert ops(graph) == ["Transpose"]
        same(model, graph)

    def test_two_outputs_of_one_tensor_keep_both_names(self) -> None:
        model = build([conv(), helper.make_node("Identity", ["y"], ["z"])], SMALL, outputs=("y", "z"))
        graph = canonicalize(model)
        assert graph.output_names == ["y", "z"]
        same(model, graph)

    def test_dead_nodes_and_weights_go(self) -> None:
        model = build([conv(), helper.make_node("Relu", ["x"], ["unused"])], {**SMALL, "spare": weights(3)})
        graph = canonicalize(model)
        assert ops(graph) == ["Conv"]
        assert set(graph.initializers) == {"w"}

    def test_nodes_get_names_of_their_own(self) -> None:
        nodes = [
            helper.make_node("Relu", ["x"], ["a"], name="twin"),
            helper.make_node("Neg", ["a"], ["b"], name="twin"),
            helper.make_node("Abs", ["b"], ["y"]),
        ]
        assert [node.name for node in canonicalize(build(nodes)).nodes] == ["twin", "twin_1", "Abs_y"]

    @pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
    @pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool"])
    @pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 1), (4, 3)])
    def test_auto_pad_is_written_out(self, auto_pad: str, op: str, kernel: int, stride: int) -> None:
        attributes = {"auto_pad": auto_pad, "strides": [stride] * 2, "kernel_shape": [kernel] * 2}
        inputs = ["x", "w"] if op == "Conv" else ["x"]
        constants = {"w": weights(2, 3, kernel, kernel)} if op == "Conv" else {}
        model = build([helper.make_node(op, inputs, ["y"], **attributes)], constants, input_shape=(1, 3, 9, 8))
        graph = canonicalize(model)
        names = {entry.name for entry in graph.nodes[0].attribute}
        assert "pads" in names
        assert "auto_pad" not in names
        same(model, graph)

    def pad(self, value: float | None = None, *, relu: bool = False) -> list[onnx.NodeProto]:
        first = [helper.make_node("Relu", ["x"], ["r"])] if relu else []
        inputs = ["r" if relu else "x", "pads", *(["value"] if value is not None else [])]
        return [*first, helper.make_node("Pad", inputs, ["p"])]

    def padded(self, nodes: list[onnx.NodeProto], value: float | None = None) -> list[str]:
        pads = np.array([0, 0, 1, 0, 0, 0, 1, 2])
        constants = {**SMALL, "pads": pads, "value": np.float32(value or 0)}
        model = build(nodes, constants)
        graph = canonicalize(model)
        same(model, graph)
        return ops(graph)

    def test_padding_merges(self) -> None:
        pool = {"kernel_shape": [3, 3], "strides": [2, 2]}
        assert self.padded([*self.pad(), conv("p", pads=[1, 1, 0, 0])]) == ["Conv"]
        assert self.padded([*self.pad(0.0), conv("p")], 0.0) == ["Conv"]
        assert self.padded([*self.pad(), helper.make_node("AveragePool", ["p"], ["y"], **pool)]) == ["AveragePool"]
        relu_pool = [*self.pad(relu=True), helper.make_node("MaxPool", ["p"], ["y"], **pool)]
        assert self.padded(relu_pool) == ["Relu", "MaxPool"]

    def test_padding_that_means_something_else_stays(self) -> None:
        pool = {"kernel_shape": [3, 3], "strides": [2, 2]}
        assert self.padded([*self.pad(1.0), conv("p")], 1.0) == ["Pad", "Conv"]
        assert self.padded([*self.pad(), helper.make_node("MaxPool", ["p"], ["y"], **pool)]) == ["Pad", "MaxPool"]
        padded_pool = helper.make_node("AveragePool", ["p"], ["y"], pads=[1, 1, 1, 1], **pool)
        assert self.padded([*self.pad(), padded_pool]) == ["Pad", "AveragePool"]
        reader = helper.make_node("Add", ["p", "p"], ["q"])
        assert self.padded([*self.pad(), reader, conv("q")]) == ["Pad", "Add", "Conv"]

    @pytest.mark.parametrize("keepdims", [0, 1])
    @pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
    def test_spatial_means_are_global_pools(self, keepdims: int, axes: list[int]) -> None:
        model = build([helper.make_node("ReduceMean", ["x"], ["y"], axes=axes, keepdims=keepdims)])
        graph = canonicalize(model)
        assert ops(graph) == (["GlobalAveragePool"] if keepdims else ["GlobalAveragePool", "Flatten"])
        same(model, graph, batch=2)

    def test_other_means_stay(self) -> None:
        model = build([helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)])
        assert ops(canonicalize(model)) == ["ReduceMean"]

    def test_a_pool_over_the_whole_map_is_global(self) -> None:
        model = build([helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[8, 8])])
        graph = canonicalize(model)
        assert ops(graph) == ["GlobalAveragePool"]
        same(model, graph)


def hard_swish(spelling: str) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    make = helper.make_node
    constants = {"three": np.float32(3), "six": np.float32(6), "zero": np.float32(0), "sixth": np.float32(1 / 6)}
    gate = [make("Add", ["x", "three"], ["a"]), make("Clip", ["a", "zero", "six"], ["c"])]
    if spelling == "x·(clip/6)":
        return [*gate, make("Div", ["c", "six"], ["g"]), make("Mul", ["x", "g"], ["y"])], constants
    if spelling == "(clip·⅙)·x":
        return [*gate, make("Mul", ["sixth", "c"], ["g"]), make("Mul", ["g", "x"], ["y"])], constants
    if spelling == "(x·clip)/6":
        return [*gate, make("Mul", ["x", "c"], ["g"]), make("Div", ["g", "six"], ["y"])], constants
    if spelling == "(clip·x)·⅙":
        return [*gate, make("Mul", ["c", "x"], ["g"]), make("Mul", ["g", "sixth"], ["y"])], constants
    return [make("HardSigmoid", ["x"], ["g"], alpha=1 / 6, beta=0.5), make("Mul", ["g", "x"], ["y"])], constants


class TestActivations:
    @pytest.mark.parametrize("spelling", ["x·(clip/6)", "(clip·⅙)·x", "(x·clip)/6", "(clip·x)·⅙", "HardSigmoid(x)·x"])
    def test_hard_swish_is_one_op(self, spelling: str) -> None:
        model = build(*hard_swish(spelling))
        graph = canonicalize(model)
        assert ops(graph) == ["HardSwish"]
        same(model, graph)

    def test_hard_sigmoid_alone(self) -> None:
        nodes, constants = hard_swish("x·(clip/6)")
        model = build(nodes[:-1], constants, outputs=("g",))
        graph = canonicalize(model)
        assert ops(graph) == ["HardSigmoid"]
        same(model, graph)

    def test_other_constants_are_not_hard_swish(self) -> None:
        nodes, constants = hard_swish("x·(clip/6)")
        model = build(nodes, {**constants, "three": np.float32(2.5)})
        graph = canonicalize(model)
        assert "HardSwish" not in ops(graph)
        same(model, graph)

    def test_a_hard_sigmoid_of_other_slope_stays(self) -> None:
        nodes = [helper.make_node("HardSigmoid", ["x"], ["g"]), helper.make_node("Mul", ["g", "x"], ["y"])]
        assert ops(canonicalize(build(nodes))) == ["HardSigmoid", "Mul"]

    def test_swish_stays_as_it_is(self) -> None:
        nodes = [helper.make_node("Sigmoid", ["x"], ["g"]), helper.make_node("Mul", ["x", "g"], ["y"])]
        assert ops(canonicalize(build(nodes))) == ["Sigmoid", "Mul"]


class TestBatch:
    @pytest.mark.parametrize(
        ("target", "rewritten"), [([1, -1], None), ([1, 192], None), ([1, 6, 32], [0, 6, 32]), ([1, 1, 192], None)]
    )
    def test_a_written_batch_of_one_is_set_free(self, target: list[int], rewritten: list[int] | None) -> None:
        model = build(
            [helper.make_node("Reshape", ["x", "s"], ["y"])], {"s": np.array(target)}, input_shape=(1, 3, 8, 8)
        )
        graph = canonicalize(model)
        assert graph.input_shape == (None, 3, 8, 8)
        assert graph.shapes["y"][0] is None
        if rewritten:
            assert graph.initializers[graph.nodes[0].input[1]].tolist() == rewritten
        same(model, graph, batch=4)

    def test_a_written_batch_of_four_is_set_free(self) -> None:
        model = build(
            [helper.make_node("Reshape", ["x", "s"], ["y"])], {"s": np.array([4, 6, 32])}, input_shape=(4, 3, 8, 8)
        )
        graph = canonicalize(model)
        pictures = rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)
        assert graph.input_shape[0] is None
        # one picture through a file that was written for four: nothing is left of the four
        assert run(graph.model, {"x": pictures[:1]})[0].shape == (1, 6, 32)
        assert relative_difference(run(model, {"x": pictures}), run(graph.model, {"x": pictures})) == 0

    def test_channel_shuffle_that_mixes_batch_and_channels(self) -> None:
        # ShuffleNetV2's split as old exporters wrote it: the batch moves to axis 1 and back
        nodes = [
            helper.make_node("Reshape", ["x", "s1"], ["a"]),
            helper.make_node("Transpose", ["a"], ["b"], perm=[1, 0, 2]),
            helper.make_node("Reshape", ["b", "s2"], ["c"]),
            helper.make_node("Gather", ["c", "first"], ["d"], axis=0),
            helper.make_node("Gather", ["c", "second"], ["e"], axis=0),
            helper.make_node("Add", ["d", "e"], ["y"]),
        ]
        constants = {
            "s1": np.array([2, 2, 64]),
            "s2": np.array([2, -1, 2, 8, 8]),
            "first": np.int64(0),
            "second": np.int64(1),
        }
        model = build(nodes, constants, input_shape=(1, 4, 8, 8))
        graph = canonicalize(model)
        assert graph.input_shape[0] is None
        same(model, graph, batch=5)

    def test_resize_by_sizes(self) -> None:
        resize = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear")
        model = build([resize], {"sizes": np.array([1, 3, 13, 11])}, input_shape=(1, 3, 8, 8))
        graph = canonicalize(model)
        assert graph.shapes["y"] == (None, 3, 13, 11)
        same(model, graph, batch=3)

    def test_expand_over_the_batch(self) -> None:
        nodes = [
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Expand", ["p", "s"], ["e"]),
            helper.make_node("Add", ["e", "x"], ["y"]),
        ]
        model = build(nodes, {"s": np.array([2, 3, 8, 8])}, input_shape=(2, 3, 8, 8))
        graph = canonicalize(model)
        assert graph.input_shape[0] is None
        pictures = rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
        assert relative_difference(run(model, {"x": pictures}), run(graph.model, {"x": pictures})) == 0

    @pytest.mark.parametrize(
        "nodes",
        [
            # pictures of a batch see each other
            [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])],
            # only the first picture is answered
            [helper.make_node("Gather", ["x", "zero"], ["y"], axis=0)],
            # the batch is no longer in front
            [helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0, 2, 3])],
            # the batch is multiplied into the rows
            [helper.make_node("Reshape", ["x", "rows"], ["y"])],
            # softmax over everything
            [helper.make_node("Flatten", ["x"], ["f"], axis=0), helper.make_node("Softmax", ["f"], ["y"])],
        ],
        ids=["mean", "first", "transposed", "rows", "softmax"],
    )
    def test_what_cannot_be_proved_keeps_a_batch_of_one(self, nodes: list[onnx.NodeProto]) -> None:
        model = build(nodes, {"zero": np.int64(0), "rows": np.array([-1, 64])}, input_shape=(1, 3, 8, 8))
        graph = canonicalize(model)
        assert graph.input_shape == (1, 3, 8, 8)
        same(model, graph)

    def test_a_squeeze_that_would_take_a_batch_of_one_with_it(self) -> None:
        nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Squeeze", ["p"], ["y"])]
        graph = canonicalize(build(nodes))
        assert graph.input_shape[0] is None
        assert graph.shapes["y"] == (None, 3)

    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_freed_graphs_are_right_whatever_was_reshaped(self, data: st.DataObject) -> None:
        shape: list[int] = [1, 4, 4, 6]
        nodes, constants, last = [], {}, "x"
        for index in range(data.draw(st.integers(1, 4))):
            result = f"t{index}"
            if data.draw(st.booleans()):
                perm = data.draw(st.permutations(range(len(shape))))
                nodes.append(helper.make_node("Transpose", [last], [result], perm=perm))
                shape = [shape[axis] for axis in perm]
            else:
                shape = data.draw(st.sampled_from([[1, 96], [1, 4, 24], [8, 12], [2, 1, 48], [1, 1, 4, 4, 6], [96]]))
                nodes.append(helper.make_node("Reshape", [last, f"s{index}"], [result]))
                constants[f"s{index}"] = np.array(shape)
            last = result
        nodes.append(helper.make_node("Reshape", [last, "end"], ["y"]))
        constants["end"] = np.array([1, 96])
        model = build(nodes, constants, input_shape=(1, 4, 4, 6))
        graph = canonicalize(model)
        same(model, graph, batch=1 if graph.input_shape[0] == 1 else 2, tolerance=0)


class TestOpsets:
    def test_old_files_with_initializers_as_inputs(self) -> None:
        model = build([conv(result="h"), helper.make_node("Softmax", ["h"], ["y"], axis=3)], SMALL, opset=9)
        model.ir_version = 3
        model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [4, 3, 3, 3]))
        graph = canonicalize(model)
        assert ops(graph) == ["Conv", "Softmax"]
        assert [value.name for value in graph.model.graph.input] == ["x"]
        same(model, graph, batch=2)

    def test_ir_versions_newer_than_the_runtime_reads(self) -> None:
        model = build([conv(result="y")], SMALL)
        # onnx stamps its newest by default, which ONNX Runtime of the same day refuses
        model.ir_version = onnx.IR_VERSION
        assert canonicalize(model).model.ir_version == 8

    def test_softmax_of_opset_11_keeps_its_meaning(self) -> None:
        # before opset 13 softmax was over all axes from `axis` on
        model = build([conv(result="h"), helper.make_node("Softmax", ["h"], ["y"], axis=1)], SMALL, opset=11)
        graph = canonicalize(model)
        same(model, graph, batch=2)

    def test_upsample_becomes_resize(self) -> None:
        upsample = helper.make_node("Upsample", ["x", "scales"], ["y"], mode="nearest")
        model = build([upsample], {"scales": np.array([1, 1, 2, 2], np.float32)}, opset=9)
        graph = canonicalize(model)
        assert ops(graph) == ["Resize"]
        same(model, graph, batch=2)

    def test_newer_opsets_come_down_to_17(self) -> None:
        nodes = [
            helper.make_node("ReduceMax", ["x", "axes"], ["m"], keepdims=1),
            helper.make_node("Split", ["x"], ["a", "b", "c"], axis=1, num_outputs=3),
            helper.make_node("Concat", ["c", "b", "a", "m"], ["y"], axis=1),
        ]
        model = build(nodes, {"axes": np.array([1])}, opset=20)
        graph = canonicalize(model)
        assert [(entry.domain, entry.version) for entry in graph.model.opset_import] == [("", 17)]
        assert graph.model.ir_version == 8
        same(model, graph, batch=2)

    @pytest.mark.parametrize(
        "node",
        [
            helper.make_node("Mish", ["x"], ["y"]),
            helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear", antialias=1),
            helper.make_node("Split", ["x"], ["y", "z"], axis=1, num_outputs=2),
        ],
        ids=["Mish", "antialias", "uneven"],
    )
    def test_what_needs_18_stays_18(self, node: onnx.NodeProto) -> None:
        model = build([node], {"scales": np.array([1, 1, 0.5, 0.5], np.float32)}, opset=18, outputs=tuple(node.output))
        graph = canonicalize(model)
        assert graph.model.opset_import[0].version == 18
        same(model, graph)

    def test_local_functions_are_inlined(self) -> None:
        function = helper.make_function(
            "custom", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
        )
        node = helper.make_node("Twice", ["x"], ["y"], domain="custom")
        graph = helper.make_graph(
            [node],
            "net",
            [helper.make_tensor_value_info("x", FLOAT, ["batch", 3, 4, 4])],
            [helper.make_tensor_value_info("y", FLOAT, ["batch", 3, 4, 4])],
        )
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("custom", 1)]
        model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8)
        assert ops(canonicalize(model)) == ["Add"]


def every_kind() -> onnx.ModelProto:
    nodes = [
        conv(result="h", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["h", "v", "v", "v", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Reshape", ["r", "s"], ["f"]),
        helper.make_node("MatMul", ["f", "d"], ["y"]),
    ]
    constants = {**SMALL, "v": np.ones(4, np.float32), "s": np.array([1, -1]), "d": weights(256, 5)}
    return build(nodes, constants, input_shape=(1, 3, 8, 8))


class TestIdentity:
    def test_the_same_bytes_every_time(self, tmp_path: Path) -> None:
        model = every_kind()
        path = tmp_path / "net.onnx"
        path.write_bytes(model.SerializeToString(deterministic=True))
        first, second = canonicalize(model), canonicalize(path)
        assert first.to_bytes() == canonicalize(model).to_bytes() == second.to_bytes()
        assert len(first.metadata["source_sha256"]) == 64
        assert first.metadata["producer"] == first.model.producer_name == "edgevision"

    def test_canonical_stays_canonical(self) -> None:
        once = canonicalize(every_kind())
        twice = canonicalize(once.model)
        assert [node.SerializeToString() for node in once.nodes] == [node.SerializeToString() for node in twice.nodes]
        assert twice.input_shape == once.input_shape
        for name, value in once.initializers.items():
            np.testing.assert_array_equal(value, twice.initializers[name])

    def test_shapes_of_all_tensors_are_known(self) -> None:
        graph = canonicalize(every_kind())
        assert all(graph.shapes[name] is not None for node in graph.nodes for name in node.output)
        assert graph.shapes[graph.nodes[0].output[0]] == (None, 4, 8, 8)

    @pytest.mark.parametrize("simplify", SIMPLIFICATIONS, ids=lambda simplify: simplify.__name__)
    def test_passes_leave_their_argument_alone(self, simplify: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
        model = passes.name_nodes(every_kind())
        before = model.SerializeToString(deterministic=True)
        simplify(model)
        assert model.SerializeToString(deterministic=True) == before

    def test_the_argument_of_canonicalize_stays_as_it_was(self) -> None:
        model = every_kind()
        before = model.SerializeToString(deterministic=True)
        canonicalize(model)
        assert model.SerializeToString(deterministic=True) == before

    def test_nothing_of_it_imports_torch(self) -> None:
        code = (
            "import sys; sys.modules['torch'] = None\n"
            "import edgevision_converters.canonical, edgevision_converters.export\n"
        )
        paths = [path for path in sys.path if path]
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": ":".join(paths), "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr


def test_relative_difference_sees_what_matters() -> None:
    one = np.array([1.0, -2.0], np.float32)
    assert relative_difference([one], [one]) == 0
    assert relative_difference([one], [one + np.float32(0.5)]) == pytest.approx(0.25)
    assert relative_difference([one], [one[:1]]) == np.inf
    assert relative_difference([one], [np.array([1.0, np.nan], np.float32)]) == np.inf
    assert relative_difference([np.array([1, 2])], [np.array([1, 3])]) == 0.5


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("ultraface_rfb_320", {"scores": (None, 4420, 2), "boxes": (None, 4420, 4)}),
        ("fastestdet_coco_352", {"758": (None, 85, 22, 22)}),
        ("mobilefacenet_112", {"output0": (None, 128)}),
    ],
)
def test_other_peoples_files(data_root: Path, name: str, outputs: dict[str, tuple[int | None, ...]]) -> None:
    path = data_root / "weights" / f"{name}.onnx"
    original, graph = onnx.load(path), canonicalize(path)
    assert graph.input_name == original.graph.input[0].name
    assert graph.input_shape[0] is None
    assert {output: graph.shapes[output] for output in graph.output_names} == outputs
    assert graph.model.opset_import[0].version == 17
    assert not {"BatchNormalization", "Shape", "Constant", "Identity", "Pad"} & set(ops(graph))
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    # trained weights, a hundred layers: float32 rounding stays under 1e-4 of the outputs' range
    same(original, graph, batch=2, tolerance=1e-4)
    assert graph.to_bytes() == canonicalize(path).to_bytes()
